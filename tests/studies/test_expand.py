"""A study's runs: names, order, lengths, rules, branches; each against numbers worked out by hand."""

import random

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from hcmegatron.config import check_config, load_config
from hcmegatron.planner import counts
from hcmegatron.studies import rules
from hcmegatron.studies.expand import Branch, branch_settings, expand
from hcmegatron.studies.spec import read_study
from tests.studies.files import written

END = "  baseline: residual\n"


def runs(folder, *changes, overrides=()):
    study = read_study(written(folder, *changes), overrides)
    return study, {run.name: run for run in expand(study)}


def total(config, active=False):
    return counts.parameters(config, counts.whole_model(config), active).total()


def test_the_product_of_the_axes_in_their_order(tmp_path):
    study, found = runs(tmp_path)
    assert study.name == "s" and str(study.run_dir) == "runs/studies/s" and study.retries == 2
    assert list(found) == [
        f"{kind}-{size}-51.2Ktok-seed{seed}"
        for kind in ("residual", "mhc")
        for size in ("d32", "d64")
        for seed in (1, 2)
    ]
    run = found["mhc-d64-51.2Ktok-seed2"]
    assert run.axes == {"kind": "mhc", "size": "d64", "tokens": 51200, "seed": 2, "lr": 4e-3}
    assert (run.steps, run.tokens) == (100, 51200)  # of 8 sequences of 64 tokens
    config = study.config(run)
    assert (config.model.layers, config.model.hidden_size, config.model.heads) == (2, 64, 4)
    assert (config.training.seed, config.data.seed, config.connection.kind) == (2, 2, "mhc")
    check_config(config)
    base = load_config("stability")
    assert study.base_config == base  # and nothing of it was changed


def test_muons_rate_is_an_axis_beside_the_networks(tmp_path):
    muon = ("  optimizer.schedule: wsd", "  optimizer.schedule: wsd\n  optimizer.name: muon")
    _, found = runs(tmp_path, muon, ("  seed: [1, 2]", "  seed: [1]\n  muon.lr: [0.01, 0.02]"))
    assert {(run.axes["lr"], run.axes["muon.lr"]) for run in found.values()} == {(4e-3, 0.01), (4e-3, 0.02)}


def test_sizes_say_how_they_came_about(tmp_path):
    study, _ = runs(tmp_path)
    assert study.axis("size").points[1].why == (
        "model.hidden_size = dial 64 = 64",
        "model.heads = dial 64 / 16 = 4",
    )
    rule = "model.hidden_size: {times: 0.7, plus: 3, multiple_of: 16}"
    _, found = runs(tmp_path, ("model.hidden_size: {of: dial}", rule))
    widths = {run.settings["model.hidden_size"] for run in found.values()}
    assert widths == {32, 48}  # 25.4 and 47.8


def test_kinds_with_options_and_settings_of_other_sections(tmp_path):
    kinds = "{residual: , narrow: {kind: dhc, n: 2, tanh: false, model.ffn_hidden_size: 96}}"
    study, found = runs(tmp_path, ("[residual, mhc]", kinds))
    run = found["narrow-d32-51.2Ktok-seed1"]
    assert run.axes["kind"] == "narrow"
    own = study.config(run)
    assert (own.connection.kind, own.connection.n, own.connection.tanh) == ("dhc", 2, False)
    assert own.model.ffn_hidden_size == 96


def test_a_size_like_another_configuration(tmp_path):
    size = "size: {1b: , 7b: {config: olmo-7b, training.steps: 9}}"
    settings = "settings:\n  model.layers: 2\n  optimizer.schedule: wsd\n"
    changes = ("base: stability", "base: olmo-1b"), (settings, ""), ("  tokens: [51200]\n", "")
    dial = "size: {dial: [32, 64], model.hidden_size: {of: dial}, model.heads: {of: dial, per: 16}}"
    study, found = runs(tmp_path, *changes, (dial, size))
    small, large = (study.config(found[f"mhc-{name}-seed1"]) for name in ("1b", "7b"))
    assert small.model == load_config("olmo-1b").model and small.training.steps == 119209
    assert large.model == load_config("olmo-7b").model and large.training.steps == 9
    assert large.connection.norm == small.connection.norm


def test_exclusions_take_values_and_labels_of_columns(tmp_path):
    axis = ("  seed: [1, 2]", "  seed: [1, 2]\n  connection.n: [2, 4]")
    exclude = (
        END,
        END + "exclude: [{kind: residual, n: 4}, {kind: mhc, size: d64, seed: [seed1, 2], n: [2]}]\n",
    )
    _, found = runs(tmp_path, axis, exclude)
    assert [name for name in found if name.startswith("residual") and name.endswith("n4")] == []
    assert [name for name in found if name.startswith("mhc-d64")] == [
        "mhc-d64-51.2Ktok-seed1-n4",
        "mhc-d64-51.2Ktok-seed2-n4",
    ]
    assert found["mhc-d32-51.2Ktok-seed1-n2"].axes["n"] == 2 and len(found) == 4 + 8 - 2


@pytest.mark.parametrize("parameters", ["active", "total"])
def test_tokens_per_parameter_of_the_baseline_are_the_same_for_every_kind(parameters, tmp_path):
    study, found = runs(
        tmp_path,
        ("tokens: [51200]", "tokens_per_parameter: [20]"),
        (END, END + f"pairing: {{of: baseline, parameters: {parameters}}}\n"),
    )
    for size in ("d32", "d64"):
        residual, mhc = (found[f"{kind}-{size}-20tpp-seed1"] for kind in ("residual", "mhc"))
        wanted = 20 * total(study.config(residual), parameters == "active")
        assert residual.steps == mhc.steps == round(wanted / 512) and residual.tokens == 512 * residual.steps
    own, of_own = runs(tmp_path, ("tokens: [51200]", "tokens_per_parameter: [20]"))
    mhc = of_own["mhc-d64-20tpp-seed1"]
    assert mhc.steps == round(20 * total(own.config(mhc), True) / 512) > found["mhc-d64-20tpp-seed1"].steps


def test_runs_of_one_compute_have_less_tokens_where_a_token_costs_more(tmp_path):
    study, found = runs(tmp_path, ("tokens: [51200]", "flops: [1e12]"))
    for run in found.values():
        config = study.config(run)
        per_token = 3 * counts.forward_flops(config, counts.whole_model(config)).total()
        assert run.tokens * per_token == pytest.approx(1e12, rel=0.5 * 512 * per_token / 1e12)
        assert run.axes["flops"] == 1e12
    assert found["mhc-d64-1e12flop-seed1"].steps < found["residual-d64-1e12flop-seed1"].steps


def test_kinds_of_the_baselines_number_of_parameters(tmp_path):
    study, found = runs(
        tmp_path, (END, END + "match: {tolerance: 0.01, multiple_of: 1}\n"), ("[32, 64]", "[64]")
    )
    baseline, mhc = (study.config(found[f"{kind}-d64-51.2Ktok-seed1"]) for kind in ("residual", "mhc"))
    width = mhc.model.ffn_hidden_size
    assert width < baseline.model.ffn_hidden_size == 64
    off = [abs(total(_wide(mhc, w)) - total(baseline)) for w in (width - 1, width, width + 1) if w]
    assert min(off) == abs(total(mhc) - total(baseline)) < 0.01 * total(baseline)


def _wide(config, width):
    from dataclasses import replace

    return replace(config, model=replace(config.model, ffn_hidden_size=width))


def test_rules_of_learning_rate_and_batch(tmp_path):
    """N of the residual at width 64: two layers of 4 x 64^2 + 3 x 64 x 64 and five norms; no head, no embedding."""
    _, found = runs(
        tmp_path,
        ("tokens: [51200]", "tokens: [1.0e6]"),
        ("  seed: [1, 2]", "  seed: [1]\n  lr_times: [1, 4]"),
        (END, END + "learning_rate: {rule: olmo_ladder}\nbatch: {rule: step_law, multiple_of: 8}\n"),
    )
    run, pressed = (found[f"residual-d64-1Mtok-seed1-lrx{times}"] for times in (1, 4))
    N = 2 * (4 * 64**2 + 3 * 64 * 64) + 5 * 64
    assert run.axes["lr"] == pytest.approx(0.0047 * (N / 108e6) ** (-1 / 3) / 2)
    assert pressed.axes["lr"] == 4 * run.axes["lr"] and pressed.axes["lr_times"] == 4
    sequences = 8 * round(0.58 * 1e6**0.571 / 64 / 8)
    assert run.settings["training.global_batch"] == sequences
    assert run.steps == round(1e6 / (sequences * 64))


def test_the_laws_at_the_sizes_that_they_were_printed_for():
    assert rules.LEARNING_RATES["olmo_ladder"].at(108e6, 1) == pytest.approx(0.00235)
    assert rules.BATCHES["olmo_ladder"].at(8 * 108e6, 1) == pytest.approx(4 * 2048 * 160)
    # Step Law, N = 1e9 and D = 1e11: 1.79 x 10^(-6.417 + 3.377), 0.58 x 10^6.281
    assert rules.LEARNING_RATES["step_law"].at(1e9, 1e11) == pytest.approx(1.79 * 10**-3.04)
    assert rules.BATCHES["step_law"].at(1e9, 1e11) == pytest.approx(0.58 * 10**6.281)


def test_a_run_ends_in_its_decay_and_branches_earlier(tmp_path):
    _, found = runs(tmp_path, (END, END + "decay: {share: 0.2, branches: [0.3, 0.5]}\n"))
    run = found["mhc-d32-51.2Ktok-seed1"]
    assert run.branches == (Branch("at0.3", 24, 30, 30 * 512), Branch("at0.5", 40, 50, 50 * 512))
    assert run.settings["checkpoint.keep_at"] == [24, 40] and run.settings["optimizer.decay_steps"] == 20
    branch = branch_settings(run, run.branches[1])
    differ = {key: value for key, value in branch.items() if run.settings[key] != value}
    assert differ == {"training.steps": 50, "optimizer.decay_steps": 10, "checkpoint.keep_at": []}


def test_variants_and_overrides_are_laid_over_the_file(tmp_path):
    more = "limits: {max_runs: 9}\nvariants:\n  quick: {axes: {seed: [7], size: null}, limits: null, retries: 0}\n"
    study, found = runs(
        tmp_path,
        (END, END + more),
        overrides=["--quick", "--study.axes.tokens=[1024]", "--study.settings.model.layers=1"],
    )
    assert list(found) == ["residual-1.024Ktok-seed7", "mhc-1.024Ktok-seed7"]
    assert (study.name, study.retries, study.limits.max_runs) == ("s-quick", 0, None)
    assert study.config(found["mhc-1.024Ktok-seed7"]).model.layers == 1


AXES = {
    "kind": st.lists(
        st.sampled_from(["residual", "shc", "dhc", "sfc", "mhc"]), min_size=1, max_size=3, unique=True
    ),
    "seed": st.lists(st.integers(0, 999), min_size=1, max_size=3, unique=True),
    "lr": st.lists(st.sampled_from([1e-3, 2.5e-3, 0.01]), min_size=1, max_size=2, unique=True),
    # of whole steps: two counts that come to as many steps are one training, and refused
    "tokens": st.lists(st.integers(1, 20_000).map(lambda k: 512 * k), min_size=1, max_size=2, unique=True),
    "optimizer.weight_decay": st.lists(st.sampled_from([0, 0.1, 0.3]), min_size=1, max_size=2, unique=True),
    "model.layers": st.lists(st.integers(1, 6), min_size=1, max_size=2, unique=True),
}


@hypothesis_settings(max_examples=12, deadline=None)
@given(st.fixed_dictionaries({}, optional=AXES).filter(bool), st.integers())
def test_a_file_has_always_the_same_runs(tmp_path_factory, axes, order):
    """Names are unique and safe, every combination is there once, and nothing depends on when or how it is read."""
    path = tmp_path_factory.mktemp("study") / "s.yaml"
    names = list(axes)
    random.Random(order).shuffle(names)
    path.write_text(
        yaml.safe_dump({"base": "stability", "axes": {n: axes[n] for n in names}}, sort_keys=False)
    )
    first, again = (expand(read_study(path)) for _ in range(2))
    assert first == again
    combinations = 1
    for values in axes.values():
        combinations *= len(values)
    assert len({run.name.lower() for run in first}) == len(first) == combinations
    assert all(
        run.name[0].isalnum() and set(run.name) <= set(map(chr, range(45, 123))) - set("/:;<=>?@[\\]^`")
        for run in first
    )
