import numpy as np
import pytest

T, N, K, D, S = 5, 2, 3, 4, 2


def sequences(shapes, rng):
    """Sequences that begin at the first time step, and some again later."""
    cont = (rng.random_sample(shapes["x1"]) > 0.3).astype(np.float32)
    cont[0] = 0
    return {"x1": cont}


@pytest.mark.parametrize("expose", [False, True])
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize(("kind", "states"), [("RNN", 1), ("LSTM", 2)])
def test_recurrent(check_layer, kind, states, static, expose):
    shapes = [(T, N, K), (T, N)] + [(N, S, 1)] * static + [(1, N, D)] * states * expose
    settings = f"recurrent_param {{ num_output: {D} expose_hidden: {str(expose).lower()} }}"
    inputs = None if expose else sequences  # a state that cont lets in comes from outside, or from an earlier forward
    check_layer(kind, settings, *shapes, tops=1 + states * expose, inputs=inputs)


@pytest.mark.parametrize("kind", ["RNN", "LSTM"])
def test_one_time_step_of_one_stream_of_images(check_layer, kind):
    check_layer(kind, "recurrent_param { num_output: 2 }", (1, 1, 2, 3, 2), (1, 1), inputs={"x1": [[0]]})


def test_large_values(check_layer):
    """OpenCV's Tanh is NaN from 45 on."""
    numbers = lambda shapes, rng: {"x0": 1e3 * rng.randn(*shapes["x0"]), **sequences(shapes, rng)}  # noqa: E731
    check_layer("LSTM", "recurrent_param { num_output: 3 }", (T, N, K), (T, N), inputs=numbers)
    check_layer("RNN", "recurrent_param { num_output: 3 }", (T, N, K), (T, N), inputs=numbers)


def test_two_layers_that_share_parameters(check, inputs_of):
    shared = " ".join(f'param {{ name: "{name}" }}' for name in ("w", "b", "h"))
    settings = f"recurrent_param {{ num_output: 3 }} {shared}"
    check(
        inputs_of(x0=(T, N, 3), x1=(T, N))
        + f"""
        layer {{ name: "a" type: "LSTM" bottom: "x0" bottom: "x1" top: "h" {settings} }}
        layer {{ name: "c" type: "LSTM" bottom: "h" bottom: "x1" top: "y" {settings} }}
        layer {{ name: "s" type: "Softmax" bottom: "y" top: "p" softmax_param {{ axis: 2 }} }}""",
        inputs=sequences,
    )


def test_lstm_unit(check_layer):
    check_layer("LSTMUnit", "", (1, N, D), (1, N, 4 * D), (1, N), tops=2, inputs={"x2": [[0, 1]]})
