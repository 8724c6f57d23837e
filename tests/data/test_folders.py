"""A folder of pictures as a data set: what counts, how it is divided, and every fault of a folder."""

from __future__ import annotations

import io
import os
import sys

import numpy as np
import pytest
from PIL import Image

from minires import data
from minires.data.folders import mean_and_std
from minires.data.pictures import Pictures, square
from tests.pictures import make_folder, picture


def quiet(line):
    pass


def folder(path, **options):
    return data.folder(path, log=quiet, **options)


@pytest.fixture
def colours(tmp_path):
    return make_folder(tmp_path / "colours", {"red": 10, "blue": 5, "green": 20})


def files(images):
    return [path.rpartition("colours" + os.sep)[2].replace(os.sep, "/") for path in images.paths]


def test_classes_labels_and_images(colours):
    found = folder(colours, image_size=12)
    assert found.name == "colours"
    assert found.classes == ("blue", "green", "red")
    assert found.train_images.shape == (28, 12, 12, 3)
    assert isinstance(found.train_images, np.ndarray)
    assert np.bincount(found.train_labels).tolist() == [4, 16, 8]
    assert np.bincount(found.val_labels).tolist() == [1, 4, 2]
    assert found.val_labels.tolist() == [0, 1, 2, 1, 2, 1, 1]  # in turns
    assert (found.test_images.shape, found.test_labels.shape) == ((0, 12, 12, 3), (0,))
    for images, labels in ((found.train_images, found.train_labels), (found.val_images, found.val_labels)):
        assert images.dtype == np.uint8
        brightest = images.mean(axis=(1, 2)).argmax(axis=1)  # 0 red, 1 green, 2 blue
        assert (brightest == 2 - labels).all()
    assert (found.mean, found.std) == mean_and_std(found.train_images)
    assert found.notes() == {
        "dataset": "colours", "classes": ["blue", "green", "red"],
        "mean": list(found.mean), "std": list(found.std), "image_size": 12,
    }  # fmt: skip


def test_in_memory_or_read_when_needed_the_images_are_the_same(colours):
    inside, outside = folder(colours, image_size=12), folder(colours, image_size=12, memory_bytes=35 * 12 * 12 * 3 - 1)
    assert isinstance(folder(colours, image_size=12, memory_bytes=35 * 12 * 12 * 3).train_images, np.ndarray)
    for part in ("train", "val", "test"):
        images = getattr(outside, f"{part}_images")
        assert isinstance(images, Pictures)
        np.testing.assert_array_equal(np.asarray(images), getattr(inside, f"{part}_images"))
        np.testing.assert_array_equal(getattr(outside, f"{part}_labels"), getattr(inside, f"{part}_labels"))
    assert (outside.mean, outside.std) == (inside.mean, inside.std)
    assert inside.fingerprint() != outside.fingerprint() == folder(colours, image_size=12, memory_bytes=0).fingerprint()


def test_the_sample_for_mean_and_std_is_of_all_classes(tmp_path, monkeypatch):
    path = make_folder(tmp_path / "p", {"red": 30, "blue": 30})
    monkeypatch.setattr("minires.data.folders.SAMPLE", 20)
    whole, sampled = folder(path, image_size=8), folder(path, image_size=8, memory_bytes=0)
    assert whole.mean != sampled.mean
    np.testing.assert_allclose(sampled.mean, whole.mean, atol=0.1)  # of one class alone 0.3 off


def test_without_a_size_pictures_keep_theirs(colours):
    found = folder(colours)
    assert len({found.train_images[i].shape for i in range(9)}) > 1
    assert "image_size" not in found.notes()
    assert found.notes(image_size=9)["image_size"] == 9
    loader = data.Loader(
        found.train_images, found.train_labels, 4, mean=found.mean, std=found.std, train=True, image_size=9
    )
    assert loader.batch(0, 0)[0].shape == (4, 9, 9, 3)
    assert abs(np.array(found.mean) - folder(colours, image_size=12).mean).max() < 0.02


def test_grey(colours):
    found = folder(colours, image_size=12, grey=True)
    assert found.train_images.shape == (28, 12, 12, 1)
    assert len(found.mean) == len(found.std) == 1
    name = files(folder(colours).train_images)[3]
    expected = square(Image.open(colours / name).convert("L"), 12, 12)
    np.testing.assert_array_equal(found.train_images[3], expected)


def test_the_division_of_a_class_is_a_function_of_the_seed_and_the_class(colours):
    first, again, other = (folder(colours, seed=seed) for seed in (0, 0, 1))
    assert files(first.val_images) == files(again.val_images)
    assert files(first.val_images) != files(other.val_images)
    assert sorted(files(first.train_images) + files(first.val_images)) == sorted(
        f"{path.parent.name}/{path.name}" for path in colours.rglob("*.png")
    )
    for number in range(5):
        picture((0, 0, 0), (9, 9), 0).save(colours / "green" / f"new{number}.png")
    make_folder(colours, {"white": 3})
    before, now = set(files(first.val_images)), set(files(folder(colours).val_images))
    assert {f for f in before if "green" not in f} == {f for f in now if "green" not in f and "white" not in f}
    assert len({f for f in before if "green" in f} - now) <= 2  # of four: 20 pictures have become 25
    assert len(folder(colours, val=0).val_images) == 0
    most = folder(colours, val=0.99)
    assert np.bincount(most.train_labels).tolist() == [1, 1, 1, 1]  # at least one picture to learn from


def test_parts_in_folders_of_their_own(tmp_path):
    path = tmp_path / "parts"
    make_folder(path / "train", {"red": 5, "green": 6})
    make_folder(path / "test", {"red": 3, "green": 2})
    drawn = folder(path, image_size=8)
    assert [len(part) for part in (drawn.train_labels, drawn.val_labels, drawn.test_labels)] == [9, 2, 5]
    make_folder(path / "valid", {"red": 2, "green": 1})
    given = folder(path, image_size=8, val=0.5)
    assert [len(part) for part in (given.train_labels, given.val_labels, given.test_labels)] == [11, 3, 5]
    assert given.val_labels.tolist() == [0, 1, 1]  # green, red, red
    assert repr(given) == "Dataset('parts': 11 training and 3 validation and 5 test images (8, 8, 3), 2 classes)"


def test_layouts_that_are_nearly_right_are_refused_or_understood(tmp_path):
    for part in ("Train", "Test"):  # Windows does not mind, nor do we
        make_folder(tmp_path / "capitals" / part, {"red": 3, "green": 3})
    assert folder(tmp_path / "capitals", image_size=8).classes == ("green", "red")
    make_folder(tmp_path / "rail", {"bus": 3, "tram": 3})
    make_folder(tmp_path / "rail" / "train", {"steam": 3, "diesel": 3})
    check(tmp_path / "rail", "rail: has train/ beside bus/, tram/; expected a sub-folder for each class, or train/")
    make_folder(tmp_path / "mixed", {"red": 3, "green": 3, "test": 3})
    check(tmp_path / "mixed", "mixed: has test/ beside green/, red/; expected")
    for part in ("train", "val", "validation"):
        make_folder(tmp_path / "twice" / part, {"red": 3, "green": 3})
    check(tmp_path / "twice", "twice: has train/ and val/ and validation/; expected")


def test_what_is_left_out_is_counted(tmp_path):
    path = make_folder(tmp_path / "p", {"red": 3, "green": 3})
    for number in range(4):
        (path / "red" / f"IMG_{number}.HEIC").write_bytes(b"\x00\x00\x00\x18ftypheic")
    (path / "green" / "notes.txt").write_text("x")
    (path / "green" / "clip.mpg").write_bytes(b"\x00\x00\x01\xb3")
    lines = []
    data.folder(path, image_size=8, log=lines.append)
    assert lines[-1] == "left out: 6 files that Pillow does not open (.HEIC 4, .mpg 1, .txt 1)"


def test_a_class_may_be_called_train(tmp_path):
    make_folder(tmp_path / "p", {"train": 4, "tram": 4})
    assert folder(tmp_path / "p", image_size=8).classes == ("train", "tram")


def test_any_picture_counts_and_nothing_else(tmp_path):
    """Formats, modes, upper case, deeper folders, names without an ending; neither notes nor hidden files."""
    path = make_folder(tmp_path / "p", {"red": 2, "green": 2})
    red = path / "red"
    image = picture((200, 40, 40), (20, 20), 0)
    (red / "deep" / "er").mkdir(parents=True)
    image.save(red / "deep" / "er" / "x.JPG", "JPEG")
    for kind in ("webp", "bmp", "gif", "tiff"):
        image.save(red / f"x.{kind}")
    image.convert("L").save(red / "grey.png")
    image.convert("CMYK").save(red / "print.jpg")
    image.convert("P").save(red / "palette.png")
    image.save(red / "no-ending", "PNG")
    (red / "notes.txt").write_text("no picture")
    (red / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    (red / ".hidden.png").write_bytes(b"x")
    (red / ".cache").mkdir()
    image.save(red / ".cache" / "y.png")
    (path / "README").write_text("no picture either")
    (path / ".git").mkdir()
    (path / "__MACOSX").mkdir()
    found = folder(path, image_size=8)
    assert found.classes == ("green", "red")
    assert np.bincount(np.concatenate([found.train_labels, found.val_labels])).tolist() == [2, 2 + 9]


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_link_to_the_folder_above_is_not_followed_forever(tmp_path):
    path = make_folder(tmp_path / "p", {"red": 3, "green": 3})
    (path / "red" / "up").symlink_to(path / "red", target_is_directory=True)
    (path / "red" / "top").symlink_to(path, target_is_directory=True)  # green ones are not red ones too
    assert len(folder(path, image_size=8, val=0).train_labels) == 6
    elsewhere = make_folder(tmp_path / "elsewhere", {"more": 2})
    (path / "green" / "more").symlink_to(elsewhere / "more", target_is_directory=True)  # but others are
    os.mkfifo(path / "green" / "pipe.png")  # which nobody writes to
    assert len(folder(path, image_size=8, val=0).train_labels) == 8


@pytest.mark.parametrize("name", [os.fsdecode(b"caf\xff"), "two\nlines"])
@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="no such names there")
def test_a_name_that_cannot_be_printed(tmp_path, name):
    check(
        make_folder(tmp_path / "p", {"red": 3, name: 3}), "p: '.*' is no name for a class: it has letters that cannot"
    )


def test_pictures_are_upright_and_transparent_parts_white(tmp_path):
    path = make_folder(tmp_path / "p", {"red": 2, "green": 2})
    wide = Image.new("RGB", (40, 20), "black")
    wide.paste((255, 255, 255), (0, 0, 20, 20))  # left half white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: the top half white
    wide.save(path / "green" / "turned.png", exif=exif)
    Image.new("RGBA", (20, 20), (0, 0, 0, 0)).save(path / "green" / "void.png")
    images = Pictures([path / "green" / name for name in ("turned.png", "void.png")], 20)
    assert images[0][:8].min() > 200
    assert images[0][-8:].max() < 50
    assert images[1].min() == 255


def check(path, message, **options):
    with pytest.raises(data.DataError, match=message) as caught:
        folder(path, image_size=8, **options)
    assert "\n" not in str(caught.value)


def test_faults_of_a_folder(tmp_path):
    check(tmp_path / "none", r"none: no such folder")
    (tmp_path / "file").write_text("x")
    check(tmp_path / "file", "file: a file, expected a folder of pictures")
    (tmp_path / "empty").mkdir()
    check(tmp_path / "empty", "empty: holds no pictures; expected a sub-folder for each class, such as .*cat")
    check(make_folder(tmp_path / "one", {"red": 3}), r"one: one class only \(red\)")
    (make_folder(tmp_path / "void", {"red": 3, "green": 3}) / "fox").mkdir()
    check(tmp_path / "void", "void: no pictures in fox; remove the folder")
    for name in ("a", "b"):
        (tmp_path / "texts" / name).mkdir(parents=True)
        (tmp_path / "texts" / name / "notes.txt").write_text("x")
    check(tmp_path / "texts", r"texts: no pictures in any of its sub-folders, a, b \(Pillow opens no .txt\)")
    loose = make_folder(tmp_path / "loose", {"red": 5}) / "red"
    check(loose, r"red: 5 pictures lie in no sub-folder \(000.png, 001.png, 002.png and 2 more\); put each picture")
    picture((0, 0, 0), (9, 9), 0).save(make_folder(tmp_path / "both", {"red": 3, "green": 3}) / "x.png")
    check(tmp_path / "both", r"both: 1 picture lies beside its 2 sub-folders \(x.png\)")
    check(
        make_folder(tmp_path / "few", {"red": 1, "green": 3}), "few: class 'red' has 1 image, and a validation part ne"
    )
    assert len(folder(tmp_path / "few", image_size=8, val=0).train_labels) == 4
    for share in (1, -0.1, float("nan")):
        check(tmp_path / "few", f"val: {share}, expected a share", val=share)


def test_faults_of_parts(tmp_path):
    make_folder(tmp_path / "p" / "test", {"red": 2, "green": 2})
    check(tmp_path / "p", "p: has test/; expected a sub-folder for each class, or train/, val/ and test/")
    make_folder(tmp_path / "p" / "train", {"red": 2, "green": 2})
    make_folder(tmp_path / "p" / "val", {"red": 2, "violet": 2})
    check(tmp_path / "p", "val: has pictures of violet, and .*train has none")
    for part in ("train", "test"):
        picture((0, 0, 0), (9, 9), 0).save(make_folder(tmp_path / "flat", {part: 3}) / part / "x.png")
    check(tmp_path / "flat", "train: 4 pictures lie in no sub-folder")
    picture((0, 0, 0), (9, 9), 0).save(make_folder(tmp_path / "q" / "train", {"red": 3, "green": 3}) / "x.png")
    check(tmp_path / "q", "train: 1 picture lies beside its 2 sub-folders")


def test_ten_thousand_classes_by_mistake(tmp_path):
    for number in range(1001):
        (tmp_path / "p" / f"{number:04}").mkdir(parents=True)
    check(tmp_path / "p", r"has 1,001 sub-folders \(0000, 0001, 0002 and 998 more\), .* at most 1000 are taken")


@pytest.mark.parametrize("memory_bytes", [0, 1 << 30])
@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_broken_pictures_are_named(tmp_path, kind, memory_bytes):
    path = make_folder(tmp_path / "p", {"red": 6, "green": 6}, kind)
    raw = (path / "red" / f"003.{kind}").read_bytes()
    (path / "red" / f"003.{kind}").write_bytes(raw[: len(raw) - len(raw) // 3])
    check(path, rf"^[^ ]*red.003\.{kind}: cannot be read \(.*[tT]runcated.*\)$", memory_bytes=memory_bytes)
    for number in range(4):
        (path / "green" / f"00{number}.{kind}").write_bytes(b"<html>not found</html>")
    check(path, rf"5 pictures cannot be read: .*green.00.\.{kind}: .* and 2 more", memory_bytes=memory_bytes)


def test_a_bomb_is_refused(tmp_path):
    path = make_folder(tmp_path / "p", {"red": 2, "green": 2})
    raw = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(raw, "PNG")  # 400 megapixels in 50 kB
    (path / "red" / "bomb.png").write_bytes(raw.getvalue())
    check(path, r"bomb\.png: cannot be read \(Image size \(400000000 pixels\) exceeds limit")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read(tmp_path):
    path = make_folder(tmp_path / "p", {"red": 2, "green": 2})
    (path / "red").chmod(0)
    try:
        check(path, "red: cannot be read")
    finally:
        (path / "red").chmod(0o755)


def test_counts_and_the_warning_for_imbalance(tmp_path):
    path = make_folder(tmp_path / "animals", {"cat": 10, "wolf": 2})
    lines = []
    data.folder(path, image_size=8, log=lines.append)
    assert lines[:4] == [
        "animals: 12 pictures of 2 classes",
        "  class    training  validation",
        "  cat             8           2",
        "  wolf            1           1",
    ]
    assert lines[4].startswith("WARNING: 'cat' has 8 training pictures, 'wolf' 1")
    assert lines[5].startswith("WARNING: 3 validation pictures: one picture more or less that is right changes the acc")
    assert len(lines) == 6
    lines.clear()
    data.folder(
        make_folder(tmp_path / "many", {f"c{i:02}": 2 + i % 2 for i in range(21)}), image_size=8, log=lines.append
    )
    assert lines == [
        "many: 52 pictures of 21 classes",
        "  training: 1 to 2 pictures a class, 31 in all",
        "  validation: 1 to 1 pictures a class, 21 in all",
    ]
    lines.clear()
    make_folder(tmp_path / "p" / "train", {"cat": 3, "wolf": 3})
    make_folder(tmp_path / "p" / "val", {"cat": 3})
    data.folder(tmp_path / "p", image_size=8, log=lines.append)
    assert lines[-1] == "WARNING: no validation pictures of wolf"


def test_pictures_of_one_colour_have_a_std(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "p" / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (9, 9), (10, 20, 30)).save(tmp_path / "p" / name / f"{number}.png")
    found = folder(tmp_path / "p", image_size=8)
    assert min(found.std) > 0
    data.Loader(found.train_images, found.train_labels, 2, mean=found.mean, std=found.std, train=True)
