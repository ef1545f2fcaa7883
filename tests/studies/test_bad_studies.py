"""One line for every mistake in a study: the place, the key, the value, and what to do."""

import pytest

from hcmegatron.cli import main
from hcmegatron.config import ConfigError
from hcmegatron.studies.expand import expand
from hcmegatron.studies.plan import plan_study
from hcmegatron.studies.spec import read_study
from tests.studies.files import written

AXES = "  tokens: [51200]\n"
END = "  baseline: residual\n"
CASES = [
    # unknown, empty, of the wrong type
    (("base: stability", "bass: stability"), "s.yaml:1: bass = stability is unknown; did you mean base?"),
    (("base: stability\n", ""), "s.yaml: base is missing; name the configuration that every run starts from"),
    (("base: stability", "base: stabilty"), "s.yaml:1: base = stabilty: there is no file"),
    (("axes:", "axes: []\nabout:"), "s.yaml:5: axes = [] is not a section; write its keys under it"),
    (("seed: [1, 2]", "seed: []"), "s.yaml:9: axes.seed = [] is empty; give it a value or leave it out"),
    (("seed: [1, 2]", "seed: 1"), "s.yaml:9: axes.seed = 1 is not a list; write [one, or, more]"),
    (("seed: [1, 2]", "seed: [one]"), "s.yaml:9: axes.seed = one, for training.seed, is not a whole number"),
    (
        ("seed: [1, 2]", "sead: [1, 2]"),
        "s.yaml:9: axes.sead = [1, 2] is no axis; axes are kind, size, tokens,",
    ),
    (
        ("seed: [1, 2]", "model.lairs: [1]"),
        "axes.model.lairs = [1] names no setting of a configuration (model.lairs); did",
    ),
    (
        ("kind: [residual, mhc]", "kind: {}"),
        "s.yaml:6: axes.kind = {} is empty; give it a point or leave it out",
    ),
    (
        ("[residual, mhc]", "[residual, hmc]"),
        "s.yaml:6: axes.kind = hmc, for connection.kind, is not one of residual,",
    ),
    (
        ("[residual, mhc]", "{residual: , m: {n: 2}}"),
        "axes.kind.m = {n: ...} has no kind; give kind: one of residual",
    ),
    (
        ("[residual, mhc]", "{residual: {n: 2}}"),
        "gives connection.n, which has no effect: connection.kind is residual",
    ),
    (
        ("[residual, mhc]", "{residual: , a b: {kind: mhc}}"),
        "has the name 'a b', which becomes part of a directory's",
    ),
    ((END, END + "  bassline: 1\n"), "s.yaml:12: report.bassline = 1 is unknown; did you mean baseline?"),
    ((END, END + "retries: -1\n"), "s.yaml:12: retries = -1 is out of range; it must be 0 or more"),
    ((END, END + "retries: [2]\n"), "s.yaml:12: retries = [2] is not a whole number"),
    (
        ("model.layers: 2", "model: {layers: 2}"),
        "settings.model = {layers: ...} is a section; a study's settings are dotted",
    ),
    (
        ("model.layers: 2", "model.layers: none"),
        "s.yaml:3: settings.model.layers = none is not a whole number",
    ),
    (
        ("model.layers: 2", "model.layers: 0"),
        "s.yaml:3: settings.model.layers = 0 is out of range; it must be from 1",
    ),
    (
        (END, END + "stop: {diverged_steps: -1}\n"),
        "stop.diverged_steps = -1 is out of range; it must be 0 or more",
    ),
    ((END, END + "limits: {max_runs: 7}\n"), "limits.max_runs = 7 is less than the study's 8 runs; raise it"),
    (
        (END, END + "decay: {branches: [0.5, 0.5]}\n"),
        "decay.branches = [0.5, 0.5] is out of range; it must be a list of",
    ),
    # what contradicts itself
    (
        (AXES, AXES + "  flops: [1e12]\n"),
        "s.yaml:9: axes.flops = 1e12 and axes.tokens both say how long runs are; keep",
    ),
    (
        (AXES, AXES + "  training.steps: [9]\n"),
        "gives training.steps, and axes.tokens says how long runs are; leave",
    ),
    (
        (AXES, AXES + "  model.layers: [2]\n"),
        "s.yaml:3: settings.model.layers = 2 and axes.model.layers both set model.",
    ),
    (
        (AXES, AXES + "  model.heads: [2]\n"),
        "axes.model.heads both set model.heads; leave it out of one of them",
    ),
    (
        (
            "model.layers: 2\n  optimizer.schedule: wsd\n",
            "training.max_bad_steps: 4\nstop: {diverged_steps: 8}\n",
        ),
        "s.yaml:3: settings.training.max_bad_steps = 4 gives training.max_bad_steps, and so does stop.diverged_steps",
    ),
    (
        ("seed: [1, 2]", "health.diverged_after: [5, 6]\nstop: {diverged_steps: 8}"),
        "gives health.diverged_after, and so does stop.diverged_steps; leave one of them out",
    ),
    ((END, END + "decay: {}\n"), None),
    (
        ("model.layers: 2", "run.dir: x"),
        "settings.run.dir = x is the study's own: every run has its own directory",
    ),
    (
        (END, "  baseline: shc\n"),
        "s.yaml:11: report.baseline = shc is none of the study's kinds: axes.kind has residual, mhc",
    ),
    (
        (END, "match: {tolerance: 0.1}\n"),
        "match: needs a baseline; name a point of axes.kind as report.baseline",
    ),
    (
        (END, END + "pairing: {of: own}\n"),
        "pairing.of = own has no effect without axes.tokens_per_parameter; leave it",
    ),
    (("schedule: wsd", "schedule: cosine"), None),
    (("model.layers: 2", "optimizer.decay_steps: 9"), None),
    # rules
    (
        (END, END + "learning_rate: {rule: best}\n"),
        "learning_rate.rule = best is no rule; there are olmo_ladder, step_law",
    ),
    (
        (END, END + "learning_rate: {rule: mup}\n"),
        "learning_rate.rule = mup needs Megatron-Core's use_mup, which",
    ),
    (
        (END, END + "batch: {rule: bigger}\n"),
        "s.yaml:12: batch.rule = bigger is no rule; there are olmo_ladder, step_law",
    ),
    (
        (END, END + "batch: {multiple_of: 8}\n"),
        "batch.multiple_of = 8 has no effect, for batch names no rule; give batch.rule",
    ),
    (
        ("of: dial, per: 16", "of: dial, per: 48"),
        "model.heads = {of: ..., per: ...} is dial 32 / 48 = 0.666667 for dial 32, which",
    ),
    (
        ("of: dial, per: 16", "of: width, per: 16"),
        "model.heads.of = width is neither dial nor a number of the base or",
    ),
    (("of: dial, per: 16", "off: dial"), "axes.size.model.heads.off = dial is unknown; did you mean of?"),
    (
        ("dial: [32, 64]", "dial: [32, 0]"),
        "s.yaml:7: axes.size.dial = 0 is out of range; it must be at least 1",
    ),
    # runs that cannot be
    (
        ("of: dial, per: 16", "of: dial, times: 0, plus: 3"),
        "axes.size.model.heads.times = 0 is out of range; it must be above",
    ),
    (
        ("of: dial, per: 16", "of: dial, per: 32, plus: 2"),
        "run residual-d32-51.2Ktok-seed1: model.hidden_size = 32 is not",
    ),
    (
        ("[51200]", "[100]"),
        "tokens = 100 are 100 tokens, less than one step has: 512; raise it, or lower training.global_batch",
    ),
    (("[51200]", "[0]"), "s.yaml:8: axes.tokens = 0 is out of range; it must be above 0 and at most 1e+30"),
    (
        ("[51200]", "[1e20]"),
        "tokens = 1e+20 are 195,312,500,000,000,000 steps, more than 2,147,483,647; lower it",
    ),
    (("schedule: wsd", "schedule: step"), None),
    (
        (END, END + "decay: {branches: [0.1]}\n"),
        "the branch at 0.1 of 100 steps would decay from step 8, before warm-up",
    ),
    (
        (END, END + "match: {tolerance: 1e-6, multiple_of: 64}\n"),
        "of the baseline's 45,216 parameters, more than match",
    ),
    # what is excluded, and what clashes
    (
        (END, END + "exclude: [{kind: shc}]\n"),
        "exclude.kind = shc matches nothing: kind has residual, mhc; correct it",
    ),
    ((END, END + "exclude: [{knd: mhc}]\n"), "s.yaml:12: exclude.knd = mhc is unknown; did you mean kind?"),
    ((END, END + "exclude: [{kind: mhc}, {kind: mhc, seed: 1}]\n"), None),
    (
        (END, END + "exclude: [{}]\n"),
        "exclude = {} leaves out every run; name axes, like {kind: residual, n: [2, 4]}",
    ),
    ((END, END + "exclude: [{seed: [1, 2]}]\n"), "and the other exclusions leave no run; leave some out"),
    (
        ("seed: [1, 2]", "seed: [1, 1]"),
        "axes.seed = 1 and another point of this axis are both called seed1; keep one",
    ),
    (
        (AXES, AXES + "  connection.n: [2, 4]\n"),
        "are the same training: what they differ in has no effect there; exclude",
    ),
    (
        ("model.layers: 2", "moe.top_k: 3"),
        "settings.moe.top_k = 3 has no effect in any run: moe.experts is 0; leave it out",
    ),
    (
        ("seed: [1, 2]", "lr: [0.1, 0.1000000000001]"),
        "another point of this axis are both called lr0.1; keep one",
    ),
    # the machine
    ((END, END + "machine: {gpu: h10}\n"), "s.yaml:12: machine.gpu = h10 is unknown; there are a100, h100,"),
    ((END, END + "machine: {gpu: mine.yaml}\n"), "s.yaml:12: machine.gpu = mine.yaml names no file"),
    (
        (END, END + "run_dir: ~nobody-here/s\n"),
        "run_dir = ~nobody-here/s begins with ~nobody-here, which is nobody's",
    ),
    (
        (END, END + "machine: {gpu: ~nobody-here/g.yaml}\n"),
        "s.yaml:12: machine.gpu = ~nobody-here/g.yaml begins with ~nobody-here, which is nobody's home",
    ),
    (
        (END, END + "machine: {gpus: 0}\n"),
        "s.yaml:12: machine.gpus = 0 is out of range; it must be at least 1",
    ),
    ((END, END + "machine: {cpu: mine.yaml}\n"), "s.yaml:12: machine.cpu = mine.yaml names no file"),
    (
        (END, END + "machine: {cpu: mine.yaml, gpus: 8}\n"),
        "machine.gpus = 8 is beside machine.cpu; leave one of them",
    ),
    ((END, END + "limits: {max_gpu_hours: 1e-9}\n"), "limits.max_gpu_hours = 1e-9 is less than the"),
]


@pytest.mark.parametrize(
    ("change", "said"), [case for case in CASES if case[1]], ids=lambda case: str(case)[:50]
)
def test_a_mistake_is_one_line(change, said, tmp_path):
    study = written(tmp_path, change)
    with pytest.raises(ConfigError) as error:
        plan_study(read_study(study)).require_within_limits()
    line = str(error.value)
    assert said in line and "\n" not in line and "s.yaml" in line


def test_a_rule_beside_an_axis_of_what_it_works_out(tmp_path):
    study = written(
        tmp_path, (AXES, AXES + "  lr: [1e-3]\n"), (END, END + "learning_rate: {rule: step_law}\n")
    )
    with pytest.raises(
        ConfigError, match=r"s.yaml:9: axes.lr = 1e-3 gives optimizer.lr, which learning_rate works out"
    ):
        read_study(study)


def test_a_decay_without_a_schedule_that_has_one(tmp_path):
    study = written(tmp_path, ("schedule: wsd", "schedule: cosine"), (END, END + "decay: {}\n"))
    with pytest.raises(
        ConfigError, match=r"seed1: decay needs optimizer.schedule = wsd, and it is cosine; give it in"
    ):
        expand(read_study(study))


@pytest.mark.parametrize("change", [case[0] for case in CASES if not case[1]])
def test_what_is_none(change, tmp_path):
    assert expand(read_study(written(tmp_path, change)))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("--quick", "--quick: is neither a variant of"),
        ("--study.retrys=1", "--study.retrys=1: is unknown; did you mean retries?"),
        ("--study.retries", "--study.retries: is no setting of a study; write --study.KEY=VALUE"),
        ("--study.retries=many", "--study.retries=many: is not a whole number"),
        ("--study.axes.seed=[1", "--study.axes.seed=[1: the value is not YAML; put it in quotes"),
        ("--training.steps=3", "--training.steps=3: is neither a variant of"),
        (
            "--study.settings.training.stps=3",
            "--study.settings.training.stps=3: names no setting of a configuration",
        ),
    ],
)
def test_a_mistake_on_the_command_line(override, said, tmp_path, capsys):
    assert main(["study", "plan", str(written(tmp_path)), override]) == 2
    assert capsys.readouterr().err.startswith(f"hcmegatron: error: {said}")


def test_a_study_that_is_not_there(capsys):
    assert main(["study", "plan", "labtop"]) == 2
    assert capsys.readouterr().err == (
        "hcmegatron: error: labtop: there is no such file, nor a packaged study of that name; did you mean laptop?\n"
    )
