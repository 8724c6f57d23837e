"""Pictures of one's own, from the folder to the prediction: examples/train_cifar.py, finetune_cifar.py, minires."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest

import minires as mr
from examples import train_cifar
from minires import data, models
from minires.cli import commands
from minires.train import checkpoint
from tests.pictures import make_folder, picture


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A working directory with photos/blue, photos/green and photos/red."""
    monkeypatch.chdir(tmp_path)
    return make_folder(tmp_path / "photos", {"red": 15, "green": 15, "blue": 15})


@pytest.fixture
def minires(capsys):
    """`minires WORDS`: (status, lines of stdout, stderr)."""

    def run(*words):
        status = None
        try:
            status = commands.main([*map(str, words)])
        except SystemExit as error:
            status = error.code
        said = capsys.readouterr()
        return status, said.out.splitlines(), said.err

    return run


QUICK = ("--device", "cpu", "--image-size", 12, "--epochs", 8)


def arrays(path):
    return {name: array.tobytes() for name, array in checkpoint.load(path)[0].items()}


def read(path):
    return json.loads(path.read_text())


def test_from_a_folder_to_a_prediction(pictures, photos, minires, tmp_path):
    status, out, err = minires("train", "photos", *QUICK, "--out", "run")
    assert (status, err) == (0, "")
    assert "photos: 45 pictures of 3 classes" in out
    result, config = read(tmp_path / "run/results.json"), read(tmp_path / "run/config.json")
    assert result["val_accuracy"] >= 0.9
    assert out[-1] == (
        f"validation accuracy {100 * result['val_accuracy']:.2f} % (photos, ResNet-20, 8 epochs, "
        f"{result['minutes']:.1f} min) -> run"
    )
    assert [line.split()[:2] for line in out[-4:-1]] == [["blue", "3"], ["green", "3"], ["red", "3"]]
    assert not [name for name in result if name.startswith("test")]
    assert (result["weights"], result["val_images"]) == ("last", 9)
    assert {"curves.png", "confusion.png", "mistakes.png"} <= {path.name for path in (tmp_path / "run").iterdir()}
    assert [(row["class"], row["images"]) for row in result["per_class"]] == [("blue", 3), ("green", 3), ("red", 3)]
    assert (config["classes"], config["data"], config["image_size"]) == (["blue", "green", "red"], "photos", 12)
    assert config["commands"][0].startswith("minires train photos --device cpu")
    picture((200, 40, 40), (60, 30), 7).save("new.png")
    picture((40, 40, 200), (30, 60), 7).convert("RGBA").save("other.png")
    status, out, err = minires("predict", "--weights", "run", "new.png", "other.png")
    assert (status, err) == (0, "")
    assert [line.split()[-1] for line in (out[1], out[5])] == ["red", "blue"]

    notes = json.loads(mr.weights.read_metadata(tmp_path / "run/last.safetensors")["minires"])
    assert {name: notes[name] for name in ("classes", "mean", "std", "image_size")} == {
        name: config[name] for name in ("classes", "mean", "std", "image_size")
    }
    status, out, _ = minires("report", "run")
    assert status == 0
    assert "validation accuracy" in out[2]
    assert out[-3].split()[0] == "red"


def settings(*words, images=24):
    """The completed arguments of `minires train WORDS`, for so many training images of the folder."""
    args = train_cifar.read_arguments(train_cifar.make_parser(("minires", "train")), words)
    train_cifar.complete(args, "photos", images)
    return {
        name: getattr(args, name) for name in ("data", "stem", "image_size", "batch_size", "augmentation", "epochs")
    }


def test_defaults_for_photographs():
    large = {"data": "photos", "stem": "imagenet", "image_size": 224, "augmentation": "resized-crop"}
    assert settings("--depth", "18", "photos") == {
        **large,
        "batch_size": 16,
        "epochs": 150,
    }  # 150 steps of one an epoch
    assert settings("photos", "--depth", "18", images=20_000) == {**large, "batch_size": 128, "epochs": 30}
    small = {"data": "photos", "stem": "cifar", "image_size": 32, "augmentation": "crop-flip"}
    assert settings("photos", images=96) == {**small, "batch_size": 16, "epochs": 30}
    assert settings("photos", images=1000) == {**small, "batch_size": 32, "epochs": 30}
    assert settings("photos", "--image-size", "64")["augmentation"] == "resized-crop"
    assert settings("cifar10", images=100)["batch_size"] == 128


@pytest.mark.parametrize("augmentation", ["crop-flip", "resized-crop-jitter"])
def test_files_read_when_needed_train_the_same_and_resume_bit_for_bit(
    photos, minires, tmp_path, monkeypatch, augmentation
):
    monkeypatch.setattr(data, "folder", partial(data.folder, memory_bytes=0))
    settings = ("train", "photos", *QUICK, "--schedule", "constant", "--augmentation", augmentation, "--batch-size", 8)
    assert minires(*settings, "--steps", 7, "--out", "whole")[0] == 0
    assert minires(*settings, "--steps", 3, "--out", "parts")[0] == 0
    assert checkpoint.read_info(tmp_path / "parts/state.safetensors")["batch"] == 3  # of 4: within an epoch
    status, out, err = minires("train", "--resume", "parts", "--steps", 4)
    assert (status, err) == (0, "")
    assert any(line.startswith("resuming after step 3") for line in out)
    assert arrays(tmp_path / "whole/state.safetensors") == arrays(tmp_path / "parts/state.safetensors")
    picture((0, 0, 0), (20, 20), 0).save(photos / "red" / "more.png")
    status, _, err = minires("train", "--resume", "parts", "--steps", 4)
    assert status == 2
    assert "number of training images is 36, this run's is 37" in err
    if augmentation == "crop-flip":
        monkeypatch.undo()
        monkeypatch.chdir(tmp_path)
        (photos / "red" / "more.png").unlink()
        assert minires(*settings, "--steps", 7, "--out", "memory")[0] == 0
        assert arrays(tmp_path / "whole/last.safetensors") == arrays(tmp_path / "memory/last.safetensors")


def test_grey_pictures_rare_classes_and_a_test_set(tmp_path, minires, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for part, few in (("train", 5), ("test", 2)):
        folder = tmp_path / "scans" / part
        make_folder(folder, {"clear": 0, "shadow": 0})
        for name, count, level in (("clear", 4 * few, 60), ("shadow", few, 190)):
            for number in range(count):
                picture((level,) * 3, (20, 20), number).convert("L").save(folder / name / f"{number}.png")
    status, out, err = minires("train", "scans", *QUICK, "--grey", "--class-weights", "--out", "run")
    assert (status, err) == (0, "")
    assert any(line.startswith("WARNING: 'clear' has 16 training pictures, 'shadow' 4") for line in out)
    assert out[-1].startswith("test accuracy 100.00 % (scans, ResNet-20")
    assert len(read(tmp_path / "run/config.json")["mean"]) == 1
    assert mr.load_weights("run/last.safetensors")["conv1.weight"].shape[1] == 1
    status, out, err = minires("predict", "--weights", "run", "scans/test/shadow/0.png")
    assert (status, err) == (0, "")
    assert out[1].split()[-1] == "shadow"
    status, out, err = minires("finetune", "scans", "--weights", "run", "--epochs", 1, "--freeze", "--device", "cpu")
    assert (status, err) == (0, "")
    assert out[-1].startswith("test accuracy")  # of the test set, once; the epochs by the images kept aside
    assert "val accuracy" in out[-5]
    monkeypatch.setattr(data, "shapes10", partial(data.shapes10, train_size=20, test_size=10))
    status, _, err = minires("finetune", "shapes", "--weights", "run", "--device", "cpu")
    assert status == 2
    assert "Shapes-10 is in colour, and the network of --weights takes shades of grey" in err
    assert err.count("\n") == 1


def test_evaluating_on_other_pictures_prepares_them_as_the_network_has_learned(tmp_path, minires, monkeypatch):
    """Darker pictures stay darker: their own mean is not subtracted."""
    monkeypatch.chdir(tmp_path)
    for name, levels in (("learn", (60, 120)), ("other", (125, 190))):
        make_folder(tmp_path / name, {"dark": 0, "light": 0})
        for level, of in zip(levels, ("dark", "light")):
            for number in range(12):
                picture((level,) * 3, (20, 20), number).save(tmp_path / name / of / f"{number}.png")
    assert minires("train", "learn", *QUICK, "--out", "run")[0] == 0
    status, out, err = minires("train", "other", "--eval-only", "run", "--device", "cpu")
    assert (status, err) == (0, "")
    assert out[-1].startswith("validation accuracy 50.00 %")  # all of them are light
    (tmp_path / "other" / "dark").rename(tmp_path / "other" / "bright")
    status, out, err = minires("train", "other", "--eval-only", "run", "--device", "cpu")
    assert status == 2
    assert err.endswith("has learned the classes dark, light, and other has bright, light\n")


def test_a_folder_may_be_renamed_between_two_sessions(photos, minires, tmp_path):
    assert minires("train", "photos", *QUICK, "--steps", 1, "--out", "run")[0] == 0
    photos.rename(tmp_path / "pictures")
    status, _, err = minires("train", "pictures", "--resume", "run", "--steps", 1)
    assert (status, err) == (0, "")


def test_another_seed_is_judged_by_the_same_pictures(photos, minires, tmp_path):
    """A network that goes on from another run's is never tested on pictures which that run has learned from."""
    prints = []
    for seed in (0, 1):
        assert minires("train", "photos", *QUICK, "--steps", 1, "--seed", seed, "--out", f"run{seed}")[0] == 0
        prints.append(read(tmp_path / f"run{seed}/config.json")["fingerprint"])
    assert prints[0] == prints[1]


def test_class_weights_are_the_loss(photos, minires, tmp_path):
    for number in range(10):
        (photos / "red" / f"{number:03}.png").unlink()
    first = []
    for name, more in (("a", ()), ("b", ("--class-weights",))):
        words = (*QUICK, "--steps", 1, "--batch-size", 28, *more, "--out", name)
        assert minires("train", "photos", *words)[0] == 0
        first.append(read(tmp_path / name / "results.json")["train_loss"])
    assert first[0] != first[1]
    assert read(tmp_path / "b/config.json")["class_weights"] is True


def test_the_best_epoch_is_chosen_by_validation_and_tested_once(tmp_path, minires, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "shapes10", partial(data.shapes10, train_size=80, test_size=20))
    words = (
        "train",
        "shapes",
        "--device",
        "cpu",
        "--batch-size",
        16,
        "--val",
        0.25,
        "--lr",
        0.3,
        "--best",
        "--epochs",
        4,
    )
    status, out, err = minires(*words, "--out", "run")
    assert (status, err) == (0, "")
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert not [name for record in log for name in record if name.startswith("test")]
    best = max(log, key=lambda record: (record["val_accuracy"], -record["val_loss"]))
    result = read(tmp_path / "run/results.json")
    assert (result["weights"], result["weights_epoch"]) == ("best", best["epoch"])
    assert (result["val_accuracy"], result["test_images"]) == (best["val_accuracy"], 20)
    assert np.isclose(result["val_loss"], best["val_loss"], rtol=1e-6)
    assert f", with the weights of epoch {best['epoch']}, " in out[-1] or f"of epoch {best['epoch']})" in out[-1]
    assert out[-1].startswith(f"test accuracy {100 * result['test_accuracy']:.2f} % (Shapes-10")
    status, out, err = minires("train", "--eval-only", "run", "--device", "cpu")
    assert (status, err) == (0, "")
    for line, part, title in zip(out[-2:], ("val", "test"), ("validation", "test")):
        assert line.startswith(f"{title} accuracy {100 * result[f'{part}_accuracy']:.2f} % (")


def test_early_stopping_and_its_resumption(photos, minires, tmp_path):
    words = ("--device", "cpu", "--image-size", 12, "--lr", 1e-30, "--schedule", "constant", "--early-stop", 1)
    status, out, err = minires("train", "photos", *words, "--epochs", 40, "--out", "run")
    assert (status, err) == (0, "")
    done = len((tmp_path / "run/log.jsonl").read_text().splitlines())
    assert 2 <= done < 40
    status, out, err = minires("train", "--resume", "run")
    assert (status, err) == (0, "")
    assert f"{done} epochs are done: nothing is left to train of {done}" in out


def test_fine_tuning_keeps_the_preparation_that_the_network_has_learned_with(photos, minires, tmp_path):
    source = models.resnet20(4, generator=np.random.default_rng(0))
    learned = {
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.2, 0.3],
        "image_size": 12,
        "dataset": "x",
        "classes": list("abcd"),
    }
    mr.save_weights(source, "old.safetensors", notes=learned)
    for name, more in (("frozen", ("--freeze",)), ("all", ("--class-weights",))):
        status, out, err = minires(
            "finetune", "photos", "--weights", "old.safetensors", "--device", "cpu", "--epochs", 2, *more, "--out", name
        )
        assert (status, err) == (0, "")
        assert out[-1].startswith("validation accuracy")
        config = read(tmp_path / name / "config.json")
        assert {key: config[key] for key in ("mean", "std", "image_size")} == {
            key: learned[key] for key in ("mean", "std", "image_size")
        }
        assert config["classes"] == ["blue", "green", "red"]
        assert minires("predict", "--weights", name, "photos/red/000.png")[0] == 0
    before, after = source.state_dict(), mr.load_weights("frozen/last.safetensors")
    assert all(np.array_equal(after[key], before[key]) for key in before if not key.startswith("fc."))
    status, out, err = minires(
        "finetune", "--resume", "photos", "--weights", "old.safetensors", "--out", "all", "--epochs", 3
    )
    assert (status, err) == (0, "")
    assert "resuming after step" in "\n".join(out)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train nowhere", "minires train: error: nowhere: no such folder of pictures, and none of auto, ci"),
        ("train old.safetensors", "old.safetensors: a file, expected a folder of pictures"),
        ("train", "the following arguments are required: DATA, such as a folder of pictures, or cifar10"),
        ("finetune --weights old.safetensors", "the following arguments are required: DATA"),
        ("train photos --out photos/run", "argument --out: photos/run lies among the pictures in photos"),
        ("finetune photos --weights old.safetensors --out photos", "argument --out: photos lies among the pictures"),
        ("finetune photos --weights old.safetensors --depth 18", "18 is for --weights imagenet; old.safetensors is"),
        ("train photos --class-weights --graph", "argument --graph: a loss with --class-weights looks at the labels"),
        ("train photos/red", "photos/red: 15 pictures lie in no sub-folder"),
        ("train photos --val 0", "argument --val: nothing to evaluate the network on"),
        ("train photos --val 1", "argument --val: '1' is not a number of at least 0 and below 1"),
        ("train shapes --grey", "argument --grey: for a folder of pictures; shapes has coloured images"),
        ("train shapes --best --steps 1", "an epoch is chosen by validation images, never by the test set"),
        ("train shapes --early-stop 3 --steps 1", "an epoch is chosen by validation images, never by the test set"),
        ("train photos --early-stop 0", "argument --early-stop: '0' is not a whole number of at least 1"),
        ("train photos --weights x", "unrecognized arguments: --weights x"),
        ("finetune nowhere --weights old.safetensors", "minires finetune: error: nowhere: no such folder of pictures"),
        ("finetune photos --weights gone.pth", "gone.pth: there is no such file of weights"),
        ("finetune photos --weights old.safetensors --val 0", "argument --val: nothing to evaluate on"),
        ("train broken", "broken/red/003.png: cannot be read"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_nothing_is_written(photos, minires, tmp_path, words, message, monkeypatch):
    monkeypatch.setattr(data, "shapes10", partial(data.shapes10, train_size=20, test_size=10))
    mr.save_weights(models.resnet20(generator=np.random.default_rng(0)), "old.safetensors")
    make_folder(tmp_path / "broken", {"red": 5, "green": 5})
    (tmp_path / "broken/red/003.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    out = () if "--out" in words else ("--out", "run")
    status, _, err = minires(*words.split(), "--device", "cpu", *out)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_dry_run_counts_the_classes(photos, minires, tmp_path):
    status, out, err = minires("train", "photos", "--dry-run", "--grey")
    assert (status, err) == (0, "")
    expected = sum(p.size for p in models.resnet20(3, in_channels=1).parameters())
    assert out[2].split() == ["parameters", f"{expected:,}"]
    assert not (tmp_path / "runs").exists()


def test_help_lists_both_commands(minires):
    status, out, _ = minires("--help")
    assert status == 0
    assert {"train", "finetune"} <= {line.split()[0] for line in out if line.startswith("    ")}
    for command in ("train", "finetune"):
        status, out, _ = minires(command, "--help")
        assert status == 0
        assert out[0].startswith(f"usage: minires {command} [-h]")
