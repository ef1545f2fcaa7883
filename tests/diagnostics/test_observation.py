"""Observations of small networks, against what is computed directly, and of every layout against one process."""

import numpy as np
import pytest

from tests.diagnostics import direct, observed_workers
from tests.diagnostics.observed_workers import arrays_of
from tests.ranks import run_ranks
from tests.small_configs import put, small

KINDS = ("residual", "shc", "dhc", "sfc", "dfc", "mhc", "mhc_lite", "krom", "ihc", "gr", "mhc single-pass")
RUN = {"preload": ("tests.model.workers",), "timeout": 120}
TOKENS = 5 * 16  # the first five of six held-out sequences


def config(kind, architecture="dense", **sections):
    parallel = sections.pop("parallel", {})
    kind, *single_pass = kind.split()
    made = small(architecture, kind, **parallel)
    if single_pass:
        put(made, connection={"single_pass": True})
    put(made, diagnostics={"every": 1, "tokens": TOKENS, "ablation_every": 1})
    return put(made, **sections)


def in_fp64(kind, architecture="dense"):
    return config(
        kind, architecture, training={"dtype": "fp64"}, optimizer={"clip": 0.0}, moe={"grouped": False}
    )


@pytest.fixture(scope="module")
def reference():
    """By (architecture, kind), in one process and fp64."""
    cases = [("dense", kind) for kind in KINDS] + [("moe", "mhc"), ("moe", "dfc")]
    configs = [in_fp64(kind, architecture) for architecture, kind in cases]
    (found,) = run_ranks(1, observed_workers.observed, configs, True, **RUN)
    return dict(zip(cases, found, strict=True))


@pytest.mark.ranks
@pytest.mark.parametrize(
    "case", [*(("dense", kind) for kind in KINDS), ("moe", "mhc"), ("moe", "dfc")], ids="-".join
)
def test_every_figure_is_what_a_direct_computation_gives(case, reference):
    seen = reference[case]
    expected = direct.arrays(in_fp64(case[1], case[0]), seen.direct)
    found = seen.observation.arrays
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if name == "sublayers":
            assert found[name].tolist() == value
            continue
        assert found[name].shape == np.shape(value), name
        # Megatron computes losses in fp32, whatever the model is in
        tolerance = 1e-6 if name.startswith("ablation") else 1e-10
        np.testing.assert_allclose(found[name], value, rtol=1e-10, atol=tolerance, err_msg=name)
    assert seen.observation.scalars["loss"] == pytest.approx(seen.direct["losses"]["whole"], rel=1e-6)
    assert seen.observation.tokens == TOKENS


WITHOUT = ("fp32", "dualpipe")  # where the loss is also evaluated without sub-layers and streams
LAYOUTS = {
    "fp32": (1, {}, {}),
    "micro-batches of 2, block": (1, {}, {"training": {"micro_batch": 2}, "recompute": {"mode": "block"}}),
    "TP 2": (2, {"tensor": 2}, {}),
    "TP 2 + SP": (2, {"tensor": 2, "sequence": True}, {}),
    "1f1b": (2, {"pipeline": 2, "schedule": "1f1b"}, {}),
    "dualpipev": (2, {"pipeline": 2, "schedule": "dualpipev"}, {}),
    "dualpipe": (2, {"pipeline": 2, "schedule": "dualpipe"}, {}),
    "overlap": (2, {"pipeline": 2, "schedule": "dualpipev", "overlap": True}, {}),
    "interleaved": (2, {"pipeline": 2, "virtual": 2, "schedule": "megatron_interleaved"}, {}),
    "TP 2 + SP x dualpipev": (
        4,
        {"tensor": 2, "sequence": True, "pipeline": 2, "schedule": "dualpipev"},
        {},
    ),
    "EP 2": (2, {"expert": 2}, {}),
    "DP 2": (
        2,
        {"distributed_optimizer": True, "overlap_grad_reduce": True, "overlap_param_gather": True},
        {},
    ),
}


@pytest.mark.ranks
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_sees_the_same(name, reference):
    ranks, parallel, sections = LAYOUTS[name]
    cases = [case for case in reference if _goes(name, case)]
    ablation = {"every": 1, "tokens": TOKENS, "ablation_every": int(name in WITHOUT)}
    configs = [
        config(kind, architecture, parallel=parallel, **sections, diagnostics=ablation)
        for architecture, kind in cases
    ]
    found = run_ranks(ranks, observed_workers.observed, configs, **RUN)
    errors = {}
    for case, *seen in zip(cases, *found, strict=True):
        for other in seen[1:]:
            assert not other.observation.arrays and not other.observation.scalars
        expected = arrays_of(reference[case])
        if name not in WITHOUT:
            expected = {key: value for key, value in expected.items() if not key.startswith("ablation")}
        errors[case] = _errors(expected, arrays_of(seen[0]))
    worst = max(
        (error, figure, case) for case, of_case in errors.items() for figure, error in of_case.items()
    )
    assert worst[0] < 1e-5, worst


def _goes(name, case):
    """MoE needs sequence parallelism beside tensors, experts a MoE, and the residual has nothing to rebuild."""
    architecture, kind = case
    if name == "TP 2":
        return architecture == "dense"
    if name == "EP 2":
        return architecture == "moe"
    if LAYOUTS[name][0] == 4:
        return case in (("dense", "dhc"), ("moe", "mhc"))
    return not name.endswith("block") or kind != "residual"


def _errors(expected, found):
    """By name, relative to the largest entry of an array. Gradients of single parameters may cancel to next to nothing,
    and are relative to the sub-layers' as ablations, which are differences of losses, to losses. Of logits what is
    compared is what tanh has left of them, and of sums how far they are from 1."""
    assert found.keys() == expected.keys()
    errors = {}
    for name, value in expected.items():
        other, scale = found[name], value
        if name == "logit_max":
            value, other = np.tanh(value), np.tanh(other)
        if name == "doubly_stochastic_error":
            scale = 1  # rows and columns sum to; of exact maps the error is rounding alone
        if name == "residual_std":
            scale = expected["residual_map"]  # whose rounding the spread of nearly equal entries has
        if name.startswith("ablation"):
            scale = expected["loss"]
        if name.startswith("gradient_norm"):
            scale = expected["sublayer_gradient_norm"]
        errors[name] = float(np.abs(other - value).max() / max(np.abs(scale).max(), 1e-12))
    return errors
