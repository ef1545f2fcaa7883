"""hcmegatron study plan: what a study's runs take, before any is started. No torch."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from hcmegatron.config.errors import ConfigError
from hcmegatron.studies.places import packaged_studies
from schedules import output_files

EXAMPLE = """\
examples:
  hcmegatron study plan laptop --quick
  hcmegatron study plan mhc-scaling --study.machine.gpus=1024 --search
  hcmegatron study plan my-study.yaml '--study.axes.seed=[1, 2]' --study.settings.optimizer.lr=2e-3 --json plan.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `hcmegatron study plan` takes; settings of the study and its variants are left to `main`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.usage = "hcmegatron study plan FILE [--VARIANT] [--search] [--json FILE] [--study.KEY=VALUE ...]"
    parser.epilog = EXAMPLE
    parser.add_argument(
        "file", metavar="FILE", help=f"YAML, or the name of a packaged study: {', '.join(packaged_studies())}"
    )
    parser.add_argument(
        "--search", action="store_true", help="with the best layout of every shape, which is printed"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write every figure")
    parser.set_defaults(more=[])


def main(options: argparse.Namespace) -> int:
    """The verb; returns its exit status.

    Raises:
        ConfigError: a mistake in the file or an option, or the study takes more than its limits.
    """
    from hcmegatron.studies.plan import plan_study
    from hcmegatron.studies.plan_report import as_json, show_plan
    from hcmegatron.studies.spec import read_study

    try:
        output_files.check([path for path in (options.json,) if path])
    except ValueError as error:
        raise ConfigError(str(error)) from None
    study = read_study(options.file, options.more)
    if options.search:
        from hcmegatron.studies.best_layouts import BestLayouts

        if study.machine.cpu:
            raise ConfigError(
                f"--search: {study.file} is planned for a CPU, whose processes have no layout; leave it out"
            )
        best = BestLayouts(study)
        plan = plan_study(study, best)
    else:
        plan = plan_study(study)
    if options.json:
        try:
            output_files.write([(options.json, json.dumps(as_json(plan), indent=1) + "\n")])
        except ValueError as error:
            raise ConfigError(str(error)) from None
    show_plan(plan)
    if options.search:
        print("\n".join(best.lines()))
    plan.require_within_limits()
    return 0
