"""The table of a network."""

from __future__ import annotations

import numpy as np
import pytest

import minires as mr
from minires import models, nn
from minires.models import recognise
from minires.models.pretrained import Zeros
from minires.nn.summary import Table, format_bytes


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
    with pytest.raises(ValueError, match=r"input_shape is \(32, 0, 3\), expected such as \(height, width, channels\)"):
        mr.summary(models.resnet20(), (32, 0, 3))
    with pytest.raises(ValueError, match=r"conv1 \(Conv2d\): conv2d: input has shape \(1, 32, 32\)"):
        mr.summary(models.resnet20(), (32, 32))


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1536, "1.5 KiB"), (3 << 20, "3.0 MiB"), (5 << 30, "5.00 GiB")]
)
def test_format_bytes(count, text):
    assert format_bytes(count) == text


def test_the_image_is_that_of_the_network():
    for model, shape in [
        (models.resnet20(), (32, 32, 3)),
        (models.resnet18(10, "cifar", in_channels=1), (32, 32, 1)),
        (models.resnet50(), (224, 224, 3)),
    ]:
        assert mr.summary(model).input_shape == shape
    assert mr.summary(nn.Sequential(nn.Conv2d(1, 1, 1))).input_shape == (224, 224, 1)
    assert mr.summary(nn.Sequential(nn.ReLU())).input_shape == (224, 224, 3)
    perceptron = nn.Sequential(nn.Linear(20, 5), nn.ReLU(), nn.Linear(5, 2))
    assert mr.summary(perceptron).input_shape == (20,)
    assert mr.summary(perceptron, (7, 20)).rows[-1].output == (7, 2)


def test_a_notebook_shows_the_table_and_a_terminal_one_line():
    summary = mr.summary(models.resnet20())
    assert len(repr(summary)) < 200
    assert "269,722 parameters" in repr(summary)
    html = summary._repr_html_()
    assert html.count("<tr>") == len(summary.rows) + 1
    assert "<td style='text-align:left'>layer3.2.conv2</td>" in html


def test_html_is_escaped():
    table = Table(("a<b",), (("<script>",),), "l", "x & y")
    assert table._repr_html_() == (
        "<table><tr><th style='text-align:left'>a&lt;b</th></tr>"
        "<tr><td style='text-align:left'>&lt;script&gt;</td></tr></table><p>x &amp; y</p>"
    )


# The table of the paper, with the channels that come out of a block. "Conv2_x" has the max pooling before it.
RESNET101 = [
    ("conv1", "7x7 convolution, stride 2", "112x112x64", "1"),
    ("conv2_x", "bottleneck block (1x1, 3x3, 1x1)", "56x56x256", "3"),
    ("conv3_x", "bottleneck block (1x1, 3x3, 1x1)", "28x28x512", "4"),
    ("conv4_x", "bottleneck block (1x1, 3x3, 1x1)", "14x14x1024", "23"),
    ("conv5_x", "bottleneck block (1x1, 3x3, 1x1)", "7x7x2048", "3"),
    ("global pool", "average pooling", "1x1x2048", "-"),
    ("fc", "fully connected", "1x1x1000", "1"),
]


def test_the_architecture_table():
    model = models.resnet101(generator=Zeros())
    table = models.stages(model)
    assert [row[:4] for row in table.rows] == RESNET101
    assert table.total == "1 + 3x3 + 4x3 + 23x3 + 3x3 + 1 = 101 layers with weights, 44,549,160 parameters"
    counts = [int(row[4].replace(",", "")) for row in table.rows if row[4]]
    assert sum(counts) == 44_549_160
    assert "7x7x2048" in str(table)
    assert model.training


@pytest.mark.parametrize(
    ("model", "rows", "sizes"),
    [
        (models.resnet20(), 6, ["32x32x16", "32x32x16", "16x16x32", "8x8x64", "1x1x64", "1x1x10"]),
        (models.build(20, shortcut=False), 6, ["32x32x16", "32x32x16", "16x16x32", "8x8x64", "1x1x64", "1x1x10"]),
        (
            models.resnet18(7, "cifar", in_channels=1, output_stride=4), 7,
            ["32x32x64", "32x32x64", "16x16x128", "8x8x256", "8x8x512", "1x1x512", "1x1x7"],
        ),
    ],
)  # fmt: skip
def test_the_table_of_other_networks(model, rows, sizes):
    table = models.stages(model)
    assert len(table.rows) == rows
    assert [row[2] for row in table.rows] == sizes
    assert ("plain basic block" in table.rows[1][1]) == (not model.layer1[0].shortcut)
    assert f"{recognise.depth_of(model)} layers with weights" in table.total


def test_the_table_of_what_is_no_resnet():
    with pytest.raises(TypeError, match="stages: got a Linear, expected a ResNet or a CifarResNet"):
        models.stages(nn.Linear(2, 2))


def test_the_strides_of_the_table_are_those_of_the_convolutions():
    """Sizes do not say: 13 after 25 is a stride of 2, and 1 after 1 too."""
    for size in (200, 8):
        texts = [row[5] for row in models.stages(models.resnet18(), (size, size, 3)).rows[1:5]]
        assert ["stride 2" in text for text in texts] == [False, True, True, True]
