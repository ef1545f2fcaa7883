"""hcmegatron study VERB: each verb is a module with `add_arguments` and `main`."""

from __future__ import annotations

import argparse
import importlib

# Module and purpose. A verb whose parser has the default `more` gets there what is no option of its own: settings of
# the study (--study.KEY=VALUE) and its variants (--quick).
VERBS = {
    "plan": ("hcmegatron.studies.plan_cli", "what a study's runs take, before any is started"),
    "run": ("hcmegatron.studies.run_cli", "train its runs on this machine"),
    "launch": ("hcmegatron.studies.launch_cli", "its runs as arrays of SLURM"),
    "status": ("hcmegatron.studies.status", "where each of its runs is"),
    "collect": ("hcmegatron.studies.collect_cli", "its results as a table"),
    "report": ("hcmegatron.studies.report_cli", "figures and tables for papers, and one page of them"),
    "fit": ("hcmegatron.studies.fit_cli", "laws of the loss, with intervals"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `hcmegatron study` takes."""
    verbs = parser.add_subparsers(dest="study_verb", required=True, metavar="VERB")
    for name, (module, words) in VERBS.items():
        own = verbs.add_parser(
            name, help=words, description=f"{words[0].upper()}{words[1:]}.", allow_abbrev=False
        )
        own.set_defaults(parser=own)
        importlib.import_module(module).add_arguments(own)


def main(options: argparse.Namespace) -> int:
    """The verb; returns its exit status.

    Raises:
        ConfigError: a mistake of the user's.
    """
    return importlib.import_module(VERBS[options.study_verb][0]).main(options)
