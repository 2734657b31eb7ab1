"""Nets and solvers of older Caffes; the expected forms are written by hand from what Caffe documents of them."""

import warnings

import pytest

from prototxt import PrototxtError, parse_net, parse_solver, read_solver


def same(old, new):
    assert parse_net(old) == parse_net(new)


def test_v1_layer():
    same(
        """
        name: "v1"
        layers { name: "mnist" type: DATA top: "data" top: "label"
                 data_param { source: "db" scale: 0.00390625 batch_size: 64 mirror: true crop_size: 24 mean_file: "m" }
                 include: { phase: TRAIN } }
        layers { name: "conv1" type: CONVOLUTION bottom: "data" top: "conv1" blobs_lr: 1 blobs_lr: 2
                 weight_decay: 1 weight_decay: 0 param: "w" blob_share_mode: PERMISSIVE loss_weight: 0.5
                 convolution_param { num_output: 20 kernel_size: 5 weight_filler { type: "xavier" } } }
        layers { name: "loss" type: SOFTMAX_LOSS bottom: "conv1" bottom: "label" exclude { stage: "x" } }
        """,
        """
        name: "v1"
        layer { name: "mnist" type: "Data" top: "data" top: "label" include { phase: TRAIN }
                data_param { source: "db" batch_size: 64 }
                transform_param { scale: 0.00390625 mirror: true crop_size: 24 mean_file: "m" } }
        layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1" loss_weight: 0.5
                param { name: "w" share_mode: PERMISSIVE lr_mult: 1 decay_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
                convolution_param { num_output: 20 kernel_size: 5 weight_filler { type: "xavier" } } }
        layer { name: "loss" type: "SoftmaxWithLoss" bottom: "conv1" bottom: "label" exclude { stage: "x" } }
        """,
    )


def test_v0_net_with_padding():
    same(
        """
        name: "v0" input: "data" input_dim: 1 input_dim: 3 input_dim: 8 input_dim: 9 force_backward: true
        layers { layer { name: "pad1" type: "padding" pad: 2 } bottom: "data" top: "pad1" }
        layers { layer { name: "conv1" type: "conv" num_output: 96 kernelsize: 5 stride: 4 group: 2 biasterm: false
                         weight_filler { type: "gaussian" std: 0.01 } bias_filler { value: 1 }
                         blobs_lr: 1. blobs_lr: 2. weight_decay: 1. weight_decay: 0. } bottom: "pad1" top: "conv1" }
        layers { layer { name: "relu1" type: "relu" } bottom: "conv1" top: "conv1" }
        layers { layer { name: "pool1" type: "pool" pool: AVE kernelsize: 3 stride: 2 } bottom: "conv1" top: "pool1" }
        layers { layer { name: "norm1" type: "lrn" local_size: 5 alpha: 0.0001 beta: 0.75 } bottom: "pool1" top: "n" }
        layers { layer { name: "fc" type: "innerproduct" num_output: 10 } bottom: "n" top: "fc" }
        layers { layer { name: "drop" type: "dropout" dropout_ratio: 0.3 } bottom: "fc" top: "fc" }
        layers { layer { name: "cat" type: "concat" concat_dim: 1 } bottom: "fc" top: "c" }
        layers { layer { name: "win" type: "window_data" source: "w" batchsize: 8 cropsize: 7 mirror: true
                         meanfile: "m" det_fg_threshold: 0.5 det_crop_mode: "warp" } top: "win" }
        layers { layer { name: "img" type: "images" source: "i" new_height: 5 shuffle_images: true scale: 2 } top: "i" }
        """,
        """
        name: "v0" force_backward: true
        layer { name: "input" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 8 dim: 9 } } }
        layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
                param { lr_mult: 1 decay_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
                convolution_param { num_output: 96 kernel_size: 5 stride: 4 group: 2 bias_term: false pad: 2
                                    weight_filler { type: "gaussian" std: 0.01 } bias_filler { value: 1 } } }
        layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
        layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1"
                pooling_param { pool: AVE kernel_size: 3 stride: 2 } }
        layer { name: "norm1" type: "LRN" bottom: "pool1" top: "n"
                lrn_param { local_size: 5 alpha: 0.0001 beta: 0.75 } }
        layer { name: "fc" type: "InnerProduct" bottom: "n" top: "fc" inner_product_param { num_output: 10 } }
        layer { name: "drop" type: "Dropout" bottom: "fc" top: "fc" dropout_param { dropout_ratio: 0.3 } }
        layer { name: "cat" type: "Concat" bottom: "fc" top: "c" concat_param { concat_dim: 1 } }
        layer { name: "win" type: "WindowData" top: "win" transform_param { crop_size: 7 mirror: true mean_file: "m" }
                window_data_param { source: "w" batch_size: 8 fg_threshold: 0.5 crop_mode: "warp" } }
        layer { name: "img" type: "ImageData" top: "i" transform_param { scale: 2 }
                image_data_param { source: "i" new_height: 5 shuffle: true } }
        """,
    )


def test_v0_field_that_means_nothing_there_is_reported():
    with pytest.warns(UserWarning, match="layer 'r': num_output means nothing in a relu layer"):
        net = parse_net('layers { layer { name: "r" type: "relu" num_output: 3 } }')
    assert net.layer[0].type == "ReLU"


def test_v0_padding_mistakes():
    with pytest.raises(PrototxtError, match="can only feed a conv or pool layer") as caught:
        parse_net("""input: "d"
          layers { layer { name: "p" type: "padding" pad: 1 } bottom: "d" top: "p" }
          layers { layer { name: "r" type: "relu" } bottom: "p" top: "r" }""")
    assert (caught.value.layer, caught.value.line) == ("r", 3)
    with pytest.raises(PrototxtError, match="unknown bottom 'q'"):
        parse_net('layers { layer { name: "r" type: "relu" } bottom: "q" top: "r" }')


def test_inputs_become_one_layer_in_front():
    same(
        'input: "data" input: "rois" input_shape { dim: 1 dim: 3 dim: 4 dim: 5 } input_shape { dim: 0 dim: 5 }'
        'layer { name: "a" type: "X" }',
        'layer { name: "input" type: "Input" top: "data" top: "rois" input_param {'
        "shape { dim: 1 dim: 3 dim: 4 dim: 5 } shape { dim: 0 dim: 5 } } }"
        'layer { name: "a" type: "X" }',
    )
    same('input: "data" layer { name: "a" }', 'layer { name: "a" }')
    with pytest.raises(PrototxtError, match="2 inputs need one input_shape each"):
        parse_net('input: "a" input: "b" input_shape { dim: 1 }')


def test_batch_norm_statistics_do_not_learn():
    same(
        'layer { name: "b" type: "BatchNorm" param { lr_mult: 1 name: "x" } param { } param { decay_mult: 3 } }',
        'layer { name: "b" type: "BatchNorm" param { name: "x" lr_mult: 0 decay_mult: 0 }'
        " param { lr_mult: 0 decay_mult: 0 } param { lr_mult: 0 decay_mult: 0 } }",
    )
    two = parse_net('layer { name: "b" type: "BatchNorm" param { lr_mult: 1 } param { lr_mult: 1 } }')
    assert two.layer[0].param[0].lr_mult == 1


@pytest.mark.parametrize(
    ("old", "new"),
    [("SGD", "SGD"), ("NESTEROV", "Nesterov"), ("ADAGRAD", "AdaGrad"), ("RMSPROP", "RMSProp"), ("ADADELTA", "AdaDelta"),
     ("ADAM", "Adam"), ("1", "Nesterov")],
)  # fmt: skip
def test_solver_type(old, new):
    assert parse_solver(f'net: "n" solver_type: {old}') == parse_solver(f'net: "n" type: "{new}"')


def test_two_solver_types():
    with pytest.raises(PrototxtError, match="'type' and the older 'solver_type'") as caught:
        parse_solver('net: "n"\ntype: "SGD"\nsolver_type: SGD')
    assert caught.value.line == 3


def test_inline_nets_are_upgraded():
    solver = parse_solver('train_net_param { layers { name: "r" type: RELU } } test_net_param { input: "d" }')
    assert solver.train_net_param.layer[0].type == "ReLU"
    assert not solver.test_net_param[0].input


def test_snapshot_prefix_that_is_a_folder(tmp_path):
    path = tmp_path / "s.prototxt"
    path.write_text(f'net: "n" snapshot_prefix: "{tmp_path.as_posix()}"')
    assert read_solver(path).snapshot_prefix == str(tmp_path / "s")
    path.write_text('net: "n" snapshot_prefix: "out/vgg16"')
    assert read_solver(path).snapshot_prefix == "out/vgg16"


def test_current_nets_pass_silently():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = parse_net('layer { name: "a" type: "ReLU" } state { phase: TEST }')
    assert len(net.layer) == 1


def test_spp_nets_dialect_of_v0():
    """Today's messages inside V0 layers, and a type spelled inner_product."""
    net = parse_net("""
        input: "data" input_dim: 1 input_dim: 3 input_dim: 8 input_dim: 8
        layers { layer { name: "c" type: "conv" conv_param { num_output: 4 kernel_size: 3 pad: 1 }
                         blobs_lr: 1 blobs_lr: 2 } bottom: "data" top: "c" }
        layers { layer { name: "n" type: "lrn" lrn_param { local_size: 3 norm_region: WITHIN_CHANNEL } }
                 bottom: "c" top: "n" }
        layers { layer { name: "p" type: "pool" pool_param { pool: AVE kernel_size: 2 } } bottom: "n" top: "p" }
        layers { layer { name: "i" type: "inner_product" inner_product_param { num_output: 5 }
                         weight_decay: 1 weight_decay: 0 } bottom: "p" top: "i" }
        layers { layer { name: "d" type: "dropout" dropout_param { dropout_ratio: 0.3 } } bottom: "i" top: "i" }
    """)
    assert [layer.type for layer in net.layer] == ["Input", "Convolution", "LRN", "Pooling", "InnerProduct", "Dropout"]
    _, conv, norm, pool, ip, drop = net.layer
    assert (conv.convolution_param.num_output, list(conv.convolution_param.pad)) == (4, [1])
    assert [param.lr_mult for param in conv.param] == [1, 2]
    assert norm.lrn_param.norm_region == norm.lrn_param.WITHIN_CHANNEL
    assert pool.pooling_param.pool == pool.pooling_param.AVE
    assert ip.inner_product_param.num_output == 5
    assert [param.decay_mult for param in ip.param] == [1, 0]
    assert drop.dropout_param.dropout_ratio == pytest.approx(0.3)
