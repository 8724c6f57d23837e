"""Picture files in place of arrays."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from minires import data
from minires.data.pictures import Pictures, read_image, square
from tests.pictures import make_folder, picture


@pytest.fixture
def paths(tmp_path):
    return sorted(make_folder(tmp_path / "p", {"red": 9}).rglob("*.png"))


def test_pictures_are_like_an_array_of_them(paths):
    pictures = Pictures(paths, 8)
    whole = np.asarray(pictures)
    assert (whole.shape, whole.dtype) == (pictures.shape, pictures.dtype) == ((9, 8, 8, 3), np.uint8)
    for i, path in enumerate(paths):
        np.testing.assert_array_equal(whole[i], square(Image.open(path), 8, 8))
        np.testing.assert_array_equal(pictures[i], whole[i])
    for index in (slice(2, 7), slice(None, None, -1), np.array([3, 0, 3]), np.arange(9) % 2 == 0, slice(0)):
        assert isinstance(pictures[index], Pictures)
        np.testing.assert_array_equal(np.asarray(pictures[index]), whole[index])
    np.testing.assert_array_equal(pictures[np.int64(-1)], whole[-1])
    assert np.asarray(pictures, np.float32).dtype == np.float32
    assert repr(pictures) == "Pictures(9 files, (8, 8, 3))"
    with pytest.raises(IndexError):
        pictures[9]
    with pytest.raises(ValueError, match="always a copy"):
        np.array(pictures, copy=False)


def test_without_a_size_pictures_keep_theirs(paths):
    pictures = Pictures(paths)
    assert pictures.shape == (9, None, None, 3)
    assert [pictures[i].shape for i in range(2)] == [(20, 16, 3), (19, 17, 3)]
    with pytest.raises(data.DataError, match="sizes of their own"):
        np.asarray(pictures)


def test_grey_pictures_have_one_channel(paths):
    found = Pictures(paths, 8, channels=1)
    assert np.asarray(found).shape == (9, 8, 8, 1)
    np.testing.assert_array_equal(found[0], square(Image.open(paths[0]).convert("L"), 8, 8))
    assert Pictures(paths, None, channels=1)[0].shape == (20, 16, 1)


def test_the_fingerprint_is_of_names_sizes_and_order(paths):
    pictures = Pictures(paths, 8)
    before = pictures.fingerprint()
    assert before == Pictures(list(map(str, paths)), 8).fingerprint()
    assert before != pictures[::-1].fingerprint()
    assert before != Pictures(paths, 9).fingerprint()
    paths[3].write_bytes(paths[3].read_bytes() + b"x")
    assert before != pictures.fingerprint()


def test_a_large_jpeg_is_decoded_at_a_part_of_its_size(tmp_path):
    """But not so far that a side has less than was asked for; the result is nearly the same."""
    image = picture((100, 150, 50), (640, 480), 0).resize((1280, 960))
    image.save(tmp_path / "x.jpg", quality=95)
    assert read_image(tmp_path / "x.jpg").size == (1280, 960)
    assert read_image(tmp_path / "x.jpg", least=100).size == (160, 120)
    assert read_image(tmp_path / "x.jpg", least=200).size == (320, 240)
    assert read_image(tmp_path / "x.jpg", least=961).size == (1280, 960)
    assert Pictures([tmp_path / "x.jpg"]).image(0, 100).size == (320, 240)  # a crop of it is not scaled up
    whole, part = (square(read_image(tmp_path / "x.jpg", least), 64, 64).astype(int) for least in (None, 128))
    assert np.abs(whole - part).mean() < 1.5


def test_a_broken_picture_is_named(paths):
    raw = paths[4].read_bytes()
    paths[4].write_bytes(raw[: len(raw) // 2])
    for ask in (lambda: Pictures(paths, 8)[4], lambda: np.asarray(Pictures(paths, 8)), lambda: Pictures(paths)[4]):
        with pytest.raises(data.ImageError, match=r"red/004\.png: cannot be read \(image file is truncated"):
            ask()
