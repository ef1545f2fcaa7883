"""What the runs were told: where they differ, what is not a default, versions and machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hcmegatron.config.types import defaults
from hcmegatron.report.charts import Part, Section, Table, Words
from hcmegatron.report.inputs.run import Run
from hcmegatron.report.sections.names import titled

LEFT_OUT = ("run.dir",)
ABSENT = "not set"


def differences(runs: Sequence[Run]) -> Section:
    """Settings that are not the same in all runs; of one run, those that are not the defaults."""
    if len(runs) == 1:
        initial, own = defaults(), runs[0].configuration
        changed = [
            key for key in own if key not in LEFT_OUT and (key not in initial or initial[key] != own[key])
        ]
        rows = [(key, _value(own, key), _value(initial, key)) for key in changed]
        table = Table("Settings that are not the defaults", ("setting", "value", "default"), tuple(rows))
        return Section("configuration", "Configuration", (table,))
    keys = dict.fromkeys(key for run in runs for key in run.configuration)
    rows = [
        (key, *(_value(run.configuration, key) for run in runs))
        for key in keys
        if key not in LEFT_OUT and len({_value(run.configuration, key) for run in runs}) > 1
    ]
    parts: tuple[Part, ...] = (Words(("The runs have the same configuration.",)),)
    if rows:
        head = ("setting", *(titled(runs, run) for run in runs))
        parts = (Table("Settings that differ", head, tuple(rows)),)
    return Section("configuration", "Configuration", parts)


def environment(runs: Sequence[Run]) -> Section:
    """Versions and machines."""
    keys = dict.fromkeys(key for run in runs for key in run.environment)
    head = ("", *(titled(runs, run) for run in runs))
    rows = [
        ("directory", *(str(run.path) for run in runs)),
        *((key, *(_value(run.environment, key) for run in runs)) for key in keys),
    ]
    return Section(
        "environment", "Versions and machine", (Table("As the run found them", head, tuple(rows)),)
    )


def _value(settings: Mapping[str, Any], key: str) -> str:
    if key not in settings:
        return ABSENT
    value = settings[key]
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(value)
