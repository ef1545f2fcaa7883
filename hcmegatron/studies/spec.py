"""A study's file, read strictly. Every mistake is one line: file, key, value, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hcmegatron.config.errors import ConfigError
from hcmegatron.config.load import at_home, read_config
from hcmegatron.studies.axes import read_axes
from hcmegatron.studies.contradictions import check_study
from hcmegatron.studies.exclusions import read_exclusions
from hcmegatron.studies.places import configuration, study_file
from hcmegatron.studies.sections import OPTIONAL, SECTIONS, read_section
from hcmegatron.studies.study import Study, with_settings
from hcmegatron.studies.tree import OVERRIDE, Entry, Tree, lay_over, override, read_tree, refuse_unknown

TREES = (*SECTIONS, "settings", "axes", "variants")  # sections whose keys are changed one by one
KEYS = ("about", "base", "run_dir", "retries", "settings", "axes", "exclude", *SECTIONS, "variants")


def read_study(path: str | Path, overrides: Sequence[str] = ()) -> Study:
    """A study's file, or one of the packaged ones by name.

    Args:
        overrides: variants of the file and single keys, in this order: `--quick`, `--study.retries=0`,
            `--study.axes.seed=[1, 2]`.

    Raises:
        ConfigError: one line.
    """
    file = study_file(Path(path))
    tree = read_tree(file, TREES, KEYS)
    variants = _section(tree, "variants")
    name = file.stem
    for text in overrides:
        if text.startswith(OVERRIDE):
            override(tree, text, TREES, KEYS)
            continue
        variant = text.removeprefix("--")
        if not text.startswith("--") or variant not in variants:
            there = ", ".join(f"--{known}" for known in variants) or "none"
            raise ConfigError(
                f"{text}: is neither a variant of {file} ({there}) nor {OVERRIDE}KEY=VALUE; correct or leave it out"
            )
        lay_over(tree, variants[variant], TREES, KEYS)
        name = f"{name}-{variant}"
    for variant in variants.values():
        for key, entry in variant.entries().items():
            refuse_unknown(entry, key, [known for known in KEYS if known != "variants"])
    return _study(tree, file, name)


def _study(tree: Tree, file: Path, name: str) -> Study:
    def scalar(key: str, hint: Any, default: Any) -> Any:
        entry = tree.get(key)
        return entry.value(hint) if isinstance(entry, Entry) else default

    base = scalar("base", str, None)
    if base is None:
        raise ConfigError(
            f"{file}: base is missing; name the configuration that every run starts from, like quickstart"
        )
    try:
        config = read_config(configuration(base, file.parent))[0]
    except ConfigError as error:
        raise ConfigError(f"{tree['base'].source}: base = {error}") from None  # type: ignore[union-attr]
    written = _section(tree, "settings")
    settings = {key: _written_setting(key, entry) for key, entry in written.items()}
    axes = read_axes(_section(tree, "axes"), config, with_settings(config, settings), file.parent)
    if not axes:
        raise ConfigError(f"{file}: axes is missing; say what differs from run to run, like seed: [1, 2, 3]")
    exclude = tree.get("exclude")
    retries = scalar("retries", int, 2)
    if retries < 0:
        raise tree["retries"].error("is out of range; it must be 0 or more")  # type: ignore[union-attr]
    try:
        run_dir = Path(at_home(scalar("run_dir", str, f"runs/studies/{name}")))
    except ConfigError as error:
        raise tree["run_dir"].error(str(error)) from None  # type: ignore[union-attr]
    sources = {f"settings.{key}": entry for key, entry in written.items()}
    for section in SECTIONS:
        sources |= {f"{section}.{key}": entry for key, entry in _section(tree, section).items()}
    given = {key: read_section(cls, _section(tree, key)) for key, cls in SECTIONS.items()}
    study = Study(
        name=name,
        file=file,
        about=scalar("about", str, ""),
        base=base,
        run_dir=run_dir,
        settings=settings,
        axes=axes,
        exclude=read_exclusions(exclude, axes) if isinstance(exclude, Entry) else (),
        retries=retries,
        variants=tuple(_section(tree, "variants")),
        sources=sources,
        **{key: None if key in OPTIONAL and key not in tree else value for key, value in given.items()},
    )
    check_study(study)
    return study


def _section(tree: Tree, key: str) -> dict[str, Entry]:
    found = tree.get(key, {})
    assert isinstance(found, dict)
    return found


def _written_setting(key: str, entry: Entry) -> Any:
    if entry.is_mapping:
        inner = next(iter(entry.entries()), "KEY")
        raise entry.error(
            f"is a section; a study's settings are dotted: write {key}.{inner}: VALUE under settings"
        )
    return entry.setting(key)
