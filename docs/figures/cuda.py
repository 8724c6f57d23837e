"""Draws the figures of docs/fast-cuda.md: a warp, a tile, a tensor core's step, a graph.

    python docs/figures/cuda.py    # writes warp.svg, tile.svg, tensor-core.svg and graph.svg beside this file

Every figure is drawn to be read in grey too. Needs matplotlib: pip install -e '.[plots]'.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

HERE = Path(__file__).parent
LIGHT, MIDDLE, DARK, ACCENT = "#eeeeee", "#bcd0e5", "#4a74a8", "#e8a33d"
# Text as text, and the same bytes each time: the test compares them.
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "minires", "font.family": "sans-serif", "font.size": 9}


def box(
    axes: Axes, x: float, y: float, width: float, height: float, color: str = LIGHT, text: str = "", size: float = 9,
    edge: str = "#555555", line: float = 0.7,
) -> None:  # fmt: skip
    """A rectangle with its upper left corner at (x, y), and a text in its middle."""
    axes.add_patch(Rectangle((x, y), width, height, facecolor=color, edgecolor=edge, linewidth=line))
    dark = color == DARK
    axes.text(
        x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=size, color="white" if dark else "black"
    )


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """From `start` to `end`."""
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=9, color="black", linewidth=0.9))


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure of so many inches; its units are twelfths of an inch, and y grows downwards."""
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_xlim(0, 12 * width)
    axes.set_ylim(12 * height, 0)
    axes.axis("off")
    return figure, axes


def warp() -> Figure:
    """Batch norm's matrix of 64 channels: 16 threads across, four channels each; a warp has two rows of it."""
    figure, axes = canvas(6.6, 3.2)
    left, top, cell, row = 13.0, 8.0, 4.0, 2.6
    axes.text(left, 2.0, "channels: 64, in 16 groups of four", fontsize=10)
    for group in range(16):
        axes.text(left + cell * (group + 0.5), 7.2, f"{4 * group}-{4 * group + 3}", ha="center", fontsize=6.5)
    for i, name in enumerate(("row 0", "row 1", "row 2", "...", "row 15", "...", "row 16 P")):
        y = top + i * row
        axes.text(left - 1, y + row / 2, name, ha="right", va="center", fontsize=8)
        for group in range(16) if name != "..." else ():
            thread = group + (16 * int(name.split()[1]) if i < 5 else 0)
            color = DARK if thread == 2 else MIDDLE if i < 2 else LIGHT
            box(axes, left + cell * group, y, cell, row, color, str(thread), size=7)
    axes.text(
        left + 8 * cell,
        top + 5.5 * row,
        "rows 16 to 16 P - 1: the other parts' blocks",
        ha="center",
        va="center",
        fontsize=8,
    )
    arrow(axes, (left + 2.88 * cell, top + 0.6 * row), (left + 2.88 * cell, top + 6.4 * row))
    axes.text(2.0, top - 2.4, "positions", fontsize=10)
    y = top + 7 * row + 2.4
    for line, text in enumerate(
        (
            "The number is the thread's, of 256 in the block. The rows are dealt out to P parts.",
            "Shaded: the first warp, threads 0 to 31. In one instruction each thread reads 16 bytes, four floats,",
            "and so the warp 512 bytes in a row.",
            "Dark: thread 2 keeps channels 8 to 11 and jumps down by 16 P rows.",
        )
    ):
        axes.text(2, y + 2.5 * line, text)  # fmt: skip
    return figure


def tile() -> Figure:
    """y = columns @ weight: a block's tile of y, and what a step brings of both factors."""
    figure, axes = canvas(6.6, 4.9)
    x0, y0, wide, high = 34.0, 22.0, 40.0, 32.0  # y, of which a tile is a part
    k_wide, k_high = 24.0, 13.0
    ax, by = x0 - k_wide - 4, y0 - k_high - 4
    box(axes, x0, y0, wide, high, "white")
    box(axes, ax, y0, k_wide, high, "white")
    box(axes, x0, by, wide, k_high, "white")
    axes.text(x0 + wide + 1, y0 + high / 2, "y", fontsize=11, style="italic")
    axes.text(x0 + wide / 2, y0 + high + 2.6, "outputs", ha="center")
    axes.text(ax + k_wide / 2, y0 + high + 2.6, "k: taps and channels", ha="center")
    axes.text(ax - 1.2, y0 + high / 2, "positions", rotation=90, va="center", ha="center")
    axes.text(ax + k_wide / 2, y0 - 3.4, "columns: never in the GPU's main", ha="center", fontsize=8)
    axes.text(ax + k_wide / 2, y0 - 1.4, "memory, fetched from the image", ha="center", fontsize=8)
    axes.text(x0 + wide / 2, by - 1.2, "weight", ha="center")
    # The tile: 128 x 128 of 256 outputs, and its 8 warps, two by four.
    tile_wide, tile_high = wide / 2, high / 2
    tx, ty = x0 + wide / 2, y0 + 5
    for i in range(2):
        for j in range(4):
            box(axes, tx + j * tile_wide / 4, ty + i * tile_high / 2, tile_wide / 4, tile_high / 2, MIDDLE,
                f"warp\n{4 * i + j}", size=7.5)  # fmt: skip
    box(axes, tx, ty, tile_wide, tile_high, "none", line=1.6)
    step = 3.0
    for i in range(int(k_wide / step)):
        color = ACCENT if i == 3 else LIGHT if i < 3 else "white"
        box(axes, ax + i * step, ty, step, tile_high, color, "A" if i == 3 else "")
    for i in range(8):
        color = ACCENT if i == 3 else LIGHT if i < 3 else "white"
        box(axes, tx, by + i * k_high / 8, tile_wide, k_high / 8, color, "B" if i == 3 else "", size=7.5)
    arrow(axes, (ax + 1, ty - 1.2), (ax + k_wide - 1, ty - 1.2))
    arrow(axes, (tx - 1.2, by + 0.5), (tx - 1.2, by + k_high - 0.5))
    axes.text(tx + tile_wide / 2, ty + tile_high + 1.8, "a block's tile: 128 x 128 sums,", ha="center", fontsize=8)
    axes.text(tx + tile_wide / 2, ty + tile_high + 3.8, "in the registers of 8 warps", ha="center", fontsize=8)
    for i, text in enumerate(("A, B: a slice of 16 words of k,", "in shared memory; light: done,", "white: to come")):
        axes.text(ax + 0.8, ty + tile_high + 2.2 + 2 * i, text, fontsize=8)
    return figure


def tensor_core() -> Figure:
    """Which lane of a warp holds which element in mma.m16n8k8, by the rules of tensor_core.cuh."""
    figure, axes = canvas(6.6, 5.1)
    size = 2.55
    shades = {0: "white", 1: LIGHT, 2: MIDDLE, 3: DARK}

    def grid(left: float, top: float, rows: int, columns: int, held: Callable[[int, int], tuple[int, int]]) -> None:
        for i in range(rows):
            for j in range(columns):
                lane, register = held(i, j)
                box(axes, left + j * size, top + i * size, size, size, shades[register], str(lane), size=7)
        for i in range(rows):  # above the others' borders
            for j in range(columns):
                if held(i, j)[0] == 5:
                    axes.add_patch(
                        Rectangle(
                            (left + j * size, top + i * size), size, size, fill=False, edgecolor=ACCENT, linewidth=2.5
                        )
                    )

    a_left, top, d_left = 2.0, 18.5, 56.0
    b_left = 30.0
    grid(a_left, top, 16, 8, lambda row, k: (row % 8 * 4 + k % 4, row // 8 + 2 * (k // 4)))
    grid(b_left, top, 8, 8, lambda k, column: (column * 4 + k % 4, k // 4))
    grid(d_left, top, 16, 8, lambda row, column: (row % 8 * 4 + column // 2, 2 * (row // 8) + column % 2))
    middle = top + 8 * size
    axes.text(a_left + 4 * size, top - 1.2, "A: 16 positions x 8 of k", ha="center")
    axes.text(b_left + 4 * size, top - 1.2, "B: 8 of k x 8 outputs", ha="center")
    axes.text(d_left + 4 * size, top - 1.2, "D += A B: 16 x 8 sums", ha="center")
    axes.text((a_left + 8 * size + b_left) / 2, middle, "x", ha="center", va="center", fontsize=12)
    axes.text((b_left + 8 * size + d_left) / 2, middle, "+=", ha="center", va="center", fontsize=12)
    axes.text(2, 2.5, "mma.m16n8k8: one instruction of a warp, 1,024 multiplications and additions", fontsize=10)
    axes.text(
        2, 5.6, "The number is the lane, 0 to 31, that holds the element in a register. The shade is the register:"
    )
    for register, name in enumerate(("0", "1", "2", "3")):
        box(axes, 2 + 9 * register, 7.2, 3, 2.3, shades[register])
        axes.text(5.8 + 9 * register, 8.9, name)
    box(axes, 40, 7.2, 3, 2.3, "white", edge=ACCENT, line=2.5)
    axes.text(43.8, 8.9, "lane 5's: four of A, two of B, four of D")
    axes.text(
        2, 13.0, "In bf16 each element of A and B is a pair of neighbours along k, and the instruction is m16n8k16."
    )
    return figure


def graph() -> Figure:
    """The time of a small network's step: launched kernel by kernel, and as a graph. A sketch, without a scale."""
    figure, axes = canvas(7.4, 2.7)
    left = 10.0

    def line(y: float, name: str) -> None:
        axes.text(left - 1, y + 1.3, name, ha="right", va="center")
        axes.plot([left, 86], [y + 2.6, y + 2.6], color="#999999", linewidth=0.6)

    axes.text(2, 2.2, "Kernel by kernel: the GPU waits for the next launch", fontsize=10)
    axes.text(86, 2.2, "a sketch, not to scale; time runs to the right", fontsize=8, ha="right")
    line(4.0, "host")
    line(8.0, "GPU")
    widths = [2.2, 1.2, 2.8, 1.0, 1.8, 1.4, 2.4, 1.2, 2.0, 1.4]
    for i, width in enumerate(widths):
        box(axes, left + 7.2 * i, 4.0, 6.6, 2.6, LIGHT, "launch", size=7)
        box(axes, left + 7.2 * i + 6.6, 8.0, width, 2.6, DARK)
    axes.text(2, 18.2, "As a graph: one launch, and the kernels follow each other", fontsize=10)
    line(20.0, "host")
    line(24.0, "GPU")
    box(axes, left, 20.0, 6.6, 2.6, LIGHT, "launch", size=7)
    box(axes, left + 7.2, 20.0, 19.0, 2.6, "white", "free for the next batch", size=7)
    x = left + 6.6
    for width in widths:
        box(axes, x, 24.0, width, 2.6, DARK)
        x += width + 0.25
    axes.plot([x, x], [23.0, 31.0], color="black", linewidth=0.8, linestyle=":")
    axes.text(x + 1, 30.6, "the step is done")
    end = left + 7.2 * 9 + 6.6 + widths[-1]
    axes.plot([end, end], [7.0, 14.4], color="black", linewidth=0.8, linestyle=":")
    axes.text(end - 1, 14.0, "the step is done", ha="right")
    return figure


FIGURES = {"warp": warp, "tile": tile, "tensor-core": tensor_core, "graph": graph}


def draw(name: str, path: Path) -> None:
    """Write the figure of this name, as SVG."""
    with mpl.rc_context(STYLE):
        FIGURES[name]().savefig(path, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    for name in FIGURES:
        draw(name, HERE / f"{name}.svg")
