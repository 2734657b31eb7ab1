"""Several processes against one: two that train a small net together, and what they agree on."""

import runpy
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from ohem_caffe_port import distributed
from ohem_caffe_port.errors import PortError

SCRIPT = Path(__file__).with_name("training_together.py")
JOIN = "from ohem_caffe_port import distributed\nfrom ohem_caffe_port.errors import PortError\n"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    rng = np.random.default_rng(0)
    lines = []
    for i in range(11):
        cv2.imwrite(str(folder / f"{i}.png"), rng.integers(0, 256, (6 + i % 3, 7, 3), dtype=np.uint8))
        lines.append(f"{folder / f'{i}.png'} {i % 3}")
    (folder / "list.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def together(pictures, several):
    """What two processes printed and left, with one and with two passes each in an iteration."""
    return several([SCRIPT, pictures, "2,4"], pictures)


@pytest.mark.parametrize("passes", [2, 4])
def test_two_processes_train_as_one(pictures, together, passes, monkeypatch):
    assert [code for code, _, _ in together] == [0, 0], together
    monkeypatch.chdir(pictures)
    alone = runpy.run_path(str(SCRIPT))["trained"](passes)
    with np.load(pictures / f"{passes}.npz") as theirs:
        assert set(theirs.files) == set(alone)
        assert theirs["passes"] == passes
        np.testing.assert_allclose(theirs["losses"], alone["losses"], rtol=1e-6)
        assert len(set(alone["losses"])) == 6
        for name, value in alone.items():
            np.testing.assert_allclose(theirs[name], value, rtol=0, atol=1e-6, err_msg=name)


def test_only_the_first_process_prints(together):
    assert [out for _, out, _ in together] == ["done by 0\n", ""]


@pytest.mark.parametrize(("who", "code"), [("", 2), ("if distributed.rank() == 1:\n        ", 2)])
def test_an_error_is_told_once(several, tmp_path, who, code):
    """Also by those who wait for a process that has failed."""
    (tmp_path / "script.py").write_text(
        f"""import sys
sys.path.insert(0, {str(SCRIPT.parents[2] / "tools")!r})
import _cli
{JOIN}
@distributed.joined()
def main():
    {who}raise PortError("no bananas", hint="buy some")
    distributed.from_root(1)

_cli.run(main)
"""
    )
    ended = several(["script.py"], tmp_path)
    assert [end[0] for end in ended] == [code, code], ended
    assert "".join(out + err for _, out, err in ended) == "error: no bananas\n  buy some\n"


def test_alone_nothing_is_shared_out(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with distributed.joined():
        assert (distributed.size(), distributed.rank(), distributed.is_root()) == (1, 0, True)
    assert list(distributed.shard(3)) == [0, 1, 2]
    assert distributed.gathered([1, 2]) == [1, 2]
    assert distributed.from_root(5) == 5
    assert distributed.in_turn(lambda: "mine", lambda: 1 / 0) == "mine"
    assert distributed.total(torch.ones(2)).tolist() == [1, 1]


def test_started_in_another_way(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(PortError, match=r"RANK, MASTER_ADDR, MASTER_PORT[\s\S]*torchrun"), distributed.joined():
        pass


def test_the_random_numbers_of_a_pass(build):
    """They depend on the seed and the number of the pass, not on what came before."""
    net = build('layer { name: "x" type: "DummyData" top: "x" dummy_data_param { shape { dim: 2 } } }')
    drawn = {}
    for seed, number in ((3, 0), (3, 1), (4, 0), (3, 1), (3, 0)):
        distributed.seed_pass(net, seed, number)
        numbers = (float(torch.rand(())), float(net.rng.random_sample()))
        assert drawn.setdefault((seed, number), numbers) == numbers
    assert len(set(drawn.values())) == 3
