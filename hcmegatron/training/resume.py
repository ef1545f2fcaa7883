"""Where a run starts from, and what may be another than in the run that saved the checkpoint. No torch.

Every setting has a rule for that. What cannot be another is refused, what changes the numbers is applied and said, and
"bit for bit" is said only where nothing that the numbers depend on has changed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from hcmegatron.config.errors import ConfigError
from hcmegatron.config.idle import ineffective
from hcmegatron.config.schema import Config
from hcmegatron.config.types import defaults, flatten
from hcmegatron.connections import facts
from hcmegatron.training import manifest
from hcmegatron.training.manifest import Manifest, Position


class Rule(Enum):
    """What happens where a setting is another than the checkpoint's."""

    ARCHITECTURE = "refused: the weights are of another network"
    DATA = "the order of the data is another: refused where the run goes on, begun anew by checkpoint.load"
    TEXT = "compared by the text's fingerprint, not as it is written; then as DATA"
    APPLIED = "takes effect, and is said"
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
        moe.z_loss moe.grouped moe.dispatcher parallel.pipeline parallel.virtual
        parallel.tensor parallel.sequence parallel.expert parallel.expert_tensor parallel.schedule parallel.overlap
        parallel.distributed_optimizer parallel.overlap_grad_reduce parallel.overlap_param_gather optimizer.lr
        optimizer.min_lr_ratio optimizer.schedule optimizer.warmup_steps optimizer.step_decay_at
        optimizer.step_decay_to optimizer.beta1 optimizer.beta2 optimizer.eps optimizer.weight_decay optimizer.clip
        training.steps training.global_batch training.micro_batch training.dtype training.seed recompute.mode
        recompute.block_length recompute.modules implementation kernels""",
    Rule.BEGINNING: "model.init_std",
    Rule.HARMLESS: """
        parallel.costs parallel.timeout_s training.eval_every training.eval_batches training.log_every
        training.max_bad_steps training.threads checkpoint.save_every checkpoint.keep_last checkpoint.resume
        checkpoint.load run.dir run.tensorboard run.wandb run.observers run.overcommit run.peak_tflops""",
}
RULE_OF = {key: rule for rule, keys in _RULES.items() for key in keys.split()} | {
    f"connection.{name}": Rule[own.metadata["change"].upper()] for name, (_, own) in facts.FIELDS.items()
}


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
    """

    path: Path
    manifest: Manifest
    position: Position
    says: tuple[str, ...]


def find(
    config: Config, directory: Path, text: str, environment: dict[str, Any] | None = None
) -> Start | None:
    """What this run starts from: checkpoint.load, the newest of `directory` with checkpoint.resume, or None.

    No file of tensors is read.

    Args:
        directory: the run's.
        text: the corpus's fingerprint.
        environment: what the numbers depend on beside configuration and text; None: not known yet, nor compared.

    Raises:
        ConfigError: it is missing, incomplete, damaged, or nothing that this configuration can go on from.
    """
    settings = config.checkpoint
    if settings.load is not None:
        path = Path(settings.load)
        if not path.is_dir():
            what = "is no directory" if path.exists() else "there is no such directory"
            raise ConfigError(f"checkpoint.load = {path}: {what}; name a checkpoint or a run directory")
        path = path if (path / manifest.MANIFEST).exists() else manifest.newest(path) or path
    elif settings.resume:
        if (folder := directory / "checkpoints").is_file():
            raise ConfigError(
                f"{folder} is a file, where checkpoints would be; move it, or choose another run.dir"
            )
        found = manifest.newest(directory)
        if found is None:
            return None
        path = found
    else:
        return None
    return _start(config, path, manifest.read(path), text, environment)


def finished(start: Start) -> str:
    """What a run has to say that was at its end already."""
    return (
        f"this run is finished: {start.path} is after step {start.position.step}, which is training.steps; "
        "raise training.steps to train on"
    )


def words(config: Config, directory: Path, start: Start | None) -> tuple[str, ...]:
    """What a run has to say about its start."""
    if start is not None:
        return start.says
    if config.checkpoint.resume:
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
    return f"stopped by {signal} after step {step}{skipped}; continue with checkpoint.resume=true"


def _start(
    config: Config, path: Path, saved: Manifest, text: str, environment: dict[str, Any] | None
) -> Start:
    resumed, steps = config.checkpoint.resume, config.training.steps
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
    applied = by(Rule.APPLIED)
    if environment is not None:
        known = saved.environment if saved.first_format else environment
        applied += _differences(saved.environment, {key: environment[key] for key in known})
    exact = not (applied or other_data or saved.first_format)
    says = [f"continuing from {path} after step {saved.step}, {'bit for bit' if exact else 'with changes'}"]
    if saved.first_format:
        says.append(
            "warning: the checkpoint is of format 1: it has no checksums to verify, and its data, optimizer and batch "
            "size cannot be compared; samples are counted as if the batch had been this one's"
        )
    if applied:
        says.append("changed: " + ", ".join(map(str, applied)))
    if other_data:
        says.append("the data begin anew, at their first sample: " + "; ".join(other_data))
    says += [f"{change}: no effect, the weights are the checkpoint's" for change in by(Rule.BEGINNING)]
    seen = saved.step * config.training.global_batch if saved.first_format else saved.samples
    return Start(
        path,
        saved,
        Position(saved.step, 0 if other_data else seen),
        tuple(says),
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


def _differences(there: dict[str, Any], here: dict[str, Any]) -> list[Change]:
    return [Change(key, there.get(key), value) for key, value in here.items() if there.get(key) != value]


def _written(value: Any) -> str:
    """A value as in YAML."""
    return value if isinstance(value, str) else json.dumps(value)
