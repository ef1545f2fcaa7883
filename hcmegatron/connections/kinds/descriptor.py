"""What there is to know of a kind of connection without building it. Imports no torch.

Letters: C hidden size; n the streams of HC and mHC, or the fractions (m in the paper) of FC.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

Role = Literal["static", "projection", "scale", "gate", "norm"]
OptimizerRole = Literal["matrix", "adamw"]
DECAYED: tuple[Role, ...] = ("projection", "scale")
Shown = Callable[[str], str]  # a setting's dotted key -> "key = value", with its place where that is known


class Settings(Protocol):
    """A run's `connection` section (config.schema.Connection), or its like: `kind`, and the fields of every kind's own
    `settings`, each of which is a dataclass of those that the kind reads."""

    kind: str


@dataclass(frozen=True)
class Parameter:
    """A parameter of a connection or of a head: whole on every tensor-parallel rank, fp32 whatever the streams are.

    Attributes:
        role: `projection` predicts coefficients from the streams, `scale` multiplies what HC's and FC's predict,
            `gate` what mHC's predicts, `static` is a coefficient or its bias, `norm` a norm's weight.
        optimizer_role: where optimizer.name is muon, Muon updates a `matrix` (two axes), AdamW the rest.
    """

    shape: tuple[int, ...]
    role: Role
    optimizer_role: OptimizerRole = "adamw"

    def __post_init__(self) -> None:
        if self.optimizer_role == "matrix" and len(self.shape) != 2:
            raise ValueError(
                f"a parameter of shape {self.shape} is no matrix; give it optimizer_role 'adamw'"
            )

    @property
    def count(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)

    @property
    def decays(self) -> bool:
        """Whether it takes weight decay.

        HC and FC as their papers say: static parts none, dynamic parts (projections and their scales) yes. mHC prints
        nothing; chosen here: the projection phi yes, gates and biases no, because decay would pull the biases, which
        hold the network near the identity, towards a uniform mixture. Norm weights none.
        """
        return self.role in DECAYED


Parameters = Mapping[str, Parameter]  # by attribute of the module


class Range(NamedTuple):
    """Values that a setting may have: in words, after "it must be", and as a test."""

    words: str
    test: Callable[[Any], bool]


AT_LEAST_1 = Range("at least 1", lambda v: v >= 1)
NOT_NEGATIVE = Range("0 or more", lambda v: v >= 0)
POSITIVE = Range("above 0", lambda v: v > 0)

Change = Literal["architecture", "applied", "beginning"]


def setting(
    default: Any,
    range: Range | None = None,
    *,
    tries: tuple[Any, ...] = (),
    change: Change = "architecture",
    elsewhere: str | None = None,
) -> Any:
    """A field of a kind's settings.

    Args:
        range: of a number; fields with a fixed set of values need none.
        tries: values for tests to try, the simplest first; the default and another one. Of a fixed set all are tried.
        change: what happens where a checkpoint was written with another value: it is of another `architecture`, the
            new value is `applied`, or it only says how a run begins (`beginning`).
        elsewhere: of what a run's other parts read, and not the connection's module: what does the same outside a run.
    """
    metadata = {"range": range, "tries": tries, "change": change, "elsewhere": elsewhere}
    return dataclasses.field(default=default, metadata=metadata)


def _nothing_ineffective(conn: Any) -> dict[str, str]:
    return {}


def _no_problem(conn: Any, C: int, shown: Shown) -> None:
    return None


def _no_activations(conn: Any, own: Any, pre: Any, post: Any, res: Any) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class ConnectionDescriptor:
    """A kind of connection. `conn` is an instance of its settings, C the hidden size.

    Attributes:
        name: what connection.kind calls it.
        title: name and source.
        settings: dataclass of the fields of the `connection` section that it reads, with defaults.
        module: where its connections.connection.Connection is, as "package.module:Class".
        parameters: of one sub-layer's connection, exactly those that the module has.
        flops: forward FLOPs per token of one connection, a multiply-add counted as two. Counted: reading, mixing,
            writing, and the products that predict coefficients. Not counted, as in the papers' 2 x parameters for a
            model: norms, activations and Sinkhorn's iterations (about 4 n^2 each, no C).
        saved_bytes: bytes a token that backward holds of one connection without recomputation, for streams of
            `itemsize` bytes a number; the read and the sub-layer's output are not counted.
        streams: width of the stream between sub-layers and between pipeline stages, in units of C.
        single_pass: whether a sub-layer reads with the pre that the one before it predicted: n numbers in fp32 that go
            beside the streams, through messages too, and contract them in the end.
        carry: what the streams are multiplied with on their way past a sub-layer: a `matrix`, or the `identity`.
        normalises: whether the read is T's normed input, so that a pre-norm network has no norm of its own there.
        kernels: whether the module takes fused kernels (`kernels: auto | torch | triton | native`).
        passes: how often its read goes through the streams: once to mix them, and before that once where their
            coefficients are predicted from them. 0: there is nothing to read or to mix, and the write is a sum.
        products: columns that the streams [tokens, nC] are multiplied to, or made of, in matrix products of their own,
            for kinds whose products are no part of a pass; the backward has each twice.
        folds: whether a sub-layer's fused write makes the next one's prediction, which then needs no pass of its own.
        starts: at initialisation the network equals the pre-norm one to rounding (`at`, with the mean of the streams),
            or is `near` it.
        as_residual: values of sub-layer k's parameters, by name and as nested lists, in place of their initialisation,
            with which equal streams stay equal and x is one of them, so that a residual network's weights compute what
            they did, while gradients of the streams differ. None: the initialisation is so, where it `starts` at it.
            ValueError, in words, where settings leave no such values.
        output_init_divisor: by how much the init of output projections is divided, beside GPT-2's sqrt(2 x layers).
        doubly_stochastic: whether rows and columns of the residual map sum to 1, as far as its iterations bring them.
        sinkhorn: whether the residual map is made by Sinkhorn's iterations, as the settings are.
        activations: of the module `own` and the coefficients that it read, what came out of saturating functions, from
            -1 to 1: tanh(l) of a logit l, and of a sigmoid's tanh(l / 2). By coefficient; empty where nothing is.
        ineffective: of its own fields those that have no effect beside its others -> why, in words.
        problem: why it cannot be built at hidden size C, and a remedy, beyond the ranges of its fields.
        paper_flops: what the paper prints for `flops`, where it prints a formula that can be evaluated.
        paper_overhead: what the paper prints for the share that it adds to the step of a residual, of its own model.
    """

    name: str
    title: str
    settings: type
    module: str
    parameters: Callable[[Any, int], Parameters]
    flops: Callable[[Any, int], int]
    saved_bytes: Callable[[Any, int, int], int]
    streams: Callable[[Any], int] = lambda conn: 1
    single_pass: Callable[[Any], bool] = lambda conn: False
    carry: Literal["matrix", "identity"] = "matrix"
    normalises: bool = False
    kernels: bool = True
    passes: int = 2
    products: Callable[[Any, int], int] = lambda conn, C: 0
    folds: bool = False
    starts: Literal["at", "near"] = "at"
    as_residual: Callable[[Any, int], Mapping[str, Any]] | None = None
    output_init_divisor: Callable[[Any], float] = lambda conn: 1.0
    doubly_stochastic: Callable[[Any], bool] = lambda conn: False
    sinkhorn: Callable[[Any], bool] = lambda conn: False
    activations: Callable[[Any, Any, Any, Any, Any], dict[str, Any]] = _no_activations
    ineffective: Callable[[Any], dict[str, str]] = _nothing_ineffective
    problem: Callable[[Any, int, Shown], tuple[str, str] | None] = _no_problem
    paper_flops: Callable[[Any, int], int | None] = lambda conn, C: None
    paper_overhead: Callable[[Any], float | None] = lambda conn: None

    @property
    def continues_residual(self) -> bool:
        """Whether it can begin as the residual network whose weights it is given. A read that is normed replaces
        weights of that network."""
        return not self.normalises and (self.starts == "at" or self.as_residual is not None)

    @property
    def fields(self) -> frozenset[str]:
        """Names of the settings that it reads."""
        return names(self.settings)


@dataclass(frozen=True)
class Head:
    """How the streams become one before the final norm. `conn` has the fields of `settings`, n is the streams' number.

    Attributes:
        name: what connection.contract calls it.
        module: "package.module:Class", built with (conn, n, hidden_size, *, norm_eps, dtype, device).
        parameters, flops: once per network, given (n, C).
        settings: dataclass of the fields of the `connection` section that it reads.
    """

    name: str
    module: str
    parameters: Callable[[int, int], Parameters] = lambda n, C: {}
    flops: Callable[[int, int], int] = lambda n, C: (n - 1) * C
    settings: type | None = None

    @property
    def fields(self) -> frozenset[str]:
        """Names of the settings that it reads."""
        return names(self.settings) if self.settings else frozenset()


def names(settings: type) -> frozenset[str]:
    """Of a dataclass's fields."""
    return frozenset(field.name for field in dataclasses.fields(settings))


def together(settings: Iterable[type]) -> dict[str, tuple[Any, dataclasses.Field[Any]]]:
    """Every field of several dataclasses -> its type and definition; shared ones once.

    Raises:
        ValueError: a name that means different things to two of them.
    """
    found: dict[str, tuple[Any, dataclasses.Field[Any]]] = {}
    for cls in settings:
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            known = found.setdefault(field.name, (hints[field.name], field))
            if known[0] != hints[field.name] or known[1] is not field:
                raise ValueError(
                    f"{field.name} is defined twice, the second time in {cls.__name__}: kinds that share a setting "
                    "inherit it from one class"
                )
    return found
