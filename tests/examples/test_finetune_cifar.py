"""Fine-tuning as a user meets it: the six steps, frozen features, resuming, and every kind of bad input."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import minires as mr
from minires import data, models

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "finetune_cifar.py"
PICTURE = ROOT / "docs" / "results" / "trained" / "resnet20-seed0" / "curves.png"


@pytest.fixture(scope="module")
def script():
    """The script as a module."""
    specification = importlib.util.spec_from_file_location("finetune_cifar", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with two networks, as PyTorch would have saved them."""
    path = tmp_path_factory.mktemp("prepared")
    model = models.resnet20(5, generator=np.random.default_rng(0))
    mr.save_weights({f"module.{name}": array for name, array in model.state_dict().items()}, path / "small.pth")
    mr.save_weights(models.resnet18(generator=np.random.default_rng(0)), path / "imagenet.pth")
    return path


def is_trained(name: str) -> bool:
    return name.rpartition(".")[2] in ("weight", "bias")


@pytest.fixture
def run(run_here, shapes_dir, tmp_path):
    def run(*arguments):
        small = ("--data", "shapes", "--data-dir", shapes_dir,
                 "--train-size", 64, "--test-size", 32, "--image-size", 32)  # fmt: skip
        command = [sys.executable, str(SCRIPT), "--device", "cpu", *map(str, (*small, *arguments))]
        return run_here(command, tmp_path)

    return run


def test_all_layers_of_a_network_with_other_classes(run, prepared, tmp_path):
    process = run("--from", prepared / "small.pth", "--epochs", 2, "--out", "runs/a")
    assert process.returncode == 0, process.stderr
    out = process.stdout
    assert "took 'module.'" in out
    assert "without a GPU an epoch takes about" in out
    assert "epoch 1/2: loss" in out
    assert "epoch 2/2: loss" in out
    assert out.splitlines()[-1].startswith("test accuracy")
    assert "(Shapes-10, ResNet-20, 2 epochs" in out.splitlines()[-1]
    model = models.from_weights(tmp_path / "runs/a/last.safetensors")
    assert model.fc.out_features == 10
    before = mr.load_weights(prepared / "small.pth", strip_prefix=True)
    assert not np.array_equal(model.state_dict()["conv1.weight"], before["conv1.weight"])  # all layers have moved

    config = json.loads((tmp_path / "runs/a/config.json").read_text())
    assert config["classes"] == list(data.shapes.CLASSES)
    assert (config["lr"], config["batch_size"], config["image_size"]) == (1e-3, 32, 32)
    files = {"config.json", "log.jsonl", "last.safetensors", "state.safetensors", "results.json"}
    assert set(os.listdir(tmp_path / "runs/a")) == files | {"curves.png", "confusion.png", "mistakes.png"}

    more = run("--from", prepared / "small.pth", "--epochs", 3, "--out", "runs/a", "--resume")
    assert more.returncode == 0, more.stderr
    assert "resuming after step 4" in more.stdout
    assert "3 epochs" in more.stdout.splitlines()[-1]
    refused = run("--from", prepared / "small.pth", "--out", "runs/a")
    assert refused.returncode == 2
    assert "holds a run already" in refused.stderr


@pytest.mark.parametrize(
    "named", [[], pytest.param(["--out", "runs/mine"], marks=pytest.mark.nightly("the same in a folder with a name"))]
)
def test_interrupted_in_its_numbered_folder_and_continued_as_it_says(prepared, shapes_dir, interrupt, tmp_path, named):
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--data", "shapes", "--data-dir", str(shapes_dir)]
    command += ["--train-size", "320", "--test-size", "32", "--image-size", "32", *named]
    command += ["--from", str(prepared / "small.pth"), "--epochs", "2"]
    status, _, said = interrupt(command, tmp_path)
    assert status == 130, said
    again = said.splitlines()[-1].partition("continue with: ")[2].split()
    assert again[-1] == "--resume"
    assert again[again.index("--out") + 1] == (named or ["", "runs/finetune"])[1]
    more = subprocess.run([sys.executable, *again[1:]], cwd=tmp_path, capture_output=True, text=True, timeout=180)
    assert more.returncode == 0, more.stderr
    assert "2 epochs" in more.stdout.splitlines()[-1]
    assert len((tmp_path / (named or ["", "runs/finetune"])[1] / "log.jsonl").read_text().splitlines()) == 2


def test_a_plain_network_stays_one(run, tmp_path):
    """Its weights would fit a residual network, which would then be the one to predict."""
    notes = {"minires": json.dumps({"settings": {"plain": True}})}
    mr.save_weights(models.resnet20(shortcut=False), tmp_path / "plain.safetensors", notes)
    process = run("--from", "plain.safetensors", "--freeze", "--epochs", 1, "--out", "a")
    assert process.returncode == 0, process.stderr
    assert not models.from_weights(tmp_path / "a/last.safetensors").layer1[0].shortcut


def test_frozen_features_leave_the_network_as_it_was(run, prepared, tmp_path):
    process = run("--from", prepared / "imagenet.pth", "--freeze", "--epochs", 3)
    assert process.returncode == 0, process.stderr
    assert "computing the features of Shapes-10 by ResNet-18, once for all epochs" in process.stdout
    assert process.stdout.splitlines()[-1].endswith("-> runs/finetune")
    before, after = (
        mr.load_weights(prepared / "imagenet.pth"),
        mr.load_weights(tmp_path / "runs/finetune/last.safetensors"),
    )
    assert after["fc.weight"].shape == (10, 512)
    for name, array in before.items():
        if not name.startswith("fc."):
            np.testing.assert_array_equal(after[name], array)
    results = json.loads((tmp_path / "runs/finetune/results.json").read_text())
    assert results["trained_parameters"] == 512 * 10 + 10
    assert results["parameters"] == sum(array.size for name, array in after.items() if is_trained(name))
    log = [json.loads(line) for line in (tmp_path / "runs/finetune/log.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in log] == [1, 2, 3]
    assert log[-1]["loss"] < log[0]["loss"]  # it learns

    again = run("--from", prepared / "imagenet.pth", "--freeze", "--max-minutes", 1e-6)
    assert again.stdout.splitlines()[-1].endswith("-> runs/finetune-2")
    (record,) = (tmp_path / "runs/finetune-2/log.jsonl").read_text().splitlines()  # of the epoch that was cut short
    assert json.loads(record)["step"] == 1

    predicted = subprocess.run(
        [sys.executable, "-m", "minires", "predict", "--weights", "runs/finetune", str(PICTURE)],
        cwd=tmp_path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert predicted.returncode == 0, predicted.stderr
    assert predicted.stderr == ""
    assert predicted.stdout.split(" %  ")[1].split()[0] in data.shapes.CLASSES


def test_the_recipe_of_the_task(script):
    """Adam with 1e-3, batches of 32, 224x224, the very mean and standard deviation, mirroring, ResNet-101."""
    args = script.make_parser().parse_args([])
    assert (args.source, args.depth, args.data) == ("imagenet", None, "cifar10")  # None: 101
    assert (args.lr, args.batch_size, args.flip) == (1e-3, 32, True)
    assert script.MEAN == (0.4914, 0.4822, 0.4465)
    assert script.STD == (0.247, 0.243, 0.261)


def test_features_are_what_the_last_layer_sees(script, shapes_dir):
    model = models.resnet18(10, weights=None, generator=np.random.default_rng(0)).eval()
    images = data.shapes10(shapes_dir).test_images[:5]
    args = script.make_parser().parse_args(["--batch-size", "2"])
    options = {"mean": script.MEAN, "std": script.STD, "image_size": 64, "padding": 0, "device": "cpu"}
    loader = data.Loader(images[:, :, ::-1], np.zeros(5, int), 5, train=False, **options)
    features = script.compute_features(model, images, args, options, mirrored=True)
    with mr.no_grad():
        expected = model(mr.Tensor(next(iter(loader.epoch(0)))[0])).numpy()
        np.testing.assert_allclose(model.fc(mr.Tensor(features)).numpy(), expected, rtol=1e-3, atol=1e-4)


def test_feature_batches(script):
    plain, mirrored = np.arange(10.0)[:, None], np.arange(10.0)[:, None] + 100
    batches = script.FeatureBatches([plain, mirrored], np.arange(10), 4, "cpu", seed=0)
    seen = [np.concatenate([x[:, 0] for x, _ in batches.epoch(epoch)]) for epoch in range(20)]
    for x in seen:
        assert sorted(x % 100) == list(range(10))  # every image once
    assert 60 < sum((x >= 100).sum() for x in seen) < 140  # each version about half of the time
    assert len(batches) == 3
    whole, rest = list(batches.epoch(3)), list(batches.epoch(3, start=1))
    assert [y.tolist() for _, y in rest] == [y.tolist() for _, y in whole[1:]]
    plain_only = script.FeatureBatches([plain], np.arange(10), 4, "cpu")
    assert np.concatenate([y for _, y in plain_only.epoch(5)]).tolist() == list(range(10))


def test_the_advice_for_a_cpu(script):
    args = script.make_parser().parse_args([])
    text = script.speed_advice(args, 0.106, 50_000, 10_000)  # ResNet-101, two cores
    assert "an epoch takes about 5.6 h, 10 of them 2.3 days" in text
    assert "--freeze trains only the new layer, in 3.2 h" in text
    assert "--freeze --train-size 900 --test-size 900 in about 5 min" in text
    assert "--train-size" not in script.speed_advice(args, 0.1, 1000, 100)
    assert 0 < script.forward_seconds(models.resnet20(), 32) < 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--from nowhere", "nowhere: there is no such file of weights"),
        ("--depth 20", "invalid choice: 20"),
        ("--lr 0", "not a number above 0"),
        ("--data mnist --from SMALL", "mnist: no such folder of pictures, and none of auto, cifar10"),
        ("--data cifar10 --from SMALL --data-dir broken", "cifar-10-batches-py"),
        ("--from SMALL --resume --out runs/none", "there is no such file"),
        ("--from SMALL --resume", "nothing to resume"),
        ("--from SMALL --resume --freeze", "keeps no state to continue from"),
    ],
)
def test_bad_arguments(run, prepared, tmp_path, arguments, said):
    (tmp_path / "broken" / "cifar-10-batches-py").mkdir(parents=True)
    process = run(*arguments.replace("SMALL", str(prepared / "small.pth")).split())
    assert process.returncode == 2
    assert said in process.stderr
    assert process.stderr.count("\n") == 1, process.stderr
    assert not (tmp_path / "runs").exists()


def test_without_the_weights_it_says_where_to_put_them(run, tmp_path, monkeypatch):
    """A damaged file in the cache: nothing is downloaded."""
    (tmp_path / "resnet101-63fe2227.pth").write_bytes(b"<html>")
    monkeypatch.setenv("MINIRES_CACHE", str(tmp_path))
    process = run()
    assert process.returncode == 2
    assert "resnet101-63fe2227.pth: this is a web page" in process.stderr
    assert "https://download.pytorch.org/models/resnet101-63fe2227.pth" in process.stderr
