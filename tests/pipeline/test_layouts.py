"""Our schedules beside other kinds of parallelism, with uneven layers, and against Megatron's own schedules."""

import copy
from itertools import product

import numpy as np
import pytest

from tests.layouts.table import assemble, largest_error
from tests.pipeline import workers
from tests.pipeline.layouts import (
    DISTRIBUTED,
    EARLY,
    LIMIT,
    OVERLAPPED,
    alone,
    named,
    network,
    run,
    wrong,
)

pytestmark = pytest.mark.ranks

EVERYWHERE = ("residual", "dhc", "dfc", "mhc")
KINDS = (*EVERYWHERE, "mhc_lite", "ihc", "gr")
SPLIT = ("zb_h1", "zb_v", "dualpipev")
SCHEDULES = ("gpipe", "1f1b", *SPLIT, "interleaved")


def rows(architecture, micro_batches, variants, **parallel):
    """Every schedule with a kind and a variant in turn, DualPipeV with every kind, and the extremes with every
    variant. Beside data parallelism alone, every schedule with the kinds that differ most."""
    chosen = [(s, KINDS[i % len(KINDS)], variants[i % len(variants)]) for i, s in enumerate(SCHEDULES)]
    if architecture == "dense" or "expert" in parallel:
        chosen += [("dualpipev", kind, variants[i % len(variants)]) for i, kind in enumerate(KINDS)]
    if len(variants) > 1:
        chosen += [(s, "mhc", v) for s in ("zb_v", "1f1b") for v in variants]
    if architecture == "dense" and not parallel:
        every = product(SCHEDULES, EVERYWHERE)
        chosen += [(s, k, variants[i % len(variants)]) for i, (s, k) in enumerate(every)]
    chosen = [row for i, row in enumerate(chosen) if row not in chosen[:i]]
    chosen.sort(key=lambda row: row[0] == "interleaved")  # its process groups are others
    return [
        network(
            architecture,
            kind,
            micro_batches,
            schedule=schedule,
            pipeline=2,
            virtual=2 if schedule == "interleaved" else None,
            **{**parallel, **variant},
        )
        for schedule, kind, variant in chosen
    ]


@pytest.mark.parametrize(
    ("architecture", "variants", "parallel"),
    [
        pytest.param("dense", ({}, DISTRIBUTED, OVERLAPPED, EARLY), {}, id="DP 2 x PP 2"),
        pytest.param("moe", ({}, EARLY), {"expert": 2}, id="EP 2 x PP 2"),
        pytest.param("dense", ({},), {"tensor": 2}, id="TP 2 x PP 2"),
        pytest.param("dense", ({},), {"tensor": 2, "sequence": True}, id="TP 2 + SP x PP 2"),
        pytest.param("moe", ({},), {"tensor": 2, "sequence": True}, id="TP 2 + SP x PP 2, MoE"),
    ],
)
def test_layouts_equal_one_process(architecture, variants, parallel):
    """With an odd number of micro-batches on every data-parallel rank, or twice as many without data parallelism."""
    configs = rows(architecture, 5, variants, **parallel)
    assert wrong(configs, alone(configs), run(4, workers.steps, configs)) == []


@pytest.mark.parametrize(
    ("architecture", "parallel"),
    [
        pytest.param("dense", EARLY, id="DP 2 x PP 2"),
        pytest.param("moe", {"expert": 2, **EARLY}, id="EP 2 x PP 2"),
        pytest.param("moe", {"tensor": 2, "sequence": True}, id="TP 2 + SP x PP 2, MoE"),
    ],
)
def test_overlapped_layouts_equal_one_process(architecture, parallel):
    """Where other communication than the pipeline's comes between the nodes of an FB."""
    configs = [
        network(architecture, kind, 6, schedule=schedule, pipeline=2, overlap=True, **parallel)
        for schedule, kind in (
            ("dualpipev", "mhc"),
            ("dualpipe", "dfc"),
            ("dualpipev", "gr"),
            ("dualpipe", "ihc"),
        )
    ]
    assert wrong(configs, alone(configs), run(4, workers.steps, configs)) == []


def test_a_tied_embedding_at_both_ends_of_one_rank_counts_once():
    """A V over a single rank: the embedding and the head are parameters of two chunks, and the norm takes one."""
    configs = [
        network("dense", "residual", 5, tied=True, schedule=schedule, **variant)
        for schedule in ("zb_v", "dualpipev")
        for variant in ({}, EARLY)
    ]
    assert wrong(configs, alone(configs), run(1, workers.steps, configs)) == []


def test_tied_embeddings_beside_data_parallelism():
    """Where the two ends of a V are on one rank, and where Megatron sums them over two."""
    configs = [
        network("dense", "mhc", 5, tied=True, schedule=schedule, pipeline=2, **variant)
        for schedule, variant in (
            ("dualpipev", {}),
            ("dualpipev", EARLY),
            ("zb_h1", EARLY),
            ("zb_v", OVERLAPPED),
        )
    ]
    assert wrong(configs, alone(configs), run(4, workers.steps, configs)) == []


def test_uneven_layers():
    configs = [
        network(architecture, "mhc", 4, layers, schedule=schedule, pipeline=2)
        for architecture, layers in (("dense", 5), ("moe", 7))
        for schedule in (("gpipe", "zb_h1", "zb_v") if architecture == "moe" else SCHEDULES[:-1])
    ]
    configs += [network("moe", "dhc", 4, 7, schedule="dualpipev", pipeline=2)]
    configs += [network("dense", "dhc", 4, 5, schedule="interleaved", pipeline=2, virtual=2)]
    assert wrong(configs, alone(configs), run(2, workers.steps, configs)) == []


def test_four_ranks():
    """Tied embeddings and uneven layers together: both ends of a V on one rank, or on the first and the last."""
    configs = [
        network("dense", kind, 5, 9, tied=True, schedule=schedule, pipeline=4)
        for kind, schedule in (("mhc", "dualpipev"), ("dfc", "1f1b"), ("dhc", "zb_v"), ("mhc", "dualpipe"))
    ]
    configs += [network("moe", "mhc", 5, 10, schedule="zb_h1", pipeline=4)]
    configs += [network("dense", "dhc", 5, 9, tied=True, schedule="interleaved", pipeline=4, virtual=2)]
    assert wrong(configs, alone(configs), run(4, workers.steps, configs)) == []


def merged(ranks):
    """The outcomes of all ranks as one process's."""
    whole = copy.copy(ranks[0])
    whole.gradients = [part for rank in ranks for part in rank.gradients]
    whole.updated = [part for rank in ranks for part in rank.updated]
    return whole


def test_equal_to_megatrons_schedules():
    """Of its 1F1B ours has every bit: the same operations in the same order."""
    configs = [
        network(architecture, kind, 3, schedule=schedule, pipeline=2)
        for architecture, kind in (
            ("dense", "residual"),
            ("dense", "dfc"),
            ("moe", "mhc"),
            ("moe", "dhc"),
            ("moe", "ihc"),
            ("moe", "gr"),
        )
        for schedule in ("megatron_1f1b", "1f1b", "dualpipev")
    ]
    interleaved = [
        network("moe", "mhc", 3, schedule=schedule, pipeline=2, virtual=2)
        for schedule in ("megatron_interleaved", "interleaved")
    ]
    ranks = run(2, workers.steps, configs + interleaved)
    whole = [merged([rank[index] for rank in ranks]) for index in range(len(configs) + 2)]
    for index in range(0, len(configs), 3):
        megatrons, ours, dualpipev = whole[index : index + 3]
        same_bits(megatrons, ours)
        assert largest_error(megatrons, [dualpipev]) < LIMIT, named(configs)[index]
    assert largest_error(whole[-2], [whole[-1]]) < LIMIT


def test_equal_to_megatrons_1f1b_on_four_ranks():
    configs = [
        network(architecture, kind, 5, schedule=schedule, pipeline=4)
        for architecture, kind in (("dense", "dfc"), ("moe", "mhc"))
        for schedule in ("megatron_1f1b", "1f1b")
    ]
    ranks = run(4, workers.steps, configs)
    whole = [merged([rank[index] for rank in ranks]) for index in range(len(configs))]
    for megatrons, ours in zip(whole[0::2], whole[1::2], strict=True):
        same_bits(megatrons, ours)


def same_bits(one, other):
    assert (one.loss, one.norm) == (other.loss, other.norm)
    for which in ("gradients", "updated"):
        ours, theirs = assemble(getattr(one, which)), assemble(getattr(other, which))
        assert ours.keys() == theirs.keys()
        different = [place for place, value in ours.items() if not np.array_equal(value, theirs[place])]
        assert different == []


def test_lengths_may_differ_between_micro_batches():
    lengths = [16, 5, 9, 16, 1, 12, 3]
    configs = [
        network("dense", kind, 7, schedule=schedule, pipeline=2)
        for kind, schedule in (("mhc", "dualpipev"), ("dhc", "zb_h1"), ("mhc", "1f1b"))
    ]
    single = [network("dense", kind, 7, schedule="1f1b") for kind in ("mhc", "dhc", "mhc")]
    references = run(1, workers.lengths, single, lengths)[0]
    for reference in references:
        gradients = [value for *_, value in reference.gradients]
        reference.norm = float(np.sqrt(sum((value.astype(float) ** 2).sum() for value in gradients)))
    ranks = run(2, workers.lengths, configs, lengths)
    for rank in ranks:
        for reference, outcome in zip(references, rank, strict=True):
            outcome.norm = reference.norm
    assert wrong(configs, references, ranks) == []


def evaluated(architecture, micro_batches, layers=4, **parallel):
    """A network for evaluations; dropout where it changes no routing, which evaluation must not apply or draw."""
    config = network(architecture, "mhc", micro_batches, layers, **parallel)
    if architecture == "dense":
        config.model.hidden_dropout = config.model.attention_dropout = 0.2
    return config


@pytest.mark.parametrize(
    ("ranks", "layouts"),
    [
        (2, [{"schedule": s, "pipeline": 2} for s in ("megatron_1f1b", *SCHEDULES) if s != "interleaved"]),
        (2, [{"schedule": "dualpipe", "pipeline": 2}]),
        (2, [{"schedule": s, "pipeline": 2, "virtual": 2} for s in ("interleaved", "megatron_interleaved")]),
        (4, [{"schedule": s, "pipeline": 4} for s in ("dualpipe", "1f1b")]),
        (4, [{"schedule": "megatron_interleaved", "pipeline": 2, "virtual": 2}]),
        (4, [{"schedule": "dualpipe", "pipeline": 2}]),
    ],
    ids=["2 ranks", "dualpipe", "interleaved", "4 ranks", "DP 2, interleaved", "DP 2, dualpipe"],
)
def test_evaluation_is_the_same_under_every_schedule(ranks, layouts, evaluated_alone):
    """For any number of micro-batches: fewer than ranks, odd, more than a group of the evaluation's schedule."""
    counts = [1, 2, 3, 9]
    configs = [evaluated(a, 4, **layout) for a in ("dense", "moe") for layout in layouts]
    for rank in run(ranks, workers.evaluations, configs, counts):
        for config, losses in zip(configs, rank, strict=True):
            data_parallel = ranks // config.parallel.pipeline
            of = evaluated_alone["moe" if config.moe.experts else "dense"]
            expected = [of[count * data_parallel] for count in counts]
            assert losses == pytest.approx(expected, rel=1e-6), config.parallel.schedule


@pytest.fixture(scope="module")
def evaluated_alone():
    """Per architecture and number of micro-batches, the loss of one process."""
    counts = [1, 2, 3, 4, 6, 9, 18]
    losses = run(1, workers.evaluations, [evaluated(a, 4) for a in ("dense", "moe")], counts)[0]
    assert all(of == sorted(of) and of[0] > 1 for of in losses)
    return {a: dict(zip(counts, of, strict=True)) for a, of in zip(("dense", "moe"), losses, strict=True)}
