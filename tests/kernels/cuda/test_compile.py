"""Every .cu file compiles for the GPUs it is meant for, without spilling registers to memory. No GPU is needed for
that."""

from __future__ import annotations

import importlib.util
import re

import pytest

from minires.kernels.cuda import launch

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("cupy", "nvidia"))
    or importlib.util.find_spec("nvidia.cuda_nvrtc") is None,
    reason="needs CuPy and NVRTC: pip install 'minires[cuda-compile]'",
)
ARCHITECTURES = ("sm_80", "sm_90")  # A100; H100 and H200


def variants():
    """(file, definitions) of everything that the Python files ask for."""
    for file in ("batch_norm", "columns", "elementwise", "pooling"):
        for activation in ("float", "bfloat16"):
            for vector in (1, 4):
                yield file, {"ACTIVATION": activation, "VECTOR": vector}
    for file in ("images", "loss", "optimizers"):
        yield file, {}
    for file in ("convolution", "weight_gradient"):
        for kind, activation in enumerate(("float", "float", "bfloat16")):
            for tile in (16, 32, 64, 128):
                yield file, {"ACTIVATION": activation, "PRECISION": kind, "TILE_N": tile}


def test_all_files_are_among_the_variants():
    assert {file for file, _ in variants()} == {path.stem for path in launch.FOLDER.glob("*.cu")}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("file", "defines"), list(variants()), ids=str)
def test_it_compiles_without_spills(file, defines, architecture):
    from cupy.cuda import nvrtc

    defines = {"ACTIVATION": "float", "VECTOR": 1, **defines}
    text = launch.source(file, tuple(sorted((name, str(value)) for name, value in defines.items())))
    program = nvrtc.createProgram(text, f"{file}.cu", (), ())
    try:
        options = (*launch.OPTIONS, f"-arch={architecture}", "--device-as-default-execution-space")
        try:
            nvrtc.compileProgram(program, (*options, "-ftz=true", "--ptxas-options=-v"))
        except nvrtc.NVRTCError:
            pytest.fail(nvrtc.getProgramLog(program))
        log = nvrtc.getProgramLog(program)
    finally:
        nvrtc.destroyProgram(program)
    kernels = re.findall(r"Compiling entry function '(\w+)'", log)
    assert sorted(kernels) == sorted(launch.parse(text)), "the declarations are read rightly"
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    assert len(spills) >= len(kernels)
    assert set(spills) == {("0", "0")}, log
    registers = [int(count) for count in re.findall(r"Used (\d+) registers", log)]
    assert max(registers) * launch.THREADS <= 65536, "at least one block of 256 threads fits a multiprocessor"
