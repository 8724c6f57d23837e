"""Draw a folder of pictures to try the training on one's own pictures with, when there are none at hand.

    python examples/draw_pictures.py photos                       # 3 classes of 40 pictures, of different sizes
    python examples/draw_pictures.py photos --count 2000          # ... of 2,000 pictures
    python examples/draw_pictures.py scans --kind scans           # a stand-in for medical pictures

The pictures called photos show one bright shape each, of any colour, on a dark ground with a few lines. Most are JPEGs
of 100 to 400 pixels. The first of a class is transparent, the second grey, the third on its side with an EXIF tag that
says so.

The pictures called scans are NO medical pictures. They are drawn: grey noise with stripes, and in the class `shadow` a
faint bright spot. There are few of them, and six times as many `clear` ones: the difficulties of medical data sets.

The same seed, NumPy and Pillow draw the same pictures. A folder that holds something already is refused.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from tqdm.auto import tqdm

from minires.cli import arguments
from minires.data.shapes import OUTLINES

CLASSES = ("circle", "star", "cross", "heart", "triangle", "arrow", "ring", "square", "crescent", "semicircle")
SIZES = (100, 400)  # the least and the largest side of a photo
SCANS = {"clear": 120, "shadow": 20}  # pictures of each class


def main() -> int:
    parser = arguments.Parser(description="Draw a folder of pictures, to try the training on one's own pictures with.")
    add = parser.add_argument
    add("folder", help="where the pictures go: a folder for each class")
    add("--kind", choices=("photos", "scans"), default="photos", help="shapes, or a stand-in for medical pictures")
    add("--classes", type=int, choices=range(2, len(CLASSES) + 1), default=3, help="of photos (default: 3)")
    add("--count", type=arguments.positive_int, default=40, help="photos of each class (default: 40)")
    add("--sizes", type=arguments.image_size, nargs=2, default=SIZES, help="least and largest side, in pixels")
    add("--seed", type=arguments.non_negative_int, default=0)
    args = parser.parse_args()
    folder = Path(args.folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        parser.error(f"argument folder: {folder} exists and is not empty")
    total = draw_scans(folder, args.seed) if args.kind == "scans" else draw_photos(folder, args)
    print(f"{total:,} pictures drawn in {folder}")
    return 0


def draw_photos(folder: Path, args: Namespace) -> int:
    """The files of every class; returns how many."""
    classes = CLASSES[: args.classes]
    with tqdm(total=len(classes) * args.count, unit="picture", leave=False, disable=None) as bar:
        for label, name in enumerate(classes):
            (folder / name).mkdir(parents=True)
            for number in range(args.count):
                size, rng = chance(args.seed, label, number, args.sizes)
                save_photo(folder / name / f"{name}-{number:04}", number, OUTLINES[name], size, rng)
                bar.update()
    return len(classes) * args.count


def chance(
    seed: int, label: int, number: int, sizes: Sequence[int] = SIZES
) -> tuple[tuple[int, int], np.random.Generator]:
    """The size (width, height) of a photo, and the generator that draws the rest of it."""
    rng = np.random.default_rng([seed, label, number])
    width, height = (int(side) for side in rng.integers(min(sizes), max(sizes) + 1, 2))
    return (width, height), rng


def save_photo(path: Path, number: int, outline: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> None:
    """One picture of `size` (width, height) at `path`, with the ending of its kind."""
    ground = number != 0  # the first is transparent
    picture = photo(outline, size, rng, ground)
    if not ground:
        picture.save(path.with_suffix(".png"))
        return
    if number == 1:
        picture = picture.convert("L")
    exif = Image.Exif()
    if number == 2:
        picture = picture.transpose(Image.Transpose.ROTATE_90)
        exif[0x0112] = 6  # orientation: to be turned by 90 degrees, clockwise
    picture.save(path.with_suffix(".jpg"), quality=85, exif=exif)


def photo(outline: np.ndarray, size: tuple[int, int], rng: np.random.Generator, ground: bool = True) -> Image.Image:
    """A bright shape with the closed `outline` (P, 2) on a dark ground, RGB; a dark shape on nothing, RGBA."""
    width, height = size
    short = min(size)
    dark, bright = (tuple(map(int, rng.integers(low, low + 110, 3))) for low in (0, 146))
    canvas = Image.new("RGBA", (2 * width, 2 * height), (*dark, 255) if ground else (0, 0, 0, 0))
    pen = ImageDraw.Draw(canvas)
    for _ in range(rng.integers(0, 4) if ground else 0):  # clutter: lines of any colour
        ends = rng.uniform(0, 2, 4) * [width, height, width, height]
        pen.line(
            ends.tolist(), fill=tuple(map(int, rng.integers(0, 256, 3))), width=int(rng.integers(1, short // 20 + 3))
        )
    radius = short * rng.uniform(0.25, 0.42)
    centre = np.array(size) / 2 + rng.uniform(-1, 1, 2) * (short / 2 - radius)  # within the middle square
    angle = rng.uniform(-0.35, 0.35)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    corners = 2 * (radius * outline @ turn + centre)
    pen.polygon(list(map(tuple, corners.tolist())), fill=bright if ground else dark)
    canvas = canvas.reduce(2)  # drawn twice as large: soft edges
    return canvas.convert("RGB") if ground else canvas


def draw_scans(folder: Path, seed: int, size: int = 96) -> int:
    """The files of both classes; returns how many."""
    for label, (name, count) in enumerate(SCANS.items()):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            picture = scan(np.random.default_rng([seed, label, number]), size, shadow=name == "shadow")
            picture.save(folder / name / f"{name}-{number:04}.png")
    return sum(SCANS.values())


def scan(rng: np.random.Generator, size: int, shadow: bool) -> Image.Image:
    """Grey noise with stripes, `size` x `size`, and with `shadow` a faint bright spot."""
    y, x = np.mgrid[:size, :size] / size
    picture = 90 + 25 * np.sin(2 * np.pi * (rng.uniform(4, 7) * y + rng.uniform(-1, 1) * x**2 + rng.uniform()))
    coarse = Image.fromarray(rng.integers(0, 256, (12, 12), np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    picture += 0.25 * (np.asarray(coarse) - 128.0)
    if shadow:
        at, width = rng.uniform(0.25, 0.75, 2), rng.uniform(0.06, 0.1)
        picture += 40 * np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / (2 * width**2))
    picture += rng.normal(0, 12, picture.shape)
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.7))


if __name__ == "__main__":
    sys.exit(arguments.run(main))
