"""Reading prototxt: what is accepted, and what an error says."""

import math
import warnings

import pytest

from prototxt import PrototxtError, locate, parse_net, parse_solver, read_any, read_net, read_solver

NET = """\
# a small detector
name: "small"
layer {
  name: 'data' type: "Python" top: "data" top: "rois"
  include { phase: TRAIN }
  python_param { module: "roi_data_layer.layer" layer: "RoIDataLayer" param_str: "'num_classes': 21" }
}
layer {
  name: "conv1"
  type: "Convolution"
  bottom: "data"
  top: "conv1"
  param { lr_mult: 0 }
  convolution_param {
    num_output: 4
    pad: 1
    kernel_size: 3
  }
}
layer {
  name: "data" type: "Input" top: "data"
  include: { phase: TEST }
}
layer { name: "pool" type: "ROIPooling" bottom: "conv1" bottom: "rois" top: "pool"
  roi_pooling_param { pooled_w: 7 pooled_h: 7 spatial_scale: 0.0625 } }
"""


def fails(text, parse=parse_net):
    with pytest.raises(PrototxtError) as caught:
        parse(text, source="f.prototxt")
    return caught.value


def test_a_small_net(tmp_path):
    path = tmp_path / "train.prototxt"
    path.write_text(NET)
    net = read_net(path)
    assert net.name == "small"
    assert [layer.name for layer in net.layer] == ["data", "conv1", "data", "pool"]
    assert net.layer[0].python_param.param_str == "'num_classes': 21"
    assert list(net.layer[1].convolution_param.kernel_size) == [3]
    assert net.layer[3].roi_pooling_param.spatial_scale == 1 / 16
    assert net == parse_net(NET)


def test_every_way_of_writing():
    net = parse_net(
        "name: 'it\\'s' \"\\x41\\102\\n\" ; force_backward: t,\n"
        "layer < name:'a' loss_weight: [1, 2e-1f, .5, -inf] loss_weight: 1e-4f, loss_weight: - 3 bottom: ['x', 'y'];>\n"
        "layer: { name: 'b' pooling_param: { kernel_size: 0x10 pad: 010 pool: 1 global_pooling: 1 } # AVE by number\n}"
        "layer: [{ name: 'c' }, { name: \"\\u00e9 \\303\\251\" dropout_param {} }]\n"
    )
    assert net.name == "it'sAB\n"
    assert net.force_backward is True
    a, b, c, d = net.layer
    assert list(a.loss_weight) == pytest.approx([1, 0.2, 0.5, -math.inf, 1e-4, -3])
    assert list(a.bottom) == ["x", "y"]
    assert (b.pooling_param.kernel_size, b.pooling_param.pad) == (16, 8)
    assert b.pooling_param.pool == b.pooling_param.AVE
    assert b.pooling_param.global_pooling
    assert d.name == "é é"
    assert d.HasField("dropout_param")
    assert not c.HasField("dropout_param")


@pytest.mark.parametrize("word", ["true", "True", "t", "1"])
def test_true(word):
    assert parse_net(f"force_backward: {word}").force_backward is True


@pytest.mark.parametrize("word", ["false", "False", "f", "0"])
def test_false(word):
    net = parse_net(f"force_backward: {word}")
    assert net.force_backward is False
    assert net.HasField("force_backward")


def test_fields_of_forks_by_name():
    net = parse_net("""
      layer { name: "a" pooling_param { ceil_mode: false } }
      layer { name: "b" proposal_param { feat_stride: 16 base_size: 16 } }
      layer { name: "c" convolution_param { num_output: 1 pad_l: 1 pad_r: 0 pad_t: 1 pad_b: 0 } }
      layer { name: "d" focal_loss_param { gama: 2 alpha: 0.75 beta: 1 type: LINEAR } }
      layer { name: "e" loss_param { normalization: PRE_FIXED pre_fixed_normalizer: 128 } }
      layer { name: "f" loss_param { normalization: NONE } }
      layer { name: "g" psroi_pooling_param { spatial_scale: 0.0625 output_dim: 21 group_size: 7 } }
      layer { name: "h" box_annotator_ohem_param { roi_per_img: 128 } }
      layer { name: "i" multibox_loss_param { mining_type: HARD_EXAMPLE nms_param { nms_threshold: 0.7 } } }
      layer { name: "j" relu6_param { threshold: 6 } }
      layer { name: "k" dropout_param { dropout_ratio: 0.5 scale_train: false } }
    """)
    assert net.layer[4].loss_param.normalization == net.layer[4].loss_param.PRE_FIXED
    assert net.layer[7].box_annotator_ohem_param.ignore_label == -1
    assert net.layer[8].multibox_loss_param.sample_size == 64


def test_unknown_field():
    error = fails('layer {\n  name: "pool"\n  roi_poling_param { }\n}')
    assert (error.file, error.line, error.layer, error.field) == ("f.prototxt", 3, "pool", "roi_poling_param")
    assert error.message == "no field 'roi_poling_param' in LayerParameter; did you mean 'roi_pooling_param'?"


def test_a_field_of_another_block():
    error = fails('layer { name: "c" kernel_size: 3\n convolution_param { num_output: 2 } }')
    assert "no field 'kernel_size' in LayerParameter" in error.message
    assert error.hint == "'kernel_size' is a field of convolution_param: put it in that block"


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("layer {\n pooling_param {\n pool: MAXX } }", 3, "'MAXX' in PoolingParameter.PoolMethod; did you mean 'MAX'?"),
        ("layer { pooling_param { pool: 77 } }", 1, "no value '77' in PoolingParameter.PoolMethod"),
        ('layer { pooling_param { pool: "MAX" } }', 1, "expected one of MAX, AVE"),
        ("layer {\n name: conv1 }", 2, "expected a string, found conv1"),
        ('layer {\n convolution_param {\n num_output: "3" } }', 3, "an integer that is not negative, found '3'"),
        ("layer { convolution_param { num_output: -3 } }", 1, "-3 is out of range (0 to 4294967295)"),
        ("layer { convolution_param { num_output: 1.5 } }", 1, "expected an integer that is not negative, found 1.5"),
        ("layer { loss_weight: much }", 1, "expected a number, found much"),
        ("layer { loss_weight: 1x }", 1, "'1x' is not a number"),
        ("force_backward: yes", 1, "expected true or false, found yes"),
        ("layer {\n dropout_param: 0.5 }", 2, "expected a block '{ ... }' of DropoutParameter, found 0.5"),
        ("layer { name { } }", 1, "expected a string, found a block"),
        ('layer { name: "a"\n name: "b" }', 2, "specified multiple times (first on line 1)"),
        ("layer { dropout_param { }\n dropout_param { } }", 2, "specified multiple times (first on line 1)"),
        ('name: ["a", "b"]', 1, "takes one value, not a list"),
        ('\nlayer {\n name: "a"\n', 2, "the block '{' opened here is never closed"),
        ("layer {\n convolution_param {\n num_output: 1\n}\n\n", 1, "the block '{' opened here is never closed"),
        ('layer {\n}\n}', 3, "'}' closes a block that was never opened"),
        ("layer {\n>", 2, "'>' closes the '{' of line 1"),
        ('layer { name "a" }', 1, "expected ':' or '{' after 'name', found '\"a\"'"),
        ("layer {\n name: }", 2, "name has no value"),
        ("layer { loss_weight: [1, 2 }", 1, "expected ',' or ']' in the list of loss_weight"),
        ('\nname: "abc\n', 2, 'this string is not closed: "abc'),
        ('name: "a\\qb"', 1, "'\\q' is not an escape"),
        ('name: "\\ud800"', 1, "'\\ud800' is not an escape"),
        ("\n[caffe.extension", 2, "this '[' is never closed"),
        ("[caffe.extension]: 1", 1, "no field '[caffe.extension]' in NetParameter"),
        ('name: "a" // no', 1, "expected a field name, found '/'"),
        ('name: "a" @', 1, "'@' does not belong here"),
        ("layer {\n box_annotator_ohem_param { } }", 2, "BoxAnnotatorOHEMParameter requires roi_per_img"),
        ("a {" * 1000, 1, "blocks are nested more than 100 deep"),
        ('layer { name: "a" }\nlayers { name: "b" }', 2, "'layer' and the older 'layers' in one net"),
        ('input: "d"\ninput_dim: 3', 2, "1 inputs need four input_dim each; there are 1"),
        ("", None, "no fields in this net file: it is empty"),
        ("# nothing\n", None, "no fields in this net file: it is empty"),
    ],
)  # fmt: skip
def test_errors(text, line, message):
    error = fails(text)
    assert error.line == line
    assert message in error.message
    assert str(error).startswith("f.prototxt:")


def test_a_solver_is_not_a_net():
    error = fails('# solver\ntrain_net: "train.prototxt"\nbase_lr: 0.001')
    assert error.line == 2
    assert "this is a solver, where a net is expected" in error.message
    error = fails(NET, parse_solver)
    assert error.line == 2
    assert "this is a net, where a solver is expected" in error.message


def test_errors_of_files(tmp_path):
    def message(name):
        with pytest.raises(PrototxtError) as caught:
            read_net(tmp_path / name)
        assert caught.value.file == str(tmp_path / name)
        return str(caught.value)

    (tmp_path / "train.prototxt").write_text(NET)
    (tmp_path / "vgg.caffemodel").write_bytes(b"\n\x03VGG\x12\x00\x00")
    (tmp_path / "weights").write_bytes(b"\n\x03VGG\x12\x00\x00")
    (tmp_path / "latin").write_bytes(b'name: "\xe9"')
    (tmp_path / "bytes").write_bytes(b"name\xff: 1")
    (tmp_path / "utf16").write_text(NET, encoding="utf-16")
    assert "did you mean" in message("trian.prototxt")
    assert "train.prototxt" in message("trian.prototxt")
    assert "there is no folder" in message("nowhere/train.prototxt")
    assert "this is a directory" in message("")
    assert "this is a binary .caffemodel file, not a prototxt" in message("vgg.caffemodel")
    assert "a .caffemodel?" in message("weights")
    assert "this string is not UTF-8" in message("latin")
    assert "not UTF-8" in message("bytes")
    assert "UTF-16" in message("utf16")


def test_comments_may_have_any_encoding(tmp_path):
    path = tmp_path / "gbk.prototxt"
    path.write_bytes(b"\xef\xbb\xbf# \xc4\xe3\xba\xc3\r\nname: 'a'\r\n")
    assert read_net(path).name == "a"


def test_lenient_lists_what_it_skips():
    text = 'layer {\n  name: "a"\n  dropout_parm { x: [ { y: 1 }, { z: "s" } ] }\n}\nzzz: 3\n'
    unknown = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = parse_net(text, source="f", lenient=True, unknown=unknown)
    assert net.layer[0].name == "a"
    first, second = unknown
    assert (first.file, first.line, first.column, first.path) == ("f", 3, 3, "layer.dropout_parm")
    assert first.nearest == "dropout_param"
    assert (second.line, second.path, second.nearest) == (5, "zzz", None)
    with pytest.warns(UserWarning, match="f:3: layer.dropout_parm .*; f:5: zzz"):
        parse_net(text, source="f", lenient=True)


def test_lenient_still_refuses_wrong_values():
    with pytest.raises(PrototxtError, match="expected a string"):
        parse_net("layer { name: 3 }", lenient=True)
    with pytest.raises(PrototxtError, match="this is a solver"):
        parse_net("base_lr: 1", lenient=True)


def test_locate(tmp_path):
    path = tmp_path / "net.prototxt"
    path.write_text(NET)
    assert locate(path, "conv1") == 8
    assert locate(path, "conv1", "bottom") == 11
    assert locate(path, "conv1", "convolution_param.pad") == 16
    assert locate(path, "data") == 3
    assert locate(path, "data", index=1) == 20
    assert locate(path, "pool", "bottom", 1) == 24
    assert locate(path, field="name") == 2
    assert locate(path, "conv2") is None
    assert locate(path, "conv1", "top", 5) is None


def test_locate_in_the_oldest_form(tmp_path):
    path = tmp_path / "net.prototxt"
    path.write_text('layers {\n layer {\n name: "a"\n type: "relu" }\n}\n')
    assert locate(path, "a") == 1
    assert locate(path, "a", "layer.type") == 4


def test_solver(tmp_path):
    path = tmp_path / "solver.prototxt"
    path.write_text(
        'train_net: "t"\nbase_lr: 0.001\nlr_policy: "step"\nstepsize: 30000\niter_size: 2\nsolver_type: ADAM\n'
    )
    solver = read_solver(path)
    assert solver.type == "Adam"
    assert not solver.HasField("solver_type")
    assert solver.iter_size == 2
    assert solver.snapshot_prefix == str(tmp_path / "solver")
    assert not parse_solver('net: "x"').HasField("snapshot_prefix")
    assert fails('net: "x"\nbase_rl: 1', parse_solver).line == 2


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('layer { name: "a" type: "ReLU" }', "NetParameter"),
        ('name: "x" input: "data"', "NetParameter"),
        ('net: "x" base_lr: 1', "SolverParameter"),
        ('item { name: "cat" label: 1 }', "LabelMap"),
    ],
)
def test_read_any(tmp_path, text, kind):
    (tmp_path / "x.prototxt").write_text(text)
    assert read_any(tmp_path / "x.prototxt").DESCRIPTOR.name == kind


def test_read_any_reports_as_the_reader_of_that_kind(tmp_path):
    (tmp_path / "x.prototxt").write_text('net: "x"\nbase_lr: one')
    with pytest.raises(PrototxtError) as caught:
        read_any(tmp_path / "x.prototxt")
    assert (caught.value.line, caught.value.field) == (2, "base_lr")
