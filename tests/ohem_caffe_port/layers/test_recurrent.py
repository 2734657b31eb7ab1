import numpy as np
import pytest
import torch

from ohem_caffe_port.errors import PortError
from ohem_caffe_port.layers.recurrent import lstm_unit
from ohem_caffe_port.net import Net
from prototxt import parse_net

T, N, K, D, S = 5, 2, 3, 4, 2
RNG = np.random.default_rng(0)
X, STATIC = RNG.standard_normal((T, N, K)), RNG.standard_normal((N, S))
CONT = np.array([[0, 0], [1, 1], [1, 0], [1, 1], [0, 1.0]])
SETTINGS = f"recurrent_param {{ num_output: {D} weight_filler {{ type: 'uniform' }} }}"


def weights(kind, static):
    """Parameters in the order of Caffe's unrolled net."""
    wide = 4 * D if kind == "LSTM" else D
    shapes = [(wide, K), (wide,)] + [(wide, S)] * static + [(wide, D)] + [(D, D), (D,)] * (kind == "RNN")
    return [np.random.default_rng(i).standard_normal(shape) / 2 for i, shape in enumerate(shapes)]


def slow(kind, params, static=None, state=None, x=X, cont=CONT):
    """The layers' formulas, step by step, in double precision. Returns the tops and the last hidden state."""
    if static is not None:
        w_x, b, w_static, w_h, *rest = params
    else:
        (w_x, b, w_h, *rest), w_static, static = params, np.zeros((len(params[0]), S)), np.zeros((N, S))
    h, c = state if state else (np.zeros((N, D)), np.zeros((N, D)))
    tops = []
    for t in range(len(x)):
        keep = cont[t][:, None]
        inner = (keep * h) @ w_h.T + x[t] @ w_x.T + b + static @ w_static.T
        if kind == "RNN":
            h = np.tanh(inner)
            tops.append(np.tanh(h @ rest[0].T + rest[1]))
        else:
            i, f, o = (1 / (1 + np.exp(-inner[:, n * D : (n + 1) * D])) for n in range(3))
            c = keep * f * c + i * np.tanh(inner[:, 3 * D :])
            h = o * np.tanh(c)
            tops.append(h)
    return np.array(tops), (h, c)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("kind", ["RNN", "LSTM"])
def test_against_the_formula(run_layer, kind, static):
    params = weights(kind, static)
    (out,) = run_layer(kind, SETTINGS, X, CONT, *([STATIC] if static else []), params=params)
    expected, _ = slow(kind, params, STATIC if static else None)
    np.testing.assert_allclose(out.detach(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["RNN", "LSTM"])
def test_exposed_hidden_states(run_layer, kind):
    params, count = weights(kind, True), 2 if kind == "LSTM" else 1
    state = [RNG.standard_normal((N, D)) for _ in range(2)]
    settings = SETTINGS.replace("num_output", "expose_hidden: true num_output")
    hidden = [torch.tensor(s[None], dtype=torch.float32, requires_grad=True) for s in state[:count]]
    cont = np.ones((T, N))
    outs = run_layer(kind, settings, X, cont, STATIC, *hidden, params=params, tops=1 + count)
    expected, last = slow(kind, params, STATIC, state, cont=cont)
    np.testing.assert_allclose(outs[0].detach(), expected, rtol=1e-4, atol=1e-6)
    for out, final in zip(outs[1:], last, strict=False):
        assert out.shape == (1, N, D)
        np.testing.assert_allclose(out[0], final, rtol=1e-4, atol=1e-6)
    outs[0].sum().backward()
    assert not any(out.requires_grad for out in outs[1:])
    assert all(h.grad is None for h in hidden), "Caffe gives hidden bottoms no gradient"


def net_of(kind, steps=T, streams=N):
    shapes = f"shape {{ dim: [{steps}, {streams}, {K}] }} shape {{ dim: [{steps}, {streams}] }}"
    text = f"""force_backward: true
        layer {{ name: "in" type: "Input" top: "x" top: "cont" input_param {{ {shapes} }} }}
        layer {{ name: "it" type: "{kind}" bottom: "x" bottom: "cont" top: "y" {SETTINGS} }}"""
    net = Net(parse_net(text))
    params = weights(kind, False)
    for blob, values in zip(net.params["it"], params, strict=True):
        blob.data.copy_(torch.as_tensor(values))
    return net, params


@pytest.mark.parametrize("kind", ["RNN", "LSTM"])
def test_the_state_lives_on_from_forward_to_forward(kind):
    net, params = net_of(kind)
    cont = np.ones((T, N))
    x = torch.tensor(X, dtype=torch.float32).requires_grad_()
    net._as_blob = lambda value: torch.as_tensor(value, dtype=torch.float32)
    first = net(x=x, cont=cont)["y"]
    second = net(x=X[:3], cont=cont[:3])["y"]
    expected, state = slow(kind, params, cont=cont)
    np.testing.assert_allclose(first.detach(), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(second.detach(), slow(kind, params, None, state, X[:3], cont)[0], rtol=1e-4, atol=1e-6)
    second.sum().backward()
    assert x.grad is None, "no gradient from one forward to another"


def test_other_streams_begin_anew():
    net, params = net_of("LSTM")
    cont = np.ones((T, N))
    net(x=X, cont=cont)
    out = net(x=X[:, :1], cont=cont[:, :1])["y"]
    np.testing.assert_allclose(out[:, 0].detach(), slow("LSTM", params, cont=cont)[0][:, 0], rtol=1e-4, atol=1e-6)


def test_no_gradient_goes_to_cont():
    net, _ = net_of("LSTM")
    assert [step.propagate for step in net.steps] == [[], [True, False]]


def test_one_step_of_an_lstm(run_layer):
    cell, gates = RNG.standard_normal((1, N, D)), RNG.standard_normal((1, N, 4 * D))
    new_cell, hidden = run_layer("LSTMUnit", "", cell, gates, np.array([[0.0, 1]]), tops=2)
    i, f, o = (1 / (1 + np.exp(-gates[0, :, n * D : (n + 1) * D])) for n in range(3))
    expected = np.array([[0.0], [1]]) * f * cell[0] + i * np.tanh(gates[0, :, 3 * D :])
    np.testing.assert_allclose(new_cell[0], expected, rtol=1e-5)
    np.testing.assert_allclose(hidden[0], o * np.tanh(expected), rtol=1e-5)


def test_gradients_of_one_step():
    cell, gates = torch.randn(2, D, dtype=torch.double), torch.randn(2, 4 * D, dtype=torch.double)
    keep = torch.tensor([[1.0], [0]], dtype=torch.double)
    assert torch.autograd.gradcheck(lambda c, g: lstm_unit(c, g, keep), (cell.requires_grad_(), gates.requires_grad_()))


HIDDEN = np.zeros((1, N, D))
EXPOSED = SETTINGS.replace("num_output", "expose_hidden: true num_output")


@pytest.mark.parametrize(
    ("kind", "settings", "bottoms", "tops", "message"),
    [
        ("LSTM", "", (X, CONT), 1, "must be positive"),
        ("LSTM", SETTINGS, (X, CONT, STATIC, STATIC), 1, "takes 2 bottoms, or 3 with a static one, and 1 tops"),
        ("LSTM", EXPOSED, (X, CONT, HIDDEN), 3, "takes 4 bottoms"),
        ("RNN", EXPOSED, (X, CONT, HIDDEN), 1, "and 2 tops; not 3 and 1"),
        ("RNN", SETTINGS, (X[..., 0], CONT), 1, "time steps, streams"),
        ("RNN", SETTINGS, (X, CONT[:2]), 1, r"must be \(5, 2\), not \(2, 2\)"),
        ("RNN", SETTINGS, (X, CONT, STATIC[:1]), 1, "must hold 2 streams"),
        ("RNN", EXPOSED, (X, CONT, HIDDEN[0]), 2, r"must be \(1, 2, 4\), not \(2, 4\)"),
        ("LSTMUnit", "", (HIDDEN, HIDDEN, CONT), 2, "takes blobs of shape"),
        ("LSTMUnit", "", (CONT, HIDDEN, CONT), 2, "takes blobs of shape"),
    ],
)
def test_what_does_not_fit(run_layer, kind, settings, bottoms, tops, message):
    with pytest.raises(PortError, match=message) as caught:
        run_layer(kind, settings, *bottoms, tops=tops)
    assert caught.value.layer == "it"
