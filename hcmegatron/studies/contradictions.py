"""What a study's keys say against one another. Each is refused in one line, before any run is worked out."""

from __future__ import annotations

from hcmegatron.studies.axes import BUDGETS
from hcmegatron.studies.study import Study
from hcmegatron.studies.tree import Entry

# Settings that a study gives to its runs by itself.
OWN = {
    "run.dir": "every run has its own directory below run_dir",
    "checkpoint.load": "a branch starts from its trunk's checkpoint",
    "checkpoint.resume": "a run that was interrupted goes on by itself",
}


def check_study(study: Study) -> None:
    """ConfigError where two keys contradict each other, or one has no effect."""
    written = _written(study)
    for key, why in OWN.items():
        if key in written:
            raise written[key].error(f"is the study's own: {why}; leave it out")
    _budget(study, written)
    _replaced(study, written)
    _baseline(study)
    _pairing(study)


def _written(study: Study) -> dict[str, Entry]:
    """Where each setting is given: in `settings`, or by one axis."""
    found = {key: study.sources[f"settings.{key}"] for key in study.settings}
    for axis in study.axes:
        of_axis = {key: point.entry for point in axis.points for key in point.settings}
        for key, entry in of_axis.items():
            if key in found:
                raise found[key].error(f"and axes.{axis.name} both set {key}; leave it out of one of them")
            found[key] = entry
    return found


def _budget(study: Study, written: dict[str, Entry]) -> None:
    given = [axis for axis in study.axes if axis.name in BUDGETS]
    if len(given) > 1:
        raise (
            given[1]
            .points[0]
            .entry.error(
                f"and axes.{given[0].name} both say how long runs are; keep one of {', '.join(BUDGETS)}"
            )
        )
    if given and "training.steps" in written:
        raise written["training.steps"].error(
            f"gives training.steps, and axes.{given[0].name} says how long runs are; leave one of them out"
        )


def _replaced(study: Study, written: dict[str, Entry]) -> None:
    """What a section works out and another key gives."""
    for section, key in (
        ("learning_rate", "optimizer.lr"),
        ("batch", "training.global_batch"),
        ("decay", "optimizer.decay_steps"),
        ("decay", "checkpoint.keep_at"),
    ):
        if getattr(study, section) is not None and key in written:
            raise written[key].error(f"gives {key}, which {section} works out; leave one of them out")
    for key in ("health.diverged_after", "training.max_bad_steps"):
        if study.stop.diverged_steps and key in written:
            raise written[key].error(f"gives {key}, and so does stop.diverged_steps; leave one of them out")
    for name in ("learning_rate", "batch"):
        section = getattr(study, name)
        if section is not None and not section.rule:
            raise study.error(
                f"{name}.multiple_of", f"has no effect, for {name} names no rule; give {name}.rule"
            )
    if study.match is not None and study.axis(study.match.adjust):
        raise (
            study.axis(study.match.adjust)
            .points[0]
            .entry.error(  # type: ignore[union-attr]
                f"is an axis of {study.match.adjust}, which match adjusts; leave one of them out"
            )
        )


def _baseline(study: Study) -> None:
    baseline, kinds = study.report.baseline, study.axis("kind")
    if baseline is not None:
        there = [point.label for point in kinds.points] if kinds else []
        if baseline not in there:
            what = f"axes.kind has {', '.join(there)}" if there else "the study has no axis kind"
            raise study.error("report.baseline", f"is none of the study's kinds: {what}; name one of them")
        return
    for key, asked in (
        ("match", study.match is not None),
        ("pairing.of", study.pairing.of == "baseline"),
    ):
        if asked:
            raise study.error(key, "needs a baseline; name a point of axes.kind as report.baseline")


def _pairing(study: Study) -> None:
    budget = study.budget
    if (budget is None or budget.name != "tokens_per_parameter") and (
        given := [key for key in study.sources if key.startswith("pairing.")]
    ):
        raise study.error(given[0], "has no effect without axes.tokens_per_parameter; leave it out")
