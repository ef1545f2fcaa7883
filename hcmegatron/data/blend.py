"""Prepared data sets as data.paths names them: one or several, with weights or end to end. No torch.

`data.paths: [data/web, data/code]` reads both, every window once an epoch; `["0.7 data/web", "0.3 data/code"]` takes 7
of 10 samples from the first, whatever their sizes, each in epochs of its own.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from hcmegatron.config.errors import ConfigError
from hcmegatron.config.schema import Data
from hcmegatron.data.prepared import Manifest, is_prepared, read_manifest

_WEIGHTED = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s+(\S.*)")
_NUMBER = re.compile(r"[-+]?(\d|\.\d|nan\b|inf)[\w.+-]*\s+\S", re.IGNORECASE)


@dataclass(frozen=True)
class PreparedSet:
    """A prepared data set that is there: its directory, which data.paths has under `name`, and what it is."""

    name: str
    path: Path
    manifest: Manifest


@dataclass(frozen=True)
class PreparedCorpus:
    """What there is to train on and to be judged by; beside Corpus, which is text.

    Attributes:
        weights: of the training sets, in whole numbers; None where they are read end to end.
        validation: data sets of their own; none where the end of every training set is held out.
        test: data sets for the end of the training.
        fingerprint: of what the order of training depends on: manifests, weights, whether ends are held out.
    """

    training: tuple[PreparedSet, ...]
    weights: tuple[int, ...] | None
    validation: tuple[PreparedSet, ...]
    share: float
    test: tuple[PreparedSet, ...] = ()
    suffixes: tuple[str, ...] = ()  # of data.suffixes, where others than its default are given

    @property
    def name(self) -> str:
        """In words."""
        if self.weights is None:
            return ", ".join(one.name for one in self.training)
        total = sum(self.weights)
        return ", ".join(
            f"{one.name} ({weight / total:.4g})"
            for one, weight in zip(self.training, self.weights, strict=True)
        )

    @property
    def fingerprint(self) -> str:
        said = [one.manifest.digest for one in self.training]
        return hashlib.sha256(f"{said} {self.weights} {bool(self.validation)}".encode()).hexdigest()[:16]

    def warnings(self) -> list[str]:
        """What has no effect here."""
        if not self.suffixes:
            return []
        return [f"data.suffixes = {list(self.suffixes)} has no effect: data.paths are prepared data sets"]


def find_prepared(data: Data) -> PreparedCorpus | None:
    """The prepared data sets of a configuration; None where it names text.

    Raises:
        ConfigError: data sets beside text, of another tokenizer than data.tokenizer, or that are not whole.
    """
    named = [_split_weight(path) for path in data.paths]
    prepared = [is_prepared(Path(path)) for _, path in named]
    if not any(prepared):
        if weighted := next(
            (path for (weight, _), path in zip(named, data.paths, strict=True) if weight), None
        ):
            raise ConfigError(
                f"data.paths = {weighted}: only prepared data sets have weights; make one with hcmegatron data prepare"
            )
        for key, paths in (("data.validation", data.validation), ("data.test", data.test)):
            if paths:
                raise ConfigError(
                    f"{key} = {paths}, but data.paths names text; prepare it with hcmegatron data prepare, or leave "
                    f"{key} out"
                )
        return None
    if not all(prepared):
        raise ConfigError(
            f"data.paths = {named[prepared.index(False)][1]}: text (or nothing) beside prepared data "
            "sets; make it one with hcmegatron data prepare"
        )
    from hcmegatron.data.order import whole_weights  # imports NumPy, which no mistake before needs

    weights = [weight for weight, _ in named if weight]
    if weights and len(weights) < len(named):
        raise ConfigError(
            f"data.paths = {data.paths}: some have a weight and others none; give all of them one, or none"
        )
    paths = [os.path.realpath(path) for _, path in named]
    if twice := _repeated(paths):
        raise ConfigError(
            f"data.paths names {twice} twice; name it once, with the weight that it should have"
        )
    _apart(paths, data)
    try:
        whole = tuple(whole_weights(weights)) if weights else None
    except ConfigError as error:
        raise ConfigError(f"data.paths = {data.paths}: {error}") from None
    return PreparedCorpus(
        tuple(_open("data.paths", path, data.tokenizer) for _, path in named),
        whole,
        tuple(_open("data.validation", path, data.tokenizer) for path in data.validation),
        data.holdout,
        tuple(_open("data.test", path, data.tokenizer) for path in data.test),
        () if data.suffixes == Data().suffixes else tuple(data.suffixes),
    )


def _split_weight(written: str) -> tuple[str, str]:
    """("0.7", "data/web") of "0.7 data/web", and ("", path) of what has no weight or exists as it is written.

    Raises:
        ConfigError: another number is before the path, such as -1, nan or 1e3.
    """
    match = _WEIGHTED.fullmatch(written)
    if os.path.lexists(written):
        return "", written
    if match is None:
        if _NUMBER.match(written):
            raise ConfigError(f"data.paths = {written}: a weight is a number above 0 in digits, such as 0.7")
        return "", written
    return match[1], os.path.expanduser(match[2])


def _apart(trained_on: list[str], data: Data) -> None:
    """ConfigError where a data set is used for two things.

    Args:
        trained_on: real paths of data.paths.
    """
    used = dict.fromkeys(trained_on, "is trained on too (data.paths)")
    for key, paths in (("data.validation", data.validation), ("data.test", data.test)):
        real = [os.path.realpath(path) for path in paths]
        if twice := _repeated(real):
            raise ConfigError(f"{key} names {twice} twice; name it once")
        for path in paths:
            if why := used.get(os.path.realpath(path)):
                raise ConfigError(f"{key} = {path} {why}; name another data set")
        used |= dict.fromkeys(real, f"is evaluated during training too ({key})")


def _repeated(paths: list[str]) -> str | None:
    return next((path for path in paths if paths.count(path) > 1), None)


def _open(key: str, path: str, tokenizer: str) -> PreparedSet:
    from hcmegatron.data.tokenizer_registry import build_tokenizer

    manifest = read_manifest(Path(path))
    if build_tokenizer(tokenizer).fingerprint != manifest.fingerprint:
        own = manifest.tokenizer
        remedy = Path(path, own) if own in os.listdir(path) else own
        if os.path.realpath(tokenizer) == os.path.realpath(remedy):
            raise ConfigError(
                f"{key} = {path}: data.tokenizer = {tokenizer} is not the one that it was prepared with "
                f"({manifest.fingerprint}); copy the data set again"
            )
        raise ConfigError(
            f"{key} = {path}: prepared with the tokenizer {own} ({manifest.fingerprint}), and data.tokenizer = "
            f"{tokenizer} is another; set data.tokenizer={remedy}"
        )
    return PreparedSet(path, Path(path), manifest)
