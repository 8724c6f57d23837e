from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minires.data import CIFAR10, CIFAR100, DataError, NotAvailable, Source, cifar10, cifar100
from minires.data.cifar import Batch, _images, _labels, read_pickle

TINY = Batch("tiny", 1, "")  # a batch file of one image


def quiet(line: str) -> None:
    pass


def load(cifar, data_dir, **changed):
    return cifar10(data_dir, download=False, log=quiet, source=replace(cifar.source, **changed))


def fails(cifar, data_dir, *words: str) -> None:
    """Loading raises one clear line with these words."""
    with pytest.raises(DataError) as caught:
        load(cifar, data_dir)
    for word in (*words, str(data_dir)):
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


# Files that are right --------------------------------------------------------------------------------------


def test_a_folder_laid_out_by_hand(cifar, tmp_path):
    cifar.lay_out(tmp_path)
    d = load(cifar, tmp_path)
    assert d.train_images.shape == (100, 32, 32, 3)
    assert d.train_images.flags.c_contiguous
    assert d.test_images.shape == (20, 32, 32, 3)
    assert d.classes == tuple(f"class{i}" for i in range(10))
    assert np.array_equal(d.train_labels, cifar.labels[:5].ravel())
    assert np.array_equal(d.test_labels, cifar.labels[5])
    # Slowly, pixel by pixel, from the description of the format: 1024 reds, 1024 greens, 1024 blues, row by row.
    for image, row, column, channel in [(0, 0, 0, 0), (33, 1, 0, 0), (33, 0, 1, 2), (99, 31, 30, 1), (50, 17, 4, 2)]:
        expected = cifar.rows[image // 20, image % 20, channel * 1024 + row * 32 + column]
        assert d.train_images[image, row, column, channel] == expected
    assert (d.mean, d.std) == (CIFAR10.mean, CIFAR10.std)


def test_the_name_says_which_files_they_are(cifar, tmp_path):
    folder = cifar.lay_out(tmp_path)
    assert load(cifar, tmp_path).name == "CIFAR-10 (modified)"
    official = {
        "train": tuple(b._replace(md5=md5(cifar.files[b.file])) for b in cifar.source.train),
        "test": tuple(b._replace(md5=md5(cifar.files[b.file])) for b in cifar.source.test),
        "meta_md5": md5(cifar.files["batches.meta"]),
    }
    assert load(cifar, tmp_path, **official).name == "CIFAR-10"
    # One image of the test file re-encoded: no longer CIFAR-10.
    (folder / "test_batch").write_bytes(cifar.batch(cifar.rows[5] ^ 1, cifar.labels[5].tolist()))
    assert load(cifar, tmp_path, **official).name == "CIFAR-10 (modified)"
    for k, b in enumerate((*cifar.source.train, *cifar.source.test)):
        (folder / b.file).write_bytes(cifar.batch(cifar.rows[k], cifar.labels[k].tolist(), b".jpg"))
    assert load(cifar, tmp_path, **official).name == "CIFAR-10 (JPEG)"


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("text", [str, str.encode])
def test_files_that_python_3_pickled(cifar, tmp_path, protocol, order, text):
    content = {
        text("data"): np.asarray(cifar.rows[0], order=order),
        text("labels"): cifar.labels[0].tolist(),
        text("filenames"): [text("a.jpg")] * 20,
    }
    cifar.lay_out(tmp_path, data_batch_1=pickle.dumps(content, protocol))
    d = load(cifar, tmp_path)
    assert np.array_equal(d.train_images[:20], cifar.rows[0].reshape(20, 3, 32, 32).transpose(0, 2, 3, 1))


def test_cifar_100_takes_the_fine_labels(cifar, tmp_path):
    source = replace(CIFAR100, train=(Batch("train", 20, ""),), test=(Batch("test", 20, ""),))
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    fine, coarse = list(range(80, 100)), [1] * 20
    content = {b"data": cifar.rows[0], b"fine_labels": fine, b"coarse_labels": coarse}
    names = {b"fine_label_names": [b"n%d" % i for i in range(100)], b"coarse_label_names": [b"c"] * 20}
    for file, value in (("train", content), ("test", content), ("meta", names)):
        (folder / file).write_bytes(pickle.dumps(value, 2))
    d = cifar100(tmp_path, download=False, source=source)
    assert d.num_classes == 100
    assert d.train_labels.tolist() == fine
    assert d.classes[99] == "n99"


@pytest.mark.parametrize("source", [CIFAR10, CIFAR100])
def test_the_constants(source: Source):
    assert sum(b.images for b in source.train) == 50_000
    assert sum(b.images for b in source.test) == 10_000
    for sum_ in (source.md5, source.meta_md5, *(b.md5 for b in (*source.train, *source.test))):
        assert len(bytes.fromhex(sum_)) == 16
    assert source.url == f"https://www.cs.toronto.edu/~kriz/{source.name.lower()}-python.tar.gz"


# Where the files come from -----------------------------------------------------------------------------------


def test_an_archive_in_the_data_directory_is_verified_and_unpacked(cifar, tmp_path):
    content = cifar.archive()
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(content)
    d = load(cifar, tmp_path, md5=md5(content))
    assert len(d.train_images) == 100
    assert sorted(os.listdir(tmp_path)) == ["cifar-10-batches-py", "cifar-10-python.tar.gz"]


def test_download_verify_unpack(cifar, tmp_path, server):
    server.content = cifar.archive()
    source = replace(cifar.source, url=server.url, size=len(server.content), md5=md5(server.content))
    lines: list[str] = []
    first = cifar10(tmp_path / "data", log=lines.append, source=source)
    again = cifar10(tmp_path / "data", log=lines.append, source=source)
    assert np.array_equal(first.train_images, again.train_images)
    assert len(server.ranges) == len(lines) == 1
    assert server.url in lines[0]


@pytest.mark.parametrize(
    ("content", "word"),
    [(b"<html>502</html>", "web page"), (b"\x1f\x8b garbage", "MD5 sum"), (b"", "MD5 sum")],
)
def test_an_archive_that_is_none_is_reported_and_kept(cifar, tmp_path, content, word):
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive.write_bytes(content)
    fails(cifar, tmp_path, word, archive.name, "delete it")
    assert archive.read_bytes() == content  # it is the user's file
    assert os.listdir(tmp_path) == [archive.name]


def test_an_archive_that_is_a_directory(cifar, tmp_path):
    (tmp_path / "cifar-10-python.tar.gz").mkdir()
    fails(cifar, tmp_path, "cannot be read")


def test_nothing_there(cifar, tmp_path):
    with pytest.raises(NotAvailable, match=r"is not in .* downloading is off; get https://www.cs.toronto.edu"):
        load(cifar, tmp_path)
    unreachable = replace(cifar.source, url="http://127.0.0.1:1/cifar-10-python.tar.gz")
    with pytest.raises(NotAvailable, match=r"cannot be downloaded: .*no connection.*put it at") as caught:
        cifar10(tmp_path, log=quiet, source=unreachable)
    assert "\n" not in str(caught.value)


# Files that are wrong ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["data_batch_4", "test_batch", "batches.meta"])
def test_a_missing_file(cifar, tmp_path, file):
    (cifar.lay_out(tmp_path) / file).unlink()
    fails(cifar, tmp_path, file, "complete")


def test_a_file_in_place_of_the_folder(cifar, tmp_path):
    (tmp_path / cifar.source.folder).write_text("?")
    fails(cifar, tmp_path, "cannot be read")


def test_a_web_page_in_place_of_a_batch(cifar, tmp_path):
    cifar.lay_out(tmp_path, test_batch=b"<!DOCTYPE html><title>502</title>" + b" " * 50_000)
    fails(cifar, tmp_path, "test_batch", "web page")


def test_a_file_that_is_too_large_is_not_read(cifar, tmp_path):
    with (cifar.lay_out(tmp_path) / "test_batch").open("r+b") as file:
        file.truncate(10**12)  # a hole: takes no space on disk
    fails(cifar, tmp_path, "test_batch", "1,000,000,000,000 bytes")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (np.zeros((20, 3071), np.uint8), ["(20, 3071)", "expected u1 (uint8) (20, 3072)"]),
        (np.zeros((19, 3072), np.uint8), ["(19, 3072)"]),
        (np.zeros((20, 32, 32, 3), np.uint8), ["(20, 32, 32, 3)"]),
        (np.zeros((20, 3072), np.float16), ["f2"]),
        (np.zeros((20, 3072), np.int8), ["i1"]),
        ([1, 2, 3], ["no array 'data'"]),
        (None, ["no array 'data'"]),
    ],
)
def test_images_of_the_wrong_shape_or_type(cifar, tmp_path, rows, words):
    content = {b"data": rows, b"labels": [0] * 20}
    cifar.lay_out(tmp_path, data_batch_2=pickle.dumps(content, 2))
    fails(cifar, tmp_path, "data_batch_2", *words)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0] * 19, ["19 labels", "expected 20"]),
        ([0] * 19 + [10], ["'labels'[19] is 10", "from 0 to 9"]),
        ([-1] + [0] * 19, ["'labels'[0] is -1"]),
        ([0] * 19 + [1.0], ["float"]),
        ([0] * 19 + [True], ["bool"]),
        ([0] * 19 + [None], ["NoneType"]),
        (b"0" * 20, ["no list of labels"]),
    ],
)
def test_labels_that_are_none(cifar, tmp_path, labels, words):
    content = {b"data": cifar.rows[0], b"labels": labels}
    cifar.lay_out(tmp_path, data_batch_5=pickle.dumps(content, 2))
    fails(cifar, tmp_path, "data_batch_5", *words)


@pytest.mark.parametrize("names", [[b"a"] * 9, b"abc", None, [b"a"] * 9 + [[b"b"]] * 2])
def test_class_names_that_are_none(cifar, tmp_path, names):
    cifar.lay_out(tmp_path, **{"batches.meta": pickle.dumps({b"label_names": names}, 2)})
    fails(cifar, tmp_path, "batches.meta", "expected 10")


@pytest.mark.parametrize("value", [[], 3, b"text", (1, 2)])
def test_a_pickle_that_is_no_dict(cifar, tmp_path, value):
    cifar.lay_out(tmp_path, test_batch=pickle.dumps(value, 2))
    fails(cifar, tmp_path, "test_batch", "expected a dict")


# Pickles that attack ---------------------------------------------------------------------------------------------


class RunsCode:
    """Pickles to a program that creates the file `path` when it is unpickled."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_runs_code_does_not_run_it(cifar, tmp_path, protocol):
    marker = tmp_path / "marker"
    evil = pickle.dumps({b"data": RunsCode(marker), b"labels": [0] * 20}, protocol)
    cifar.lay_out(tmp_path, data_batch_1=evil)
    fails(cifar, tmp_path, "data_batch_1", "posix.mkdir" if os.name == "posix" else "mkdir")
    assert not marker.exists()
    pickle.loads(evil)
    assert marker.exists()  # the attack is a real one


@pytest.mark.parametrize(
    ("program", "word"),
    [
        (b"cbuiltins\ngetattr\n.", "builtins.getattr"),
        (b"cbuiltins\neval\nU\x031+1\x85R.", "builtins.eval"),
        (b"cnumpy\nload\n.", "numpy.load"),
        (b"cnumpy\nndarray.__class__\n.", "numpy.ndarray.__class__"),
        (b"cminires.data.cifar\n_ALLOWED\n.", "minires.data.cifar._ALLOWED"),
        (b"ccopyreg\n_reconstructor\n.", "copyreg._reconstructor"),
        (b"\x80\x02})" + b"\x85" * 300_000 + b"K\x01s.", "may be an attack"),  # hashing it overflows the stack
        (b"\x80\x02" + b"]" * 2_100_000 + b".", "may be an attack"),  # 56 bytes of memory per byte of file
        (b"\x80\x02\x8a\xff" + b"\x7f" * 255 + b".", "may be an attack"),  # an integer of 600 digits
        (b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x0f.", "truncated"),  # a bytearray said to have 2**60 bytes
        (b"\x80\x02T\xff\xff\xff\x7fabc.", "truncated"),  # a string said to have 2 GB
        (b"c_codecs\nencode\n}K\x01b.", "changes the inside of a dict"),  # changes the function rather than calling it
        (b"\x80\x02}(K\x00P1\n.", "the instruction PERSID"),  # a persistent id
        (b"\x80\x02", "truncated"),
        (b".", "truncated"),
        (b"", "truncated"),
    ],
)
def test_programs_that_no_batch_file_contains(program, word):
    with pytest.raises(DataError, match=word) as caught:
        read_pickle(program, Path("some_batch"))
    assert str(caught.value).startswith("some_batch: ")
    assert "\n" not in str(caught.value)


def test_a_memo_with_an_index_of_two_billion_is_small():
    """The interpreter's own machine would allocate 32 GB for it."""
    assert read_pickle(b"\x80\x02}r\xff\xff\xff\x7f.", Path("some_batch")) == {}


def test_an_array_that_claims_four_exabytes_allocates_nothing():
    # _reconstruct(ndarray, (2**31 - 1, 2**31 - 1), b"b"): numpy would allocate it here, before any pixel is read
    size = b"J\xff\xff\xff\x7f"
    make = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + size + size + b"\x86U\x01btR"
    content = read_pickle(b"\x80\x02}U\x04data" + make + b"s.", Path("some_batch"))
    with pytest.raises(DataError, match="expected u1"):
        _images(Path("some_batch"), content, Batch("some_batch", 20, ""))


@pytest.mark.parametrize("make", [b")\x81", b"U\x01xU\x01y\x86R"])  # without __init__; of bytes in place of text
def test_strings_made_in_odd_ways_are_no_pixels(make):
    state = b"(K\x01K\x01M\x00\x0c\x86cnumpy\ndtype\nU\x02u1\x85R\x89c_codecs\nencode\n" + make + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n)R" + state
    with pytest.raises(DataError, match=r"instruction NEWOBJ|something else than text"):
        _images(Path("some_batch"), read_pickle(b"\x80\x02}U\x04data" + array + b"s.", Path("some_batch")), TINY)


def test_an_array_of_objects_is_refused():
    evil = pickle.dumps({b"data": np.array([{}, []], object)}, 2)
    with pytest.raises(DataError, match="something else than plain numbers"):
        read_pickle(evil, Path("some_batch"))


# Random damage -----------------------------------------------------------------------------------------------------


def read_tiny(raw: bytes) -> None:
    """What loading does with a batch file of one image: it may only succeed, or raise DataError in one line."""
    path = Path("tiny")
    content = read_pickle(raw, path)
    images = _images(path, content, TINY)
    labels = _labels(path, content, TINY, CIFAR10)
    assert images.shape == (1, 32, 32, 3)
    assert images.dtype == np.uint8
    assert labels.shape == (1,)
    assert 0 <= labels[0] < 10


def tiny(protocol: int) -> bytes:
    return pickle.dumps({b"labels": [3], b"data": np.zeros((1, 3072), np.uint8)}, protocol)


@given(st.sampled_from([2, 4, 5]), st.data())
def test_every_truncation_is_noticed(protocol, data):
    raw = tiny(protocol)
    length = data.draw(st.integers(0, len(raw) - 1) | st.integers(len(raw) - 60, len(raw) - 1))
    with pytest.raises(DataError):
        read_tiny(raw[:length])


@given(st.sampled_from([2, 4, 5]), st.data())
@settings(max_examples=300)
def test_changed_bytes_raise_nothing_else(protocol, data):
    raw = bytearray(tiny(protocol))
    # The pixels are in the middle; what the pickle machine does is decided at both ends.
    places = st.integers(0, 200) | st.integers(len(raw) - 200, len(raw) - 1)
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=4)):
        raw[place] = value
    with contextlib.suppress(DataError):
        read_tiny(bytes(raw))


@given(st.binary(max_size=200))
def test_garbage_is_refused(raw):
    with pytest.raises(DataError):
        read_tiny(raw)
