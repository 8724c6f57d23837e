"""Train a ResNet on CIFAR-10, CIFAR-100, the drawn Shapes-10, or your own pictures: the whole job, from data to report.

    python examples/train_cifar.py                          # ResNet-20, 30 epochs, on a GPU if there is one
    python examples/train_cifar.py --depth 101 --stem imagenet --epochs 1    # ten minutes on two cores
    python examples/train_cifar.py --data shapes            # one epoch on drawn pictures: about a minute
    python examples/train_cifar.py --data photos            # your own: photos/cat/*.jpg, photos/dog/*.jpg, ...
    python examples/train_cifar.py --depth 101 --dry-run    # only print the memory and work of a step

`minires train cifar10` and `minires train photos`, of the installed package, are this program.

Everything goes to a folder, runs/resnet20, runs/resnet20-2, ... or --out: config.json, log.jsonl (a line per epoch),
state.safetensors (to resume from), last.safetensors (the weights), results.json, and pictures. A folder with a run is
never overwritten. --resume continues the run, with its settings, exactly where it stopped.

--val 0.1 keeps a tenth of the training images aside. The epochs are then evaluated on these, and the test set once, at
the end. --early-stop and --best choose by them. Of your own pictures a fifth is kept aside (docs/own-pictures.md).

Ctrl-C stops after the current step and writes a checkpoint. --max-minutes limits the training. The evaluation may take
another quarter of that time; the result names the part of the test set evaluated. --steps N is for trials: the
learning-rate schedule spans the N steps, and the evaluation uses 1,000 test images.

On a GPU the CUDA kernels compute in tf32 (before compute capability 8.0: fp32), or in --precision. The training step is
replayed as a CUDA graph (--no-graph: launched kernel by kernel). docs/fast-cuda.md explains both, and results.json
notes the choice.

Measured results: docs/results/README.md.

Exit status: 0 done; 1 training failed (a loss that is not finite, a full disk); 2 unusable arguments, data or device;
130 interrupted, with a checkpoint.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import minires as mr
import minires.functional as F
from minires import data, models, optim, train
from minires.cli import arguments
from minires.data.folders import find
from minires.device import to_device
from minires.models import resnet_cifar
from minires.nn.summary import format_bytes
from minires.optim import schedules
from minires.train.checkpoint import CheckpointError, load_model_weights, read_info, saved_settings
from minires.train.folder import latest_run, new_run, state_file, weights_file
from minires.train.memory import step_memory
from minires.train.progress import format_seconds, say
from minires.train.report import TITLES, class_table, draw_pictures, final_line, results

AUGMENTATIONS = {  # the random versions of a training image
    "crop-flip": {"augment": True},  # shifted by up to 4 pixels, mirrored half of the time
    "flip": {"augment": True, "padding": 0},
    "none": {"augment": False},
    "resized-crop": {"augment": data.RandomResizedCrop()},  # for photographs: a part, scaled; mirrored half of the time
    "resized-crop-jitter": {"augment": data.RandomResizedCrop(jitter=0.3)},  # ... of other brightness and colours
}
STEPS_TEST_SIZE = 1000


def main(words: Sequence[str] | None = None, program: Sequence[str] = ("python", sys.argv[0])) -> int:
    """Run the program with the arguments `words` (None: those of the command line); `program` started it."""
    parser = make_parser(program)
    args = read_arguments(parser, words)
    if args.dry_run:
        return dry_run(parser, args)
    device = arguments.choose_device(parser, args.device)
    mr.kernels.use(args.kernels)
    by_cuda_kernels = mr.kernels.in_use(device) == "cuda"
    args.precision = args.precision or (
        mr.kernels.default_precision(args.saved_precision) if by_cuda_kernels else "fp32"
    )
    if args.precision != "fp32" and not by_cuda_kernels:
        parser.error(
            f"argument --precision: {args.precision} is for the CUDA kernels, in use are the "
            f"{mr.kernels.in_use(device)} kernels on {device}" + (f": {why}" if (why := mr.cuda.why_not()) else "")
        )
    if args.graph and args.class_weights:
        parser.error("argument --graph: a loss with --class-weights looks at the labels, and cannot be recorded")
    if args.graph and not by_cuda_kernels:
        why = mr.cuda.why_not()
        parser.error(f"argument --graph: is for the CUDA kernels, and the device is {device}" + f" ({why})" * bool(why))
    arguments.use_precision(parser, args.precision)
    mr.manual_seed(args.seed)

    # 1. Data: uint8 images, and batches of them: shuffled, augmented, normalised.
    dataset = data.load(args.data, args.data_dir, log=say, val=args.val, image_size=args.image_size, grey=args.grey)
    if args.train_size:
        dataset = dataset.subset(args.train_size)
    if args.eval_only and args.data not in data.NAMES:
        dataset = as_learned(args.eval_only, dataset)
    complete(args, dataset.name, len(dataset.train_images))
    parts = [part for part in ("val", "test") if len(getattr(dataset, f"{part}_images"))]
    if not parts:
        parser.error(
            "argument --val: nothing to evaluate the network on; there is no test set, so --val has to be above 0"
        )
    if (args.best or args.early_stop) and parts[0] != "val":
        parser.error(
            "argument --best, --early-stop: an epoch is chosen by validation images, never by the test set; --val"
        )
    test_size = args.test_size or (STEPS_TEST_SIZE if args.steps else None)  # None: all
    options = {"mean": dataset.mean, "std": dataset.std, "image_size": args.image_size, "device": device}
    train_batches = data.Loader(
        dataset.train_images, dataset.train_labels, args.batch_size, train=True, seed=args.seed,
        **AUGMENTATIONS[args.augmentation], **options,
    )  # fmt: skip
    batches = {}  # to evaluate on: after each epoch those of the first part, of the others at the end
    for part in parts:
        images, labels = (getattr(dataset, f"{part}_{kind}")[:test_size] for kind in ("images", "labels"))
        batches[part] = data.Loader(images, labels, args.batch_size, train=False, **options)

    size = args.image_size or dataset.train_images.shape[1]
    shrinks = 4 if args.depth in resnet_cifar.DEPTHS else {"cifar": 8, "imagenet": 32}[args.stem]
    if min(args.batch_size, len(dataset.train_images)) == 1 and size <= shrinks:
        parser.error("argument --batch-size: batch norm needs two images where the network shrinks them to one pixel")

    # 2. Model.
    channels = len(dataset.mean)
    model = models.build(
        args.depth, dataset.num_classes, args.stem, zero_init_last=args.zero_init_last, in_channels=channels
    ).to(device)
    say(
        f"ResNet-{args.depth} on {dataset.name}: {sum(p.size for p in model.parameters()):,} parameters, "
        f"{len(dataset.train_images):,} training images, on {device} with {mr.kernels.in_use(device)} kernels "
        f"in {args.precision}"
    )
    if args.eval_only:
        load_model_weights(model, args.eval_only)
        for part in parts:
            evaluation = train.evaluate(model, batches[part])
            of = "" if test_size is None else f", the first {len(evaluation.labels):,} {TITLES[part]} images"
            say(
                f"{TITLES[part]} accuracy {100 * evaluation.accuracy:.2f} % ({dataset.name}, ResNet-{args.depth}{of}) "
                f"<- {args.eval_only}"
            )
        return 0

    # 3. Loss and optimiser.
    weight = to_device(data.class_weights(dataset), device) if args.class_weights else None
    loss = partial(F.cross_entropy, label_smoothing=args.label_smoothing, weight=weight)
    if args.optimizer == "sgd":
        optimizer = optim.SGD(model.parameters(), args.lr, 0.9, args.weight_decay, nesterov=True)
    elif args.optimizer == "adam":
        optimizer = optim.Adam(model.parameters(), args.lr, weight_decay=args.weight_decay)
    else:
        optimizer = optim.AdamW(model.parameters(), args.lr, weight_decay=args.weight_decay)

    # 4. Where to begin: at step 0, or where a checkpoint stopped. The identity must agree with the checkpoint's.
    settings = {name: getattr(args, name) for name in SETTINGS}
    identity = {name: settings[name] for name in ("depth", "stem", "image_size", "batch_size", "optimizer", "seed")}
    if args.data in data.NAMES:  # a folder may be renamed: its pictures count
        identity["data set"] = dataset.name
    identity |= {
        "number of validation images": len(dataset.val_images) or None,
        "number of training images": len(dataset.train_images),
        "fingerprint of the training images": dataset.fingerprint(),
    }
    notes = dataset.notes(args.image_size)
    training = train.Training(model, optimizer, identity, settings, notes)
    before = training.restore(args.resume) if args.resume else settings  # the settings until now
    total_steps = args.epochs * len(train_batches)
    if args.steps:
        total_steps = min(total_steps, training.step + args.steps)
    settings["schedule_steps"] = total_steps
    schedule = schedules.build(args.schedule, args.lr, total_steps)

    # 5. The folder. Checked before hours of training: is it writable, and is there room for the checkpoints?
    folder = train.RunFolder(args.out) if args.out else new_run(f"runs/resnet{args.depth}")
    try:
        weights_bytes = 4 * optimizer.flat.size
        folder.prepare(weights_bytes * (1 + len(optimizer.slots)), weights_bytes * (2 if args.best else 1))
    except OSError as error:
        parser.error(f"argument --out: {error.filename}: {error.strerror}")
    about = {**notes, "fingerprint": identity["fingerprint of the training images"]}
    commands = train.RunFolder(args.resume.parent).commands() if args.resume else []  # of earlier sessions
    command = shlex.join([*program, *(sys.argv[1:] if words is None else words)])
    folder.write_json("config.json", {**about, **settings, "commands": [*commands, command]})
    folder.write_log(training.history)
    if args.resume:
        changed = [f"{name} {settings[name]}, was {old}" for name, old in before.items() if settings.get(name) != old]
        say(f"resuming after step {training.step}" + "".join(f"; changed: {change}" for change in changed))

    # 6. The loop: minires/train/loop.py.
    images = len(dataset.train_images)
    advice = partial(speed_advice, args, args.epochs - training.epoch, images) if device == "cpu" else None
    best, callbacks, epochs = train.KeepBest(folder), [], args.epochs
    if args.best:
        callbacks.append(best)
        if args.resume:
            best.take_over(train.RunFolder(args.resume.parent))
    if args.early_stop:
        callbacks.append(train.EarlyStop(args.early_stop))
        if training.batch == 0 and callbacks[-1](training):
            epochs = training.epoch  # the run that is resumed had stopped by it
    with train.Stop(args.max_minutes, args.steps) as stop:
        try:
            evaluation = train.fit(
                training, train_batches, batches[parts[0]], schedule, epochs, loss=loss, part=parts[0],
                callbacks=callbacks, stop=stop, folder=folder, advice=advice,
                graph=False if args.class_weights else args.graph,
            )  # fmt: skip
        except train.Interrupted as interruption:
            again = shlex.join([*program, "--resume", str(folder.path)])
            print(f"{interruption}, a checkpoint was written; continue with: {again}", file=sys.stderr)
            return 130

    # 7. The results: of the last weights, or of the best.
    best_epoch = best.load(training) if args.best else None
    evaluations = {} if best_epoch else {parts[0]: evaluation}
    for part in parts[len(evaluations) :]:
        evaluations[part] = train.evaluate(model, batches[part], stop.evaluation_seconds())
    result = results(training, evaluations, dataset, mr.info(), best_epoch)
    folder.write_json("results.json", result)
    draw_pictures(training, evaluations[parts[-1]], dataset, folder.path, part=parts[-1])
    if dataset.num_classes <= 20:
        say(class_table(result["per_class"]))
    say(final_line(result, dataset, folder.path))
    return 0


def make_parser(program: Sequence[str] = ("python", "train_cifar.py")) -> arguments.Parser:
    """The arguments of `program`."""
    parser = arguments.program_parser(
        program, data="auto", description="Train a ResNet on a folder of pictures, CIFAR-10, CIFAR-100, or Shapes-10.",
        epilog="Example: minires train photos --out runs/photos",
    )  # fmt: skip
    add = parser.add_argument
    add(
        "--depth", type=int, choices=models.DEPTHS, default=20, help="layers; 20 to 1202 in 6n+2 are the small networks"
    )
    add(
        "--stem",
        choices=("cifar", "imagenet"),
        help="first layers, for depths 18 to 152 (default: cifar; for your own pictures imagenet)",
    )
    add("--train-size", type=arguments.positive_int, help="use this many training images only")
    add("--test-size", type=arguments.positive_int, help="use this many test images only, and validation images")
    add(
        "--image-size",
        type=arguments.image_size,
        help="resize images to N x N (default: as they are; your own to 32, or 224 for depths 18 to 152)",
    )
    add("--grey", "--gray", action="store_true", help="your own pictures in shades of grey, with one channel")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--kernels", choices=mr.kernels.CHOICES, default=os.environ.get("MINIRES_KERNELS", "auto"))
    add(
        "--precision",
        choices=mr.kernels.PRECISIONS,
        help="of the CUDA kernels (default: tf32; fp32 before compute capability 8.0); bf16: half the memory",
    )
    add(
        "--graph",
        action=argparse.BooleanOptionalAction,
        help="replay the training step as a CUDA graph (default: on a GPU, where it is safe)",
    )
    add("--epochs", type=arguments.positive_int, help="(default: 30; on all of Shapes-10: 1)")
    add(
        "--batch-size",
        type=arguments.positive_int,
        help="(default: 128; 16 to 128 for your own pictures, by their number)",
    )
    add(
        "--optimizer",
        choices=("sgd", "adam", "adamw"),
        help="sgd: with Nesterov momentum 0.9 (default: adam for ResNet-50, 101 and 152, sgd for the others)",
    )
    add("--lr", type=arguments.positive_float, help="peak learning rate (default: of the recipe)")
    add("--schedule", choices=schedules.NAMES, default="one-cycle")
    add("--weight-decay", type=arguments.non_negative_float, help="(default: of the recipe)")
    add("--label-smoothing", type=arguments.share, help="(default: of the recipe)")
    add(
        "--zero-init-last",
        action=argparse.BooleanOptionalAction,
        help="start every block as the identity (default: in all networks but ResNet-18, 20, 32, 44 and 56)",
    )
    add(
        "--class-weights",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="a loss in which rare classes count as much as common ones",
    )
    add(
        "--augmentation",
        choices=tuple(AUGMENTATIONS),
        help="random changes of training images (default: crop-flip; for your own of 64 pixels or more resized-crop)",
    )
    add(
        "--early-stop",
        type=arguments.positive_int,
        metavar="N",
        help="stop after N epochs without a better one on the validation images",
    )
    add(
        "--best",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="keep and test the weights of the epoch with the best validation accuracy, not those of the last",
    )
    add("--max-minutes", type=arguments.positive_float, help="stop training after this time, evaluate and report")
    add("--steps", type=arguments.positive_int, help="stop after this many optimiser steps, for a trial")
    add("--seed", type=arguments.non_negative_int, default=0)
    add("--out", help="folder of the run (default: runs/resnetDEPTH, numbered)")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--resume", nargs="?", const=True, metavar="PATH", help="continue a run (default: --out, or --depth's last)"
    )
    mode.add_argument("--eval-only", metavar="PATH", help="evaluate the weights of a run or a file")
    mode.add_argument("--dry-run", action="store_true", help="print the memory and work of a step; no training")
    return parser


# The settings that a resumed run keeps. The other arguments (--out, --max-minutes, ...) are for one session.
SETTINGS = (
    "depth", "stem", "data", "data_dir", "train_size", "test_size", "image_size", "device", "kernels", "precision",
    "epochs", "batch_size", "optimizer", "lr", "schedule", "weight_decay", "label_smoothing", "zero_init_last",
    "augmentation", "seed", "val", "grey", "class_weights", "early_stop", "best",
)  # fmt: skip


def read_arguments(parser: arguments.Parser, words: Sequence[str] | None = None) -> Namespace:
    """The arguments, completed by the settings of the resumed or evaluated run."""
    args = parser.parse_intermixed_args(words)
    saved = {}
    if args.resume or args.eval_only:
        if args.resume is True:
            args.resume = args.out or latest_run(f"runs/resnet{args.depth}").path
        resume = state_file(args.resume) if args.resume else None
        weights = weights_file(args.eval_only) if args.eval_only else None
        path = resume or weights
        assert path is not None  # one of the two was asked for
        saved = saved_settings(path, to_resume=bool(resume))
        if saved.get("plain"):
            parser.error(f"{path}: of a plain network, without shortcuts; this program has residual ones")
        kept = set(SETTINGS) - {"precision"}  # tf32 and bf16 need a GPU, and the run may go on without one
        parser.set_defaults(**{name: value for name, value in saved.items() if name in kept})
        args = parser.parse_intermixed_args(words)  # again: the command line overrides the saved settings
        args.resume, args.eval_only = resume, weights
        args.out = args.out or (resume and resume.parent)
    args.saved_precision = saved.get("precision")

    folder = train.RunFolder(args.out) if args.out else new_run(f"runs/resnet{args.depth}")
    arguments.check_data(parser, args.data, folder.path)
    own = args.data not in data.NAMES
    args.stem = args.stem or ("imagenet" if own and args.depth not in resnet_cifar.DEPTHS else "cifar")
    arguments.check_stem(parser, args.depth, args.stem)
    if own and not args.image_size:
        args.image_size = 32 if args.stem == "cifar" else 224
    if args.grey and not own:
        parser.error(f"argument --grey: for a folder of pictures; {args.data} has coloured images")
    resumed = args.resume and folder.state.exists() and folder.state.samefile(args.resume)
    if args.out and folder.is_used and not resumed:
        parser.error(
            f"argument --out: {args.out} holds a run already; continue it with --resume, or name another folder"
        )
    return args


def as_learned(weights: Path, dataset: data.Dataset) -> data.Dataset:
    """`dataset` normalised as the network in the file `weights` has learned, if the file says how.

    Raises `DataError` if the network has learned other classes.
    """
    try:
        noted = read_info(weights)
    except CheckpointError:
        return dataset  # from elsewhere
    if list(dataset.classes) != noted.get("classes", list(dataset.classes)):
        names = [", ".join(classes) for classes in (noted["classes"], dataset.classes)]
        raise data.DataError(f"{weights}: has learned the classes {names[0]}, and {dataset.name} has {names[1]}")
    return replace(dataset, mean=tuple(noted.get("mean", dataset.mean)), std=tuple(noted.get("std", dataset.std)))


def complete(args: Namespace, dataset: str, images: int) -> None:
    """Set the arguments that were not given to the recipe's for the network and so many images of `dataset`."""
    own = args.data not in data.NAMES
    if not args.batch_size:  # of a few pictures so few that an epoch has 30 steps, if it can
        args.batch_size = next((n for n in (128, 64, 32) if not own or images >= 30 * n), 16)
    args.epochs = args.epochs or default_epochs(dataset, images, max(1, images // args.batch_size) if own else None)
    args.augmentation = args.augmentation or ("resized-crop" if own and args.image_size >= 64 else "crop-flip")
    for name, value in recipe(args.depth, args.batch_size, args.optimizer).items():
        if getattr(args, name) is None:
            setattr(args, name, value)


# Recipes for batches of 128; SGD's rate is scaled with the batch (Goyal et al. 2017). SGD trains networks of basic
# blocks: two epochs of ResNet-18 on 16x16 images give 62.96 % (Adam 59.11), six of ResNet-20 81.12 % (73.11). Adam
# trains networks of bottleneck blocks. At an SGD rate of 0.05 the loss of ResNet-101 (ImageNet stem) rises above 4, in
# PyTorch too, and ends at 2.11 after a cycle of 100 steps; Adam reaches 1.74 (docs/results/README.md).
SGD_BASIC = {"lr": 0.2, "weight_decay": 5e-4, "label_smoothing": 0.0}
SGD_BOTTLENECK = {"lr": 0.05, "weight_decay": 5e-4, "label_smoothing": 0.1}
ADAM = {"lr": 1e-3, "weight_decay": 0.0, "label_smoothing": 0.0}
ADAMW = {"lr": 1e-3, "weight_decay": 0.05, "label_smoothing": 0.0}


def recipe(depth: int, batch_size: int, optimizer: str | None = None) -> dict[str, Any]:
    """The default settings: the optimiser, unless `optimizer` is given, and its settings for this network."""
    block, _ = models.resnet.CONFIGURATIONS.get(depth, (None, None))
    bottleneck = block is models.resnet.Bottleneck  # in ResNet-50, 101 and 152
    optimizer = optimizer or ("adam" if bottleneck else "sgd")
    settings = {"sgd": SGD_BOTTLENECK if bottleneck else SGD_BASIC, "adam": ADAM, "adamw": ADAMW}[optimizer]
    if optimizer == "sgd":
        settings = {**settings, "lr": settings["lr"] * min(batch_size / 128, 4)}
    # Deep and bottleneck networks start with every block as the identity. Otherwise their gradients explode: the first
    # gradient of ResNet-101 has norm 620 instead of 6. ResNet-20 learns faster without zero_init_last, 81.12 % in six
    # epochs (78.10 with), and so does ResNet-18 on 16x16 images, 66.29 % in two (62.96). ResNet-32, 44 and 56 follow
    # ResNet-20.
    deep = depth not in (18, 20, 32, 44, 56)
    return {"optimizer": optimizer, **settings, "zero_init_last": deep}


def default_epochs(dataset: str, images: int, steps: int | None = None) -> int:
    """30; on Shapes-10, which is easy, as many as it takes to see 10,000 pictures: one of all of them. On your own
    pictures, with `steps` steps an epoch, as many as it takes for 150 steps, if these are more."""
    if steps:
        return max(30, -(-150 // steps))
    return min(30, -(-10_000 // images)) if dataset == "Shapes-10" else 30


def dry_run(parser: arguments.Parser, args: Namespace) -> int:
    """Print the memory and the work of a training step, without data or training."""
    size = args.image_size or 32
    arguments.use_precision(parser, args.precision or mr.kernels.default_precision())  # bf16 halves a GPU's memory
    classes, images = 100 if args.data == "cifar100" else 10, 50_000
    if args.data not in data.NAMES:
        files = find(Path(args.data))["train"]
        classes, images = len(files), sum(map(len, files.values()))
    complete(args, args.data, images)
    model = models.build(args.depth, classes, args.stem, in_channels=1 if args.grey else 3)
    image = (size, size, model.conv1.weight.shape[2])
    summary = mr.summary(model, image)
    slots = 1 if args.optimizer == "sgd" else 2
    memory = step_memory(model, image, args.batch_size, slots)
    gpu_step_bytes = mr.kernels.part("step_bytes", "cuda")
    say(f"ResNet-{args.depth}, images of {size}x{size}, batches of {args.batch_size}, {args.optimizer}")
    say(
        f"recipe       {args.epochs} epochs of {max(1, images // args.batch_size):,} steps, peak rate {args.lr:g}, "
        f"weight decay {args.weight_decay:g}"
    )
    say(f"parameters   {summary.parameters:,}")
    say(f"MACs         {summary.macs:,} multiply-adds for one image forward; a training step is about three times that")
    say(f"memory       {format_bytes(memory.total)} for a training step on the CPU:")
    say(f"             {format_bytes(memory.weights)} parameters, gradients and optimiser state")
    say(f"             {format_bytes(memory.activations)} activations kept for backward, {args.batch_size} images")
    say(f"             {format_bytes(memory.workspace)} work space; the rest is Python and its libraries")
    if gpu_step_bytes:
        on_gpu = gpu_step_bytes(model, image, args.batch_size, slots, summary)
        say(f"GPU memory   {format_bytes(on_gpu)} for a training step on a GPU")
    return 0


def speed_advice(args: Namespace, epochs: int, images: int, seconds: float) -> str:
    """The advice for a machine without a GPU where an epoch of `images` takes `seconds`; `epochs` are left."""
    cheaper = {
        "--stem imagenet (1/16 the multiply-adds)": args.depth not in resnet_cifar.DEPTHS and args.stem == "cifar",
        "--depth 20": args.depth != 20,
        "--train-size 5000": images > 5000,
        "--epochs 5": args.epochs > 5,
        "--max-minutes 10": args.max_minutes is None or args.max_minutes > 10,
    }
    text = f"without a GPU an epoch takes about {format_seconds(seconds)}"
    if epochs > 1:
        text += f", {epochs} of them {format_seconds(epochs * seconds)}"
    if args.resume or epochs * seconds < 120:
        return text  # a cheaper setting would make another run, or is not needed
    if any(cheaper.values()):
        text += f"; cheaper: {', '.join(option for option, is_cheaper in cheaper.items() if is_cheaper)}"
    if args.max_minutes and 60 * args.max_minutes < args.epochs * seconds and not args.steps:
        text += (
            f"\n--max-minutes {args.max_minutes:g} ends this run after about {60 * args.max_minutes / seconds:.2g} of "
            f"{args.epochs} epochs, in the middle of its learning-rate schedule; "
            "fewer --epochs or a smaller --train-size that fit the time learn more"
        )
    return text


if __name__ == "__main__":
    sys.exit(arguments.run(main))
