"""Backbones: functions without arguments that give their text, the name of the feature blob, and its stride.

All but the small one have the layer names of published weights, so that those load.
"""

from __future__ import annotations

from .layers import DECAYED, FROZEN, TRAINED, conv, layer, lrn, max_pool

Backbone = tuple[str, str, int]


def shapes_backbone() -> Backbone:
    # pixels are some 60 grey levels from their mean: small weights bring that to 1, and a small rate suits them
    gentle = ("lr_mult: 0.1 decay_mult: 1", "lr_mult: 0.2 decay_mult: 0")
    text = conv("conv1", "data", 24, 5, stride=2, pad=2, params=gentle, init='type: "gaussian" std: 0.003')
    text += max_pool("pool1", "conv1", 3, 2)
    text += conv("conv2", "pool1", 48, 3, pad=1) + conv("conv3", "conv2", 64, 3, pad=1)
    return text, "conv3", 4


def squeezenet_backbone(upper=TRAINED) -> Backbone:
    """SqueezeNet v1.1 to fire9; conv1 to fire3 stay as they are. ``upper``: multipliers from fire4 on."""
    text, bottom = conv("conv1", "data", 64, 3, stride=2, params=FROZEN), "conv1"
    squeeze = {2: 16, 3: 16, 4: 32, 5: 32, 6: 48, 7: 48, 8: 64, 9: 64}
    for n, width in squeeze.items():
        if n in (2, 4, 6):
            text += max_pool(f"pool{n - 1}", bottom, 3, 2)
            bottom = f"pool{n - 1}"
        params = FROZEN if n < 4 else upper
        fire = f"fire{n}"
        text += conv(f"{fire}/squeeze1x1", bottom, width, 1, params=params)
        text += conv(f"{fire}/expand1x1", f"{fire}/squeeze1x1", 4 * width, 1, params=params)
        text += conv(f"{fire}/expand3x3", f"{fire}/squeeze1x1", 4 * width, 3, pad=1, params=params)
        bottom = f"{fire}/concat"
        text += layer(bottom, "Concat", [f"{fire}/expand1x1", f"{fire}/expand3x3"], [bottom])
    return text, bottom, 16


def squeezenet_fixed_backbone() -> Backbone:
    """SqueezeNet v1.1 to fire9 as it is, its features scaled to about 1 (their root mean square in RoIs of VOC is 28),
    so that a head learns from scratch at a high rate: for comparisons on a small budget."""
    text, bottom, stride = squeezenet_backbone(FROZEN)
    return text + layer("features", "Power", [bottom], ["features"], "power_param { scale: 0.03 }"), "features", stride


INCEPTIONS = {  # 1x1, 3x3_reduce, 3x3, 5x5_reduce, 5x5, pool_proj (Szegedy et al., CVPR 2015, table 1)
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


def googlenet_backbone() -> Backbone:
    """BVLC GoogLeNet to inception_5b, without the pooling before 5a, so that its stride stays 16 (as NVIDIA's DetectNet
    has it); conv1 and conv2 stay as they are."""
    text = conv("conv1/7x7_s2", "data", 64, 7, stride=2, pad=3, params=FROZEN)
    text += max_pool("pool1/3x3_s2", "conv1/7x7_s2", 3, 2) + lrn("pool1/norm1", "pool1/3x3_s2", 0.0001)
    text += conv("conv2/3x3_reduce", "pool1/norm1", 64, 1, params=FROZEN)
    text += conv("conv2/3x3", "conv2/3x3_reduce", 192, 3, pad=1, params=FROZEN)
    text += lrn("conv2/norm2", "conv2/3x3", 0.0001) + max_pool("pool2/3x3_s2", "conv2/norm2", 3, 2)
    bottom = "pool2/3x3_s2"
    for name, widths in INCEPTIONS.items():
        if name == "4a":
            text += max_pool("pool3/3x3_s2", bottom, 3, 2)
            bottom = "pool3/3x3_s2"
        text += inception(f"inception_{name}", bottom, *widths)
        bottom = f"inception_{name}/output"
    return text, bottom, 16


def inception(name, bottom, one, reduce3, three, reduce5, five, projected) -> str:
    text = conv(f"{name}/1x1", bottom, one, 1)
    for kernel, reduced, outputs in ((3, reduce3, three), (5, reduce5, five)):
        size = f"{name}/{kernel}x{kernel}"
        text += conv(f"{size}_reduce", bottom, reduced, 1)
        text += conv(size, f"{size}_reduce", outputs, kernel, pad=kernel // 2)
    text += max_pool(f"{name}/pool", bottom, 3, 1, pad=1) + conv(f"{name}/pool_proj", f"{name}/pool", projected, 1)
    branches = [f"{name}/{branch}" for branch in ("1x1", "3x3", "5x5", "pool_proj")]
    return text + layer(f"{name}/output", "Concat", branches, [f"{name}/output"])


def vgg16_backbone() -> Backbone:
    """VGG16 to conv5_3; conv1 and conv2 stay as they are, as in Fast R-CNN."""
    text, bottom = "", "data"
    for stage, (convolutions, width) in enumerate(((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)), start=1):
        params = FROZEN if stage < 3 else DECAYED
        for n in range(1, convolutions + 1):
            name, rectifier = f"conv{stage}_{n}", f"relu{stage}_{n}"
            text += conv(name, bottom, width, 3, pad=1, params=params, init=None, rectifier=rectifier)
            bottom = name
        if stage < 5:
            text += max_pool(f"pool{stage}", bottom, 2, 2)
            bottom = f"pool{stage}"
    return text, bottom, 16


def vgg_cnn_m_backbone() -> Backbone:
    """VGG_CNN_M_1024 to conv5; conv1 stays as it is."""
    text, bottom = "", "data"
    for n, (width, kernel, stride, pad) in enumerate(((96, 7, 2, 0), (256, 5, 2, 1), *[(512, 3, 1, 1)] * 3), start=1):
        params = FROZEN if n == 1 else DECAYED
        text += conv(f"conv{n}", bottom, width, kernel, stride, pad, params, init=None, rectifier=f"relu{n}")
        bottom = f"conv{n}"
        if n < 3:
            text += lrn(f"norm{n}", bottom, 0.0005, k=2) + max_pool(f"pool{n}", f"norm{n}", 3, 2)
            bottom = f"pool{n}"
    return text, bottom, 16
