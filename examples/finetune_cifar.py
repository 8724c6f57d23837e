"""Fine-tune a pretrained ResNet on CIFAR-10 or on your own pictures, at the size of its pretraining, in six steps.

    python examples/finetune_cifar.py                           # ResNet-101 of ImageNet, all layers: for a GPU
    python examples/finetune_cifar.py --freeze                  # only the new last layer: for a CPU
    python examples/finetune_cifar.py --freeze --depth 18 --train-size 2000 --test-size 1000    # ... in minutes
    python examples/finetune_cifar.py --weights runs/resnet20   # from any run or file of weights, of any depth
    python examples/finetune_cifar.py --data photos --freeze    # your own pictures: photos/cat/*.jpg, photos/dog/*.jpg

`minires finetune photos --weights imagenet --freeze`, of the installed package, is this program.

The recipe: images scaled to 224x224, mirrored half of the time, normalised by CIFAR-10's mean and standard deviation;
Adam with a learning rate of 1e-3, batches of 32. Offline, the first step fails and says where to put the weights.
Your own pictures have the size and the normalisation that the network has learned with. A fifth of them is kept aside
to evaluate the network on. In training each picture is cropped at random.

--freeze keeps the network's weights and trains only the new layer. The features of an image are then the same in every
epoch and are computed once. With mirroring an image has two versions; the features of both are computed.

Everything goes to --out (runs/finetune, numbered): config.json, log.jsonl, last.safetensors, results.json, pictures.
Without --freeze there is also state.safetensors, from which --resume continues. Try the result with

    minires predict --weights runs/finetune photo.jpg

Exit status: 0 done; 1 training failed, disk full; 2 unusable arguments, data, weights or device; 130 interrupted.
"""

from __future__ import annotations

import shlex
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from tqdm.auto import tqdm

import minires as mr
import minires.functional as F
from minires import data, models, nn, optim, train
from minires.cli import arguments
from minires.cli.predict import preparation_of
from minires.data.augment import PADDING
from minires.device import Array, module_of, to_device
from minires.models import recognise, resnet
from minires.optim import schedules
from minires.train.folder import latest_run, new_run, weights_file
from minires.train.progress import format_seconds, say
from minires.train.report import class_table, draw_pictures, final_line, results

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)  # of CIFAR-10, as the recipe usually has them
TRAINING_COST = 3.8  # forward passes in the time of a training step: 1600 ms to 425 ms, ResNet-101 on a CPU


def main(words: Sequence[str] | None = None, program: Sequence[str] = ("python", sys.argv[0])) -> int:
    """Run the program with the arguments `words` (None: those of the command line); `program` started it."""
    parser = make_parser(program)
    args = parser.parse_intermixed_args(words)
    words = sys.argv[1:] if words is None else words
    if args.freeze and args.resume:
        parser.error("argument --resume: a run with --freeze keeps no state to continue from")
    device = arguments.choose_device(parser, args.device)
    mr.manual_seed(args.seed)
    numbered = latest_run if args.resume else new_run
    folder = train.RunFolder(args.out) if args.out else numbered("runs/finetune")
    arguments.check_data(parser, args.data, folder.path)
    if folder.is_used and not args.resume:
        parser.error(f"argument --out: {folder.path} holds a run already; name another folder, or --resume it")

    # 1. A pretrained network: torchvision's for ImageNet, or any other.
    if args.source == "imagenet":
        model = getattr(models, f"resnet{args.depth or 101}")(weights="imagenet")
    else:
        model = models.from_weights(weights_file(args.source))
    depth = recognise.depth_of(model)
    if args.depth not in (None, depth):
        parser.error(f"argument --depth: {args.depth} is for --weights imagenet; {args.source} is of a ResNet-{depth}")

    # 2. Its last layer told ImageNet's 1000 classes apart. A new one, with random weights, tells ten apart.
    own, learned = args.data not in data.NAMES, preparation_of(args.source, model, say)
    args.image_size = args.image_size or (learned.size if own else 224)
    grey = len(learned.mean) == 1
    dataset = data.load(args.data, args.data_dir, log=say, val=args.val, image_size=args.image_size, grey=grey)
    if len(dataset.mean) != len(learned.mean):
        parser.error(f"argument --data: {dataset.name} is in colour, and the network of --weights takes shades of grey")
    parts = [part for part in ("val", "test") if len(getattr(dataset, f"{part}_images"))]
    if not parts:
        parser.error("argument --val: nothing to evaluate on; there is no test set, so --val has to be above 0")
    model.fc = nn.Linear(model.fc.in_features, dataset.num_classes)
    model.to(device)

    # 3. CIFAR-10, scaled from 32x32 to 224x224; training images are mirrored half of the time.
    if args.train_size:
        dataset = dataset.subset(min(args.train_size, len(dataset.train_images)))
    # Images and labels to evaluate on: the first part after each epoch, the others at the end.
    judged: dict[str, tuple[Any, Any]] = {}
    for part in parts:
        images, labels = (getattr(dataset, f"{part}_{kind}")[: args.test_size] for kind in ("images", "labels"))
        judged[part] = images, labels
    mean, std = (MEAN, STD) if dataset.num_classes == 10 and "CIFAR" in dataset.name else (dataset.mean, dataset.std)
    if own:
        mean, std = learned.mean, learned.std  # frozen layers expect them
    options = {"mean": mean, "std": std, "image_size": args.image_size, "padding": 0, "device": device}
    if args.freeze:
        say(f"computing the features of {dataset.name} by ResNet-{depth}, once for all epochs")
        versions = (False, True) if args.flip else (False,)
        features = [compute_features(model, dataset.train_images, args, options, mirrored) for mirrored in versions]
        train_batches = FeatureBatches(features, dataset.train_labels, args.batch_size, device, seed=args.seed)
        batches = {}
        for part, (images, labels) in judged.items():
            seen = compute_features(model, images, args, options, mirrored=False)
            batches[part] = FeatureBatches([seen], labels, args.batch_size, device)
    else:
        augment = args.flip
        if own:  # as train_cifar.py does by default
            large = args.image_size >= 64
            augment = data.RandomResizedCrop(flip=args.flip) if large else args.flip
            options["padding"] = 0 if large else PADDING
        train_batches = data.Loader(
            dataset.train_images, dataset.train_labels, args.batch_size,
            train=True, augment=augment, seed=args.seed, **options,
        )  # fmt: skip
        batches = {part: data.Loader(*of, args.batch_size, train=False, **options) for part, of in judged.items()}

    # 4. Adam, for all layers or for the new one.
    if args.freeze_batch_norm:
        nn.freeze_batch_norm(model)
    trained = model.fc if args.freeze else model
    optimizer = optim.Adam([p for p in trained.parameters() if p.requires_grad], lr=args.lr)

    weight = to_device(data.class_weights(dataset), device) if args.class_weights else None

    keep = ("data", "image_size", "batch_size", "lr", "epochs", "flip", "freeze", "freeze_batch_norm", "seed", "val",
            "class_weights")  # fmt: skip
    plain = not all(module.shortcut for module in model.modules() if isinstance(module, resnet.Block))
    settings = {"depth": depth, "plain": plain, "from": args.source, **{name: getattr(args, name) for name in keep}}
    notes = dataset.notes(args.image_size) | {"mean": list(mean), "std": list(std)}
    identity = {name: settings[name] for name in ("depth", "image_size", "batch_size", "flip", "seed")}
    identity |= {"data set": dataset.name} if not own else {}  # a folder may be renamed: its pictures count
    identity |= {
        "number of validation images": len(dataset.val_images) or None,
        "fingerprint of the training images": dataset.fingerprint(),
    }
    training = train.Training(trained, optimizer, identity, settings, notes)
    if args.resume:
        before = training.restore(folder.state)
        changed = [f"{name} {settings[name]}, was {old}" for name, old in before.items() if settings.get(name) != old]
        say(f"resuming after step {training.step}" + "".join(f"; changed: {change}" for change in changed))
    commands = [*(folder.commands() if args.resume else []), shlex.join([*program, *words])]
    folder.prepare(12 * optimizer.flat.size, 4 * optimizer.flat.size)  # weights and Adam's two averages, in bytes
    folder.write_json("config.json", {**settings, **notes, "commands": commands})

    # 5. Train. Each epoch prints its loss and the accuracy on the test images.
    if device == "cpu" and not args.freeze:
        say(
            speed_advice(
                args, forward_seconds(model, args.image_size), len(dataset.train_images), len(batches[parts[0]].labels)
            )
        )
    with train.Stop(args.max_minutes) as stop:
        try:
            evaluation = train.fit(
                training, train_batches, batches[parts[0]], schedules.build("constant", args.lr, 1), args.epochs,
                loss=partial(F.cross_entropy, weight=weight), part=parts[0],
                stop=stop, folder=None if args.freeze else folder,
            )  # fmt: skip
        except train.Interrupted as interruption:
            given = [word for word in words if word != "--resume"]
            named = [] if args.out else ["--out", str(folder.path)]
            again = f"; continue with: {shlex.join([*program, *given, *named, '--resume'])}"
            print(f"{interruption}{'' if args.freeze else again}", file=sys.stderr)
            return 130

    # 6. The results: the accuracy, the weights of the whole network, pictures.
    evaluations = {parts[0]: evaluation}
    evaluations |= {part: train.evaluate(trained, batches[part]) for part in parts[1:]}
    result = results(training, evaluations, dataset, mr.info())
    result["trained_parameters"] = optimizer.flat.size
    result["parameters"] = sum(p.size for p in model.parameters())
    mr.save_weights(model, folder.weights, notes={"settings": settings, **notes})
    folder.write_log(training.records)
    folder.write_json("results.json", result)
    draw_pictures(training, evaluations[parts[-1]], dataset, folder.path, part=parts[-1])
    if dataset.num_classes <= 20:
        say(class_table(result["per_class"]))
    say(final_line(result, dataset, folder.path))
    return 0


def compute_features(
    model: models.ResNet | models.CifarResNet,
    images: np.ndarray | data.Pictures,
    args: Namespace,
    options: dict,
    mirrored: bool,
) -> np.ndarray:
    """The input of the last layer for each image: float32 (N, features)."""
    folded = mr.fold(model)  # a copy with batch norm multiplied into the convolutions: faster
    batches = data.Loader(images, np.zeros(len(images), int), args.batch_size, train=False, **options)
    features = []
    start = time.monotonic()
    with mr.no_grad():
        for x, _ in tqdm(batches.epoch(0), "mirrored images" if mirrored else "images", len(batches), disable=None):
            x = module_of(x).ascontiguousarray(x[:, :, ::-1]) if mirrored else x
            last = list(folded.features(mr.Tensor(x)).values())[-1]  # (N,H,W,C)
            features.append(F.global_avg_pool2d(last).numpy())
            if len(features) == 3 and options["device"] == "cpu":
                seconds = (time.monotonic() - start) / 3 * len(batches)
                say(f"{len(images):,} images{', mirrored,' if mirrored else ''} take about {format_seconds(seconds)}")
    return np.concatenate(features)


class FeatureBatches:
    """Batches (features, labels) for `train.fit`, in place of a `data.Loader`; training batches if there is a `seed`.

    versions  arrays (N, features) of all images: a training batch picks a version at random for each image
    """

    def __init__(
        self, versions: list[np.ndarray], labels: np.ndarray, batch_size: int, device: str, seed: int | None = None
    ):
        self.versions, self.labels, self.batch_size = np.stack(versions), labels, batch_size  # (V,N,features), (N,)
        self.device, self.seed = device, seed

    def __len__(self) -> int:
        return -(-len(self.labels) // self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Array, Array]]:
        order, version = np.arange(len(self.labels)), np.zeros(len(self.labels), int)
        if self.seed is not None:
            rng = np.random.default_rng([self.seed, epoch])
            order, version = rng.permutation(order), rng.integers(0, len(self.versions), len(order))
        for index in range(start, len(self)):
            chosen = order[index * self.batch_size : (index + 1) * self.batch_size]
            x, y = self.versions[version[chosen], chosen], self.labels[chosen]
            yield to_device(x, self.device), to_device(y, self.device)


def forward_seconds(model: nn.Module, size: int, images: int = 4) -> float:
    """The measured seconds of one image's forward pass."""
    folded, x = mr.fold(model), mr.Tensor(np.zeros((images, size, size, 3), np.float32))
    times = []
    with mr.no_grad():
        for _ in range(3):
            start = time.perf_counter()
            folded(x)
            times.append(time.perf_counter() - start)
    return min(times) / images


def speed_advice(args: Namespace, forward: float, train_images: int, test_images: int) -> str:
    """The advice for a machine without a GPU; the forward pass of one image takes `forward` seconds."""
    seconds = forward * TRAINING_COST * train_images  # of an epoch
    frozen = forward * (train_images * (2 if args.flip else 1) + test_images)
    few = max(int(300 / forward / 3 / 100), 1) * 100  # training images, twice, and test images that take five minutes
    text = (
        f"without a GPU an epoch takes about {format_seconds(seconds)}, {args.epochs} of them "
        f"{format_seconds(args.epochs * seconds)}; --freeze trains only the new layer, in {format_seconds(frozen)}"
    )
    if frozen > 600:
        text += f"; --freeze --train-size {few} --test-size {few} in about 5 min"
    return text


def make_parser(program: Sequence[str] = ("python", "finetune_cifar.py")) -> arguments.Parser:
    """The arguments of `program`."""
    parser = arguments.program_parser(
        program, data="cifar10", description="Fine-tune a pretrained ResNet on a folder of pictures, or on CIFAR-10.",
        epilog="Example: minires finetune photos --weights imagenet --depth 18 --freeze",
    )  # fmt: skip
    add = parser.add_argument
    add(
        "--weights",
        "--from",
        dest="source",
        default="imagenet",
        metavar="WEIGHTS",
        help="'imagenet' (the default), the folder of a run, or a file of weights",
    )
    add(
        "--depth",
        type=int,
        choices=tuple(resnet.CONFIGURATIONS),
        help="for --weights imagenet (default: 101)",
    )
    add("--freeze", action="store_true", help="train only the new last layer, on features computed once")
    add("--freeze-batch-norm", action="store_true", help="keep all batch norm: statistics and weights")
    add("--train-size", type=arguments.positive_int, help="use this many training images only")
    add("--test-size", type=arguments.positive_int, help="use this many test images only")
    add(
        "--image-size",
        type=arguments.image_size,
        help="resize images to N x N (default: 224; your own as in --weights)",
    )
    add("--class-weights", action="store_true", help="a loss in which rare classes count as much as common ones")
    add("--no-flip", dest="flip", action="store_false", help="do not mirror images: half the work for --freeze")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--epochs", type=arguments.positive_int, default=10, help="(default: 10)")
    add("--batch-size", type=arguments.positive_int, default=32, help="(default: 32)")
    add("--lr", type=arguments.positive_float, default=1e-3, help="learning rate (default: 0.001)")
    add("--max-minutes", type=arguments.positive_float, help="stop training after this time, evaluate and report")
    add("--seed", type=arguments.non_negative_int, default=0)
    add("--out", help="folder of the run (default: runs/finetune, numbered)")
    add("--resume", action="store_true", help="continue the run in --out (not with --freeze)")
    return parser


if __name__ == "__main__":
    sys.exit(arguments.run(main))
