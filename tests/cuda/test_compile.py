"""Every .cu file compiles for the GPUs it is meant for, and the machine code is what the files say of it. No GPU is
needed for that."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from examples.measure import machine_code
from examples.measure.machine_code import BEFORE_AMPERE, compiled, variants
from minires.cuda import launch

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("cupy", "nvidia"))
    or importlib.util.find_spec("nvidia.cuda_nvrtc") is None,
    reason="needs CuPy and NVRTC: pip install -e '.[cuda-compile]'",
)
ARCHITECTURES = ("sm_75", "sm_80", "sm_90")  # T4; A100; H100 and H200
CASES = [
    (file, defines, architecture)
    for file, defines in variants()
    for architecture in ARCHITECTURES
    if not (defines.get("PRECISION", 0) and architecture in BEFORE_AMPERE)
]


def test_all_files_are_among_the_variants():
    assert {file for file, _ in variants()} == {path.stem for path in launch.FOLDER.glob("*.cu")}


@pytest.mark.parametrize(("file", "defines", "architecture"), CASES, ids=str)
def test_it_compiles_without_spills(file, defines, architecture):
    _, resources = compiled(file, defines, architecture)
    assert sorted(resources) == sorted(launch.parse(launch.source(file))), "the declarations are read rightly"
    assert not [name for name, taken in resources.items() if taken.spilled]
    blocks = 2 if defines.get("PRECISION", 0) else 1  # of 256 threads, on a multiprocessor with 65,536 registers
    most = max(taken.registers for taken in resources.values())
    assert blocks * most * launch.THREADS <= 65536, "on tensor cores one block multiplies while another one waits"


@pytest.mark.skipif(machine_code.disassembler() is None, reason="needs nvdisasm: pip install -e '.[cuda-compile]'")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize(("file", "defines"), [case for case in variants() if case[1].get("PRECISION", 0)], ids=str)
def test_nothing_waits_for_memory_before_the_last_multiplication_of_a_step(file, defines, architecture):
    loop = machine_code.main_loop(compiled(file, defines, architecture)[0], file)
    assert sum(x.name.startswith("HMMA") for x in loop) == defines["TILE_N"] // 4  # in 8 warps, 16 words of k
    assert sum(x.name.startswith("LDG") for x in loop) >= 3
    assert not machine_code.used_too_early(loop)


@pytest.mark.skipif(machine_code.disassembler() is None, reason="needs nvdisasm: pip install -e '.[cuda-compile]'")
def test_the_published_loops_are_those_that_are_compiled():
    text = (Path(__file__).parents[2] / "docs" / "results" / "machine-code.md").read_text()
    if f"NVRTC {machine_code.compiler()}," not in text:
        pytest.skip("the page was written with another compiler")
    assert "\n".join(machine_code.loops()) in text


def test_a_load_that_is_used_too_early_is_found():
    """On code that can be read: R4 to R7 are loaded, and looked at before the second multiplication, or not."""
    parts = ("LDG.E.128 R4 [R2.64]", "HMMA.1688.F32.TF32 R8 R12 R16 R8", "FADD R20 R{} R21", "HMMA R8 R12 R16 R8",
             "STS.128 [R22] R4")  # fmt: skip
    for register, early in ((6, [(0, 2)]), (7, [(0, 2)]), (8, []), (3, [])):
        words = [part.format(register).split() for part in parts]
        loop = [machine_code.Instruction(name, operands) for name, *operands in words]
        assert machine_code.used_too_early(loop) == early


def test_what_does_not_compile_says_why(monkeypatch):
    monkeypatch.setattr(launch, "source", lambda file, defines: "no_such_type x;")
    with pytest.raises(RuntimeError, match="no_such_type"):
        compiled("loss", {}, "sm_90")


def test_the_tables_have_a_line_for_each_kernel(monkeypatch):
    monkeypatch.setattr(
        machine_code, "variants", lambda: [("loss", {}), ("convolution", {"PRECISION": 1, "TILE_N": 64})]
    )
    lines = machine_code.table()
    names = ["cross_entropy", "mean_of", "cross_entropy_backward", "record_step", "convolution, tf32, tile 64"]
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {name}" for name in names]
    assert lines[-1].split(" | ")[1] == "-", "no tensor cores for tf32 before sm_80"
    assert lines[-1].count(", 0, ") == 4
