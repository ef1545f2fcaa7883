"""Every layout gives the loss, gradients and updated parameters of one process; planted faults do not."""

from itertools import product

import pytest

from tests.layouts import table
from tests.small_configs import small

pytestmark = pytest.mark.ranks

LIMIT = 1e-5


@pytest.fixture(scope="module")
def references():
    places = [(architecture, kind) for architecture in table.ARCHITECTURES for kind in table.KINDS]
    return dict(zip(places, table.alone([small(*place) for place in places]), strict=True))


# A row each: they share mHC's module, or its write. `python -m tests.layouts.table` has every kind in every row.
IN_TURN = ("ihc", "gr", "mhc_lite", "krom")
ALWAYS = tuple(kind for kind in table.KINDS if kind not in IN_TURN)


@pytest.mark.parametrize(
    ("row", "kinds"),
    [(row, (*ALWAYS, IN_TURN[i % len(IN_TURN)])) for i, row in enumerate(table.ROWS)],
    ids=table.ROWS,
)
def test_layout(row, kinds, references):
    found = table.cells(row, references, small, kinds)
    there = [architecture for architecture in table.ARCHITECTURES if (row, architecture) not in table.MISSING]
    assert set(found) == set(product(there, kinds))
    assert {place: error for place, error in found.items() if error > LIMIT} == {}


def tied(config):
    config.model.tie_embeddings = True


def documents(config):
    config.model.document_mask = True


def post_norm(config):
    config.model.norm_position, config.model.norm = "post", "layernorm"


def plain_norms(config):
    config.model.norm, config.model.tie_embeddings = "layernorm_plain", True


def across_heads(config):
    config.model.qk_norm, config.model.qk_norm_across_heads = False, True


def load_balanced(config):
    """OLMoE's router, and one dispatch by all-gather."""
    config.moe.router, config.moe.aux_loss, config.moe.sequence_aux_loss = "softmax", 1e-2, 0.0
    config.moe.dispatcher = "allgather"


def latent(config):
    """MLA in a dense model, which may be split over tensor ranks without sequence parallelism."""
    config.model.attention, config.model.head_dim, config.model.query_groups = "mla", 8, None
    config.mla.kv_rank, config.mla.q_rank, config.mla.rope_dim = 12, 20, 4


def learned_contraction(config):
    config.connection.contract = "head"


# name -> architecture, connection, changes, rows
VARIANTS = {
    "tied embeddings": ("dense", "mhc", tied, ("TP 2 + SP", "PP 2", "TP 2 x PP 2")),
    "document masks": ("dense", "dhc", documents, ("TP 2 + SP", "PP 2 x VPP 2")),
    "norm after, LayerNorm": ("dense", "dfc", post_norm, ("TP 2 + SP",)),
    "norms without parameters": ("dense", "shc", plain_norms, ("TP 2 + SP x PP 2",)),
    "norm across heads": ("dense", "residual", across_heads, ("TP 2", "TP 2 + SP")),
    "softmax router, auxiliary loss, all-gather": ("moe", "shc", load_balanced, ("EP 2", "EP 2 x TP 2 + SP")),
    "dense MLA": ("dense", "sfc", latent, ("TP 2", "TP 2 + SP")),
    "learned contraction": ("dense", "mhc", learned_contraction, ("TP 2 + SP", "PP 2")),
}


def changed(variant, **parallel):
    architecture, kind, change, _ = VARIANTS[variant]
    config = small(architecture, kind, **parallel)
    change(config)
    return config


@pytest.fixture(scope="module")
def variants():
    return dict(zip(VARIANTS, table.alone([changed(variant) for variant in VARIANTS]), strict=True))


@pytest.mark.parametrize("row", sorted({row for *_, rows in VARIANTS.values() for row in rows}))
def test_variants(row, variants):
    names = [name for name, (*_, rows) in VARIANTS.items() if row in rows]
    world_size, parallel = table.ROWS[row]
    ranks = table.run(world_size, [changed(name, **parallel) for name in names])
    errors = {
        name: table.largest_error(variants[name], [rank[index] for rank in ranks])
        for index, name in enumerate(names)
    }
    assert {name: error for name, error in errors.items() if error > LIMIT} == {}


# Every term of the loss on its own, large enough to show: what is set beside the loss of the tokens.
TERMS = {
    "z-loss": {"z_loss": 0.1},
    "auxiliary loss per sequence": {"sequence_aux_loss": 0.3},
    "auxiliary loss": {"aux_loss": 0.3},
    "expert bias": {"expert_bias_rate": 0.01},
}
DOCUMENTS = "documents"  # and attention that does not leave them


def with_term(term, micro_batch, **parallel):
    """Eight sequences in micro-batches of so many, with one term of the loss."""
    config = small("moe", "mhc")
    config.training.global_batch, config.training.micro_batch = 8, micro_batch
    none = {"z_loss": 0.0, "sequence_aux_loss": 0.0, "aux_loss": 0.0, "expert_bias_rate": 1e-6}
    for key, value in (none | TERMS.get(term, {})).items():
        setattr(config.moe, key, value)
    config.model.document_mask = term == DOCUMENTS
    for key, value in parallel.items():
        setattr(config.parallel, key, value)
    return config


@pytest.fixture(scope="module")
def one_sequence_each():
    """Per term, the step of one process with micro-batches of one sequence."""
    names = [None, *TERMS, DOCUMENTS]
    return dict(zip(names, table.alone([with_term(name, 1) for name in names]), strict=True))


@pytest.fixture(scope="module")
def balanced_per_micro_batch():
    """The one term that depends on the micro-batch by its definition, by size of the micro-batch."""
    sizes = (1, 2, 4)
    return dict(zip(sizes, table.alone([with_term("auxiliary loss", b) for b in sizes]), strict=True))


# ranks, settings of `parallel`, sizes of micro-batches
SPLITS = {
    "one process": (1, {}, (2, 4)),
    "PP 2": (2, {"pipeline": 2, "schedule": "zb_h1"}, (2, 4)),
    "DualPipe": (2, {"pipeline": 2, "schedule": "dualpipe"}, (1, 2)),
    "DP 2": (2, table.DATA_PARALLEL, (2, 4)),
    "TP 2 + SP": (2, {"tensor": 2, "sequence": True}, (2,)),
    "EP 2": (2, {"expert": 2}, (2,)),
}


@pytest.mark.parametrize("split", SPLITS)
def test_no_term_depends_on_how_the_batch_is_split(split, one_sequence_each, balanced_per_micro_batch):
    """Size and number of micro-batches, layout and schedule change neither the loss nor a gradient, an update or an
    expert's bias. The auxiliary loss per micro-batch has the same value wherever the micro-batches are the same."""
    ranks, parallel, sizes = SPLITS[split]
    places = [(term, b) for term in (*TERMS, DOCUMENTS) for b in sizes]
    outcomes = table.run(ranks, [with_term(*place, **parallel) for place in places])
    errors = {}
    for index, (term, b) in enumerate(places):
        reference = balanced_per_micro_batch[b] if term == "auxiliary loss" else one_sequence_each[term]
        errors[term, b] = table.largest_error(reference, [rank[index] for rank in outcomes])
    assert {place: error for place, error in errors.items() if error > LIMIT} == {}


def test_every_term_shows(one_sequence_each, balanced_per_micro_batch):
    """A term that changed nothing would be invariant too. With micro-batches of one sequence, both auxiliary losses are
    the same."""
    plain = one_sequence_each[None]
    for term in (*TERMS, DOCUMENTS):
        assert table.largest_error(plain, [one_sequence_each[term]]) > 100 * LIMIT, term
    per_sequence = one_sequence_each["auxiliary loss per sequence"]
    assert table.largest_error(per_sequence, [balanced_per_micro_batch[1]]) < LIMIT
    assert table.largest_error(per_sequence, [balanced_per_micro_batch[4]]) > 100 * LIMIT


@pytest.mark.parametrize("row", ["TP 2 + SP", "DP 2, distributed optimizer, overlapped"])
def test_bf16_weights_beside_fp32_connections(row):
    """Mixed dtypes meet where sequence-parallel gradients are flattened and where buffers are sharded."""
    world_size, parallel = table.ROWS[row]
    # dense: rounding can send a token to another expert, which no tolerance describes
    reference, layout = small("dense", "mhc"), small("dense", "mhc", **parallel)
    reference.training.dtype = layout.training.dtype = "bf16"
    (expected,) = table.alone([reference])
    ranks = [rank[0] for rank in table.run(world_size, [layout])]
    for outcome in (expected, *ranks):
        assert {dtype for name, dtype in outcome.dtypes.items() if "_connection." in name} == {
            "torch.float32"
        }
        assert {dtype for name, dtype in outcome.dtypes.items() if "linear" in name} == {"torch.bfloat16"}
    # a unit in the last place of bf16 is 2^-8 of a value
    assert table.largest_error(expected, ranks) < 2**-6


# fault -> row, architecture, connection, tied embeddings
FAULTS = {
    "unmarked_for_sequence_parallel": ("TP 2 + SP", "moe", "mhc", False),
    "norms_unmarked": ("TP 2 + SP", "moe", "residual", False),
    "split_weights_unmarked": ("TP 2 + SP", "dense", "residual", False),
    "experts_taken_for_replicated": ("TP 2 + SP", "moe", "residual", False),
    "connections_in_bf16": ("PP 2", "dense", "dhc", False),
    "decay_by_dimension": ("PP 2", "dense", "dhc", False),
    "tied_embedding_not_summed": ("PP 2", "dense", "residual", True),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_caught(fault):
    row, architecture, kind, is_tied = FAULTS[fault]
    world_size, parallel = table.ROWS[row]
    reference, layout = small(architecture, kind), small(architecture, kind, **parallel)
    reference.model.tie_embeddings = layout.model.tie_embeddings = is_tied
    (expected,) = table.alone([reference])
    faultless = table.largest_error(expected, [rank[0] for rank in table.run(world_size, [layout])])
    faulty = table.largest_error(expected, [rank[0] for rank in table.run(world_size, [layout], fault)])
    assert faultless < LIMIT < faulty / 10
