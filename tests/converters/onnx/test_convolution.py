import pytest


def layer(kind, text, tops='top: "y"', bottoms='bottom: "x"'):
    return f'layer {{ name: "l" type: "{kind}" {bottoms} {tops} {text} }}'


CONVOLUTIONS = {
    "plain": ("Convolution", "num_output: 4 kernel_size: 3"),
    "no bias": ("Convolution", "num_output: 4 kernel_size: 3 bias_term: false"),
    "geometry": ("Convolution", "num_output: 4 kernel_h: 3 kernel_w: 2 stride_h: 2 stride_w: 1 pad_h: 1 pad_w: 2"),
    "dilation": ("Convolution", "num_output: 4 kernel_size: 3 dilation: 2 pad: 2"),
    "hole": ("Convolution", "num_output: 4 kernel_size: 3 hole: 2 pad: 2"),
    "group": ("Convolution", "num_output: 6 kernel_size: 3 group: 3"),
    "uneven": ("Convolution", "num_output: 4 kernel_size: 3 pad_l: 2 pad_t: 1"),
    "cropping": ("Convolution", "num_output: 4 kernel_size: 2 pad_l: -1 pad_b: -2 pad_r: 1"),
    "same": ("Convolution", "num_output: 4 kernel_size: 3 pad_type: 1 stride: 2"),
    "same crops": ("Convolution", "num_output: 4 kernel_size: 1 pad_type: 1 stride: 3"),
    "pad around one cell": ("Convolution", "num_output: 4 kernel_size: 1 pad: 2"),
    "relu": ("Convolution", "num_output: 4 kernel_size: 3 relu: true"),
    "leaky": ("Convolution", "num_output: 4 kernel_size: 3 relu: true negative_slope: 0.25"),
    "depthwise": ("DepthwiseConvolution", "num_output: 6 kernel_size: 3"),
    "depthwise 2": ("ConvolutionDepthwise", "num_output: 3 kernel_size: 3 group: 1"),
    "transposed": ("Deconvolution", "num_output: 4 kernel_size: 3 stride: 2"),
    "transposed geometry": ("Deconvolution", "num_output: 4 kernel_h: 3 kernel_w: 4 stride_h: 2 stride_w: 3 pad_w: 1"),
    "transposed group": ("Deconvolution", "num_output: 6 kernel_size: 4 stride: 2 pad: 1 group: 3 bias_term: false"),
    "transposed dilation": ("Deconvolution", "num_output: 4 kernel_size: 3 dilation: 2"),
    "transposed uneven": ("Deconvolution", "num_output: 4 kernel_size: 3 pad_l: 1 pad_b: 2"),
    "transposed extends": ("Deconvolution", "num_output: 4 kernel_size: 3 pad_l: 1 pad_t: -1"),
    "im2col": ("Im2col", "kernel_size: 3 stride: 2 pad: 1"),
    "im2col same": ("Im2col", "kernel_size: 2 stride: 2 dilation: 2 pad_type: 1"),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_images(check, inputs_of, case):
    kind, settings = CONVOLUTIONS[case]
    check(inputs_of(x=(2, 3, 8, 9)) + layer(kind, f"convolution_param {{ {settings} }}"))


@pytest.mark.parametrize("kind", ["Convolution", "Deconvolution", "Im2col"])
@pytest.mark.parametrize("shape", [(2, 3, 8), (2, 3, 5, 6, 4)])
def test_other_numbers_of_axes(check, inputs_of, kind, shape):
    count = "" if kind == "Im2col" else "num_output: 4"
    check(inputs_of(x=shape) + layer(kind, f"convolution_param {{ {count} kernel_size: 3 stride: 2 pad: 1 }}"))


@pytest.mark.parametrize("kind", ["Convolution", "Deconvolution", "Im2col"])
@pytest.mark.parametrize("axis", [0, 2])
def test_axis(check, inputs_of, kind, axis):
    count = "" if kind == "Im2col" else "num_output: 4"
    shape = (3, 6, 5) if axis == 0 else (2, 4, 3, 6, 5)
    text = inputs_of(x=shape) + layer(kind, f"convolution_param {{ {count} kernel_size: 3 axis: {axis} }}")
    check(text, static=axis == 0)


def test_several_bottoms_share_the_weights(check, inputs_of):
    text = inputs_of(x=(2, 3, 6, 6), z=(2, 3, 6, 6)) + layer(
        "Convolution",
        "convolution_param { num_output: 4 kernel_size: 3 }",
        'top: "y" top: "w"',
        'bottom: "x" bottom: "z"',
    )
    model = check(text)["onnxruntime"]
    assert [tensor.name for tensor in model.graph.initializer] == ["l.weight", "l.bias"]


@pytest.mark.parametrize("bias", ["true", "false"])
def test_local(check, inputs_of, bias):
    text = f"local_param {{ num_output: 4 kernel_size: 3 stride: 2 pad: 1 bias_term: {bias} }}"
    check(inputs_of(x=(2, 3, 6, 7)) + layer("Local", text))
