"""What can be configured: one dataclass per concern, no torch.

Every field's type is what the loader checks values against; `Literal` lists the choices, `None` means "derived".
The comment after a field is its documentation. Checks that span several fields live in `checks/`. What a connection
can be is derived from the kinds' descriptors, the schedules from theirs.
"""

from __future__ import annotations

from dataclasses import dataclass, field, make_dataclass
from typing import TYPE_CHECKING, Any, Literal

from hcmegatron.config.schedule_names import MEGATRONS, SCHEDULES
from hcmegatron.connections import accounting
from hcmegatron.connections.kinds import DEFAULT, KINDS

if TYPE_CHECKING:
    Schedule = str
else:
    Schedule = Literal[tuple(SCHEDULES)]
# Those with I and W: a backward without its weight gradients, and these on their own. Overlapping needs the same.
SPLIT_BACKWARD = tuple(name for name, schedule in SCHEDULES.items() if schedule.splits)


@dataclass
class Model:
    """The transformer, without its residual connections."""

    layers: int = 4  # transformer layers; each has two sub-layers (attention, then MLP or MoE)
    hidden_size: int = 128  # C
    heads: int = 4
    query_groups: int | None = None  # key/value heads of GQA; None: as many as heads
    head_dim: int | None = (
        None  # None: hidden_size / heads. With MLA: the non-rotary query/key and the value dim
    )
    attention: Literal["gqa", "mla"] = "gqa"
    ffn_hidden_size: int = 512  # of dense layers
    activation: Literal["swiglu", "gelu"] = "swiglu"
    norm: Literal["rmsnorm", "layernorm", "rmsnorm_plain", "layernorm_plain"] = (
        "rmsnorm"  # _plain: no parameters
    )
    norm_eps: float = 1e-6
    norm_position: Literal["pre", "post"] = "pre"  # post: OLMo2, the norm after attention and MLP
    qk_norm: bool = False  # GQA: a norm over every head's queries and keys
    qk_norm_across_heads: bool = (
        False  # OLMo2, OLMoE: instead an RMSNorm over all heads' together, with weights
    )
    tie_embeddings: bool = False
    rope_theta: float = 10000.0
    # embedding and head are padded to a multiple of this (and of the tensor ranks); padding has no probability
    vocab_multiple: int = 128
    vocab_size: int | None = None  # None: the tokenizer's
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    init_std: float = 0.02
    document_mask: bool = False  # tokens attend only within their own document


@dataclass
class MLA:
    """Multi-head latent attention (DeepSeek-V2); used when model.attention is mla."""

    kv_rank: int = 64
    q_rank: int | None = None  # None: full-rank queries
    rope_dim: int = 16  # rotary part of queries and keys, beside model.head_dim


@dataclass
class MoE:
    """Mixture of experts; experts = 0 is a dense model."""

    experts: int = 0
    top_k: int = 2
    ffn_hidden_size: int = 128  # of one expert
    shared_experts: int = 0  # each of ffn_hidden_size
    first_dense: int = 0  # leading layers that stay dense
    router: Literal["softmax", "sigmoid"] = "sigmoid"
    expert_bias_rate: float = 1e-3  # loss-free balancing; 0: no expert bias
    # load-balancing loss coefficient; Megatron balances the tokens of one micro-batch (of all its sequence-parallel
    # ranks), so this one loss depends on training.micro_batch by its definition
    aux_loss: float = 0.0
    sequence_aux_loss: float = 0.0  # the same for the tokens of each sequence, whatever the micro-batch
    z_loss: float = 0.0
    routed_scale: float = 1.0  # factor on the routed experts' sum
    grouped: bool = True  # experts as one grouped matmul; false: one after another
    dispatcher: Literal["alltoall", "allgather"] = "alltoall"


# The residual connection around every sub-layer: its kind, and what the kinds' descriptors say that they read.
if TYPE_CHECKING:
    Connection = Any  # its fields are the kinds'
else:
    Connection = make_dataclass(
        "Connection",
        [
            ("kind", Literal[tuple(KINDS)], DEFAULT),
            *((name, hint, field(default=own.default)) for name, (hint, own) in accounting.fields().items()),
        ],
        namespace={"__doc__": "The connection around every sub-layer.", "__module__": __name__},
    )


@dataclass
class Parallel:
    """How the model is split. The data-parallel size is what is left of the world size."""

    pipeline: int = 1
    virtual: int | None = None  # chunks per pipeline rank of an interleaved schedule
    tensor: int = 1
    sequence: bool = False  # sequence parallel; needs tensor > 1
    expert: int = 1
    expert_tensor: int = 1
    schedule: Schedule = "megatron_1f1b"
    overlap: bool = False  # of schedules with pairs: a forward's nodes between those of another's backward
    # a backward whose gradient another rank waits for computes the weights' gradients when it has left, and keeps what
    # they need until then. null: unless recompute.mode is full, or parallel.overlap
    split_backward: bool | None = None
    distributed_optimizer: bool | None = None  # shards its state over data-parallel ranks; None: with bf16
    overlap_grad_reduce: bool = False
    overlap_param_gather: bool = False
    # a file that `hcmegatron plan --measure` wrote: by it a step's time is planned, and how early receives are posted
    costs: str | None = None
    # messages between stages on CPUs. auto: shared memory where the ranks of a pipeline are on one machine, else gloo
    transport: Literal["auto", "gloo"] = "auto"
    timeout_s: int = 600  # without progress, or of a collective or a posted message, that end the job


@dataclass
class Data:
    """Text, and how it becomes batches. The order is a function of the seed."""

    # text files, directories, patterns like "*.txt"; or prepared data sets, end to end, or each with its weight:
    # ["0.7 data/web", "0.3 data/code"]; empty: Python's standard library sources
    paths: list[str] = field(default_factory=list)
    validation: list[str] = field(
        default_factory=list
    )  # prepared data sets of their own, in place of holdout
    test: list[str] = field(
        default_factory=list
    )  # prepared data sets that are evaluated whole, once, at the end
    suffixes: list[str] = field(
        default_factory=lambda: [".py", ".txt", ".md", ".rst"]
    )  # read from directories
    tokenizer: str = "byte"  # or a tokenizer.json, a SentencePiece .model, tiktoken:NAME
    sequence_length: int = 256
    holdout: float = (
        0.02  # share of the text kept for validation: about so many of the files, chosen by a hash of
    )
    # their path, or the end of the largest where files are few or uneven; the run says what it came to. Of prepared
    # data sets the last documents
    seed: int = 1234


@dataclass
class Optimizer:
    """AdamW through Megatron's optimizer; with muon, of what is no matrix (docs/optimizers.md)."""

    name: Literal["adamw", "muon"] = "adamw"
    lr: float = 3e-3
    min_lr_ratio: float = 0.1  # of lr, where cosine and wsd end
    # wsd: warm-up, stable, decay: lr until decay_steps before the end, then down in a straight line. Until the decay no
    # rate depends on training.steps, so that one run's checkpoints are where runs of several lengths begin to decay
    schedule: Literal["cosine", "step", "constant", "wsd"] = "cosine"
    warmup_steps: int = 20
    decay_steps: int = 40  # wsd
    step_decay_at: list[float] = field(default_factory=lambda: [0.8, 0.9])  # shares of training
    step_decay_to: list[float] = field(default_factory=lambda: [0.316, 0.1])  # shares of lr
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0  # 0: no clipping


@dataclass
class Muon:
    """Muon, for the matrices of attention, MLPs, experts and connections; used when optimizer.name is muon."""

    lr: float | None = None  # of the matrices, on optimizer.schedule; None: optimizer.lr
    rms: float = (
        0.2  # root mean square of an update at a rate of 1, whatever the matrix's shape: about AdamW's
    )
    momentum: float = 0.95
    nesterov: bool = True
    # Newton-Schulz iterations: five of Muon's coefficients, or eight of them and two that converge (DeepSeek-V4)
    newton_schulz: Literal["5", "8+2"] = "5"
    weight_decay: float | None = None  # None: optimizer.weight_decay


@dataclass
class Training:
    """Length, batch and precision of a run."""

    steps: int = 200
    global_batch: int = 16  # sequences a step
    micro_batch: int = 4  # sequences of one micro-batch on one rank
    dtype: Literal["bf16", "fp32", "fp64"] = "fp32"
    seed: int = 1234
    eval_every: int = 100  # steps; 0: only at the end
    eval_batches: int = 8  # global batches of held-out text
    eval_prompt: str | None = (
        None  # a text that every evaluation shows the likeliest continuation of; null: none
    )
    eval_tokens: int = 32  # of it, or as many as fit a sequence
    log_every: int = 1
    max_bad_steps: int = 5  # in a row before the run stops: not finite, or spikes (health)
    threads: int | None = None  # CPU threads a rank; None: its share of the cores


@dataclass
class Health:
    """What is watched while a run trains, and what is done about it (docs/health.md)."""

    # with a step that is not finite or spikes, before it changes the weights: skip its update; rewind to the newest
    # checkpoint and leave its batch out of the data; or stop
    on_bad_step: Literal["skip", "rewind", "stop"] = "skip"
    # deviations above the median of the last spike_window good steps from which a loss, or a gradient norm, is a spike;
    # 0: none is. A deviation is 1.4826 times the median distance from the median
    loss_spike: float = 0.0
    grad_norm_spike: float = 0.0
    spike_window: int = 128  # steps; nothing is a spike before half of them are there
    leave_out_batches: int = 1  # of a rewind: the bad step's batch and those after it
    # steps in a row, after the warmup, with a loss no better than a guess among all tokens: the run has diverged and
    # ends; 0: it goes on
    diverged_after: int = 0
    keep_bad_steps: int = 4  # newest ones whose batch is kept in the run directory for `hcmegatron replay`
    compare_parameters_every: int = (
        0  # steps: whatever ranks hold in common is the same, bit for bit; 0: never
    )
    compare_gradients_every: int = (
        0  # steps: one micro-batch has the same gradients on all data-parallel ranks
    )
    on_difference: Literal["stop", "warn"] = "stop"  # between ranks that should agree
    # a rank whose own time in a step is so many times its peers' (or its own past) is named; 0: nobody is watched
    slow_factor: float = 0.0
    slow_window: int = 5  # steps over which the median of that time is taken


@dataclass
class Diagnostics:
    """What the connections do, looked at on held-out text while a run trains (docs/diagnostics.md)."""

    every: int = 100  # steps from one observation to the next; 0: none
    tokens: int = (
        512  # observed, about: of as few of the first held-out sequences as have so many, evenly spread
    )
    # steps, a multiple of `every`: the loss without each of the sub-layers and streams, one forward for each; 0: never
    ablation_every: int = 0


@dataclass
class Checkpoint:
    """Saving and resuming."""

    save_every: int = 0  # steps; 0: only at the end
    keep_last: int = 2
    keep_at: list[int] = field(
        default_factory=list
    )  # steps after which one is saved and kept, beside the last
    # training stops for a copy of the state in host memory, and goes on while that is written; false: until it is
    asynchronous: bool = True
    # auto: continue the run in run.dir from its newest whole checkpoint, or begin it where there is none yet (true is
    # auto, and false never); required: refuse where there is none; on the same data
    resume: Literal["never", "auto", "required"] = "never"
    # or begin a new run, in another run.dir, with this checkpoint's weights, optimizer state and step (a run directory
    # means its newest): at its sample where the data are the same, at the first where they are other. With resume, for
    # as long as that run has no checkpoint of its own
    load: str | None = None
    # or begin a new run with only the weights of this checkpoint of plain residuals, and connections that leave what it
    # computes as it is (docs/checkpoints.md)
    init_from: str | None = None


@dataclass
class Recompute:
    """What is computed again in backward instead of being kept."""

    # block: connections and norms, block by block; full: whole layers; selective: `modules` only
    mode: Literal["none", "block", "full", "selective"] = "none"
    block_length: str = "paper"  # sub-layers: best for one micro-batch (paper), for those `live`, or a number
    modules: list[str] = field(
        default_factory=list
    )  # selective, also with block: core_attn, mla_up_proj, mlp, shared_experts


@dataclass
class Run:
    """Where a run writes."""

    dir: str | None = None  # None: runs/<config name>-<date and time>
    tensorboard: bool = True
    # Weights & Biases, where the package wandb is installed; offline: files in the run directory, to upload later
    wandb: Literal["off", "online", "offline"] = "off"
    observers: list[str] = field(
        default_factory=list
    )  # more that watch the run, each module:Class (training/observer.py)
    # steps that are profiled (docs/profile.md); the last of them under torch.profiler too
    profile_at: list[int] = field(default_factory=list)
    overcommit: bool = False  # start although the plan says that there is too little memory
    peak_tflops: float | None = None  # of one device, for MFU; None: known for the device, or measured on CPU


@dataclass
class Config:
    """Everything a run is. The resolved form is written into the run directory and reproduces the run."""

    model: Model = field(default_factory=Model)
    mla: MLA = field(default_factory=MLA)
    moe: MoE = field(default_factory=MoE)
    connection: Connection = field(default_factory=Connection)
    parallel: Parallel = field(default_factory=Parallel)
    data: Data = field(default_factory=Data)
    optimizer: Optimizer = field(default_factory=Optimizer)
    muon: Muon = field(default_factory=Muon)
    training: Training = field(default_factory=Training)
    health: Health = field(default_factory=Health)
    diagnostics: Diagnostics = field(default_factory=Diagnostics)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    recompute: Recompute = field(default_factory=Recompute)
    run: Run = field(default_factory=Run)
    implementation: Literal["auto", "local", "te"] = (
        "auto"  # layers: Transformer Engine's, where it is installed and fits the schedule, or Megatron's local ones
    )
    kernels: Literal["auto", "torch", "triton", "native"] = "auto"  # of the connections; native: C, on CPUs


def micro_batch_tokens(config: Config) -> int:
    """Tokens of one micro-batch on one data-parallel rank."""
    return config.training.micro_batch * config.data.sequence_length


def distributed_optimizer(config: Config) -> bool:
    """Whether optimizer state is sharded over data-parallel ranks: parallel.distributed_optimizer, or what null is."""
    chosen = config.parallel.distributed_optimizer
    return config.training.dtype == "bf16" if chosen is None else chosen


def splits_backward(config: Config) -> bool:
    """Whether backwards that send their gradient are split (schedules/split_backward.py): parallel.split_backward, or
    what null is. Where layers are recomputed whole, what W needs of a chunk would be more than the rest of it; and
    overlapping hides all-to-alls behind weights' gradients."""
    chosen, parallel = config.parallel.split_backward, config.parallel
    if parallel.schedule in MEGATRONS or parallel.pipeline == 1:
        return False  # Megatron's runtime has them whole; one rank sends none
    return not parallel.overlap and config.recompute.mode != "full" if chosen is None else chosen


def has_to_split(config: Config) -> bool:
    """Whether the weights' gradients have to be separable: the schedule has them apart, or parallel.split_backward says
    so. Where that is null, layers that cannot do so compute them at once."""
    asked = config.parallel.split_backward is True and splits_backward(config)
    return asked or config.parallel.schedule in SPLIT_BACKWARD


def split_by(config: Config) -> str:
    """The setting by which it has to, as it is written."""
    always = config.parallel.schedule in SPLIT_BACKWARD
    return f"parallel.schedule = {config.parallel.schedule}" if always else "parallel.split_backward = true"


def resumes(config: Config) -> bool:
    """Whether the run in run.dir is to be continued, where it has begun."""
    return config.checkpoint.resume != "never"
