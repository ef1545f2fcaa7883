"""The variants: configurations by name. No torch.

Sizes are as small as they can be without losing a kind of node, message or chunk: what is checked is the order of
operations, which does not depend on them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from hcmegatron.config.schema import Config
from tests.fuzz.cases import fits, put

KINDS = ("mhc", "dhc", "dfc", "shc", "sfc", "residual", "ihc", "gr")
MODES = ("none", "block", "full")
ONE_WAY = ("gpipe", "1f1b", "interleaved", "zb_h1", "zb_v")
BOTH_WAYS = ("dualpipev", "dualpipe")  # which can overlap
SMALL = {
    "model.hidden_size": 32,
    "model.heads": 2,
    "model.ffn_hidden_size": 32,
    "data.sequence_length": 16,
    "training.micro_batch": 2,
    "training.dtype": "bf16",
    "training.threads": 1,
    "connection.sinkhorn_iterations": 2,
    "kernels": "torch",
}
EXPERTS = {
    "moe.experts": 4,
    "moe.ffn_hidden_size": 32,
    "moe.shared_experts": 1,
    "moe.first_dense": 1,
}


@dataclass(frozen=True)
class Variant:
    """A configuration and how much of it is looked at.

    Attributes:
        settings: by dotted key, over SMALL.
        ranks: processes.
        microbatches: of a data-parallel rank.
        steps: that are looked at, after one that is not.
        small_buckets: gradients and parameters travel in several pieces.
        evaluates: a forward-only pass is looked at too, and weights are read as for a checkpoint.
        moved: every layer begins on the high-priority lane, as none does today.
    """

    name: str
    settings: dict[str, Any] = field(hash=False)
    ranks: int
    microbatches: int
    steps: int = 1
    small_buckets: bool = False
    evaluates: bool = False
    moved: bool = False

    @property
    def interpreted(self) -> bool:
        return self.settings.get("kernels") == "triton"

    def config(self) -> Config:
        """ConfigError where it does not fit together."""
        config = Config()
        for key, value in (SMALL | self.settings).items():
            put(config, key, value)
        parallel = config.parallel
        data_parallel = self.ranks // (parallel.pipeline * parallel.tensor)
        config.training.global_batch = config.training.micro_batch * self.microbatches * data_parallel
        fits(config, self.ranks)
        return config


def variant(
    schedule: str,
    pipeline: int = 1,
    *,
    kind: str = "mhc",
    mode: str = "none",
    experts: bool = False,
    overlap: bool = False,
    spread: int = 1,
    words: tuple[str, ...] = (),
    steps: int = 1,
    small_buckets: bool = False,
    evaluates: bool = False,
    moved: bool = False,
    **settings: Any,
) -> Variant:
    """spread: ranks for each of the pipeline's. words: more of the name. settings: with __ for the dot."""
    stages = {"interleaved": 2, "zb_v": 2, "dualpipev": 2}.get(schedule, 1) * pipeline
    changed: dict[str, Any] = {
        "model.layers": 2 * stages if pipeline == 1 or stages == pipeline == 2 else stages,
        "connection.kind": kind,
        "recompute.mode": mode,
        "parallel.schedule": schedule,
        "parallel.pipeline": pipeline,
        "parallel.overlap": overlap,
        "parallel.virtual": 2 if schedule == "interleaved" else None,
    }
    if experts:
        changed |= EXPERTS
    changed |= {key.replace("__", "."): value for key, value in settings.items()}
    parts = (schedule, f"p{pipeline}", *(("overlap",) if overlap else ()), *words, kind, mode)
    name = "-".join((*parts, "moe" if experts else "dense"))
    microbatches = max(2 * pipeline, 3) if schedule in BOTH_WAYS else pipeline + 2
    return Variant(name, changed, pipeline * spread, microbatches, steps, small_buckets, evaluates, moved)


@cache
def variants() -> dict[str, Variant]:
    """By name, the smaller ones first."""
    found = sorted(_all(), key=lambda each: each.ranks)
    by_name = {each.name: each for each in found}
    assert len(by_name) == len(found), "two variants of one name"
    return by_name


def _all() -> Iterator[Variant]:
    yield from _schedules()
    yield from _kinds()
    yield from _tensor_and_expert_parallel()
    yield from _overlapped_data_parallel()
    yield from _others()
    yield from _kernels()


def _schedules() -> Iterator[Variant]:
    """Every schedule, on every number of ranks that it runs on, with every way to recompute, dense and with experts;
    kinds of connections take turns."""
    turn = 0
    for schedule in (*ONE_WAY, *BOTH_WAYS):
        for pipeline in (1, 2, 4):
            if pipeline == 1 and schedule in ("dualpipe", "interleaved"):
                continue
            for overlap in (False, True) if schedule in BOTH_WAYS else (False,):
                for mode in MODES:
                    for experts in (False, True):
                        if pipeline == 1 and overlap:
                            continue  # _kinds has them
                        kind = KINDS[(turn + turn // len(KINDS)) % len(KINDS)]
                        turn += 1
                        if kind == "residual" and mode == "block":
                            kind = "mhc"  # a residual has nothing to rebuild
                        yield variant(
                            schedule, pipeline, kind=kind, mode=mode, experts=experts, overlap=overlap
                        )


def _kinds() -> Iterator[Variant]:
    """Every kind, both chunks of a V on one rank, overlapped."""
    for kind in KINDS:
        for mode in MODES if kind != "residual" else ("none", "full"):
            for experts in (False, True):
                yield variant("dualpipev", kind=kind, mode=mode, experts=experts, overlap=True)


def _tensor_and_expert_parallel() -> Iterator[Variant]:
    tensor = {"parallel__tensor": 2}
    sequence = tensor | {"parallel__sequence": True}
    expert = {"parallel__expert": 2}
    for mode in MODES:
        for words, split, experts in (
            ("tp2", tensor, False),
            ("sp2", sequence, False),
            ("sp2", sequence, True),
            ("ep2", expert, True),
        ):
            more = {"words": (words,), "spread": 2, "mode": mode, "experts": experts, **split}
            yield variant("dualpipev", overlap=True, **more)
            yield variant("1f1b", 2, kind="dhc", **more)
    for schedule in ("dualpipev", "dualpipe"):
        for words, split in (("sp2", sequence), ("ep2", expert)):
            more = {"words": (words,), "spread": 2, "experts": True, "overlap": True, **split}
            yield variant(schedule, 2, **more)
    for schedule in ("zb_h1", "zb_v"):
        yield variant(schedule, 2, words=("sp2",), spread=2, experts=True, kind="dfc", **sequence)
        yield variant(schedule, 2, words=("ep2",), spread=2, experts=True, kind="mhc", **expert)
    both = sequence | expert | {"parallel__expert_tensor": 1}
    yield variant("dualpipev", words=("sp2", "ep2"), spread=2, experts=True, overlap=True, **both)


def _overlapped_data_parallel() -> Iterator[Variant]:
    """The distributed optimizer, its gradients reduced and its parameters gathered beside computation."""
    overlapped = {
        "parallel__distributed_optimizer": True,
        "parallel__overlap_grad_reduce": True,
        "parallel__overlap_param_gather": True,
        "steps": 2,
        "small_buckets": True,
        "evaluates": True,
        "words": ("dp2",),
        "spread": 2,
    }
    for mode in MODES:
        for experts in (False, True):
            yield variant("dualpipev", mode=mode, experts=experts, overlap=True, **overlapped)
    for schedule, overlap in (("1f1b", False), ("zb_v", False), ("dualpipev", True), ("dualpipe", True)):
        yield variant(schedule, 2, experts=True, overlap=overlap, mode="block", **overlapped)
    yield variant(
        "dualpipev",
        overlap=True,
        experts=True,
        **overlapped | {"words": ("dp2", "post"), "model__norm_position": "post", "kind": "dhc"},
    )


def _others() -> Iterator[Variant]:
    """What else changes nodes, and what they leave behind."""
    dropout = {"model__hidden_dropout": 0.1, "model__attention_dropout": 0.1}
    for words, settings in (
        ("dropout", dropout),
        ("post", {"model__norm_position": "post"}),
        ("mla", {"model__attention": "mla"}),
        ("unshared", {"moe__shared_experts": 0, "moe__first_dense": 0}),
        ("loops", {"moe__grouped": False}),
        ("losses", {"moe__aux_loss": 0.01, "moe__z_loss": 0.001}),
        ("tied", {"model__tie_embeddings": True}),
        ("fp32", {"training__dtype": "fp32"}),
    ):
        for mode in MODES if words == "dropout" else ("none", "block"):
            yield variant(
                "dualpipev", overlap=True, experts=True, words=(words,), mode=mode, kind="dhc", **settings
            )
    yield variant("dualpipev", 2, overlap=True, experts=True, words=("dropout",), mode="block", **dropout)
    yield variant("zb_v", 2, experts=True, words=("allgather",), moe__dispatcher="allgather")
    for words, fixed in (("post_fixed", ("post",)), ("fixed", ("pre", "post", "res"))):
        settings = {f"connection__use_{name}": False for name in fixed}
        yield variant("dualpipev", overlap=True, experts=True, words=(words,), mode="block", **settings)
    for length in ("1", "4"):  # sub-layers that are rebuilt together, on the lane of the first that asks
        long = {"mode": "block", "experts": True, "recompute__block_length": length}
        for kind in ("mhc", "dhc"):
            yield variant("dualpipev", overlap=True, kind=kind, words=(f"by{length}",), **long)
            words = (f"by{length}", "dropout")
            yield variant("dualpipev", overlap=True, kind=kind, words=words, **long, **dropout)
        yield variant("dualpipev", 2, overlap=True, words=(f"by{length}",), **long, model__layers=8)
    for pipeline in (1, 2):
        for experts in (False, True):
            yield variant("dualpipev", pipeline, overlap=True, experts=experts, words=("moved",), moved=True)
    for modules in (["core_attn"], ["mlp"], ["shared_experts"]):
        yield variant(
            "dualpipev",
            overlap=True,
            experts=True,
            mode="selective",
            words=tuple(modules),
            recompute__modules=modules,
        )
    for schedule, overlap in (("1f1b", False), ("dualpipe", True), ("dualpipev", True)):
        yield variant(schedule, 2, overlap=overlap, experts=True, words=("evaluation",), evaluates=True)


def _kernels() -> Iterator[Variant]:
    """The Triton kernels, in its interpreter."""
    little = {
        "kernels": "triton",
        "data__sequence_length": 4,
        "training__micro_batch": 1,
        "model__layers": 2,
        "training__dtype": "fp32",
        "words": ("triton",),
    }
    for mode in ("none", "block"):
        yield variant("dualpipev", overlap=True, experts=True, mode=mode, **little)
    short = little | {"words": ("triton", "short"), "recompute__block_length": "1"}
    yield variant("dualpipev", overlap=True, experts=True, mode="block", **short)
    yield variant("1f1b", 2, mode="block", **little)
