"""Where a run starts from, and what may be another than in the run that saved the checkpoint. No torch.

Every setting has a rule for that (resume_rules.py). What cannot be another is refused, what changes the numbers is
applied and said, and "bit for bit" is said only where nothing that the numbers depend on has changed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from hcmegatron.config.errors import ConfigError
from hcmegatron.config.ineffective import ineffective
from hcmegatron.config.schema import Config, resumes
from hcmegatron.config.types import defaults, flatten
from hcmegatron.connections.kinds.residual import RESIDUAL
from hcmegatron.data.left_out import in_words
from hcmegatron.training import manifest
from hcmegatron.training.manifest import Damaged, Manifest, Progress
from hcmegatron.training.resume_rules import HOW_COMPUTED, RULE_OF, Rule, more_than_rounding


class SettingChange(NamedTuple):
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
        weights_only: the run is a new one, whose optimizer and connections begin anew.
        aside: where they are now, one line each.
    """

    path: Path
    manifest: Manifest
    position: Progress
    says: tuple[str, ...]
    damaged: Mapping[Path, str]
    aside: tuple[str, ...] = ()
    weights_only: bool = False


def find_start(
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
    try:
        return _find(config, directory, text, environment, dict(damaged or {}))
    except OSError as error:  # below a directory that may not be entered, or of a name that no file can have
        raise ConfigError(
            f"checkpoint.load = {config.checkpoint.load}, run.dir = {config.run.dir}: {error.filename or directory}: "
            f"{error.strerror}; make it readable, or correct the path"
        ) from None


def _find(
    config: Config,
    directory: Path,
    text: str,
    environment: dict[str, Any] | None,
    found: dict[Path, str],
) -> Start | None:
    settings = config.checkpoint
    if begins_by_load(config, directory):
        path = _named("checkpoint.load", settings.load)
        return _start(config, path, manifest.read(path), text, environment, own=False)
    if not resumes(config):
        return _weights(config, environment)
    folder = directory / "checkpoints"
    _listed(folder)
    for path in reversed(manifest.every(folder)):
        if path in found:
            continue
        try:
            written = manifest.read(path)
        except Damaged as error:
            found[path] = error.what
            continue
        return replace(_start(config, path, written, text, environment, own=True), damaged=found)
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
    return _weights(config, environment)


def _named(key: str, value: str) -> Path:
    """The checkpoint that a setting names, or the newest of the run directory."""
    path = Path(value)
    if not path.is_dir():
        what = "is no directory" if path.exists() else "there is no such directory"
        raise ConfigError(f"{key} = {path}: {what}; name a checkpoint or a run directory")
    return path if (path / manifest.MANIFEST).exists() else manifest.newest(path) or path


def _weights(config: Config, environment: dict[str, Any] | None) -> Start | None:
    """A run's beginning with the weights of checkpoint.init_from; None where it is not set."""
    if config.checkpoint.init_from is None:
        return None
    path = _named("checkpoint.init_from", config.checkpoint.init_from)
    saved = manifest.read(path)
    kind = saved.config.get("connection.kind")
    if kind != RESIDUAL.name:
        raise ConfigError(
            f"checkpoint.init_from = {path}: its connection.kind is {kind or 'not said'}, and weights of "
            f"{RESIDUAL.name} are what can be continued by other connections; name a checkpoint of those, or go on "
            "with this one (checkpoint.load)"
        )
    for change in _changed(saved, config):
        if RULE_OF[change.key] is Rule.ARCHITECTURE and not change.key.startswith("connection."):
            raise ConfigError(
                f"checkpoint {path} is of another architecture: {change.as_refused()}; set it to match"
            )
    check_tokenizer(config, path, saved, (environment or {}).get("tokenizer"))
    says = (
        f"beginning with the weights of {path}, after step {saved.step}; its optimizer state is left there: the "
        "optimizer, the steps and the data begin anew, and connections so that the network computes what it did",
    )
    return Start(path, saved, Progress(0, 0), says, {}, weights_only=True)


def _listed(folder: Path) -> None:
    """ConfigError where what is in a folder cannot be known: a run would begin anew beside its checkpoints."""
    try:
        os.listdir(folder)
    except FileNotFoundError:
        pass
    except NotADirectoryError:
        raise ConfigError(
            f"{folder} is a file, where checkpoints would be; move it, or choose another run.dir"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be read: {error.strerror}; make it readable, or choose another run.dir"
        ) from None


def begins_by_load(config: Config, directory: Path) -> bool:
    """Whether checkpoint.load says where to start; with checkpoint.resume, until there is a checkpoint of the run."""
    has_own = resumes(config) and bool(manifest.every(directory / "checkpoints"))
    return config.checkpoint.load is not None and not has_own


def resumed(config: Config, directory: Path) -> Config:
    """The configuration with which a run goes on that has ended in `directory`: from its newest checkpoint, or as it
    began, with checkpoint.load if that was so, where it has none yet."""
    has_none = manifest.newest(directory) is None
    load = config.checkpoint.load if has_none else None
    return replace(config, checkpoint=replace(config.checkpoint, resume="auto", load=load))


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


def evaluated(directory: Path, step: int, kind: str) -> bool:
    """Whether a run's metrics.jsonl has the losses of an evaluation after that step: kind validation or test."""
    try:
        lines = (directory / "metrics.jsonl").read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return False
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:  # a torn line is no result
            continue
        if isinstance(entry, dict) and (entry.get("kind"), entry.get("step")) == (kind, step):
            return True
    return False


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


def stopped(signal: str, step: int, saved: Progress | None) -> str:
    """What a run has to say that ended for a signal after `step` steps."""
    if saved is None:
        return f"stopped by {signal} after step {step}; no checkpoint was saved"
    skipped = "" if saved.step == step else f", with the checkpoint after step {saved.step} as its newest"
    return f"stopped by {signal} after step {step}{skipped}; continue with checkpoint.resume=auto"


def _start(
    config: Config, path: Path, saved: Manifest, text: str, environment: dict[str, Any] | None, own: bool
) -> Start:
    # With checkpoint.load the run is another one, also where it is started again before its first own checkpoint.
    resumed, steps = own, config.training.steps
    changed = _changed(saved, config)

    def by(rule: Rule) -> list[SettingChange]:
        return [change for change in changed if RULE_OF[change.key] is rule]

    for change in by(Rule.ARCHITECTURE):
        raise ConfigError(
            f"checkpoint {path} is of another architecture: {change.as_refused()}; set it to match"
        )
    for change in by(Rule.STATE):
        alone = f", or begin with its weights alone, with checkpoint.init_from={path} and another run.dir"
        raise ConfigError(
            f"checkpoint {path} is of another optimizer: {change.as_refused()}; set it to match"
            + alone * (saved.config.get("connection.kind") == RESIDUAL.name)
        )
    check_tokenizer(config, path, saved, (environment or {}).get("tokenizer"))
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
        # settings that have come to something on either machine: that is compared, and not what was asked for
        rounding = [change for change in rounding if change.key not in saved.environment]
        known = {key: environment[key] for key in saved.environment if key in environment}
        for change in _differences(saved.environment, known):
            (rounding if change.key in HOW_COMPUTED else applied).append(change)
    learnt = more_than_rounding(config)
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
    if saved.left_out and not other_data:
        says.append(f"left out of the data, as before: {in_words(saved.left_out)}")
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
        Progress(saved.step, 0, (), saved.recent)
        if other_data
        else Progress(saved.step, seen, saved.left_out, saved.recent),
        tuple(says),
        {},
    )


def check_tokenizer(config: Config, path: Path, saved: Manifest, here: str | None = None) -> None:
    """ConfigError for a checkpoint of another tokenizer.

    Args:
        here: the fingerprint of this one, where it is known: a run that goes back reads no file again.
    """
    if here is None:
        # here, for it imports NumPy, which no mistake before needs
        from hcmegatron.data.tokenizer_registry import build_tokenizer

        here = build_tokenizer(config.data.tokenizer).fingerprint
    if not saved.first_format and (there := saved.environment.get("tokenizer", "byte")) != here:
        raise ConfigError(
            f"checkpoint {path} is of another tokenizer: its fingerprint is {there} there, and {here} of "
            f"data.tokenizer = {config.data.tokenizer}; name the same tokenizer (there "
            f"{saved.config.get('data.tokenizer')})"
        )


def _changed(saved: Manifest, config: Config) -> list[SettingChange]:
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


def _differences(there: dict[str, Any], here: dict[str, Any]) -> list[SettingChange]:
    return [
        SettingChange(key, there.get(key), value) for key, value in here.items() if there.get(key) != value
    ]


def _written(value: Any) -> str:
    """A value as in YAML."""
    return value if isinstance(value, str) else json.dumps(value)
