"""The machine that reads pickles: the values that pickle writes, and nothing else. Attacks are in tests/weights/."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minires.files import pickles

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**100), 2**100) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.tuples(inner, inner, inner, inner)
        | st.dictionaries(st.text(max_size=5) | st.integers(-(2**62), 2**62), inner, max_size=4)
    ),
    max_leaves=25,
)


def load(raw: bytes, names=None, budget: int = 1 << 20, **options):
    return pickles.load(pickles.Window(memoryview(raw), budget), names or {}, **options)


@given(PLAIN, st.integers(0, 5))
def test_plain_values_of_every_protocol(value, protocol):
    assert load(pickle.dumps(value, protocol)) == value


@given(st.binary(max_size=400), st.integers(3, 5))
def test_bytes(value, protocol):
    assert load(pickle.dumps([value, value], protocol)) == [value, value]


def test_a_value_in_two_places_is_one():
    inner = [1]
    found = load(pickle.dumps([inner, inner, {"a": inner}], 2))
    assert found[0] is found[1] is found[2]["a"]


def test_a_list_within_itself():
    value: list = []
    value.append(value)
    found = load(pickle.dumps(value, 2))
    assert found[0] is found


@pytest.mark.parametrize(("python2_bytes", "expected"), [(False, "é"), (True, b"\xe9")])
def test_the_strings_of_python_2(python2_bytes, expected):
    assert load(b"U\x01\xe9.", python2_bytes=python2_bytes) == expected


def test_only_what_is_named_is_called():
    calls = []

    def function(*arguments):
        calls.append(arguments)
        return "result"

    program = b"cmodule\nname\nK\x01K\x02\x86R."
    assert load(program, {("module", "name"): function}) == "result"
    assert calls == [(1, 2)]
    with pytest.raises(pickles.PickleError, match=r"asks for module\.name, which it does not need"):
        load(program, {("module", "other"): function})


def test_a_state_is_for_those_who_take_it():
    class Takes:
        def pickle_state(self, state):
            self.state = state

    assert load(b"ca\nb\n)RK\x07b.", {("a", "b"): Takes}).state == 7
    with pytest.raises(pickles.PickleError, match="changes the inside of a dict"):
        load(b"ca\nb\n)RK\x07b.", {("a", "b"): dict})


def test_persistent_ids():
    assert load(b"K\x05Q.", persistent=lambda value: value * 10) == 50
    with pytest.raises(pickles.PickleError, match="the instruction BINPERSID"):
        load(b"K\x05Q.")


def test_one_pickle_after_the_other():
    window = pickles.Window(memoryview(pickle.dumps("a", 2) + pickle.dumps([3], 4) + b"rest"), 1 << 20)
    assert pickles.load(window, {}) == "a"
    assert pickles.load(window, {}) == [3]
    assert bytes(window.buffer[window.position :]) == b"rest"


def test_the_budget():
    raw = pickle.dumps([[]] * 2 + [[i] for i in range(1000)], 2)
    with pytest.raises(pickles.PickleError, match="more memory than its file can account for"):
        load(raw, budget=100_000)
    assert len(load(raw, budget=1_000_000)) == 1002


@given(st.binary(max_size=100))
def test_garbage(raw):
    try:
        load(b"\x80\x02" + raw)
    except pickles.PickleError as error:
        assert "\n" not in str(error)  # noqa: PT017
