"""Files made to do harm: run code, fill the memory, read what is not theirs."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

import minires as mr
from minires.weights.torch_writer import pickle_of

ARRAY = {"a": np.arange(6, dtype=np.float32)}


def torch_zip(pickled: bytes, storages: dict[str, bytes] | None = None, method: int = zipfile.ZIP_STORED) -> bytes:
    """A checkpoint in the zip layout around a given pickle."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for key, content in ({"0": ARRAY["a"].tobytes()} if storages is None else storages).items():
            archive.writestr(f"archive/data/{key}", content)
        archive.writestr("archive/version", "3\n")
    return out.getvalue()


def tensor(storage: bytes = b"ctorch\nFloatStorage\n", count: int = 6, offset=0, size=(6,), stride=(1,)) -> bytes:
    """The pickle of {"a": a tensor}, with any numbers."""

    def value(v) -> bytes:
        return pickle.dumps(v, 2)[2:-1]  # without the protocol and the end

    reference = b"(X\x07\x00\x00\x00storage" + storage + value("0") + value("cpu") + value(count) + b"tQ"
    arguments = reference + value(offset) + value(size) + value(stride) + b"\x89N"
    return b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tRs."


def test_the_helper_makes_a_file_that_loads(write):
    np.testing.assert_array_equal(mr.load_weights(write(torch_zip(tensor())))["a"], ARRAY["a"])


# Code -------------------------------------------------------------------------------------------------------------


class RunsCode:
    """Pickles to a program that makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("layout", ["zip", "legacy", "first in legacy"])
def test_a_checkpoint_that_runs_code_does_not_run_it(write, tmp_path, protocol, layout):
    marker = tmp_path / "marker"
    evil = pickle.dumps({"weight": RunsCode(marker)}, protocol)
    if layout == "zip":
        path = write(torch_zip(evil))
    elif layout == "legacy":
        system = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {})]
        path = write(b"".join([*system, evil, pickle.dumps([], 2)]))
    elif protocol >= 2:
        path = write(evil)  # the very first of the pickles
    else:
        pytest.skip("pickles of protocol 0 and 1 have no mark to be known by")
    with pytest.raises(mr.WeightsError, match=f"asks for {os.mkdir.__module__}.mkdir"):
        mr.load_weights(path)
    assert not marker.exists()
    pickle.loads(evil)
    assert marker.exists()  # the attack is a real one


@pytest.mark.parametrize(
    ("program", "word"),
    [
        (b"cbuiltins\neval\nX\x03\x00\x00\x001+1\x85R.", "asks for builtins.eval"),
        (b"cbuiltins\ngetattr\n.", "asks for builtins.getattr"),
        (b"cos\nsystem\nX\x02\x00\x00\x00id\x85R.", "asks for os.system"),
        (b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x02id\x85R.", "asks for posix.system"),
        (b"ctorch\nload\n.", "asks for torch.load"),
        (b"ctorch._utils\n_rebuild_tensor_v2.__globals__\n.", "asks for torch._utils._rebuild_tensor_v2.__globals__"),
        (b"cminires.weights.torch_reader\nNAMES\n.", "asks for minires.weights"),
        (b"ctorchvision.models.resnet\nResNet\n)\x81.", "asks for torchvision.models.resnet.ResNet"),
        (b"(S'id'\nios\nsystem\n.", "the instruction INST"),
        (b"(cos\nsystem\nS'id'\no.", "asks for os.system"),
        (b"ccollections\nOrderedDict\n)\x81.", "the instruction NEWOBJ"),
        (b"X\x01\x00\x00\x00a)R.", "calls a str"),
        (b"ctorch\nFloatStorage\n)R.", "calls a DType"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n}b.", "changes the inside of a function"),
        (b"]}b.", "changes the inside of a list"),
        (b"\x82\x01.", "the instruction EXT1"),
        (b"(K\x01P1\n.", "the instruction PERSID"),
        (b"ccollections\nOrderedDict\n(K\x01K\x02K\x03tR.", "TypeError"),
        (b"(.", "holds a object"),
        (b"\x94.", "IndexError"),
        (b"K\x01K\x02.", "ValueError"),
        (b"h\x07.", "KeyError"),
        (b"}(K\x01u.", "ValueError"),
        (b"K\x01u.", "its stack has no mark"),
        (b"K\x01\x87.", "its stack is too short"),
        (b"]K\x01K\x02s.", "has a list in place of a dict"),
        (b"}" + b"K\x01\x85" + b"K\x02s.", "has a tuple as a key"),
        (b"}\x8a\x09" + b"\x01" * 9 + b"K\x02s.", "has a int as a key"),
        (b"\x8a\xff" + b"\x01" * 255 + b".", "more than 128 bits"),
        (b"X\xff\xff\xff\x7fabc.", "is truncated: 2,147,483,647 bytes are announced"),
        (b"X\x00\x00\x02\x00" + b"a" * 131_072 + b".", "has a string of 131,072 bytes"),
        (b"c" + b"a" * 5000 + b"\nb\n.", "line of text that is too long"),
        (b"K\x01Q.", "refers to something else than a storage"),
        (b"(X\x07\x00\x00\x00storageK\x01K\x01K\x01K\x01tQ.", "by something else than its type, key"),
    ],
)
def test_programs_that_no_state_dict_contains(write, program, word):
    with pytest.raises(mr.WeightsError, match=word) as caught:
        mr.load_weights(write(torch_zip(program)))
    assert "\n" not in str(caught.value)


# Tensors that are not where they say -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("numbers", "word"),
    [
        ({"count": 7}, "storage 0 has 24 bytes, its tensors expect 28"),
        ({"count": 5}, "storage 0 has 24 bytes, its tensors expect 20"),
        ({"count": -1}, "by something else than its type, key"),
        ({"count": 2**70}, "by something else than its type, key"),
        ({"storage": b"ctorch\nDoubleStorage\n"}, "expect 48"),
        ({"storage": b"ctorch.storage\nUntypedStorage\n"}, "something else than a typed storage"),
        ({"offset": 1}, "reaches to element 7 of 6"),
        ({"offset": -1}, "not whole numbers"),
        ({"offset": 7, "size": (0,)}, "reaches to element"),
        ({"offset": 1.5}, "not whole numbers"),
        ({"size": (7,)}, "reaches to element 7 of 6"),
        ({"size": (-1,)}, "not whole numbers"),
        ({"size": (True,)}, "not whole numbers"),
        ({"size": (2, 3)}, "not two tuples of one length"),
        ({"size": [6]}, "not two tuples of one length"),
        ({"size": (3, 2), "stride": (1, 4)}, "reaches to element 7 of 6"),
        ({"stride": (-1,)}, "not whole numbers"),
        ({"size": (2**40, 2**40), "stride": (0, 0)}, "more elements than memory has bytes"),
        ({"size": (2**20, 2**20), "stride": (0, 0)}, "more elements than its file can hold"),
        ({"size": (0, 2**40, 2**40), "stride": (1, 1, 1)}, "more elements than memory"),
        ({"size": (1,) * 33, "stride": (1,) * 33}, "not two tuples of one length"),
    ],
)
def test_tensors_that_are_not_in_their_storage(write, numbers, word):
    with pytest.raises(mr.WeightsError, match=word):
        mr.load_weights(write(torch_zip(tensor(**numbers))))


def test_views_of_one_storage_share_it(write):
    """A transposed view, an expanded one, one with an offset, and writing through one of them."""
    views = tensor()[:-1]
    for name, offset, size, stride in [
        (b"t", 0, (3, 2), (1, 3)), (b"e", 2, (4, 2), (0, 1)), (b"o", 4, (), ()), (b"z", 6, (0,), (1,)),
    ]:  # fmt: skip
        views += b"X\x01\x00\x00\x00" + name + tensor(offset=offset, size=size, stride=stride)[9:-2] + b"s"
    state = mr.load_weights(write(torch_zip(views + b".")))
    np.testing.assert_array_equal(state["t"], [[0, 3], [1, 4], [2, 5]])
    np.testing.assert_array_equal(state["e"], [[2, 3]] * 4)
    np.testing.assert_array_equal(state["o"], 4)
    assert state["z"].shape == (0,)
    state["a"][4] = 9
    assert state["o"] == 9
    assert state["t"][1, 1] == 9


def test_older_files_with_views_of_storages(write):
    """A persistent id with a sixth part, (key of the view, start, length), as PyTorch wrote it until version 0.4."""
    content = tensor(count=6, size=(2,)).replace(b"tQ", b"(X\x01\x00\x00\x00vK\x03K\x02ttQ")
    np.testing.assert_array_equal(mr.load_weights(write(torch_zip(content)))["a"], [3, 4])
    content = tensor(count=6, size=(3,)).replace(b"tQ", b"(X\x01\x00\x00\x00vK\x03K\x02ttQ")
    with pytest.raises(mr.WeightsError, match="reaches to element 6 of 5"):
        mr.load_weights(write(torch_zip(content)))
    content = tensor().replace(b"tQ", b"(X\x01\x00\x00\x00vK\x03K\x04ttQ")
    with pytest.raises(mr.WeightsError, match="ends behind the storage"):
        mr.load_weights(write(torch_zip(content)))


def test_one_storage_of_two_types(write):
    """PyTorch refuses to write it; here each type of one storage could cost a copy."""
    other = tensor(b"ctorch\nIntStorage\n").replace(b"X\x01\x00\x00\x00a", b"X\x01\x00\x00\x00b")
    with pytest.raises(mr.WeightsError, match="b takes storage 0 for int32, another tensor for float32"):
        mr.load_weights(write(torch_zip(tensor()[:-1] + other[3:])))


def test_the_pickles_of_the_older_layout_have_one_budget(write):
    """Magic number, version and three large pickles, each of which alone would be allowed."""
    large = b"\x80\x02(" + b"]" * 90_000 + b"l."
    parts = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001)]
    with pytest.raises(mr.WeightsError, match="more memory than its file can account for"):
        mr.load_weights(write(b"".join([*parts, b"\x80\x02}K\x01" + large[2:-1] + b"s.", large, large])))


def test_values_nested_too_deep_to_be_shown(write):
    deep = b"]" * 50_000 + b"a" * 49_999
    system = [pickle.dumps(0x1950A86A20F9469CFC6C, 2), b"\x80\x02" + deep + b".", pickle.dumps({}, 2)]
    with pytest.raises(mr.WeightsError, match="another version than 1001"):
        mr.load_weights(write(b"".join(system)))
    with pytest.raises(mr.WeightsError, match=r"has no tensors, only 'a' \(list\)"):
        mr.load_weights(write(torch_zip(b"\x80\x02}X\x01\x00\x00\x00a" + deep + b"s.")))
    nested = b"[" * 400 + b"]" * 400
    for entry in (
        b'{"dtype":%s,"shape":[],"data_offsets":[0,4]}', b'{"dtype":"F32","shape":[%s],"data_offsets":[0,4]}',
        b'{"dtype":"F32","shape":[],"data_offsets":[0,%s]}',
    ):  # fmt: skip
        with pytest.raises(mr.WeightsError):
            mr.load_weights(write(safetensors_file(b'{"a":' + entry % nested + b"}", b"1234")))


def test_big_endian(write):
    out = io.BytesIO(torch_zip(pickle_of(ARRAY), {"0": ARRAY["a"].astype(">f4").tobytes()}))
    with zipfile.ZipFile(out, "a") as archive:
        archive.writestr("archive/byteorder", "big")
    found = mr.load_weights(write(out.getvalue()))["a"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, ARRAY["a"])


# What a training run keeps -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model"])
def test_weights_under_a_name_are_found_and_it_is_said(write, wrapper):
    inner = pickle_of(ARRAY)[2:-1]
    name = struct.pack("<I", len(wrapper)) + wrapper.encode()
    program = b"\x80\x02}X\x05\x00\x00\x00epochK\x03sX" + name + inner + b"s."
    lines: list[str] = []
    state = mr.load_weights(write(torch_zip(program)), log=lines.append)
    np.testing.assert_array_equal(state["a"], ARRAY["a"])
    assert len(lines) == 1
    assert lines[0].endswith(f"taking the weights under {wrapper!r}; not read: 'epoch'")


def test_what_is_no_tensor_is_left_out_and_it_is_said(write):
    lines: list[str] = []
    state = mr.load_weights(write(torch_zip(tensor()[:-1] + b"X\x01\x00\x00\x00eK\x03s.")), log=lines.append)
    assert list(state) == ["a"]
    assert "left out, because they are no tensors: 'e'" in lines[0]


@pytest.mark.parametrize(
    ("value", "word"),
    [
        ([1], "holds a list, expected a state dict"),
        ({"epoch": 3, "args": {}}, r"has no tensors, only 'epoch' \(int\), 'args' \(dict\)"),
        ({}, "has no tensors, only an empty dict"),
    ],
)
def test_pickles_without_weights(write, value, word):
    with pytest.raises(mr.WeightsError, match=word):
        mr.load_weights(write(torch_zip(pickle.dumps(value, 2))))


def test_a_tensor_whose_name_is_a_number(write):
    with pytest.raises(mr.WeightsError, match="names are not text"):
        mr.load_weights(write(torch_zip(tensor().replace(b"X\x01\x00\x00\x00a", b"K\x05"))))


def test_torchscript_is_named(write):
    out = io.BytesIO(torch_zip(tensor()))
    with zipfile.ZipFile(out, "a") as archive:
        archive.writestr("archive/constants.pkl", b"")
    with pytest.raises(mr.WeightsError, match="is a TorchScript program"):
        mr.load_weights(write(out.getvalue()))


# Bombs ---------------------------------------------------------------------------------------------------------------


def peak_memory(path) -> int:
    """The most bytes that loading allocates; refusing the file is allowed."""
    tracemalloc.start()
    try:
        mr.load_weights(path, log=lambda line: None)
    except mr.WeightsError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


def list_of_members(count: int) -> bytes:
    """A zip file that is nothing but a list of `count` members."""
    entry = struct.pack("<4s6H3I5H2I", b"PK\x01\x02", 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, count % 65536, count % 65536, 47 * count, 4, 0)
    return b"PK\x03\x04" + entry * count + end


def overlapping(count: int) -> bytes:
    """A checkpoint with `count` storages of bfloat16 that are all the same megabyte."""
    raw = bytearray(torch_zip(pickle_of({str(i): np.ones(4, np.float16) for i in range(count)}), {}))
    with zipfile.ZipFile(out := io.BytesIO(bytes(raw)), "a") as archive:
        archive.writestr("archive/data/0", b"\0" * (1 << 20))
        first = archive.getinfo("archive/data/0")
        for key in range(1, count):
            copy = zipfile.ZipInfo(f"archive/data/{key}")
            copy.file_size = copy.compress_size = first.file_size
            copy.CRC, copy.header_offset = first.CRC, first.header_offset
            archive.filelist.append(copy)
            archive.NameToInfo[copy.filename] = copy
    return out.getvalue()


def compressed_npz() -> bytes:
    out = io.BytesIO()
    np.savez_compressed(out, a=np.zeros(50 << 20, np.uint8))
    return out.getvalue()


def safetensors_file(header, numbers: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + numbers


MIB = 1 << 20
BOMBS = {
    "a pickle of lists": torch_zip(b"\x80\x02" + b"]" * (8 * MIB) + b"."),
    "a pickle of lists, legacy": b"\x80\x02" + b"]" * (8 * MIB) + b".",
    "a pickle of dicts in a dict": torch_zip(b"\x80\x02}(" + b"K\x01}" * (4 * MIB) + b"u."),
    "a pickle of one tensor many times": torch_zip(
        tensor()[:-1] + b"q\x01]q\x02" + b"h\x01" * (4 * MIB) + b".", {"0": ARRAY["a"].tobytes()}
    ),
    "a long text with one wide letter": torch_zip(
        b"\x80\x02X" + struct.pack("<I", 8 * MIB + 4) + "🙂".encode() + b"a" * (8 * MIB) + b"."
    ),
    "a compressed pickle": torch_zip(b"\x80\x02" + b"]" * (64 * MIB) + b".", method=zipfile.ZIP_DEFLATED),
    "a compressed storage": torch_zip(tensor(), {"0": b"\0" * (64 * MIB)}, method=zipfile.ZIP_DEFLATED),
    "a list of members": list_of_members(200_000),
    "members that share their bytes": overlapping(100),
    "zeros in an npz": compressed_npz(),
    "a header of empty dicts": safetensors_file(b'{"a":[' + b"{}," * (4 * MIB) + b"0]}"),
    "a header of brackets": safetensors_file(b'{"a":' + b"[" * 900_000),
}


REPEATED = ("a pickle of lists, legacy", "a pickle of dicts in a dict", "a pickle of one tensor many times")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=[pytest.mark.nightly("3 s each; another pickle of lists is tried in any case")]
            if name in REPEATED
            else [],
        )
        for name in BOMBS
    ],
)
def test_bombs_are_refused_within_twice_the_size_of_the_file(write, name):
    path = write(BOMBS[name])
    with pytest.raises(mr.WeightsError) as caught:
        mr.load_weights(path)
    assert "\n" not in str(caught.value)
    assert peak_memory(path) <= max(2 * len(BOMBS[name]), 16 * MIB)


def test_bfloat16_takes_no_more_than_twice_the_file(write):
    """The worst case of a file that is right: 2 bytes become 4."""
    count = 8 * MIB
    path = write(torch_zip(tensor(b"ctorch\nBFloat16Storage\n", count, 0, (count,)), {"0": b"\x80\x3f" * count}))
    assert mr.load_weights(path)["a"][-1] == 1
    assert peak_memory(path) <= 2 * path.stat().st_size + MIB


# Zip and safetensors that lie --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("a compressed pickle", "data.pkl is compressed .* zip bomb"),
        ("a compressed storage", "is compressed .* zip bomb"),
        ("a list of members", "a list of members with 9,400,000 of 9,400,026 bytes; it may be a zip bomb"),
        ("members that share their bytes", "share bytes; it may be a zip bomb"),
        ("zeros in an npz", "more than twice as many; it may be a zip bomb"),
        ("a header of empty dicts", "refused, its header has"),
        ("a header of brackets", "its header is damaged"),
        ("a pickle of lists", "it may be an attack"),
    ],
)
def test_what_is_said_of_bombs(write, name, word):
    with pytest.raises(mr.WeightsError, match=word):
        mr.load_weights(write(BOMBS[name]))


def test_a_zip_with_a_name_twice(write):
    out = io.BytesIO(torch_zip(tensor()))
    with zipfile.ZipFile(out, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("archive/data/0", b"other")
    with pytest.raises(mr.WeightsError, match="'archive/data/0' is in it twice"):
        mr.load_weights(write(out.getvalue()))


def test_a_storage_that_is_missing(write):
    with pytest.raises(mr.WeightsError, match="archive/data/0 is missing"):
        mr.load_weights(write(torch_zip(tensor(), {})))


def test_an_npz_member_that_is_larger_than_it_says(write):
    out = io.BytesIO()
    np.savez_compressed(out, a=np.arange(1000.0))
    raw = out.getvalue()
    lie = raw.replace(struct.pack("<I", 8128), struct.pack("<I", 4128))  # 1000 numbers and a header of 128
    assert lie != raw
    with pytest.raises(mr.WeightsError):
        mr.load_weights(write(lie))


@pytest.mark.parametrize(
    ("header", "numbers", "word"),
    [
        (b"[1]", b"", "not a readable file of weights"),
        (b"{", b"", "its header is damaged"),
        (b'{"\xff":1}', b"", "its header is damaged"),
        (b'{"a":{},"a":{}}', b"", "a name occurs twice"),
        ({"a": 3}, b"", "not described by dtype, shape and data_offsets"),
        ({"a": {"dtype": "F32", "shape": [1]}}, b"", "not described by dtype"),
        ({"a": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}}, b"x", "has the dtype 'F8_E4M3', expected"),
        ({"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}, b"1234", "has the dtype"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"123", "truncated: a ends at byte"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"12345", "has 1 bytes behind its last array"),
        (
            {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
            b"1234",
            "has 4 bytes, float32 .2,. expects 8",
        ),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, b"1234", "two ascending bytes"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4.0]}}, b"1234", "two ascending bytes"),
        ({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"1234", "sizes of at least 0"),
        ({"a": {"dtype": "F32", "shape": [2**61, 8], "data_offsets": [0, 4]}}, b"1234", "more elements than memory"),
        ({"a": {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]}}, b"1234", "are no lists"),
        (
            {n: {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]} for n in "ab"},
            b"1234",
            "begins at byte 0, expected 4: a gap or an overlap",
        ),
    ],
)
def test_safetensors_that_lie(write, header, numbers, word):
    with pytest.raises(mr.WeightsError, match=word):
        mr.load_weights(write(safetensors_file(header, numbers)))


@pytest.mark.parametrize(
    ("descr", "word"),
    [
        ("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", "is no array of numbers"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }", r"has 4 bytes of numbers, \(3,\) expects 12"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2 3), }", "expected whole numbers"),
        ("{'descr': '<f4', 'fortran_order': __import__('os'), 'shape': (1,), }", "is no array of numbers"),
        ("{'descr': '<U4', 'fortran_order': False, 'shape': (1,), }", "is no array of numbers"),
    ],
)
def test_npz_that_lie(write, descr, word):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(descr)) + descr.encode() + b"1234")
    with pytest.raises(mr.WeightsError, match=word):
        mr.load_weights(write(out.getvalue()))


def test_an_npz_of_other_things(write):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("readme.txt", b"text")
    with pytest.raises(mr.WeightsError, match=r"not a readable .npz file, 'readme.txt' in it is no .npy"):
        mr.load_weights(write(out.getvalue()))
    out = io.BytesIO()
    np.savez(out, a=np.array([{"code": 1}], dtype=object))
    with pytest.raises(mr.WeightsError, match="is no array of numbers"):
        mr.load_weights(write(out.getvalue()))
