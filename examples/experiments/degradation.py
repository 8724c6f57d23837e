"""The paper's main experiment: plain networks get worse with depth, residual networks do not.

    python examples/experiments/degradation.py                   # 20 and 56 layers, plain and residual, 5 epochs each
    python examples/experiments/degradation.py --draw FOLDER     # only draw the pictures again, from the files there

Four networks are trained at the same budget by the paper's recipe, shortened: SGD with momentum 0.9, learning rate 0.1,
divided by 10 at half and at three quarters of the steps, weight decay 1e-4, batches of 128, crops and flips. All
networks warm up over the first 400 steps; in the paper only ResNet-110 does. With 0.1 from the first step, ResNet-56
(seed 0) gave nearly the same output for every image after an epoch, and a short run has few epochs to recover. Before
training and after each epoch, 256 training images go through each network, forward and backward. Two numbers are noted
for every 3x3 convolution:

    the norm of its weights' gradient: how strongly does the signal from the loss arrive at this layer?
    the standard deviation of its response, after batch norm and before the ReLU: how much does this layer change?

Everything goes to runs/degradation (or --out): for each network a folder as of examples/train_cifar.py, with
layers.json; and the pictures training.png (the paper's figure 6), gradients.png and responses.png (figure 7).
docs/residual-learning.md explains them. Started again, the program continues where it stopped. --network trains one of
the four only: two processes can share the work.

Source: He et al. 2015, Deep Residual Learning for Image Recognition (arXiv 1512.03385), section 4.2.
Exit status: as examples/train_cifar.py.
"""

from __future__ import annotations

import json
import shlex
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import minires as mr
import minires.functional as F
from minires import data, models, nn, optim, train
from minires.cli import arguments
from minires.optim import schedules
from minires.train import compare
from minires.train.checkpoint import CheckpointError
from minires.train.progress import say
from minires.train.report import new_figure, results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RECIPE = {
    "batch_size": 128, "optimizer": "sgd", "lr": 0.1, "schedule": "step", "weight_decay": 1e-4, "label_smoothing": 0.0,
    "zero_init_last": False, "augmentation": "crop-flip",
}  # fmt: skip
WARMUP_STEPS = 400  # at most a quarter of all
PROBED = 256  # images that measure the layers


def main() -> int:
    parser = make_parser()
    args = parser.parse_args()
    out = Path(args.draw or args.out)
    networks = [f"{kind}-{depth}" for depth in args.depths for kind in ("plain", "resnet")]
    if args.network and args.network not in networks:
        parser.error(f"argument --network: {args.network!r} is none of {', '.join(networks)}")
    if not args.draw:
        args.device = arguments.choose_device(parser, args.device)
        dataset = data.load(args.data, args.data_dir, log=say)
        if args.train_size:
            dataset = dataset.subset(args.train_size)
        for network in [args.network] if args.network else networks:
            try:
                train_network(network, dataset, args, out / network)
            except train.Interrupted as interruption:
                again = shlex.join(["python", *sys.argv])
                print(f"{interruption}, a checkpoint was written; continue with: {again}", file=sys.stderr)
                return 130

    runs = [compare.read_run(out / network) for network in networks if (out / network / "results.json").exists()]
    if not runs:
        parser.error(f"{out} holds none of {', '.join(networks)}")
    print(compare.as_text(compare.table(runs)[1]))
    draw(runs, out)
    say(f"-> {', '.join(str(out / name) for name in ('training.png', 'gradients.png', 'responses.png'))}")
    return 0


def make_parser() -> arguments.Parser:
    parser = arguments.Parser(
        description="Plain and residual networks of two depths, at equal budget.", allow_abbrev=False
    )
    add = parser.add_argument
    add("--depths", type=int, nargs="+", choices=models.resnet_cifar.DEPTHS, default=[20, 56])
    add("--network", metavar="NAME", help="train this one only: plain-20, resnet-20, plain-56, resnet-56")
    add("--epochs", type=arguments.positive_int, default=5)
    add("--data", choices=("auto", "cifar10", "cifar100", "shapes"), default="auto")
    add("--data-dir", default="data")
    add("--train-size", type=arguments.positive_int, help="use this many training images only")
    add("--test-size", type=arguments.positive_int, help="use this many test images only")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--seed", type=arguments.non_negative_int, default=0)
    add("--out", default="runs/degradation")
    add("--draw", metavar="FOLDER", help="train nothing, draw the runs in FOLDER")
    return parser


def train_network(network: str, dataset: data.Dataset, args: Namespace, path: Path) -> None:
    """Train one of the four networks to the end, in the folder `path`, or continue it. Raises `Interrupted`."""
    kind, depth = network.split("-")
    mr.manual_seed(args.seed)
    model = models.build(int(depth), dataset.num_classes, "cifar", shortcut=kind == "resnet").to(args.device)
    twin = models.build(int(depth), dataset.num_classes, "cifar", shortcut=kind == "resnet").to(args.device)
    optimizer = optim.SGD(model.parameters(), RECIPE["lr"], momentum=0.9, weight_decay=RECIPE["weight_decay"])

    options = {"mean": dataset.mean, "std": dataset.std, "device": args.device}
    train_batches = data.Loader(
        dataset.train_images, dataset.train_labels, RECIPE["batch_size"], train=True, seed=args.seed, **options
    )
    test = dataset.test_images[: args.test_size], dataset.test_labels[: args.test_size]
    test_batches = data.Loader(*test, RECIPE["batch_size"], train=False, **options)
    probed = data.Loader(dataset.train_images, dataset.train_labels, PROBED, train=True, augment=False, **options)
    images, labels = probed.batch(0, 0)
    total_steps = args.epochs * len(train_batches)
    warmup_steps = min(WARMUP_STEPS, total_steps // 4)
    schedule = schedules.build(RECIPE["schedule"], RECIPE["lr"], total_steps)
    schedule = schedules.warm_up(schedule, RECIPE["lr"], warmup_steps)

    settings = {
        "depth": int(depth), "plain": kind == "plain", **RECIPE, "warmup_steps": warmup_steps, "epochs": args.epochs,
        "train_size": args.train_size, "test_size": args.test_size, "device": args.device, "seed": args.seed,
    }  # fmt: skip
    identity = {
        "network": network, "data set": dataset.name, "epochs": args.epochs, "seed": args.seed,
        "test_size": args.test_size, "fingerprint of the training images": dataset.fingerprint(),
    }  # fmt: skip
    training, folder = train.Training(model, optimizer, identity, settings), train.RunFolder(path)
    commands, probes = [], []
    if folder.state.exists():
        training.restore(folder.state)
        commands, probes = folder.commands(), read_layers(path)["probes"]
    elif (path / "config.json").exists() and (path / "log.jsonl").exists():
        raise CheckpointError(f"{path}: holds a run without its state; name another folder with --out")
    if training.epoch == args.epochs and (path / "results.json").exists():
        say(f"{network}: done before")
        return
    try:
        folder.prepare(state_bytes=8 * optimizer.flat.size, weights_bytes=4 * optimizer.flat.size)
    except OSError as error:
        raise compare.RunError(f"{error.filename}: {error.strerror}") from error
    about = {"dataset": dataset.name, "classes": dataset.classes, "mean": dataset.mean, "std": dataset.std}
    about["fingerprint"] = identity["fingerprint of the training images"]
    folder.write_json("config.json", {**settings, **about, "commands": [*commands, shlex.join(["python", *sys.argv])]})
    say(f"{network} on {dataset.name}, {sum(p.size for p in model.parameters()):,} parameters, on {args.device}")

    def look_at_layers() -> None:
        if len(probes) == training.epoch:  # not measured before the run stopped
            twin.load_state_dict(model.state_dict())
            probes.append({"epoch": training.epoch, **probe(twin, images, labels)})
        window = max(len(train_batches) // 10, 1)  # a point of the training curve is the mean of a tenth of an epoch
        curve = {"steps": window, "percent": [100 * (1 - share) for share in means(training.accuracies, window)]}
        names = [name for name, _, _ in convolutions(model)]
        folder.write_json("layers.json", {"layers": names, "probes": probes, "training_error": curve})

    evaluation = None
    while evaluation is None or training.epoch < args.epochs:
        look_at_layers()
        with train.Stop(max_steps=len(train_batches) - training.batch) as stop:  # to the end of this epoch
            evaluation = train.fit(
                training, train_batches, test_batches, schedule, args.epochs, stop=stop, folder=folder
            )
    look_at_layers()
    folder.write_json("results.json", results(training, {"test": evaluation}, dataset, mr.info()))


def probe(model: nn.Module, images: Any, labels: Any) -> dict[str, list[float]]:
    """For every convolution, in order: the norm of its gradient, and the standard deviation of its response.

    Moves the running statistics of `model`: pass a copy of the trained network.
    """
    layers = convolutions(model)
    spread: dict[nn.Module, float] = {}

    def look(module: nn.Module, inputs: tuple, output: mr.Tensor) -> None:
        if isinstance(module, nn.BatchNorm2d):
            spread[module] = float(output.data.std())

    model.train()
    model.zero_grad()
    with nn.observe(look):
        loss = F.cross_entropy(model(mr.Tensor(images)), labels)
    loss.backward()
    return {
        "gradient_norm": [float(np.linalg.norm(mr.device.to_device(conv.weight.grad, "cpu"))) for _, conv, _ in layers],
        "response_std": [spread[norm] for _, _, norm in layers],
    }


def convolutions(model: nn.Module) -> list[tuple[str, nn.Conv2d, nn.BatchNorm2d]]:
    """(name, convolution, its batch norm), from the first layer to the last."""
    modules = dict(model.named_modules())
    return [(name, modules[name], modules[name.replace("conv", "bn")]) for name in modules if "conv" in name]


def means(values: list[float], window: int) -> list[float]:
    """Means of `window` values each, without the rest at the end."""
    return np.reshape(values[: len(values) // window * window], (-1, window)).mean(axis=1).tolist()


def read_layers(path: Path) -> dict[str, Any]:
    """layers.json of a run. Raises `RunError`."""
    try:
        content = json.loads((path / "layers.json").read_text())
        if not content["probes"]:
            raise ValueError("no probes")
        for moment in content["probes"]:
            if not len(content["layers"]) == len(moment["gradient_norm"]) == len(moment["response_std"]):
                raise ValueError("not a number for every layer")
        content["training_error"]["percent"], content["training_error"]["steps"]
        return content
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise compare.RunError(f"{path / 'layers.json'}: cannot be read ({error})") from error


# Pictures ------------------------------------------------------------------------------------------------------


def draw(runs: list[compare.Run], out: Path) -> None:
    """Draw training.png, gradients.png and responses.png, with matplotlib only. Raises `RunError`, `OSError`."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        say("no figures: matplotlib is not installed (pip install matplotlib)")
        return
    layers = [read_layers(run.path) for run in runs]
    if len({(run.settings["dataset"], len(measured["probes"])) for run, measured in zip(runs, layers)}) > 1:
        raise compare.RunError(f"{out}: its networks were trained on different data or for different times")
    training_error(runs, layers).savefig(out / "training.png", dpi=120)
    gradient_norms(runs, layers).savefig(out / "gradients.png", dpi=120)
    responses(runs, layers).savefig(out / "responses.png", dpi=120)


def style_of(run: compare.Run) -> dict[str, str]:
    """A colour by depth; dashed without shortcuts."""
    colours = ("tab:orange", "tab:green", "tab:red", "tab:blue", "black", "gray")
    colour = colours[models.resnet_cifar.DEPTHS.index(run.settings["depth"])]
    return {"color": colour, "linestyle": "--" if run.settings["plain"] else "-"}


def training_error(runs: list[compare.Run], layers: list[dict[str, Any]]) -> Figure:
    """Training and test error over the epochs: plain networks on the left, residual ones on the right."""
    dataset = runs[0].settings["dataset"]
    figure = new_figure(12, 5, f"Training error (thin) and test error (bold) on {dataset}, as the paper's figure 6")
    panels = figure.subplots(1, 2, sharey=True)
    for run, measured in zip(runs, layers):
        axes, curve = panels[0 if run.settings["plain"] else 1], measured["training_error"]
        colour, last = style_of(run)["color"], run.records[-1]
        at = (np.arange(len(curve["percent"])) + 0.5) * curve["steps"] * last["epoch"] / last["step"]
        axes.plot(at, curve["percent"], color=colour, linewidth=1)
        tests = [100 - 100 * record["test_accuracy"] for record in run.records]
        epochs = [record["epoch"] for record in run.records]
        axes.plot(epochs, tests, "o-", color=colour, linewidth=2.5, label=run.network)
    for axes, title in zip(panels, ("plain networks", "residual networks")):
        axes.set(xlabel="epoch", title=title, ylim=(0, None), xlim=(0, None))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    panels[0].set_ylabel("error in %")
    return figure


def gradient_norms(runs: list[compare.Run], layers: list[dict[str, Any]]) -> Figure:
    """The norm of each layer's gradient before training, after the first epoch and after the last."""
    dataset, probes = runs[0].settings["dataset"], layers[0]["probes"]
    figure = new_figure(14, 5, f"Norm of the gradient of each layer's weights ({dataset}, {PROBED} images)")
    moments = sorted({0, 1, len(probes) - 1})
    panels = figure.subplots(1, len(moments), sharey=True)
    for axes, index in zip(panels, moments):
        for run, measured in zip(runs, layers):
            norms = measured["probes"][index]["gradient_norm"]
            axes.semilogy(range(1, len(norms) + 1), norms, label=run.network, **style_of(run))
        title = ("before training", "after 1 epoch", f"after {probes[index]['epoch']} epochs")[min(index, 2)]
        axes.set(xlabel="layer, 1 sees the image", title=title)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("norm of the gradient")
    panels[0].legend()
    return figure


def responses(runs: list[compare.Run], layers: list[dict[str, Any]]) -> Figure:
    """The standard deviation of each layer's response after training, in the order of the layers and sorted."""
    dataset = runs[0].settings["dataset"]
    figure = new_figure(12, 5, f"Standard deviation of each layer's response after training ({dataset}), as figure 7")
    left, right = figure.subplots(1, 2, sharey=True)
    for run, measured in zip(runs, layers):
        spread = measured["probes"][-1]["response_std"]
        left.plot(range(1, len(spread) + 1), spread, label=run.network, **style_of(run))
        right.plot(range(1, len(spread) + 1), sorted(spread, reverse=True), **style_of(run))
    left.set(xlabel="layer, 1 sees the image", ylabel="standard deviation (axis not from 0)", title="in their order")
    right.set(xlabel="layer, by its standard deviation", title="sorted")
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    left.legend()
    return figure


if __name__ == "__main__":
    sys.exit(arguments.run(main))
