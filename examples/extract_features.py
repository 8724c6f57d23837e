"""Image features from a pretrained network: the features of a folder as .npz, and the images that are alike.

    python examples/extract_features.py photos/ --weights imagenet --out photos.npz
    python examples/extract_features.py photos/ --weights runs/resnet20 --query cat.jpg --picture alike.png
    python examples/extract_features.py --features photos.npz --weights imagenet --query a.jpg b.jpg

The features of an image are the input of the network's last layer: the mean of the last feature map over all positions,
2048 numbers for ResNet-50 and up. The .npz has `files` (N texts), `features` float32 (N, C), and `network`.

--query finds the images with the most similar features (cosine similarity, 1 for the same direction). --picture draws
them: one row per query, the nearest first. Without --query the rows begin with the first images of the folder.

Files that are no images are named and skipped; the exit status is then 1, as for `minires predict`.
"""

from __future__ import annotations

import importlib.util
import io
import sys
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

import minires as mr
import minires.functional as F
from minires.cli import arguments
from minires.cli.predict import Classifier, ImageError, batches, image_files, open_classifier, read_image
from minires.data import DataError
from minires.files.atomic import atomic
from minires.models import recognise, resnet
from minires.train.report import new_figure

ROWS = 6  # queries in a picture, without --query
PICTURES = (".png", ".jpg", ".jpeg", ".svg", ".pdf")


def main() -> int:
    parser = make_parser()
    args = parser.parse_args()
    if not args.images and not args.features:
        parser.error("give images or folders, or --features with those of an earlier run")
    if not (args.out or args.query or args.picture):
        parser.error("say what to do with the features: --out, --query or --picture")
    if args.picture and Path(args.picture).suffix.lower() not in PICTURES:
        parser.error(f"argument --picture: {args.picture!r} does not end in {', '.join(PICTURES)}")
    if args.picture and not importlib.util.find_spec("matplotlib"):
        parser.error("argument --picture: needs matplotlib: pip install matplotlib")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # a file's name may be no UTF-8
    device = arguments.choose_device(parser, args.device)
    network = open_classifier(args.weights, args.depth, image_size=args.image_size, device=device, log=note)
    depth = recognise.depth_of(network.model)
    skipped: list[ImageError] = []

    # 1. The features of all images: computed, or read from an earlier run.
    if args.features:
        files, features = load(args.features)
    else:
        files, features = extract(network, image_files(args.images), args.batch_size, skipped)
    if not files:
        parser.error("there is no image among " + ", ".join(args.images or [args.features]))
    if args.out:
        with atomic(Path(args.out)) as file:
            np.savez(file, files=np.array(files), features=features, network=np.array(f"ResNet-{depth} {args.weights}"))
        print(f"features of {len(files)} images, {features.shape[1]} numbers each -> {args.out}")

    # 2. The images that are alike.
    if args.query or args.picture:
        queries, wanted = files[:ROWS], features[:ROWS]
        if args.query:
            queries, wanted = extract(network, image_files(args.query), args.batch_size, skipped)
        if queries and wanted.shape[1] != features.shape[1]:
            parser.error(f"argument --features: they have {features.shape[1]} numbers, this network {wanted.shape[1]}")
        found = [nearest(files, features, name, vector, args.neighbours) for name, vector in zip(queries, wanted)]
        for query, neighbours in zip(queries, found):
            print(query)
            for name, similarity in neighbours:
                print(f"  {similarity:6.3f}  {name}")
        if args.picture and found:
            draw(queries, found, args.picture, f"nearest by the features of ResNet-{depth} (cosine similarity)")
            print(f"picture -> {args.picture}")
    return 1 if skipped else 0


def extract(
    network: Classifier, files: list[Path], batch_size: int, skipped: list[ImageError]
) -> tuple[list[str], np.ndarray]:
    """The names of the images among `files`, and their features, float32 (N, C)."""

    def skip(error: ImageError) -> None:
        skipped.append(error)
        note(f"skipped: {error}")

    names: list[str] = []
    features = []
    device = next(network.model.parameters()).device
    with mr.no_grad(), tqdm(total=len(files), unit="image", leave=False, disable=None) as bar:
        for paths, pixels in batches(files, network.preparation, batch_size, skip):
            x = mr.Tensor(network.preparation.normalise(pixels)).to(device)  # (n,size,size,3)
            last = list(network.model.features(x).values())[-1]  # (n,h,w,C)
            features.append(F.global_avg_pool2d(last).numpy())
            names += map(str, paths)
            bar.update(len(paths))
    return names, np.concatenate(features) if features else np.zeros((0, 0), np.float32)


def load(path: str) -> tuple[list[str], np.ndarray]:
    """The files and features that --out wrote."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            files, features = archive["files"], archive["features"]
        if files.ndim != 1 or features.ndim != 2 or len(files) != len(features):
            raise ValueError(f"files {files.shape}, features {features.shape}")
    except FileNotFoundError:
        raise
    except Exception as error:  # NumPy and zipfile raise many kinds
        raise DataError(f"{path}: does not hold files and features ({error})") from None
    return [str(name) for name in files], features


def nearest(
    files: list[str], features: np.ndarray, query: str, vector: np.ndarray, count: int
) -> list[tuple[str, float]]:
    """The `count` files most similar to `vector` (C,), and their cosine similarities; not the query itself."""
    lengths = np.linalg.norm(features, axis=1) * np.linalg.norm(vector)  # (N,)
    similarity = features @ vector / np.maximum(lengths, 1e-12)
    order = [i for i in np.argsort(-similarity, kind="stable") if files[i] != query]
    return [(files[i], float(similarity[i])) for i in order[:count]]


def draw(queries: list[str], found: list[list[tuple[str, float]]], path: str, title: str) -> None:
    """A row of images for each query: the query, then its neighbours with their similarities."""
    columns = 1 + max(map(len, found))
    figure = new_figure(1.8 * columns, 2.1 * len(queries) + 0.6, title)
    grid = figure.subplots(len(queries), columns, squeeze=False)
    for row, query, neighbours in zip(grid, queries, found):
        for axes in row:
            axes.axis("off")
        for axes, (name, similarity) in zip(row, [(query, None), *neighbours]):
            image = read_image(name)
            image.thumbnail((300, 300))
            axes.imshow(image, interpolation="nearest")
            label = "query" if similarity is None else f"{similarity:.3f}"
            short = Path(name).name if len(Path(name).name) <= 22 else Path(name).name[:19] + "..."
            axes.set_title(f"{label}\n{short}", fontsize=9, color="tab:blue" if similarity is None else "black")
    figure.savefig(path, dpi=110)


def note(line: str) -> None:
    """A line to stderr, above the progress bar."""
    tqdm.write(line, file=sys.stderr)


def make_parser() -> arguments.Parser:
    parser = arguments.Parser(description="Features of images, and images that are alike.", allow_abbrev=False)
    add = parser.add_argument
    add("images", nargs="*", metavar="IMAGE", help="images, or folders of them")
    add("--weights", required=True, help="the folder of a run, a file of weights, or 'imagenet'")
    add(
        "--depth",
        type=int,
        choices=tuple(resnet.CONFIGURATIONS),
        default=101,
        help="for --weights imagenet (default: 101)",
    )
    add("--out", metavar="FILE.npz", help="write the features to this file")
    add("--features", metavar="FILE.npz", help="read the features from this file, not from images")
    add("--query", nargs="+", metavar="IMAGE", help="find images similar to these")
    add("--neighbours", type=arguments.positive_int, default=5, metavar="K")
    add("--picture", metavar="FILE.png", help="draw the images found")
    add("--batch-size", type=arguments.positive_int, default=32)
    add("--image-size", type=arguments.image_size, help="(default: the size that the network was trained with)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return parser


if __name__ == "__main__":
    sys.exit(arguments.run(main))
