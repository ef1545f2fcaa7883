"""Where a run starts from, and what may be another than in the run that saved the checkpoint. No torch.

Every setting has a rule for that. What cannot be another is refused, what changes the numbers is applied and said, and
"bit for bit" is said only where nothing that the numbers depend on has changed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from hcmegatron.config.errors import ConfigError
from hcmegatron.config.idle import ineffective
from hcmegatron.config.schema import Config, resumes
from hcmegatron.config.types import defaults, flatten
from hcmegatron.connections import facts
from hcmegatron.training import manifest
from hcmegatron.training.manifest import Damaged, Manifest, Position


class Rule(Enum):
    """What happens where a setting is another than the checkpoint's."""

    ARCHITECTURE = "refused: the weights are of another network"
    DATA = "the order of the data is another: refused where the run goes on, begun anew by checkpoint.load"
    TEXT = "compared by the text's fingerprint, not as it is written; then as DATA"
    APPLIED = "takes effect on what is learnt, and is said"
    ROUNDING = "takes effect on where and in which order the same numbers are computed, and is said"
    BEGINNING = "decides how a run begins, so it has no effect, which is said"
    HARMLESS = "takes effect, and no number of the training depends on it"


_RULES = {
    Rule.ARCHITECTURE: """
        model.layers model.hidden_size model.heads model.query_groups model.head_dim model.attention
        model.ffn_hidden_size model.activation model.norm model.norm_eps model.norm_position model.qk_norm
        model.qk_norm_across_heads model.tie_embeddings model.rope_theta model.vocab_multiple model.vocab_size
        model.document_mask mla.kv_rank mla.q_rank mla.rope_dim moe.experts moe.top_k moe.ffn_hidden_size
        moe.shared_experts moe.first_dense moe.router moe.routed_scale connection.kind data.tokenizer""",
    Rule.DATA: "data.sequence_length data.holdout data.seed",
    Rule.TEXT: "data.paths data.suffixes",
    Rule.APPLIED: """
        model.hidden_dropout model.attention_dropout moe.expert_bias_rate moe.aux_loss moe.sequence_aux_loss
        moe.z_loss optimizer.lr optimizer.min_lr_ratio optimizer.schedule optimizer.warmup_steps
        optimizer.step_decay_at optimizer.step_decay_to optimizer.beta1 optimizer.beta2 optimizer.eps
        optimizer.weight_decay optimizer.clip training.steps training.global_batch training.dtype training.seed""",
    Rule.ROUNDING: """
        moe.grouped moe.dispatcher parallel.pipeline parallel.virtual parallel.tensor parallel.sequence
        parallel.expert parallel.expert_tensor parallel.schedule parallel.overlap parallel.distributed_optimizer
        parallel.overlap_grad_reduce parallel.overlap_param_gather training.micro_batch recompute.mode
        recompute.block_length recompute.modules implementation kernels""",
    Rule.BEGINNING: "model.init_std",
    Rule.HARMLESS: """
        parallel.timeout_s training.eval_every training.eval_batches training.log_every training.max_bad_steps
        training.threads checkpoint.save_every checkpoint.keep_last checkpoint.resume checkpoint.load run.dir
        run.tensorboard run.wandb run.observers run.peak_tflops""",
}
RULE_OF = {key: rule for rule, keys in _RULES.items() for key in keys.split()} | {
    f"connection.{name}": Rule[own.metadata["change"].upper()] for name, (_, own) in facts.FIELDS.items()
}

# Of what the numbers depend on beside configuration and text: what only divides the work.
DIVISION = ("ranks", "CPU threads")


class Change(NamedTuple):
    """A value that is another here than in the checkpoint."""

    key: str
    there: Any
    here: Any

    def __str__(self) -> str:
        return f"{self.key} {_written(self.there)} -> {_written(self.here)}"

    def as_refused(self) -> str:
        """Both values, for an error."""
        return f"{self.key} = {_written(self.there)} there, {_written(self.here)} here"


@dataclass(frozen=True)
class Start:
    """A run's start from a checkpoint.

    Attributes:
        position: where the run goes on.
        says: one line each, for the user.
        damaged: newer checkpoints, with what is the matter with each.
        aside: where they are now, one line each.
    """

    path: Path
    manifest: Manifest
    position: Position
    says: tuple[str, ...]
    damaged: Mapping[Path, str]
    aside: tuple[str, ...] = ()


def find(
    config: Config,
    directory: Path,
    text: str,
    environment: dict[str, Any] | None = None,
    damaged: Mapping[Path, str] | None = None,
) -> Start | None:
    """What this run starts from: checkpoint.load, the newest whole one of `directory` with checkpoint.resume, or None.

    No file of tensors is read.

    Args:
        directory: the run's.
        text: the corpus's fingerprint.
        environment: what the numbers depend on beside configuration and text; None: not known yet, nor compared.
        damaged: checkpoints that were found not to be what was written, with what is the matter.

    Raises:
        ConfigError: it is missing, incomplete, damaged, or nothing that this configuration can go on from; with
            checkpoint.resume, all that there are.
    """
    settings = config.checkpoint
    if settings.load is not None:
        path = Path(settings.load)
        if not path.is_dir():
            what = "is no directory" if path.exists() else "there is no such directory"
            raise ConfigError(f"checkpoint.load = {path}: {what}; name a checkpoint or a run directory")
        path = path if (path / manifest.MANIFEST).exists() else manifest.newest(path) or path
        return _start(config, path, manifest.read(path), text, environment)
    if not resumes(config):
        return None
    folder, found = directory / "checkpoints", dict(damaged or {})
    if folder.is_file():
        raise ConfigError(
            f"{folder} is a file, where checkpoints would be; move it, or choose another run.dir"
        )
    for path in reversed(manifest.every(folder)):
        if path in found:
            continue
        try:
            written = manifest.read(path)
        except Damaged as error:
            found[path] = error.what
            continue
        return replace(_start(config, path, written, text, environment), damaged=found)
    if found:
        raise ConfigError(
            f"no checkpoint in {folder} is whole, and none was changed: "
            + "; ".join(f"{path.name} {what}" for path, what in found.items())
            + "; restore one, or begin again in another run.dir"
        )
    if settings.resume == "required":
        raise ConfigError(
            f"checkpoint.resume = required: there is no checkpoint in {folder}; correct run.dir, or use "
            "checkpoint.resume=auto, which begins anew"
        )
    return None


def set_aside(start: Start) -> Start:
    """Rename the damaged checkpoints that are newer than the one a run goes on from. It says what was done.

    Only for the job that holds the run directory's lock.

    Raises:
        ConfigError: one cannot be renamed.
    """
    said = []
    for path, what in start.damaged.items():
        new = manifest.aside(path)
        try:
            path.rename(new)
        except OSError as error:
            raise ConfigError(
                f"checkpoint {path} {what}, and cannot be renamed: {error.strerror}; move it away"
            ) from None
        said.append(
            f"WARNING: checkpoint {path} {what}. It is set aside as {new.name}, and the run goes back to "
            f"{start.path.name}"
        )
    return replace(start, aside=tuple(said), damaged={})


def finished(start: Start) -> tuple[str, ...]:
    """What a run has to say that was at its end already, one line each."""
    return (
        *start.aside,
        f"this run is finished, and nothing is left to do: {start.path} is after step {start.position.step}, which is "
        "training.steps; raise training.steps to train on",
    )


def words(config: Config, directory: Path, start: Start | None) -> tuple[str, ...]:
    """What a run has to say about its start."""
    if start is not None:
        return (*start.aside, *start.says)
    if resumes(config):
        return (
            f"warning: there is no checkpoint in {directory} yet, so training starts from the beginning; "
            "if that is not meant, correct run.dir",
        )
    return ()


def stopped(signal: str, step: int, saved: Position | None) -> str:
    """What a run has to say that ended for a signal after `step` steps."""
    if saved is None:
        return f"stopped by {signal} after step {step}; no checkpoint was saved"
    skipped = "" if saved.step == step else f", with the checkpoint after step {saved.step} as its newest"
    return f"stopped by {signal} after step {step}{skipped}; continue with checkpoint.resume=auto"


def _start(
    config: Config, path: Path, saved: Manifest, text: str, environment: dict[str, Any] | None
) -> Start:
    resumed, steps = resumes(config), config.training.steps
    changed = _changed(saved, config)

    def by(rule: Rule) -> list[Change]:
        return [change for change in changed if RULE_OF[change.key] is rule]

    for change in by(Rule.ARCHITECTURE):
        raise ConfigError(
            f"checkpoint {path} is of another architecture: {change.as_refused()}; set it to match"
        )
    other_data = [change.as_refused() for change in by(Rule.DATA)]
    if saved.text not in (text, None):
        other_data.append(f"the text's fingerprint is {saved.text} there, {text} here")
    if other_data and resumed:
        raise ConfigError(
            f"checkpoint {path} is of a run on other data: {'; '.join(other_data)}; set it to match, or start a new "
            f"run on these data from it, with checkpoint.load={path} and another run.dir"
        )
    if steps < saved.step or (steps == saved.step and not resumed):
        raise ConfigError(
            f"checkpoint {path} is after step {saved.step}, so training.steps = {steps} leaves nothing to train; "
            "raise training.steps"
        )
    applied, rounding = by(Rule.APPLIED), by(Rule.ROUNDING)
    if environment is not None:
        known = {key: environment[key] for key in saved.environment if key in environment}
        for change in _differences(saved.environment, known):
            (rounding if change.key in DIVISION else applied).append(change)
    learnt = _decide_what_is_learnt(config)
    applied += [change for change in rounding if change.key in learnt]
    rounding = [change for change in rounding if change.key not in learnt]
    seen = saved.step * config.training.global_batch if saved.first_format else saved.samples
    how = "bit for bit"
    if rounding:
        how = "with the same numbers but for rounding"
    if applied or other_data or saved.first_format:
        how = "with changes"
    says = [f"continuing from {path} after step {saved.step}, {how}"]
    if saved.first_format:
        says.append(
            "warning: the checkpoint is of format 1: it has no checksums to verify, and its data, optimizer and batch "
            "size cannot be compared; samples are counted as if the batch had been this one's"
        )
    elif applied and not other_data:
        says.append(f"the data go on in the same order, at sample {seen}")
    if applied:
        says.append("changed: " + ", ".join(map(str, applied)))
    if rounding:
        says.append("changed, by no more than rounding: " + ", ".join(map(str, rounding)))
    if other_data:
        says.append("the data begin anew, at their first sample: " + "; ".join(other_data))
    says += [f"{change}: no effect, the weights are the checkpoint's" for change in by(Rule.BEGINNING)]
    return Start(
        path,
        saved,
        Position(saved.step, 0 if other_data else seen),
        tuple(says),
        {},
    )


def _changed(saved: Manifest, config: Config) -> list[Change]:
    """Settings that are another here. One that nothing reads here is none.

    A setting that the checkpoint's version did not know had its default's effect.
    """
    here = flatten(config)
    there = {**(here if saved.first_format else defaults()), **saved.config}
    idle = set(ineffective(config))
    if there["optimizer.schedule"] == here["optimizer.schedule"] == "constant":
        idle.add("training.steps")  # no rate depends on how long the run is
    return [
        change
        for change in _differences(there, here)
        if change.key not in idle and RULE_OF[change.key] not in (Rule.TEXT, Rule.HARMLESS)
    ]


def _decide_what_is_learnt(config: Config) -> set[str]:
    """Settings under Rule.ROUNDING of which, here, more depends.

    A mask of dropout belongs to a micro-batch, and to a tensor-parallel rank's heads and tokens (model/dropout.py);
    kernels and implementations draw theirs in other ways. moe.aux_loss balances the tokens of a micro-batch.
    """
    hidden, attention = config.model.hidden_dropout > 0, config.model.attention_dropout > 0
    keys: set[str] = set()
    if hidden or attention or (config.moe.experts and config.moe.aux_loss):
        keys.add("training.micro_batch")
    if hidden or attention:
        keys |= {"kernels", "implementation", "parallel.sequence"}
    if attention or (hidden and config.parallel.sequence):
        keys.add("parallel.tensor")
    return keys


def _differences(there: dict[str, Any], here: dict[str, Any]) -> list[Change]:
    return [Change(key, there.get(key), value) for key, value in here.items() if there.get(key) != value]


def _written(value: Any) -> str:
    """A value as in YAML."""
    return value if isinstance(value, str) else json.dumps(value)
