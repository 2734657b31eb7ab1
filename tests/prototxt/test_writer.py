"""Text written is text read."""

import os

import pytest

from prototxt import CaffePortError, parse_net, parse_solver, read_net, to_text, write_text


def test_floats_are_short():
    text = to_text(
        parse_solver("base_lr: 0.1 gamma: 0.0001 momentum: 0.9 weight_decay: 5e-4 delta: 1e-8 power: 3 net: 'n'")
    )
    for line in ("base_lr: 0.1", "gamma: 0.0001", "momentum: 0.9", "weight_decay: 0.0005", "delta: 1e-08"):
        assert line in text.splitlines()


def test_round_trip():
    net = parse_net("""
      name: "a \\"quoted\\" \\\\ name \\n é"
      layer { name: "x" type: "Pooling" loss_weight: inf loss_weight: -0.1 loss_weight: 1e38 loss_weight: 1e-40
              pooling_param { pool: AVE global_pooling: false } param { } include { } blobs { data: [0.1, 3] } }
    """)
    text = to_text(net)
    assert parse_net(text) == net
    assert to_text(parse_net(text)) == text
    assert "pool: AVE" in text
    assert "é" in text


def test_write_replaces(tmp_path):
    path = tmp_path / "net.prototxt"
    path.write_text("old")
    net = parse_net('name: "n" layer { name: "a" }')
    write_text(net, path)
    assert read_net(path) == net
    assert [item.name for item in tmp_path.iterdir()] == ["net.prototxt"]


def test_write_errors(tmp_path):
    net = parse_net('name: "n"')
    with pytest.raises(CaffePortError, match="cannot be written"):
        write_text(net, tmp_path / "nowhere" / "net.prototxt")
    (tmp_path / "folder").mkdir()
    with pytest.raises(CaffePortError, match="cannot be written"):
        write_text(net, tmp_path / "folder")
    assert [item.name for item in tmp_path.iterdir()] == ["folder"]


def test_a_device_is_not_replaced(tmp_path):
    """Nor anything else that is no ordinary file: ``/dev/null`` must stay what it is."""
    if not hasattr(os, "mkfifo"):
        pytest.skip("no named pipes here")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CaffePortError, match="no ordinary file"):
        write_text(parse_net('name: "n"'), tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()
