"""The table of a network."""

from __future__ import annotations

import numpy as np
import pytest

import minires as mr
from minires import models, nn
from minires.nn.summary import format_bytes


def test_counts_by_hand():
    """3x3 convolution 3 -> 4 on 8x8: 64 positions * 27 * 4 multiply-adds; linear 4 -> 5: 20."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.GlobalAvgPool2d(), nn.Linear(4, 5))
    summary = mr.summary(model, (8, 8, 3))
    assert [row.macs for row in summary.rows] == [64 * 27 * 4, 0, 0, 20]
    assert [row.parameters for row in summary.rows] == [27 * 4 + 4, 0, 0, 25]
    assert [row.output for row in summary.rows] == [(8, 8, 4), (8, 8, 4), (4,), (5,)]
    assert summary.parameters == sum(row.parameters for row in summary.rows)


def test_groups_count_less():
    summary = mr.summary(nn.Conv2d(4, 8, 1, groups=2, bias=False), (2, 2, 4))
    assert summary.macs == 4 * 2 * 8


def test_the_table_is_printed():
    text = str(mr.summary(models.resnet20(), (32, 32, 3)))
    assert "layer3.2.conv2" in text
    assert "8x8x64" in text
    assert "269,722 parameters" in text
    assert "0.041 GMACs" in text  # published for ResNet-20: 41 million


def test_the_model_is_left_as_it_was():
    model = models.resnet20()
    model.bn1.eval()
    before = model.state_dict()
    mr.summary(model, (32, 32, 3))
    assert model.training
    assert not model.bn1.training
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_wrong_shape():
    with pytest.raises(ValueError, match=r"input_shape is \(32, 32\), expected \(height, width, channels\)"):
        mr.summary(models.resnet20(), (32, 32))


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1536, "1.5 KiB"), (3 << 20, "3.0 MiB"), (5 << 30, "5.00 GiB")]
)
def test_format_bytes(count, text):
    assert format_bytes(count) == text
