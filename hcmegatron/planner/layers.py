"""What the network is made of: every matrix and every norm, by checkpoint key and whole shape. Imports no torch.

Counts, FLOPs, memory and initialisation read these lists; a test compares them with built models. Another attention or
another feed-forward part is a function here, beside its module and its spec (hcmegatron/model).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

from hcmegatron.config.schema import Config, Model
from hcmegatron.connections import accounting
from hcmegatron.connections.kinds.descriptor import OptimizerRole


class Matrix(NamedTuple):
    """A weight [out, in], whole.

    Attributes:
        key: in the checkpoint; of a layer's, within the layer.
        split: the ranks that share it out: `tensor` parallel ones, `expert` (by expert, then each over expert tensor
            parallel ones), or `whole` on every rank.
        count: how many there are under the key: routed experts.
        active: of them that one token passes.
        into_stream: whether its output goes back into the stream.
        optimizer_role: where optimizer.name is muon, Muon updates a `matrix`, AdamW the rest.
        fused: rows of each of the projections that lie below one another in it; () where it is one.
        groups: how often these rows repeat: fused queries, keys and values come group by group.
    """

    key: str
    out: int
    into: int
    split: Literal["tensor", "expert", "whole"] = "tensor"
    count: int = 1
    active: int = 1
    into_stream: bool = False
    optimizer_role: OptimizerRole = "matrix"
    fused: tuple[int, ...] = ()
    groups: int = 1

    @property
    def size(self) -> int:
        """Numbers in one of them."""
        return self.out * self.into


class NormShape(NamedTuple):
    """A norm over `width` channels; `key` as a Matrix's, without the parameter's own name."""

    key: str
    width: int
    kind: str  # as model.norm

    @property
    def parameters(self) -> dict[str, int]:
        """Name -> numbers."""
        if self.kind.endswith("_plain"):
            return {}
        names = ("weight", "bias") if self.kind == "layernorm" else ("weight",)
        return dict.fromkeys(names, self.width)


def shared_out(config: Config, matrix: Matrix) -> int:
    """Numbers of one matrix that a rank holds, of one expert's where it is one."""
    parallel = config.parallel
    ranks = {"tensor": parallel.tensor, "expert": parallel.expert_tensor, "whole": 1}
    return matrix.size // ranks[matrix.split]


def head_widths(config: Config) -> tuple[int, int]:
    """(d_qk, d_v): widths of one head's queries and keys, and of its values."""
    width = config.model.head_dim or config.model.hidden_size // config.model.heads
    return (width + config.mla.rope_dim if config.model.attention == "mla" else width), width


def gqa(config: Config) -> list[Matrix]:
    """Grouped-query attention."""
    m, (d_qk, d_v) = config.model, head_widths(config)
    groups = m.query_groups or m.heads
    return [
        Matrix(
            "linear_qkv.weight",
            m.heads * d_qk + groups * (d_qk + d_v),
            m.hidden_size,
            fused=(m.heads // groups * d_qk, d_qk, d_v),
            groups=groups,
        ),
        Matrix("linear_proj.weight", m.hidden_size, m.heads * d_v, into_stream=True),
    ]


def mla(config: Config) -> list[Matrix]:
    """Multi-head latent attention. Every tensor-parallel rank has the down-projection of keys and values whole
    (model.latent_attention); that of the queries is shared out, save in Transformer Engine's layers."""
    m, latent, (d_qk, d_v) = config.model, config.mla, head_widths(config)
    C, queries = m.hidden_size, m.heads * d_qk
    rank = latent.q_rank
    return [
        *([Matrix("linear_q_proj.weight", queries, C)] if rank is None else []),
        *(
            [Matrix("linear_q_down_proj.weight", rank, C), Matrix("linear_q_up_proj.weight", queries, rank)]
            if rank
            else []
        ),
        Matrix("linear_kv_down_proj.weight", latent.kv_rank + latent.rope_dim, C, "whole"),
        Matrix("linear_kv_up_proj.weight", m.heads * (d_qk - latent.rope_dim + d_v), latent.kv_rank),
        Matrix("linear_proj.weight", C, m.heads * d_v, into_stream=True),
    ]


ATTENTION = {"gqa": gqa, "mla": mla}


def attention(config: Config) -> list[Matrix]:
    """One layer's attention."""
    return [
        matrix._replace(key=f"self_attention.{matrix.key}")
        for matrix in ATTENTION[config.model.attention](config)
    ]


def mlp(config: Config, key: str, width: int) -> list[Matrix]:
    """One MLP of `width` hidden channels, or one expert."""
    C, gates = config.model.hidden_size, 2 if config.model.activation == "swiglu" else 1
    return [
        Matrix(f"{key}.linear_fc1.weight", gates * width, C, fused=(width,) * gates if gates > 1 else ()),
        Matrix(f"{key}.linear_fc2.weight", C, width, into_stream=True),
    ]


def mixture(config: Config) -> list[Matrix]:
    """One mixture of experts: router, routed and shared experts. All scores are computed: the router is active."""
    moe = config.moe
    routed = mlp(config, "mlp.experts.experts", moe.ffn_hidden_size)
    shared = mlp(config, "mlp.shared_experts", moe.shared_experts * moe.ffn_hidden_size)
    return [
        Matrix("mlp.router.weight", moe.experts, config.model.hidden_size, "whole", optimizer_role="adamw"),
        *(matrix._replace(split="expert", count=moe.experts, active=moe.top_k) for matrix in routed),
        *(shared if moe.shared_experts else []),
    ]


def has_experts(config: Config, layer: int) -> bool:
    """Whether the second sub-layer of layer `layer` is a mixture of experts."""
    return config.moe.experts > 0 and layer >= config.moe.first_dense


def feed_forward(config: Config, layer: int) -> list[Matrix]:
    """What follows attention in layer `layer`."""
    return mixture(config) if has_experts(config, layer) else mlp(config, "mlp", config.model.ffn_hidden_size)


def softmax_entries(model: Model, tokens: int) -> int:
    """Entries that the softmax runs over: model.vocab_size, or `tokens`, the tokenizer's."""
    return model.vocab_size or tokens


def padded_vocab(model: Model, tensor: int, tokens: int) -> int:
    """Rows of embedding and head: the entries rounded up to a common multiple of vocab_multiple and the tensor-parallel
    size `tensor`.

    Checkpoints hold the padding, so vocab_multiple is best a multiple of every tensor-parallel size in use.
    """
    multiple = math.lcm(model.vocab_multiple, tensor)
    return -(-softmax_entries(model, tokens) // multiple) * multiple


def vocabulary(config: Config, vocab_size: int) -> list[Matrix]:
    """The embedding and, where it is not the same, the output head. vocab_size: padded."""
    C = config.model.hidden_size
    # looked up, not multiplied
    embedding = Matrix("embedding.word_embeddings.weight", vocab_size, C, active=0, optimizer_role="adamw")
    head = Matrix("output_layer.weight", vocab_size, C, optimizer_role="adamw")
    return [embedding._replace(active=1)] if config.model.tie_embeddings else [embedding, head]


def norms(config: Config) -> list[NormShape]:
    """One layer's, those inside its attention included."""
    m, C = config.model, config.model.hidden_size
    before = (
        [] if accounting.kind_of(config.connection).normalises else ["input_layernorm", "pre_mlp_layernorm"]
    )
    around = before if m.norm_position == "pre" else ["attention_output_layernorm", "mlp_output_layernorm"]
    return [NormShape(key, C, m.norm) for key in around] + [
        NormShape(f"self_attention.{key}", width, kind) for key, width, kind in _inside(config)
    ]


def _inside(config: Config) -> Iterator[tuple[str, int, str]]:
    m, (width, _) = config.model, head_widths(config)
    if m.attention == "mla":  # norms its latents
        if config.mla.q_rank:
            yield "q_layernorm", config.mla.q_rank, m.norm
        yield "kv_layernorm", config.mla.kv_rank, m.norm
    elif m.qk_norm_across_heads:  # OLMo2's, with weights whatever the others have
        yield "q_layernorm", width * m.heads, "rmsnorm"
        yield "k_layernorm", width * (m.query_groups or m.heads), "rmsnorm"
    elif m.qk_norm:
        yield "q_layernorm", width, m.norm
        yield "k_layernorm", width, m.norm


def final_norm(config: Config) -> NormShape:
    """Before the head."""
    return NormShape("decoder.final_layernorm", config.model.hidden_size, config.model.norm)


def matrices(config: Config, vocab_size: int) -> dict[str, Matrix]:
    """Every matrix of the whole network by checkpoint key, connections' left out."""
    found = {matrix.key: matrix for matrix in vocabulary(config, vocab_size)}
    for layer in range(config.model.layers):
        for matrix in (*attention(config), *feed_forward(config, layer)):
            key = f"decoder.layers.{layer}.{matrix.key}"
            found[key] = matrix._replace(key=key)
    return found
