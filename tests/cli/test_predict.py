"""Images of every kind as inputs, and what a file of weights says of its classes."""

from __future__ import annotations

import json
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import minires as mr
from minires import models, optim
from minires.cli.predict import (
    CIFAR10_CLASSES,
    Preparation,
    batches,
    image_files,
    open_classifier,
)
from minires.data import Dataset, ImageError
from minires.data.pictures import read_image, square, to_rgb
from minires.models.pretrained import IMAGENET_MEAN
from minires.train import RunFolder, Training

PLAIN = Preparation(8, 8, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
RAMP = np.arange(96, dtype=np.uint8).reshape(8, 12)


def pixels_of(path) -> np.ndarray:
    return np.asarray(read_image(path))


@pytest.mark.parametrize("suffix", ["png", "bmp", "gif", "tiff", "webp", "ppm"])
def test_kinds_of_files(tmp_path, suffix):
    colours = np.stack([RAMP, RAMP[::-1], RAMP * 2], axis=2)
    options = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(colours).save(tmp_path / f"x.{suffix}", **options)
    found = pixels_of(tmp_path / f"x.{suffix}")
    assert found.shape == (8, 12, 3)
    assert np.abs(found.astype(int) - colours).max() <= (3 if suffix == "gif" else 0)  # a palette of 256 colours


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    """The eight ways a camera can have been held: each file shows the same image."""
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :8] = 255  # white at the top left
    turn = {
        1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2), 6: lambda a: np.rot90(a, 1), 7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
        8: lambda a: np.rot90(a, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(turn(upright))).save(tmp_path / "x.png", exif=exif)
    np.testing.assert_array_equal(pixels_of(tmp_path / "x.png"), upright)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "HSV", "LAB"])
def test_modes(mode):
    white = Image.new("RGB", (4, 4), "white")
    image = white.convert(mode) if mode != "LAB" else Image.new("LAB", (4, 4), (255, 128, 128))
    found = np.asarray(to_rgb(image))
    assert found.shape == (4, 4, 3)
    assert found.min() >= 250


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_on_white(mode):
    """Half of it is transparent black, half opaque black."""
    colour = np.zeros((4, 4, 4), np.uint8)
    colour[:, 2:, 3] = 255
    image = Image.fromarray(colour)
    if mode == "P":
        image = Image.fromarray((colour[..., 3] // 255).astype(np.uint8))
        image = Image.frombytes("P", (4, 4), image.tobytes())
        image.putpalette([7, 7, 7, 0, 0, 0])
        image.info["transparency"] = 0
    else:
        image = image.convert(mode)
    found = np.asarray(to_rgb(image))
    assert (found[:, :2] == 255).all()
    assert (found[:, 2:] == 0).all()


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_grey_of_many_bits_is_scaled_not_cut_off(tmp_path, dtype):
    grey = np.linspace(0, 65535, 16).reshape(4, 4).astype(dtype)
    Image.fromarray(grey).save(tmp_path / "x.tiff")
    found = pixels_of(tmp_path / "x.tiff")
    np.testing.assert_array_equal(found[..., 0], np.round(grey * (255 / 65535)))
    assert (found[..., 0] == found[..., 2]).all()
    Image.fromarray((grey / 65535 * 200).astype(np.int32)).save(tmp_path / "x.tiff")  # 8 bits in a wide type
    assert pixels_of(tmp_path / "x.tiff").max() == 200


def test_grey_in_floats_from_0_to_1_some_of_them_no_numbers(tmp_path):
    grey = np.array([[0, 0.2, 1], [np.nan, np.inf, -np.inf]], np.float32)
    Image.fromarray(grey).save(tmp_path / "x.tiff")
    np.testing.assert_array_equal(to_rgb(Image.open(tmp_path / "x.tiff")).getchannel(0), [[0, 51, 255], [0, 0, 0]])


def png(width: int, height: int) -> bytes:
    """A PNG of any size, whose pixels are missing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "not an image"),
        (b"hello", "not an image"),
        (b"\xff\xd8\xff\xe0" + b"\0" * 50, "x.jpg: cannot be read"),
        (png(10, 10), "x.jpg: cannot be read"),
        (png(60_000, 60_000), "decompression bomb"),
        (b"GIF89a" + b"\xff" * 40, "x.jpg: cannot be read"),
    ],
)
def test_files_that_are_no_images(tmp_path, content, word):
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(ImageError, match=word) as caught:
        read_image(tmp_path / "x.jpg")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ImageError, match=r"x\.png: cannot be read \(No such file or directory\)"):
        read_image(tmp_path / "x.png")
    with pytest.raises(ImageError, match=r"cannot be read \(Is a directory\)"):
        read_image(tmp_path)


@given(st.integers(1, 300), st.integers(1, 300))
def test_any_shape_becomes_a_square(width, height):
    assert square(Image.new("RGB", (width, height), "red"), 8, 8).shape == (8, 8, 3)


def test_the_middle_is_cut_out():
    wide = np.zeros((16, 64, 3), np.uint8)
    wide[:, 24:40] = 255
    np.testing.assert_array_equal(square(Image.fromarray(wide), 16, 16), 255)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8))
    expected = image.resize((341, 256), Image.Resampling.BILINEAR).crop((58, 16, 282, 240))  # torchvision's numbers
    np.testing.assert_array_equal(square(image, 256, 224), np.asarray(expected))


def test_a_strip_of_pixels_takes_no_gigabytes():
    assert square(Image.new("RGB", (1, 50_000)), 8, 8).shape == (8, 8, 3)
    assert square(Image.new("RGB", (30_000, 1)), 256, 224).shape == (224, 224, 3)


def test_normalising():
    found = PLAIN.normalise(np.array([[[[0, 255, 51]]]], np.uint8))
    np.testing.assert_allclose(found, [[[[-2, 2, (0.2 - 0.5) / 0.25]]]], rtol=1e-6)
    assert found.dtype == np.float32


def test_files_of_a_folder(tmp_path):
    for name in ("b.png", "a/z.png", ".hidden.png", ".git/x.png", "a/y.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert image_files([tmp_path / "b.png", tmp_path]) == [
        tmp_path / name for name in ("b.png", "a/y.txt", "a/z.png", "b.png")
    ]


def test_batches_leave_out_what_is_no_image(tmp_path):
    files = []
    for i in range(5):
        files.append(tmp_path / f"{i}.png")
        Image.new("RGB", (9, 9), (i, 0, 0)).save(files[-1])
    files[1].write_text("no")
    files[4].write_text("no")
    skipped: list[ImageError] = []
    found = list(batches(files, PLAIN, 2, skipped.append))
    assert [[path.name for path in paths] for paths, _ in found] == [["0.png"], ["2.png", "3.png"]]
    assert [pixels[..., 0].max() for _, pixels in found] == [0, 3]
    assert [str(error).rpartition("/")[2].partition(":")[0] for error in skipped] == ["1.png", "4.png"]


# What the weights say -----------------------------------------------------------------------------------------------


def opened(tmp_path, model, config=None, metadata=None, **options):
    """The classifier from a file, and what was said."""
    mr.save_weights(model, tmp_path / "last.safetensors", metadata)
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    lines: list[str] = []
    return open_classifier(tmp_path, log=lines.append, **options), lines


def test_a_run_says_it_all(tmp_path):
    config = {"dataset": "Shapes-10", "classes": list("abc"), "mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]}
    config |= {"image_size": 40}
    classifier, lines = opened(tmp_path, models.resnet20(3), json.dumps(config))
    assert classifier.classes == ("a", "b", "c")
    assert classifier.preparation == Preparation(40, 40, (0.1, 0.2, 0.3), (1, 1, 1))
    assert lines == []


def test_notes_within_the_weights(tmp_path):
    notes = {"settings": {"image_size": 16}, "classes": ["x", "y"], "mean": [0, 0, 0], "std": [1, 1, 1]}
    classifier, lines = opened(tmp_path, models.resnet20(2), metadata={"minires": json.dumps(notes)})
    assert classifier.classes == ("x", "y")
    assert classifier.preparation == Preparation(16, 16, (0, 0, 0), (1, 1, 1))
    assert lines == []


@pytest.mark.parametrize("way", ["save_weights", "Training"])
@pytest.mark.parametrize("image_size", [None, 48])
def test_a_loop_of_ones_own_takes_the_notes_of_the_data_set(tmp_path, way, image_size):
    """Shapes of 24x24, trained with an ImageNet stem: nobody could guess the size from the weights."""
    images, labels = np.zeros((6, 24, 24, 3), np.uint8), np.arange(6) % 3
    dataset = Dataset("mine", images, labels, images, labels, ("cat", "dog", "owl"), (0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    model, notes = models.resnet18(3), dataset.notes(image_size)
    if way == "save_weights":
        mr.save_weights(model, tmp_path / "last.safetensors", notes=notes)
    else:
        training = Training(model, optim.SGD(model.parameters(), 0.1), notes=notes)
        RunFolder(tmp_path).save(training)
    lines: list[str] = []
    classifier = open_classifier(tmp_path / "last.safetensors", log=lines.append)
    assert classifier.classes == ("cat", "dog", "owl")
    size = image_size or 24
    assert classifier.preparation == Preparation(size, size, (0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    assert lines == []
    with pytest.raises(mr.WeightsError, match=r"only a \.safetensors file can hold metadata and notes"):
        mr.save_weights(model, tmp_path / "x.npz", notes=notes)


@pytest.mark.parametrize(
    ("notes", "said"),
    [
        ({"mean": 0.5, "std": 0.5}, "its note on mean is not usable"),
        ({"mean": ["x"] * 3, "std": [1, 1, 1]}, "its note on mean is not usable"),
        ({"image_size": [64, 64]}, "its note on image_size is not usable"),
        ({"classes": {"0": "cat"}}, "its note on classes is not usable"),
    ],
)
def test_notes_that_are_not_usable_are_named(tmp_path, notes, said):
    _, lines = opened(tmp_path, models.resnet20(), metadata={"minires": json.dumps(notes)})
    assert any(said in line for line in lines)


def test_too_few_names_are_no_names_of_cifar_10(tmp_path):
    with pytest.raises(mr.WeightsError, match=r"has 10 classes, its notes name 2; give names \(--classes\)"):
        opened(tmp_path, models.resnet20(), metadata={"minires": json.dumps({"classes": ["cat", "dog"]})})
    with pytest.raises(mr.WeightsError, match="notes are not what JSON can hold"):
        mr.save_weights(models.resnet20(), tmp_path / "x.safetensors", notes={"classes": {1, 2}})
    mr.save_weights(models.resnet20(), tmp_path / "x.safetensors", notes={"mean": np.float32([0.5, 0.5, 0.5])})


@pytest.mark.parametrize("size", ["-5", "[32, 32]", '"32"', "0", "true"])
def test_a_size_that_is_none_is_not_believed(tmp_path, size):
    classifier, _ = opened(tmp_path, models.resnet20(), f'{{"image_size": {size}}}')
    assert classifier.preparation.size == 32


@pytest.mark.parametrize("config", [None, "{", "[1]", "\xff", '{"classes": 3, "mean": "x", "std": [1], "settings": 7}'])
def test_without_notes_it_is_assumed_aloud(tmp_path, config):
    classifier, lines = opened(tmp_path, models.resnet20(), config)
    assert classifier.classes == CIFAR10_CLASSES
    assert classifier.preparation.size == 32
    assert classifier.preparation.mean == (0.4914, 0.4822, 0.4465)
    lines = [line for line in lines if "says nothing" in line]
    assert len(lines) == 3
    assert "says nothing of the size of its images, taken for 32x32" in lines[2]
    assert "says nothing of its 10 classes, taken for those of CIFAR-10" in lines[0]
    assert "says nothing of its normalisation, taken for that of CIFAR-10" in lines[1]


def test_imagenet(tmp_path):
    classifier, lines = opened(tmp_path, models.resnet18())
    assert classifier.classes[207] == "golden retriever"
    assert (classifier.preparation.resize, classifier.preparation.size) == (256, 224)
    assert classifier.preparation.mean == IMAGENET_MEAN
    assert "says nothing of its 1000 classes, taken for those of ImageNet" in lines[0]
    assert "says nothing of its normalisation, taken for that of ImageNet" in lines[1]
    assert opened(tmp_path, models.resnet18(), image_size=112)[0].preparation.resize == 128


def test_other_numbers_of_classes(tmp_path):
    classifier, lines = opened(tmp_path, models.resnet18(3))
    assert classifier.classes == ("class 0", "class 1", "class 2")
    assert "says nothing of its 3 classes" in lines[0]
    assert opened(tmp_path, models.resnet18(3), classes=["a", "b", "c"])[0].classes == ("a", "b", "c")
    with pytest.raises(mr.WeightsError, match="has 3 classes, 2 names are given"):
        opened(tmp_path, models.resnet18(3), classes=["a", "b"])


def test_probabilities_are_those_of_the_model(tmp_path):
    model = models.resnet20(generator=np.random.default_rng(0))
    x = np.random.default_rng(1).standard_normal((4, 32, 32, 3)).astype(np.float32)
    model(mr.Tensor(x))  # moves the running statistics
    classifier, _ = opened(tmp_path, model)
    pixels = np.random.default_rng(2).integers(0, 256, (3, 32, 32, 3), np.uint8)
    found = classifier.probabilities(pixels)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
    with mr.no_grad():
        logits = model.eval()(mr.Tensor(classifier.preparation.normalise(pixels))).numpy().astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
