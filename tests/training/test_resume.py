"""Where a run starts from and what may have changed since: checkpoints of one file, no torch."""

from typing import get_args

import pytest

from hcmegatron.config import Config
from hcmegatron.config.types import leaves
from hcmegatron.training import resume
from hcmegatron.training.manifest import Progress
from hcmegatron.training.resume import RULE_OF, Rule
from tests.training.resume_cases import HERE, made, refused, saved, start


def test_every_setting_has_a_rule():
    assert RULE_OF.keys() == leaves().keys()


def test_what_is_equal_is_continued_bit_for_bit(tmp_path):
    path = saved(tmp_path, made())
    harmless = made(
        training={"log_every": 7, "eval_every": 3}, checkpoint={"save_every": 2}, run={"tensorboard": False}
    )
    for config in (made(), harmless):
        found = start(config, tmp_path)
        assert found.says == (f"continuing from {path} after step 4, bit for bit",)
        assert found.position == Progress(4, 64)


def test_a_run_that_begins_with_another_ones_checkpoint_goes_on_from_its_own(tmp_path):
    theirs = saved(tmp_path / "theirs", made(training={"steps": 9}))
    branch = made(training={"steps": 8}, checkpoint={"load": str(theirs)})
    begun = start(branch, tmp_path / "own")
    assert begun.path == theirs and begun.says[0].endswith("with changes")
    own = saved(tmp_path / "own", branch, step=6)
    assert start(branch, tmp_path / "own").says == (f"continuing from {own} after step 6, bit for bit",)
    (own / "__0_0.distcp").unlink()  # never silently back to the other one
    assert "no checkpoint in" in refused(branch, tmp_path / "own")
    branch.checkpoint.resume = "never"
    assert start(branch, tmp_path / "own").path == theirs


def test_another_tokenizer_is_refused_by_its_fingerprint(tmp_path):
    saved(tmp_path, made(), environment={**HERE, "tokenizer": "0123456789abcdef"})
    line = (
        "of another tokenizer: its fingerprint is 0123456789abcdef there, and byte of data.tokenizer = byte"
    )
    for config in (made(), made(checkpoint={"resume": "never", "load": str(tmp_path)})):
        assert line in refused(config, tmp_path)
    saved(
        tmp_path / "same",
        made(data={"tokenizer": "elsewhere.json"}),
        environment={**HERE, "tokenizer": "byte"},
    )
    assert start(made(), tmp_path / "same").says[0].endswith("bit for bit")


OTHER = {bool: lambda v: not v, int: lambda v: v + 1, float: lambda v: v / 2 + 0.1, str: lambda v: "other"}
OTHER |= {list: lambda v: [*v, 0.95], type(None): lambda v: 2}


@pytest.mark.parametrize("key", [key for key in leaves() if key != "data.tokenizer"])
def test_another_value_of_any_setting_is_refused_or_said(key, tmp_path):
    """Nothing that the numbers depend on is taken over without a word, and nothing given is ignored without one."""
    config = made()
    config.optimizer.schedule, config.moe.experts, config.moe.first_dense = "step", 4, 1
    config.connection.kind, config.data.paths, config.recompute.mode = "mhc", ["x"], "block"
    saved(tmp_path, config)
    section, _, leaf = key.rpartition(".")
    owner = getattr(config, section) if section else config
    before = getattr(owner, leaf)
    choices = [choice for choice in get_args(leaves()[key]) if isinstance(choice, str) and choice != before]
    setattr(owner, leaf, choices[0] if choices else OTHER[type(before)](before))
    if key.startswith("checkpoint."):
        config.checkpoint.resume, config.checkpoint.load = "auto", None
    rule, idle = RULE_OF[key], key in resume.ineffective(config)
    if rule is Rule.ARCHITECTURE and not idle:
        assert f"of another architecture: {key} = " in refused(config, tmp_path)
    elif rule is Rule.STATE:
        assert f"of another optimizer: {key} = " in refused(config, tmp_path)
    elif rule is Rule.DATA:
        assert f"of a run on other data: {key} = " in refused(config, tmp_path)
    else:
        said = "\n".join(start(config, tmp_path).says)
        heard = rule in (Rule.APPLIED, Rule.ROUNDING, Rule.BEGINNING) and not idle
        assert (f"{key} " in said) == heard
        assert ("bit for bit" in said) == (rule not in (Rule.APPLIED, Rule.ROUNDING) or idle)
        assert ("no more than rounding: " in said) == (rule is Rule.ROUNDING and not idle)
        assert ("no effect" in said) == (rule is Rule.BEGINNING and not idle)


def test_values_are_written_as_in_yaml(tmp_path):
    saved(tmp_path, made(parallel={"distributed_optimizer": None}))
    changed = made(optimizer={"lr": 0.001}, parallel={"distributed_optimizer": True})
    assert start(changed, tmp_path).says[1:] == (
        "the data go on in the same order, at sample 64",
        "changed: optimizer.lr 0.003 -> 0.001",
        "changed, by no more than rounding: parallel.distributed_optimizer null -> true",
    )
    assert "model.query_groups = null there, 2 here" in refused(made(model={"query_groups": 2}), tmp_path)


def test_the_length_of_a_run_at_a_constant_rate_changes_no_number(tmp_path):
    constant = {"schedule": "constant"}
    saved(tmp_path / "constant", made(optimizer=constant))
    longer = {"steps": 300}
    assert "bit for bit" in start(made(optimizer=constant, training=longer), tmp_path / "constant").says[0]
    saved(tmp_path / "cosine", made())
    assert "changed: training.steps 200 -> 300" in start(made(training=longer), tmp_path / "cosine").says


def test_other_ranks_and_versions_are_said(tmp_path):
    saved(tmp_path, made())
    found = resume.find_start(made(), tmp_path, "text", {"ranks": 4, "torch": "2.14.0"})
    assert found.says[0].endswith("with changes")
    assert found.says[2:] == (
        "changed: torch 2.13.0 -> 2.14.0",
        "changed, by no more than rounding: ranks 2 -> 4",
    )
    found = resume.find_start(made(), tmp_path, "text", {"ranks": 4, "torch": "2.13.0", "triton": "3.5"})
    assert found.says[0].endswith("after step 4, with the same numbers but for rounding")
    assert len(found.says) == 2  # and what the checkpoint's version did not know of is not compared


def test_what_kernels_have_come_to_is_compared_and_not_what_was_asked_for(tmp_path):
    path = saved(tmp_path, made(), environment=HERE | {"kernels": "torch"})
    asked = made()
    asked.kernels = "torch"
    found = start(asked, tmp_path, environment=HERE | {"kernels": "torch"})
    assert found.says == (f"continuing from {path} after step 4, bit for bit",)
    found = start(made(), tmp_path, environment=HERE | {"kernels": "triton"})
    assert found.says[1:] == ("changed, by no more than rounding: kernels torch -> triton",)
    dropping = made(model={"hidden_dropout": 0.1})
    said = start(dropping, tmp_path, environment=HERE | {"kernels": "triton"}).says
    assert "changed: model.hidden_dropout 0.0 -> 0.1, kernels torch -> triton" in said


def test_masks_and_a_loss_over_micro_batches_depend_on_them(tmp_path):
    experts = {"experts": 4, "first_dense": 1}
    saved(tmp_path, made(moe=experts))
    smaller = made(moe=experts, training={"micro_batch": 2})
    assert (
        start(smaller, tmp_path).says[1] == "changed, by no more than rounding: training.micro_batch 4 -> 2"
    )
    dropped = made(moe=experts, training={"micro_batch": 2}, model={"attention_dropout": 0.1})
    dropped.parallel.tensor = 2
    assert (
        "changed: model.attention_dropout 0.0 -> 0.1, parallel.tensor 1 -> 2, training.micro_batch 4 -> 2"
        in start(dropped, tmp_path).says
    )
    balanced = made(moe={**experts, "aux_loss": 0.1}, training={"micro_batch": 2})
    assert "changed: moe.aux_loss 0.0 -> 0.1, training.micro_batch 4 -> 2" in start(balanced, tmp_path).says


def test_other_data_are_refused_where_the_run_goes_on_and_begun_anew_by_a_new_one(tmp_path):
    path = saved(tmp_path, made())
    error = refused(made(), tmp_path, text="grown")
    assert "the text's fingerprint is text there, grown here" in error
    assert f"checkpoint.load={path} and another run.dir" in error
    new = made(checkpoint={"resume": "never", "load": str(tmp_path)}, data={"seed": 7})
    found = start(new, tmp_path / "new")
    assert found.position == Progress(4, 0)
    assert found.says[1] == "the data begin anew, at their first sample: data.seed = 1234 there, 7 here"
    moved = made(data={"paths": ["elsewhere"]})
    assert start(moved, tmp_path).says[0].endswith("bit for bit")


def test_a_finished_run_and_one_that_is_to_be_shorter(tmp_path):
    path = saved(tmp_path, made(training={"steps": 4}))
    done = start(made(training={"steps": 4}), tmp_path)
    assert resume.finished(done) == (
        f"this run is finished, and nothing is left to do: {path} is after step 4, which is training.steps; raise "
        "training.steps to train on",
    )
    for config in (
        made(training={"steps": 3}),
        made(training={"steps": 4}, checkpoint={"resume": "never", "load": str(path)}),
    ):
        assert f"training.steps = {config.training.steps} leaves nothing to train" in refused(
            config, tmp_path
        )


def test_resuming_before_the_first_checkpoint_begins_and_says_so(tmp_path):
    """What a job that is queued again asks for, and what a mistyped directory looks like."""
    for directory in (tmp_path / "missing", tmp_path):
        assert start(made(), directory) is None
        (said,) = resume.words(made(), directory, None)
        assert said.startswith(f"warning: there is no checkpoint in {directory} yet")
    assert resume.words(Config(), tmp_path, None) == ()


def test_places_of_checkpoints(tmp_path):
    assert "there is no such directory" in refused(load(tmp_path / "missing"), tmp_path)
    (tmp_path / "file").write_text("")
    assert "is no directory" in refused(load(tmp_path / "file"), tmp_path)
    (tmp_path / "empty").mkdir()
    assert "it has no manifest.json" in refused(load(tmp_path / "empty"), tmp_path)
    (tmp_path / "checkpoints").write_text("")
    assert "is a file, where checkpoints would be" in refused(made(), tmp_path)


def load(path):
    return made(checkpoint={"resume": "never", "load": str(path)})


def test_a_path_that_no_file_can_have_is_one_line(tmp_path):
    words = refused(made(checkpoint={"resume": "never", "load": "x" * 300}), tmp_path)
    assert words.startswith("checkpoint.load = xxx") and words.endswith(
        "make it readable, or correct the path"
    )
