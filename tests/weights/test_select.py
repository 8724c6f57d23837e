"""Which of the dicts in a checkpoint holds the weights. Only the pickle's description is needed: no file."""

from __future__ import annotations

from pathlib import Path

import pytest

from minires.weights import WeightsError
from minires.weights.torch_reader import Storage, Tensor, select

STORAGE = Storage("0", "float32", 6, 0, 6)
WEIGHT, NUMBER = Tensor(STORAGE, 0, (6,), (1,), "float32"), Tensor(STORAGE, 0, (), (), "float32")
STATE = {"conv1.weight": WEIGHT, "bn1.num_batches_tracked": NUMBER}
ADAM = {"state": {0: {"step": NUMBER, "exp_avg": WEIGHT}}, "param_groups": [{"lr": 0.1, "params": [0]}]}


def chosen(content, key=None):
    lines: list[str] = []
    return select(Path("x.pth"), content, key, lines.append), lines


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ({"model_state": STATE, "optimizer_state": ADAM, "epoch": 7}, "model_state"),  # refused until 0.2
        ({"backbone": STATE}, "backbone"),
        ({"best_acc1": NUMBER, "state_dict": STATE, "optimizer": ADAM}, "state_dict"),  # PyTorch's ImageNet example
        ({"net": {"state_dict": STATE}}, "net.state_dict"),
        ({"model": STATE, "model_ema": STATE}, "model"),  # the usual name among several
        ({"models": {"student": STATE}, "scheduler": {"buffer": WEIGHT}}, "models.student"),
        ({"params": STATE, "optimizer": {"exp_avg": dict(STATE)}}, "params"),
    ],
)
def test_it_is_found_under_whatever_key(content, where):
    state, lines = chosen(content)
    assert state == STATE
    assert lines[0].startswith(f"x.pth: taking the weights under '{where}'")
    for name in content:
        assert (f"{name!r}" in lines[0].partition("not read")[2]) == (name != where.split(".")[0])


def test_a_plain_state_dict_is_taken_as_it_is():
    assert chosen(STATE) == (STATE, [])
    state, lines = chosen({**STATE, "ema": dict(STATE), "epoch": 3})
    assert state == STATE
    assert lines == ["x.pth: left out, because they are no tensors: 'ema', 'epoch'"]
    assert chosen({"step": NUMBER})[0] == {"step": NUMBER}  # nothing but numbers: better than nothing


AMBIGUOUS = {"generator": STATE, "discriminator": {"fc.weight": WEIGHT}, "epoch": 3}


def test_of_several_the_candidates_are_listed():
    said = r"x.pth: has tensors under several keys: 'generator' \(2 tensors\), 'discriminator' \(1 tensors\); say key="
    with pytest.raises(WeightsError, match=said):
        chosen(AMBIGUOUS)
    with pytest.raises(WeightsError, match="several keys: 'model'"):
        chosen({"model": STATE, "net": dict(STATE)})


def test_the_key_decides():
    state, lines = chosen(AMBIGUOUS, "discriminator")
    assert state == {"fc.weight": WEIGHT}
    assert lines == ["x.pth: taking the weights under 'discriminator'; not read: 'generator', 'epoch'"]
    assert chosen({"a": {"b.c": STATE, "d": STATE}}, "a.b.c")[0] == STATE
    with pytest.raises(WeightsError, match=r"has no tensors under 'model', only under: 'generator' \(2 tensors\)"):
        chosen(AMBIGUOUS, "model")
    with pytest.raises(WeightsError, match=r"has no tensors under 'model', only under: \(no key\)"):
        chosen(STATE, "model")


def test_a_dict_that_holds_itself_and_dicts_without_end():
    loop = {"x": STATE}
    loop["again"] = loop
    assert chosen({"model": loop})[0] == STATE
    deep = STATE
    for _ in range(100_000):
        deep = {"a": deep}
    with pytest.raises(WeightsError, match="has no tensors"):
        chosen(deep)


def test_a_single_tensor_beside_a_dict_of_weights_is_no_state():
    for content in ({"params": STATE, "mean": WEIGHT}, {"generator": STATE, "step": WEIGHT}):
        with pytest.raises(WeightsError, match="has tensors under several keys"):
            chosen(content)
    assert chosen({"params": STATE, "mean": WEIGHT}, "params")[0] == STATE


@pytest.mark.parametrize("name", ["upscaler", "model_scheduled", "optimized_model"])
def test_names_that_sound_like_an_optimisers(name):
    assert chosen({name: STATE, "optimizer_state": {"exp_avg": WEIGHT}})[0] == STATE
    assert chosen({"a": STATE, "lr_scheduler": dict(STATE)}, "lr_scheduler")[0] == STATE


def test_names_must_be_texts():
    with pytest.raises(WeightsError, match="names are not text"):
        chosen({0: WEIGHT})
