"""The compiled CUDA kernels: registers, spills, shared memory, and the loops' machine code.

    python examples/measure/machine_code.py > docs/results/machine-code.md

Needs CuPy, NVRTC and nvdisasm, but no GPU: pip install -e '.[cuda-compile]'.

A multiprocessor has 65,536 registers. Two blocks of 256 threads fit if a thread has at most 128 registers. With two
blocks one can multiply while the other waits. A warp waits for a load at the first use of the loaded value. A loop
hides the latency of memory (some 500 cycles) if this first use comes after the step's last multiplication.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from minires.cuda import launch, precision

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_120")  # T4; A100; RTX 30; H100 and H200; RTX 50
BEFORE_AMPERE = ("sm_75",)  # neither tf32 nor bf16 on the tensor cores
TILES = (16, 32, 64, 128)


def variants(tiny: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file, definitions) of everything that the Python files ask for; `tiny`: of one of each kind."""
    for file in ("sums", "batch_norm", "columns", "elementwise", "pooling"):
        for activation in ("float", "bfloat16"):
            for vector in (1, 4):
                if not tiny or (file, activation, vector) == ("elementwise", "float", 4):
                    yield file, {"ACTIVATION": activation, "VECTOR": vector}
    for file in ("images", "loss", "optimizers"):
        if not tiny or file == "loss":
            yield file, {}
    for file in ("convolution", "convolution_async", "weight_gradient"):
        for kind, activation in enumerate(("float", "float", "bfloat16")):
            for tile in TILES if file != "convolution_async" or kind == 1 else ():
                if not tiny or (file, kind, tile) == ("convolution", 1, 64):
                    yield file, {"ACTIVATION": activation, "PRECISION": kind, "TILE_N": tile}


class Resources(NamedTuple):
    """The resources of a kernel: per thread, and for `shared` per block."""

    registers: int
    spilled: int  # bytes
    shared: int  # bytes


def compiled(file: str, defines: dict[str, Any], architecture: str) -> tuple[bytes, dict[str, Resources]]:
    """The machine code of a variant, compiled as CuPy does it, and what its kernels take.

    Raises `RuntimeError` with the compiler's words.
    """
    from cupy.cuda import nvrtc

    defines = {"ACTIVATION": "float", "VECTOR": 1, **defines}
    text = launch.source(file, tuple(sorted((name, str(value)) for name, value in defines.items())))
    options = (*launch.OPTIONS, f"-arch={architecture}", "--device-as-default-execution-space", "-ftz=true")
    program = nvrtc.createProgram(text, f"{file}.cu", (), ())
    try:
        try:
            nvrtc.compileProgram(program, (*options, "--ptxas-options=-v"))
        except nvrtc.NVRTCError as error:
            raise RuntimeError(nvrtc.getProgramLog(program)) from error
        return nvrtc.getCUBIN(program) + b"\0", _resources(nvrtc.getProgramLog(program))
    finally:
        nvrtc.destroyProgram(program)


def _resources(log: str) -> dict[str, Resources]:
    found = {}
    for part in log.split("Compiling entry function '")[1:]:
        stores, loads = map(int, re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", part).groups())
        shared = re.search(r"(\d+) bytes smem", part)
        registers = int(re.search(r"Used (\d+) registers", part)[1])
        found[part.partition("'")[0]] = Resources(registers, stores + loads, int(shared[1]) if shared else 0)
    return found


class Instruction(NamedTuple):
    """An instruction of the GPU: its name, its operands as text."""

    name: str
    operands: list[str]

    @property
    def is_multiply(self) -> bool:
        """On the tensor cores, or a multiply-add of floats."""
        return self.name.startswith(("HMMA", "FFMA"))

    def written(self) -> set[int]:
        """Registers that it writes: none if it stores, jumps, waits or compares."""
        if self.name.startswith(
            ("ST", "LDGSTS", "LDGDEPBAR", "DEPBAR", "BAR", "BRA", "RED", "ISETP", "FSETP", "PLOP", "BSYNC", "BSSY")
        ):
            return set()
        return _registers(self.operands[0], self._width(0)) if self.operands else set()

    def read(self) -> set[int]:
        """Registers that it reads."""
        first = 0 if not self.written() else 1
        return set().union(*(_registers(text, self._width(i)) for i, text in enumerate(self.operands) if i >= first))

    def _width(self, operand: int) -> int:
        """How many registers in a row an operand names."""
        if self.name.startswith("HMMA"):
            return (4, 4, 2, 4)[operand]
        if "[" in self.operands[operand]:
            return 2  # an address
        return 4 if ".128" in self.name else 2 if ".64" in self.name or "WIDE" in self.name else 1


def _registers(operand: str, width: int) -> set[int]:
    numbers = [int(number) for number in re.findall(r"\bR(\d+)", operand)]
    return {number + i for number in numbers for i in range(width)}


def disassembler() -> str | None:
    """The path of nvdisasm, or None."""
    if path := shutil.which("nvdisasm"):
        return path
    nvidia = importlib.util.find_spec("nvidia")  # where pip puts NVIDIA's packages
    folders = nvidia.submodule_search_locations if nvidia else []
    return next((str(path) for folder in folders for path in Path(folder).glob("*/bin/nvdisasm")), None)


def main_loop(cubin: bytes, kernel: str) -> list[Instruction]:
    """The instructions of the loop of `kernel` that multiplies, of one step.

    Raises `RuntimeError` without nvdisasm, and `ValueError` where there is no such loop.
    """
    if (program := disassembler()) is None:
        raise RuntimeError("there is no nvdisasm; install it with: pip install nvidia-cuda-nvdisasm")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([program, "-c", file.name], text=True, capture_output=True, check=True).stdout
    code = text[text.index(f".text.{kernel}:") :].partition("\n\t.section")[0]
    instructions, labels = [], {}
    for line in code.splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif match := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)\s*(.*?)\s*;", line):
            instructions.append(Instruction(match[1], [part.strip() for part in match[2].split(",") if part.strip()]))
    loops = []
    for i, instruction in enumerate(instructions):
        if instruction.name.startswith("BRA"):
            target = labels.get(re.search(r"\.L_x_\d+", instruction.operands[-1])[0], i + 1)
            if target < i and any(x.is_multiply for x in instructions[target:i]):
                loops.append(instructions[target : i + 1])
    if not loops:
        raise ValueError(f"{kernel} has no loop that multiplies")
    return max(loops, key=lambda loop: sum(x.is_multiply for x in loop))


def used_too_early(loop: list[Instruction]) -> list[tuple[int, int]]:
    """(place of a load from memory, place of the first use of what it loads) in a loop, where the use comes before the
    loop's last multiplication."""
    last = max(i for i, instruction in enumerate(loop) if instruction.is_multiply)
    early = []
    for i, load in enumerate(loop):
        if load.name.startswith("LDG"):
            for j, instruction in enumerate(loop[i + 1 :], start=i + 1):
                if instruction.read() & load.written():
                    early += [(i, j)] if j < last else []
                    break
    return early


def page() -> str:
    """docs/results/machine-code.md."""
    return "\n".join([
        "# What the compiler makes of the CUDA kernels\n",
        f"Written by `python examples/measure/machine_code.py` with NVRTC {compiler()}, the compiler that CuPy uses.",
        "No GPU is needed. [fast-cuda.md](../fast-cuda.md) tells what the kernels do.\n",
        "## The loops on the tensor cores, for an H100 (sm_90)\n",
        "A step multiplies 16 words of the sum. A load that is used before the last multiplication of its step makes",
        "the warp wait for memory.\n",
        *loops(),
        "\n## Registers of a thread, bytes spilled to memory, bytes of shared memory of a block\n",
        *table(),
        "",
    ])  # fmt: skip


def compiler() -> str:
    """The version of NVRTC."""
    from cupy.cuda import nvrtc

    return "{}.{}".format(*nvrtc.getVersion())


def table() -> list[str]:
    """Registers, spilled bytes and shared memory of all kernels, for all architectures, as Markdown."""
    lines = [f"| kernel | {' | '.join(ARCHITECTURES)} |", "|---" * (1 + len(ARCHITECTURES)) + "|"]
    for file, defines in variants():
        tensor_cores = defines.get("PRECISION", 0) > 0
        of = {a: compiled(file, defines, a)[1] for a in ARCHITECTURES if not (tensor_cores and a in BEFORE_AMPERE)}
        what = "".join(f", {name}" for name in _names(defines))
        for kernel in launch.parse(launch.source(file)):
            cells = [_cell(of[a][kernel]) if a in of else "-" for a in ARCHITECTURES]
            lines.append(f"| {kernel}{what} | {' | '.join(cells)} |")
    return lines


def _names(defines: dict[str, Any]) -> list[str]:
    """What tells a variant from the others of its file, in words."""
    if "PRECISION" in defines:
        return [precision.CHOICES[defines["PRECISION"]], f"tile {defines['TILE_N']}"]
    return [defines["ACTIVATION"], f"{defines['VECTOR']} at a time"] if defines else []


def _cell(taken: Resources) -> str:
    return f"{taken.registers}, {taken.spilled}, {taken.shared}"


def loops() -> list[str]:
    """The loops on the tensor cores, on an H100, as Markdown."""
    lines = [
        "| kernel | registers | instructions a step | multiplications | loads | used too early |",
        "|---" * 6 + "|",
    ]
    for file, defines in variants():
        if defines.get("PRECISION", 0):
            cubin, resources = compiled(file, defines, "sm_90")
            loop = main_loop(cubin, file)
            multiplies, loads = (sum(x.name.startswith(n) for x in loop) for n in ("HMMA", ("LDG.", "LDGSTS")))
            lines.append(
                f"| {', '.join([file, *_names(defines)])} | {resources[file].registers} | {len(loop)} | "
                f"{multiplies} | {loads} | {len(used_too_early(loop))} |"
            )
    return lines


if __name__ == "__main__":
    print(page(), end="")
