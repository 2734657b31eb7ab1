import pytest

from ohem_caffe_port.config import Config
from ohem_caffe_port.errors import PortError

FAST_RCNN_OHEM = """
EXP_DIR: fast_rcnn_ohem
TRAIN:
  BG_THRESH_LO: 0.0
  IMS_PER_BATCH: 1
  BATCH_SIZE: 64
  USE_OHEM: True
  ASPECT_GROUPING: False
"""


def test_defaults_of_the_original():
    cfg = Config()
    train = cfg.TRAIN
    assert (train.SCALES, train.MAX_SIZE, train.IMS_PER_BATCH, train.BATCH_SIZE) == ((600,), 1000, 2, 128)
    assert (train.FG_FRACTION, train.FG_THRESH, train.BG_THRESH_HI, train.BG_THRESH_LO) == (0.25, 0.5, 0.5, 0.1)
    assert (cfg.TRAIN.OHEM_USE_NMS, cfg.TRAIN.OHEM_NMS_THRESH, cfg.TRAIN.USE_OHEM) == (True, 0.7, False)
    assert (cfg.TEST.SCALE_USE, cfg.TEST.BBOX_ITERS, cfg.TEST.BBOX_VOTE) == ("nearest", 1, False)
    assert (cfg.TEST.NMS, cfg.DEDUP_BOXES, cfg.RNG_SEED, cfg.EPS) == (0.3, 1 / 16, 3, 1e-14)
    assert cfg.PIXEL_MEANS == (102.9801, 115.9465, 122.7717)


def test_the_originals_file(tmp_path):
    path = tmp_path / "cfg.yml"
    path.write_text(FAST_RCNN_OHEM)
    cfg = Config()
    cfg.merge_file(path)
    assert (cfg.EXP_DIR, cfg.TRAIN.BATCH_SIZE, cfg.TRAIN.USE_OHEM) == ("fast_rcnn_ohem", 64, True)
    assert cfg.explicit == {"EXP_DIR"} | {
        f"TRAIN.{k}" for k in ("BG_THRESH_LO", "IMS_PER_BATCH", "BATCH_SIZE", "USE_OHEM", "ASPECT_GROUPING")
    }


def test_an_empty_file_changes_nothing(tmp_path):
    (tmp_path / "cfg.yml").write_text("# nothing\n")
    cfg = Config()
    cfg.merge_file(tmp_path / "cfg.yml")
    assert cfg == Config()


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("TRAIN.SCALES", "[480,600]", (480, 600)),
        ("TRAIN.SCALES", "(480,)", (480,)),
        ("TRAIN.SCALES", "480", (480,)),
        ("PIXEL_MEANS", "[[[104, 117, 123]]]", (104, 117, 123)),
        ("TRAIN.FG_THRESH", "1", 1.0),
        ("TRAIN.USE_FLIPPED", "False", False),
        ("EXP_DIR", "some/dir", "some/dir"),
        ("EXP_DIR", "'quoted'", "quoted"),
        ("RNG_SEED", "7", 7),
    ],
)
def test_set(key, text, value):
    cfg = Config()
    cfg.merge_list([key, text])
    found = cfg
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value
    assert type(found) is type(value)
    assert cfg.explicit == {key}


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (["TRAIN.SCALE", "[1]"], "unknown configuration key 'TRAIN.SCALE'; did you mean 'TRAIN.SCALES'"),
        (["TRIAN.SCALES", "[1]"], "unknown configuration key 'TRIAN'; did you mean 'TRAIN'"),
        (["TRAIN.BATCH_SIZE", "1.5"], "must be of type int"),
        (["TRAIN.BATCH_SIZE", "True"], "must be of type int"),
        (["TRAIN.USE_FLIPPED", "1"], "must be of type bool"),
        (["TRAIN.SCALES", "[]"], "must be a list of numbers"),
        (["TRAIN.SCALES", "['a']"], "must be a list of numbers"),
        (["TRAIN.SCALES", "True"], "must be a list of numbers"),
        (["TRAIN.FG_THRESH", "x"], "must be of type float"),
        (["TRAIN", "3"], "is a group of keys"),
        (["RNG_SEED.X", "3"], "must be of type int"),
        (["TEST.SCALE_USE", "every"], "TEST.SCALE_USE must be nearest or all, not 'every'"),
        (["TEST.BBOX_ITERS", "0"], "TEST.BBOX_ITERS must be at least 1"),
        (["TEST.BBOX_VOTE_THRESH", "1.5"], "TEST.BBOX_VOTE_THRESH must be from 0 to 1"),
        (["EXP_DIR"], "has no value"),
        (["EXP_DIR", "__import__('os').getcwd() + ''", "NO_KEY", "1"], "unknown configuration key 'NO_KEY'"),
    ],
)
def test_bad_settings(items, message):
    with pytest.raises(PortError, match=message):
        Config().merge_list(items)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("TRAIN:\n  SCALES: [1\nX: 2", 3, "not a YAML file"),
        ("- a\n- b", None, "a mapping of keys to values"),
        ("just words", None, "a mapping of keys to values"),
        ("TRAIN: 3", None, "'TRAIN' is a group of keys"),
        ("NOKEY: 3", None, "unknown configuration key"),
        ("EXP_DIR: !!python/object/apply:os.getcwd []", 1, "not a YAML file"),
    ],
)
def test_bad_files(tmp_path, text, line, message):
    path = tmp_path / "cfg.yml"
    path.write_text(text)
    with pytest.raises(PortError, match=message) as caught:
        Config().merge_file(path)
    assert str(caught.value.file) == str(path)
    assert caught.value.line == line


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(PortError, match="cannot read the configuration"):
        Config().merge_file(tmp_path / "absent.yml")


def test_two_configurations_are_independent():
    first, second = Config(), Config()
    first.merge({"TRAIN": {"BATCH_SIZE": 3}}, source="test")
    assert second.TRAIN.BATCH_SIZE == 128
    assert second.explicit == set()
    assert first.to_dict()["TRAIN"]["BATCH_SIZE"] == 3


def test_a_tuple_in_a_file(tmp_path):
    """Fast R-CNN's multiscale.yml; any other Python object is refused, and nothing is run."""
    (tmp_path / "cfg.yml").write_text("TRAIN:\n  SCALES: !!python/tuple [480, 576]\n")
    cfg = Config()
    cfg.merge_file(tmp_path / "cfg.yml")
    assert cfg.TRAIN.SCALES == (480, 576)
    (tmp_path / "cfg.yml").write_text("EXP_DIR: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(PortError, match="not a YAML file"):
        cfg.merge_file(tmp_path / "cfg.yml")


def test_lists_of_mnc():
    """Keys that are numbers elsewhere: a list of them is another key, and the number stays."""
    cfg = Config()
    cfg.merge({"TRAIN": {"FG_FRACTION": [0.2, 0.1], "BG_THRESH_HI": [0.4], "BG_THRESH_LO": 0.05}}, source="test")
    train = cfg.TRAIN
    assert (train.FG_FRACTION, train.FG_FRACTION_LIST) == (0.25, (0.2, 0.1))
    assert (train.BG_THRESH_HI, train.BG_THRESH_HI_LIST) == (0.5, (0.4,))
    assert (train.BG_THRESH_LO, train.BG_THRESH_LO_LIST) == (0.05, (0.1, 0.0))


@pytest.mark.parametrize(("value", "message"), [(-1, None), (0, "at least -1 and not 0, not 0"), (-2, "not 0, not -2")])
def test_all_rois_in_a_minibatch(value, message):
    cfg = Config()
    if message is None:
        cfg.merge({"TRAIN": {"BATCH_SIZE": value}}, source="test")
        assert cfg.TRAIN.BATCH_SIZE == -1
    else:
        with pytest.raises(PortError, match=message):
            cfg.merge({"TRAIN": {"BATCH_SIZE": value}}, source="test")
