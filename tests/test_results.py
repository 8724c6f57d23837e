"""docs/results: what is published has its files beside it, and the documentation says nothing else."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from docs.results import tables, write_numbers
from minires.train import compare

DOCS = Path(__file__).parents[1] / "docs"
RESULTS = DOCS / "results"
PROGRAM = RESULTS / "write_numbers.py"
RUNS = sorted(path.parent for path in RESULTS.glob("*/*/results.json"))
PAGES = [DOCS.parent / "README.md", *sorted(DOCS.glob("*.md"))]


def test_the_pages_say_what_the_records_say():
    done = subprocess.run([sys.executable, PROGRAM, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_number_that_is_computed_stands_on_a_page():
    pages = "".join(page.read_text() for page in write_numbers.PAGES)
    assert set(write_numbers.texts()) == set(re.findall(r"<!-- ([\w-]+) -->", pages)) - {"end"}


def test_a_stale_page_is_named_and_mended(tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    page.write_text("An epoch takes <!-- time -->1 minute<!-- end -->.")
    monkeypatch.setattr(write_numbers, "texts", lambda: {"time": "20 minutes"})
    monkeypatch.setattr(write_numbers, "PAGES", [page])
    monkeypatch.setattr(write_numbers, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", [PROGRAM.name, "--check"])
    assert write_numbers.main() == 1
    assert "page.md" in capsys.readouterr().err
    assert "1 minute<" in page.read_text()
    monkeypatch.setattr(sys, "argv", [PROGRAM.name])
    assert write_numbers.main() == 0
    assert page.read_text() == "An epoch takes <!-- time -->20 minutes<!-- end -->."


def test_a_number_that_nothing_computes_is_an_error():
    with pytest.raises(SystemExit, match="nonsense"):
        write_numbers.filled("<!-- nonsense -->1<!-- end -->", {})


def test_a_number_without_its_end_takes_no_text_away():
    with pytest.raises(SystemExit, match="one: another comment stands between its two"):
        write_numbers.filled("<!-- one -->1 and much else <!-- two -->2<!-- end -->", {"one": "3", "two": "4"})


@pytest.mark.parametrize("path", RUNS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_published_run_is_complete(path):
    run = compare.read_run(path)
    assert run.results["test_accuracy"] == run.accuracy
    assert run.results["test_images"] == (2_000 if run.settings["dataset"] == "Shapes-10" else 10_000)
    assert run.results["seed"] == run.settings["seed"]
    assert all(re.match(r"python examples/(\w+/)?\w+\.py( |$)", command) for command in run.settings["commands"])
    assert {"processor", "cores", "threads", "platform"} <= set(run.results["machine"])
    if path.parent.name == "trained":
        for picture in ("curves.png", "confusion.png", "mistakes.png"):
            assert (path / picture).read_bytes().startswith(b"\x89PNG")
    assert not list(path.glob("*.safetensors"))
    assert all(file.stat().st_size < 1 << 20 for file in path.iterdir())


@pytest.mark.parametrize(
    "path",
    [path for path in RUNS if path.parent.name in ("trained", "ablation")],
    ids=lambda path: f"{path.parent.name}/{path.name}",
)
def test_the_command_of_a_published_run_still_means_its_settings(path, tmp_path, monkeypatch):
    """Whatever the defaults have become: those of the trained runs are spelt out, the ablation's may not change."""
    settings = compare.read_run(path).settings
    command = tables.command(settings) if path.parent.name == "trained" else settings["commands"][0]
    monkeypatch.setattr(sys, "argv", shlex.split(command)[1:])
    monkeypatch.chdir(tmp_path)  # where no run is in the way
    args = tables.train_cifar.read_arguments(tables.train_cifar.make_parser())
    images = 10_000 if settings["dataset"] == "Shapes-10" else 50_000
    tables.train_cifar.complete(args, settings["dataset"], images)
    names = ("depth", "stem", "train_size", "image_size", "epochs", "batch_size", "optimizer", "lr", "schedule",
             "weight_decay", "label_smoothing", "zero_init_last", "augmentation", "seed")  # fmt: skip
    assert {name: getattr(args, name) for name in names} == {name: settings[name] for name in names}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_accuracy_in_the_documentation_is_one_of_the_results(page):
    """A share with two decimals is an accuracy or an error, and stands in the page that the files make."""
    published = set(re.findall(r"\d+\.\d\d(?: ± \d+\.\d\d)? %", (RESULTS / "README.md").read_text()))
    quoted = set(re.findall(r"\d+\.\d\d(?: ± \d+\.\d\d)? %", page.read_text()))
    assert quoted <= published


@pytest.mark.parametrize("path", sorted(RESULTS.glob("pytorch/*/losses.json")), ids=lambda path: path.parent.name)
def test_a_published_comparison_is_complete(path):
    record = tables.compare_torch.read(path)
    assert [len(values) for values in record["test_accuracy"].values()] == [record["epochs"]] * 3
    assert len({len(values) for values in record["losses"].values()}) == 1
    assert re.match(r"python examples/(experiments/)?compare_torch\.py ", record["command"])


def test_every_picture_and_file_that_is_linked_exists():
    for page in [*PAGES, RESULTS / "README.md"]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_no_number_is_left_over():
    """Every run that is published is shown on the page."""
    text = (RESULTS / "README.md").read_text()
    for path in RUNS:
        assert f"({path.parent.name}/{path.name})" in text
        assert json.loads((path / "config.json").read_text())["commands"][0].startswith("python ")


def test_every_table_of_times_on_the_cpu_is_one_of_those():
    """None is typed by hand, in the chapter or below the README's heading."""
    readme, chapter = (DOCS.parent / "README.md").read_text(), (DOCS / "fast-cpu.md").read_text()
    for text in (readme.partition("## What is measured")[2], chapter):
        by_hand = re.sub(r"<!-- [\w-]+ -->.*?<!-- end -->", "", text, flags=re.DOTALL)
        assert "\n|" not in by_hand
        assert not re.findall(r"\d (?:ms|µs|GFLOP/s|MB/s)\b", by_hand)


@pytest.mark.parametrize("name", ["benchmark", "scaling", "ladder-resnet18", "details", "activations"])
def test_a_file_of_times_says_how_it_was_made(name):
    path = RESULTS / "cpu" / f"{name}.json"
    record = json.loads(path.read_text())
    assert re.fullmatch(
        rf"python examples/(measure/)?\w+\.py .*--json docs/results/cpu/{name}\.json", record["command"]
    )
    assert {"versions", "processor", "platform", "blas", "threads"} <= set(record["info"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", record["date"])


def test_show_prints_the_tables_without_measuring():
    for script, name in (("benchmark", "scaling"), ("cpu_ladder", "ladder-resnet18"), ("cpu_details", "details")):
        command = [
            sys.executable,
            DOCS.parent / "examples" / "measure" / f"{script}.py",
            "--show",
            RESULTS / "cpu" / f"{name}.json",
        ]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        rows = [line for line in printed.splitlines() if line.startswith("|")]
        assert rows
        assert set(rows) <= set((DOCS / "fast-cpu.md").read_text().splitlines())


def test_a_ratio_below_one_says_that_minires_is_faster():
    results = {"minires": {"seconds": [1.0] * 3}, "torch": {"seconds": [2.0] * 3}}
    measurements = [{"case": case, "work": "training", "results": results} for case in ("resnet18", "resnet101")]
    sentence = tables.headline({"info": {"threads": 2}, "measurements": measurements})
    assert "ResNet-18 takes 0.50 of PyTorch's time, one of ResNet-101 0.50" in sentence


def write_run(path, accuracy, test_accuracy, **settings):
    """A folder of one epoch."""
    path.mkdir(parents=True)
    settings = {
        "depth": 20, "epochs": 1, "dataset": "Colours", "seed": 0, "optimizer": "sgd", "schedule": "step", "lr": 0.1,
        "weight_decay": 0.0, "batch_size": 128, "data": "cifar10",
        "commands": ["python examples/train_cifar.py"], **settings,
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(settings))
    record = {"epoch": 1, "loss": 1, "accuracy": accuracy, "test_loss": 1, "test_accuracy": test_accuracy, "seconds": 6}
    (path / "log.jsonl").write_text(json.dumps(record))
    machine = {"processor": "P", "cores": 2, "threads": 1, "platform": "L"}
    (path / "results.json").write_text(json.dumps({"machine": machine, "epochs": 1}))


def test_the_table_of_trained_networks_says_which_one_had_no_crops():
    rows = {line.split("]")[0]: line for line in tables.trained()[0].splitlines()}
    assert ", no crops |" in rows["| [resnet20-flips"]
    assert "crops" not in rows["| [resnet20-seed0"]


def test_the_table_of_the_degradation_experiment(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "HERE", tmp_path)
    write_run(tmp_path / "degradation" / "plain-20", 0.9, 0.8, plain=True)
    assert (
        "| [plain-20](degradation/plain-20) | 1 | 10.00 % | 20.00 % | 1.000 | 6 | 1 thread of 2 cores, P |"
        in "\n".join(tables.degradations())
    )


def test_a_command_gets_the_options_whose_default_has_changed_and_no_others():
    settings = {
        "depth": 20,
        "batch_size": 128,
        **tables.train_cifar.recipe(20, 128),
        "lr": 0.1,
        "zero_init_last": True,
    }

    def command(options):
        return tables.command({**settings, "commands": [f"python examples/train_cifar.py{options}"]})

    assert command("").endswith(".py --lr 0.1 --zero-init-last")
    assert command(" --lr 0.1").endswith(".py --lr 0.1 --zero-init-last")
    assert command(" --out zero-init-last/lr").endswith("/lr --lr 0.1 --zero-init-last")
    assert command(" --zero-init-last").endswith(".py --zero-init-last --lr 0.1")
    assert command(" --lr=0.1").endswith(".py --lr=0.1 --zero-init-last")


def test_a_command_names_the_present_place_of_its_program():
    moved = tables.as_of_today("python examples/ablation.py --data 'my data'")
    assert moved == "python examples/experiments/ablation.py --data 'my data'"
    assert tables.as_of_today(moved) == moved
    for program in re.findall(r"^    python (\S+)", (RESULTS / "README.md").read_text(), flags=re.MULTILINE):
        assert (DOCS.parent / program).is_file()


def test_a_command_whose_default_optimizer_has_changed():
    """The rest of the recipe is then compared with what goes with the optimiser that was used."""
    recipe = tables.train_cifar.recipe(101, 128, "sgd")
    assert (recipe["optimizer"], recipe["label_smoothing"]) == ("sgd", 0.1)
    settings = {"depth": 101, "batch_size": 128, **recipe, "commands": ["python examples/train_cifar.py --depth 101"]}
    assert tables.command(settings) == "python examples/train_cifar.py --depth 101 --optimizer sgd"
    assert tables.command({**settings, "label_smoothing": 0.0}).endswith(" --optimizer sgd --label-smoothing 0.0")


def test_the_table_of_the_ablation(tmp_path, monkeypatch):
    """Differences are from the mean of all baselines."""
    monkeypatch.setattr(tables, "HERE", tmp_path)
    write_run(tmp_path / "ablation" / "baseline", 0.9, 0.80)
    write_run(tmp_path / "ablation" / "baseline-seed1", 0.9, 0.82, seed=1)
    write_run(tmp_path / "ablation" / "adam", 0.9, 0.85, optimizer="adam")
    text = "\n".join(tables.ablations())
    assert "| [adam](ablation/adam) | optimizer adam | 1.0000 | 1.0000 | 85.00 % | +4.00 |" in text
    assert "| mean ± std of 2 baselines |  |  |  | 81.00 ± 1.41 % |  |" in text
    assert "1 thread of 2 cores, P" in text


@pytest.mark.nightly("2 s; a figure changes with its program alone")
@pytest.mark.parametrize("program", sorted((DOCS / "figures").glob("*.py")), ids=lambda path: path.stem)
def test_the_figures_are_what_their_program_draws(program, tmp_path):
    """To the byte, with the matplotlib that has drawn them; and each is on a page."""
    matplotlib = pytest.importorskip("matplotlib")
    spec = importlib.util.spec_from_file_location(program.stem, program)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    pages = "".join(page.read_text() for page in DOCS.glob("*.md"))
    for name in module.FIGURES:
        published = (program.parent / f"{name}.svg").read_text()
        module.draw(name, tmp_path / f"{name}.svg")
        assert f"](figures/{name}.svg)" in pages
        if f"Matplotlib v{matplotlib.__version__}," in published:
            assert (tmp_path / f"{name}.svg").read_text() == published
