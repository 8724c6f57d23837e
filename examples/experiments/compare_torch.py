"""The same training in minires and in PyTorch, side by side: same network, same first weights, same batches.

    pip install torch==2.13.0                                    # needed here; elsewhere PyTorch is optional
    python examples/experiments/compare_torch.py                 # ResNet-20, 2 epochs
    python examples/experiments/compare_torch.py --depth 101 --stem imagenet --zero-init-last --optimizer adam

Every step is done three times: by minires, by PyTorch, and by PyTorch with nudged weights. Nudging exchanges each
weight for the float32 above or below, as another rounding would. At first the losses of minires and PyTorch agree to
the last digits. Then the losses diverge: each library sums, and rounds, in its own order, and training magnifies any
difference. One reason is the ReLU: an input rounded to the other side of zero passes a gradient or blocks it. The third
run, PyTorch against itself, shows the speed of this divergence. If minires took other steps than PyTorch, the losses
would diverge at once, and the curves would stay apart.

Everything goes to runs/compare-torch (or --out): losses.json, and the picture losses.png. --draw FOLDER draws it again.
Exit status: 0; 1 if a loss is not finite, with all steps before it in the folder; 2 for unusable arguments.
"""

from __future__ import annotations

import json
import math
import shlex
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import minires as mr
import minires.functional as F
from minires import data, models, optim
from minires.cli import arguments
from minires.files.atomic import atomic
from minires.optim import schedules
from minires.train import TrainingError
from minires.train.compare import RunError
from minires.train.progress import say
from minires.train.report import new_figure

LIBRARIES = ("minires", "PyTorch", "PyTorch, nudged")
CLOSE = 1e-4  # the largest difference of two losses that count as equal


def main() -> int:
    parser = make_parser()
    args = parser.parse_args()
    arguments.check_stem(parser, args.depth, args.stem)
    out = Path(args.draw or args.out)
    if args.draw:
        record = read(out / "losses.json")
    else:
        try:
            import torch  # noqa: F401
        except ImportError:
            parser.error("PyTorch is not installed: pip install torch==2.13.0")
        if (out / "losses.json").exists():
            parser.error(f"argument --out: {out} holds a comparison already; name another folder")
        out.mkdir(parents=True, exist_ok=True)
        for record in compare(args):  # after each epoch
            with atomic(out / "losses.json") as file:
                file.write((json.dumps(record, indent=1) + "\n").encode())
    report(record)
    try:
        draw(record, out / "losses.png")
    except ImportError:
        say("no picture: matplotlib is not installed (pip install matplotlib)")
        return 0
    say(f"-> {out / 'losses.png'}")
    return 0


def make_parser() -> arguments.Parser:
    parser = arguments.Parser(description="Train the same network in minires and in PyTorch.", allow_abbrev=False)
    add = parser.add_argument
    add("--depth", type=int, choices=models.DEPTHS, default=20)
    add("--stem", choices=("cifar", "imagenet"), default="cifar", help="first layers, for depths 18 to 152")
    add("--zero-init-last", action="store_true", help="start every block as the identity")
    add("--data", choices=("auto", "cifar10", "cifar100", "shapes"), default="auto")
    add("--data-dir", default="data")
    add("--train-size", type=arguments.positive_int, help="use this many training images only")
    add("--test-size", type=arguments.positive_int, help="use this many test images only")
    add("--epochs", type=arguments.positive_int, default=2)
    add("--batch-size", type=arguments.positive_int, default=128)
    add("--optimizer", choices=("sgd", "adam"), default="sgd", help="sgd: Nesterov 0.9, weight decay 5e-4")
    add("--lr", type=arguments.positive_float, help="peak of the one-cycle schedule (default: sgd 0.2, adam 1e-3)")
    add("--seed", type=arguments.non_negative_int, default=0)
    add("--out", default="runs/compare-torch")
    add("--draw", metavar="FOLDER", help="train nothing, draw the comparison in FOLDER")
    return parser


# A library is two functions: one step of training, which returns the loss, and the test accuracy.
Library = tuple[Callable[[Any, Any, float], float], Callable[[data.Loader], float]]


def read(path: Path) -> dict[str, Any]:
    """The record that `compare` made. Raises `RunError`."""
    try:
        record = json.loads(path.read_text())
        losses, _ = (np.array([record[key][name] for name in LIBRARIES], float) for key in ("losses", "test_accuracy"))
        if not losses.size:
            raise ValueError("no step was done")
        title(record)  # needs the rest
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise RunError(f"{path}: not a comparison ({error})") from error
    return record


def compare(args: Namespace) -> Iterator[dict[str, Any]]:
    """Train all three, step by step in turn; yield the content of losses.json after each epoch.

    For a loss that is not finite, yields a record of the steps before, then raises `TrainingError`.
    """
    import torch

    torch.set_num_threads(mr.info()["threads"])
    args.lr = args.lr or {"sgd": 0.2, "adam": 1e-3}[args.optimizer]
    mr.manual_seed(args.seed)
    dataset = data.load(args.data, args.data_dir, log=say)
    if args.train_size:
        dataset = dataset.subset(args.train_size)
    normalization = {"mean": dataset.mean, "std": dataset.std}
    train_batches = data.Loader(
        dataset.train_images, dataset.train_labels, args.batch_size, train=True, seed=args.seed, **normalization
    )
    test = dataset.test_images[: args.test_size], dataset.test_labels[: args.test_size]
    test_batches = data.Loader(*test, args.batch_size, train=False, **normalization)
    schedule = schedules.one_cycle(args.lr, args.epochs * len(train_batches))

    model = models.build(args.depth, dataset.num_classes, args.stem, zero_init_last=args.zero_init_last)
    first_weights = model.state_dict()  # in PyTorch's names and layouts
    rng = np.random.default_rng(args.seed)
    nudged = {name: nudge(w, rng) if w.ndim > 1 else w for name, w in first_weights.items()}  # not batch norm's
    trained = (
        in_minires(model, args),
        in_torch(first_weights, dataset.num_classes, args),
        in_torch(nudged, dataset.num_classes, args),
    )
    libraries = dict(zip(LIBRARIES, trained))
    losses: dict[str, list[float]] = {name: [] for name in libraries}
    accuracies: dict[str, list[float]] = {name: [] for name in libraries}
    record = {
        "command": shlex.join(["python", *sys.argv]),
        "dataset": dataset.name, "depth": args.depth, "optimizer": args.optimizer, "lr": args.lr,
        "batch_size": args.batch_size, "epochs": args.epochs, "seed": args.seed,
        "torch": torch.__version__, "info": mr.info(), "losses": losses, "test_accuracy": accuracies,
    }  # fmt: skip
    for epoch in range(args.epochs):
        for x, y in train_batches.epoch(epoch):
            step = len(losses["minires"])
            now = {name: train_step(x, y, schedule(step)) for name, (train_step, _) in libraries.items()}
            said = f"step {step + 1}: " + ", ".join(f"{name} {loss:.6f}" for name, loss in now.items())
            if not all(map(math.isfinite, now.values())):
                yield record
                raise TrainingError(f"a loss is not finite: {said}")
            for name, loss in now.items():
                losses[name].append(loss)
            if step % 50 == 0:
                say(said)
        for name, (_, test_accuracy) in libraries.items():
            accuracies[name].append(test_accuracy(test_batches))
        yield record


def nudge(weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each weight exchanged for the next float32, above or below."""
    return np.nextafter(weights, rng.choice(np.array([-np.inf, np.inf], weights.dtype), weights.shape))


def in_minires(model: mr.nn.Module, args: Namespace) -> Library:
    """Training of `model` in minires."""
    if args.optimizer == "sgd":
        optimizer = optim.SGD(model.parameters(), args.lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
    else:
        optimizer = optim.Adam(model.parameters(), args.lr)

    def train_step(x: np.ndarray, y: np.ndarray, lr: float) -> float:
        loss = F.cross_entropy(model(mr.Tensor(x)), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.lr = lr
        optimizer.step()
        return loss.item()

    return train_step, lambda batches: mr.train.evaluate(model, batches).accuracy


def in_torch(weights: dict[str, np.ndarray], num_classes: int, args: Namespace) -> Library:
    """Training of the same network in PyTorch, beginning with `weights`."""
    import torch

    from examples.measure import torch_networks

    model = torch_networks.build(args.depth, args.stem, num_classes).to(memory_format=torch.channels_last)
    model.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in weights.items()})
    if args.optimizer == "sgd":
        optimizer = torch.optim.SGD(model.parameters(), args.lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
    else:
        optimizer = torch.optim.Adam(model.parameters(), args.lr)

    def logits(x: np.ndarray) -> torch.Tensor:
        return model(torch.from_numpy(x).permute(0, 3, 1, 2))  # channels last, as PyTorch calls it: nothing is copied

    def train_step(x: np.ndarray, y: np.ndarray, lr: float) -> float:
        loss = torch.nn.functional.cross_entropy(logits(x), torch.from_numpy(y))
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        return loss.item()

    @torch.no_grad()
    def test_accuracy(batches: data.Loader) -> float:
        model.eval()
        right = sum(int((logits(x).argmax(1).numpy() == y).sum()) for x, y in batches.epoch(0))
        model.train()
        return right / len(batches.images)

    return train_step, test_accuracy


def differences(record: dict[str, Any]) -> dict[str, np.ndarray]:
    """|difference of the losses| per step: minires and PyTorch; PyTorch and nudged PyTorch."""
    losses = {name: np.array(values) for name, values in record["losses"].items()}
    return {
        "minires and PyTorch": abs(losses["minires"] - losses["PyTorch"]),
        "PyTorch and PyTorch, nudged": abs(losses["PyTorch, nudged"] - losses["PyTorch"]),
    }


def steps_together(record: dict[str, Any]) -> dict[str, int]:
    """The number of steps, from the first, with losses at most `CLOSE` apart."""
    return {names: int(np.argmax([*~(values <= CLOSE), True])) for names, values in differences(record).items()}


def tail(record: dict[str, Any]) -> int:
    """The last tenth of the steps, whose mean loss shows how well a network learns at the end."""
    return max(len(record["losses"]["minires"]) // 10, 1)


def arguments_of(record: dict[str, Any]) -> Namespace:
    """The arguments of the command that made the record."""
    return make_parser().parse_args(shlex.split(record["command"])[2:])


def title(record: dict[str, Any]) -> str:
    """The network, the data and the optimiser, in words."""
    args = arguments_of(record)
    stem = ", ImageNet stem" if args.stem == "imagenet" else ""
    images = f"{args.train_size:,} images of " if args.train_size else ""
    return f"ResNet-{args.depth}{stem}, {images}{record['dataset']}, {args.optimizer} {record['lr']:g}"


def report(record: dict[str, Any]) -> None:
    """Print how long the losses agree, and the final losses and accuracies."""
    for names, steps in steps_together(record).items():
        say(f"{names}: losses at most {CLOSE:g} apart for {steps} steps")
    for name, values in record["losses"].items():
        text = f"{name}: loss {np.mean(values[-tail(record) :]):.4f} (mean of the last {tail(record)} steps)"
        accuracies = record["test_accuracy"][name]  # after each epoch
        say(text + (f", test accuracy {100 * accuracies[-1]:.2f} %" if accuracies else ""))


def draw(record: dict[str, Any], path: Path) -> None:
    """The loss curves, and their differences."""
    figure = new_figure(13, 5, f"{title(record)}: the same training in both libraries")
    left, right = figure.subplots(1, 2)
    styles = {  # visible where they coincide: a broad line, a thinner one upon it, and thin dashes
        "minires": {"color": "tab:blue", "linewidth": 5, "alpha": 0.5},
        "PyTorch, nudged": {"color": "tab:gray", "linewidth": 2},
        "PyTorch": {"color": "tab:orange", "linewidth": 1.5, "linestyle": "--", "zorder": 3},
    }
    window = max(len(record["losses"]["minires"]) // 40, 1)
    for name, values in record["losses"].items():
        smooth = np.convolve(values, np.full(window, 1 / window), "valid")
        steps = np.arange(window, len(values) + 1)
        left.plot(steps, smooth, label=name, **styles[name])
    left.set(xlabel="step", ylabel=f"training loss, mean of {window} steps", ylim=(0, None), xlim=(0, None))
    for (names, difference), colour in zip(differences(record).items(), ("tab:blue", "tab:gray")):
        steps = np.arange(1, len(difference) + 1)
        right.loglog(steps, np.maximum(difference, 1e-8), color=colour, label=names, linewidth=1, alpha=0.7)
    right.axhline(CLOSE, color="black", linewidth=0.8, linestyle=":")
    right.set(xlabel="step (logarithmic)", ylabel="difference of the two losses (0 drawn as 1e-8)", xlim=(1, None))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(arguments.run(main))
