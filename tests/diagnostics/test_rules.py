"""What is worth a warning, what it says, and how often."""

import numpy as np

from hcmegatron.diagnostics.rules import Said, spiked, warnings

NAMES = ["layer 1 attention", "layer 1 mlp", "layer 2 attention", "layer 2 mlp"]


def healthy(**others):
    similarity = np.ones((5, 2, 2))
    similarity[-1] = [[1.0, 0.4], [0.4, 1.0]]
    arrays = {
        "sublayers": np.array(NAMES),
        "composite_forward": np.array([1.6, 1.5, 1.2, 1.0]),
        "composite_backward": np.array([1.7, 1.5, 1.2, 1.0]),
        "stream_similarity": similarity,
        "pre": np.ones((4, 2)),
        "gate_saturation": np.zeros(4),
        "doubly_stochastic_error": np.full(4, 1e-4),
    }
    return arrays | {name: np.array(value) for name, value in others.items()}


def found(arrays):
    return [(warned.code, warned.layer, warned.value) for warned in warnings(arrays)]


def test_a_healthy_network_has_no_warnings():
    assert warnings(healthy()) == []
    # the streams of the first sub-layers are copies of the embedding, and the residual has one stream
    assert warnings(healthy(stream_similarity=np.ones((5, 1, 1)))) == []


def test_every_rule_names_the_sub_layer():
    assert found(healthy(composite_backward=[3000.0, 1.0, 1.0, 1.0])) == [
        ("composite_gain", "layer 1 attention", 3000.0)
    ]
    assert found(healthy(composite_forward=[100.0, 1.0, 100.5, 1.0])) == [
        ("composite_gain", "layer 2 attention", 100.5)
    ]
    assert found(healthy(stream_similarity=np.full((5, 2, 2), 0.999995))) == [
        ("streams_collapsed", "layer 2 mlp", 0.999995)
    ]
    assert found(healthy(gate_saturation=[0.5, 0.75, 0.0, 0.0])) == [("gates_saturated", "layer 1 mlp", 0.75)]
    assert found(healthy(doubly_stochastic_error=[0.0, 0.0, 0.0, 0.25])) == [
        ("column_sums", "layer 2 mlp", 0.25)
    ]


def test_a_pair_of_streams_that_differ_is_no_collapse():
    similarity = np.ones((5, 3, 3))
    similarity[-1, 0, 1] = similarity[-1, 1, 0] = 0.5
    assert warnings(healthy(stream_similarity=similarity)) == []


def test_fractions_that_are_alike_are_no_collapse():
    assert warnings(healthy(stream_similarity=np.ones((5, 2, 2)), pre=np.ones((4, 2, 2)))) == []


def test_what_is_not_a_number_is_beyond_every_bound():
    (first, *_) = found(healthy(composite_forward=[np.nan, 1.0, 1.0, 1.0]))
    assert first[:2] == ("composite_gain", "layer 1 attention") and np.isnan(first[2])
    assert found(healthy(composite_forward=[np.inf, 1.0, 1.0, 1.0]))[0][2] == np.inf


def test_a_kind_without_such_figures_is_not_asked_for_them():
    arrays = healthy()
    del arrays["gate_saturation"], arrays["doubly_stochastic_error"]
    assert warnings(arrays) == []


def test_it_is_said_once_until_it_clears():
    said = Said()
    bad = healthy(composite_forward=[300.0, 1.0, 1.0, 1.0])
    assert said.lines(warnings(bad)) == [
        "warning: layer 1 attention: signals or gradients can grow 300 times from there to the end of the stack; "
        "lower optimizer.lr or connection.lr_multiplier, or use connection.kind=mhc"
    ]
    assert said.lines(warnings(bad)) == []
    more = healthy(composite_forward=[300.0, 200.0, 1.0, 1.0])
    assert [line[:20] for line in said.lines(warnings(more))] == ["warning: layer 1 mlp"]  # the new one alone
    assert said.lines(warnings(healthy())) == []
    assert len(said.lines(warnings(bad))) == 1


def test_many_sub_layers_are_one_line_with_the_worst_in_front():
    (line,) = Said().lines(warnings(healthy(gate_saturation=[0.6, 0.7, 0.9, 0.8])))
    assert line.startswith("warning: layer 2 attention: 90% of what predicts its coefficients is saturated")
    assert line.endswith(" (so do layer 1 attention, layer 1 mlp, layer 2 mlp)")


def test_the_gradient_that_grew_first_is_the_last_in_depth():
    norms, before = np.array([9.0, 8.0, 4.0, 1.0]), np.ones(4)
    warned = spiked(NAMES, 7.25, "far above", norms, before)
    assert (warned.code, warned.layer, warned.value) == ("loss_spike", "layer 2 attention", 4.0)
    assert (
        "to 4 times that of the last observation, where the loss spiked to 7.25 (far above)" in warned.message
    )
    assert spiked(NAMES, 7.0, "", np.array([1.0, 2.0, 1.5, 1.0]), before).layer == "layer 1 mlp"
    assert spiked(NAMES, 7.0, "", norms, None).layer == "layer 1 attention"
