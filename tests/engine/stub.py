"""A Transformer Engine for the CPU: its PyTorch modules' signatures and contracts, computed by torch in 16 and 32 bits.

Importing this module installs it, which has to come before Megatron-Core. It keeps to what the published source does
with weight gradients (pytorch/module/{base,linear,grouped_linear,layernorm_linear,_common}.py): the store that delays
them, `main_grad` and the placeholder that autograd is shown, `backward_dw`, saved weights that lose their attributes
under hooks, grouped layers whose delayed gradients without `main_grad` are uninitialised memory.
"""

from __future__ import annotations

import queue
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from tests.engine.signatures import RECORDED, recorded, versions

VERSION = versions()[0]


def _module(name: str, **members: Any) -> ModuleType:
    full = f"transformer_engine.{name}" if name else "transformer_engine"
    module = sys.modules.setdefault(full, ModuleType(full))
    module.__spec__ = ModuleSpec(full, None, is_package=True)
    module.__path__ = []
    for key, value in members.items():
        setattr(module, key, value)
        if isinstance(value, type):
            value.__module__ = full
    if name:
        parent, _, own = full.rpartition(".")
        setattr(sys.modules.get(parent) or _module(parent.removeprefix("transformer_engine.")), own, module)
    return module


# pytorch/module/_common.py


class WeightGradStore:
    @recorded("pytorch.module._common.WeightGradStore.__init__")
    def __init__(self, delay_wgrad_compute, ub_bulk_wgrad):
        assert not (delay_wgrad_compute and ub_bulk_wgrad)
        self.context = queue.Queue() if delay_wgrad_compute else None
        self.enabled = delay_wgrad_compute

    @recorded("pytorch.module._common.WeightGradStore.delay_wgrad_compute")
    def delay_wgrad_compute(self):
        return self.enabled

    @recorded("pytorch.module._common.WeightGradStore.enable_delay_wgrad_compute")
    def enable_delay_wgrad_compute(self):
        self.enabled = True

    @recorded("pytorch.module._common.WeightGradStore.disable_delay_wgrad_compute")
    def disable_delay_wgrad_compute(self):
        self.enabled = False

    @recorded("pytorch.module._common.WeightGradStore.put")
    def put(self, tensor_list, func):
        assert self.enabled, "delay_wgrad_compute is not enabled"
        self.context.put([tensor_list, func])

    @recorded("pytorch.module._common.WeightGradStore.pop")
    def pop(self):
        assert self.enabled, "delay_wgrad_compute is not enabled"
        if self.context.empty():
            raise RuntimeError("Pop empty queue.")
        tensors, function = self.context.get()
        return function(*tensors), tensors

    @recorded("pytorch.module._common.WeightGradStore.assert_empty")
    def assert_empty(self):
        assert self.context.empty()


# pytorch/module/base.py


def get_dummy_wgrad(shape: list, dtype: torch.dtype, zero: bool = False) -> Tensor:
    # NaN where the real one is uninitialised: whoever reads it is found out
    return torch.full(shape, 0.0 if zero else float("nan"), dtype=dtype)


class TransformerEngineBaseModule(nn.Module):
    weight_names: list[str]
    bias_names: list[str]

    def __init__(self, tp_group, tp_size, parallel_mode, sequence_parallel, options) -> None:
        super().__init__()
        self.fp8_meta = {"fp8_checkpoint": False}
        self.fp8 = self.fp8_calibration = False
        self.tp_group = tp_group
        self.tp_size = tp_size if tp_group is None else dist.get_world_size(tp_group)
        self.parallel_mode = parallel_mode
        self.sequence_parallel = self.tp_size > 1 and sequence_parallel
        self.fuse_wgrad_accumulation = options["fuse_wgrad_accumulation"]
        self.use_bias, self.return_bias = options["bias"], options["return_bias"]
        self.apply_bias = self.use_bias and not self.return_bias
        self.save_original_input = options.get("save_original_input", False)
        self.wgrad_store = WeightGradStore(
            options["delay_wgrad_compute"], options.get("ub_bulk_wgrad", False)
        )
        self.wgrad_accumulation_and_reduce_hooks: list[Callable] = []
        self.weight_names, self.bias_names = [], []

    def _allocate(self, weight: str, bias: str, out_features: int, in_features: int, options: dict) -> None:
        dtype, device = options["params_dtype"] or torch.get_default_dtype(), options["device"]
        parameter = nn.Parameter(torch.empty(out_features, in_features, dtype=dtype, device=device))
        (options["init_method"] or nn.init.normal_)(parameter)
        parameter.tensor_model_parallel = True
        parameter.partition_dim, parameter.partition_stride = int(self.parallel_mode == "row"), 1
        self.register_parameter(weight, parameter)
        if self.use_bias:
            self.register_parameter(bias, nn.Parameter(torch.zeros(out_features, dtype=dtype, device=device)))
        else:
            setattr(self, bias, torch.empty(0, dtype=dtype, device=device))
        self.weight_names.append(weight)
        self.bias_names.append(bias)
        if self.wgrad_store.delay_wgrad_compute():
            for name in (weight, bias):
                getattr(self, name).skip_backward_post_hook = True

    def set_tensor_parallel_group(self, tp_group):
        self.tp_group = tp_group

    def init_fp8_metadata(self, num_gemms: int = 1):
        pass

    def get_extra_state(self):
        return torch.empty(0, dtype=torch.uint8)

    def set_extra_state(self, state):
        pass

    def register_wgrad_accumulation_and_reduce_hooks(self, wgrad_accumulation_and_reduce_hook):
        self.wgrad_accumulation_and_reduce_hooks.append(wgrad_accumulation_and_reduce_hook)

    def need_backward_dw(self):
        return self.wgrad_store is not None and self.wgrad_store.delay_wgrad_compute()

    def backward_dw(self):
        if not self.need_backward_dw():
            return
        (wgrad, bgrad), _ = self.wgrad_store.pop()
        if not self.fuse_wgrad_accumulation:
            self.weight.grad = wgrad.to(self.weight.dtype)
        if self.use_bias and self.bias.grad is None:
            self.bias.grad = bgrad.to(self.bias.dtype)
        for hook in self.wgrad_accumulation_and_reduce_hooks:
            hook()


def _gathered(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    whole = x.new_empty(x.shape[0] * group.size(), *x.shape[1:])
    dist.all_gather_into_tensor(whole, x.contiguous(), group=group)
    return whole


def _scattered(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    part = x.new_empty(x.shape[0] // group.size(), *x.shape[1:])
    dist.reduce_scatter_tensor(part, x.contiguous(), group=group)
    return part


def _weight_gemm(x: Tensor, dy: Tensor, out: Tensor | None, accumulate: bool) -> Tensor:
    """dy^T x in the precision of `out`, as the matrix units have their sums."""
    x, dy = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    if out is None:
        return dy.t().matmul(x)
    dy, x = dy.t().to(out.dtype), x.to(out.dtype)
    return out.addmm_(dy, x) if accumulate else torch.mm(dy, x, out=out)


def _shown(weight: Tensor, main_grad: Tensor | None, wgrad: Tensor | None, fused: bool) -> Tensor | None:
    """What autograd gets for a weight."""
    if not fused:
        return wgrad
    if not hasattr(weight, "grad_added_to_main_grad"):
        return None
    weight.grad_added_to_main_grad = True
    return get_dummy_wgrad(list(main_grad.shape), weight.dtype, zero=getattr(weight, "zero_out_wgrad", False))


class _Linear(torch.autograd.Function):
    """pytorch/module/linear.py: _Linear."""

    @staticmethod
    def forward(ctx, weight, inp, bias, module, is_first_microbatch):
        column = module.parallel_mode == "column"
        row = module.parallel_mode == "row" and module.tp_size > 1
        ctx.gathers = column and module.sequence_parallel
        ctx.sums = column and module.tp_size > 1
        ctx.regathers = row and module.sequence_parallel
        ctx.save_for_backward(inp, weight, bias)
        ctx.fused = module.fuse_wgrad_accumulation
        ctx.main_grad = (lambda: weight.main_grad) if ctx.fused else (lambda: None)
        ctx.store, ctx.group, ctx.accumulate = module.wgrad_store, module.tp_group, not is_first_microbatch
        whole = _gathered(inp, module.tp_group) if ctx.gathers else inp
        out = whole.matmul(weight.t())
        if row and module.sequence_parallel:
            out = _scattered(out, module.tp_group)
        elif row:
            dist.all_reduce(out, group=module.tp_group)
        return out if bias is None else out + bias

    @staticmethod
    def backward(ctx, grad_output):
        inp, weight, bias = ctx.saved_tensors
        main_grad = ctx.main_grad()
        if ctx.fused:
            weight.main_grad = main_grad
        if ctx.regathers:
            grad_output = _gathered(grad_output, ctx.group)
        dgrad = None
        if ctx.needs_input_grad[1]:
            dgrad = grad_output.matmul(weight)
            if ctx.gathers:
                dgrad = _scattered(dgrad, ctx.group)
            elif ctx.sums:
                dist.all_reduce(dgrad, group=ctx.group)
        whole = _gathered(inp.detach(), ctx.group) if ctx.gathers else inp.detach()

        def wgrad_gemm(x, dy):
            gradient = _weight_gemm(x, dy, main_grad, ctx.accumulate)
            return gradient, None if bias is None else dy.reshape(-1, dy.shape[-1]).sum(0)

        wgrad = bgrad = None
        if ctx.store is not None and ctx.store.delay_wgrad_compute():
            ctx.store.put([whole, grad_output], wgrad_gemm)
        else:
            wgrad, bgrad = wgrad_gemm(whole, grad_output)
        return _shown(weight, main_grad, wgrad, ctx.fused), dgrad, bgrad, None, None


class Linear(TransformerEngineBaseModule):
    @recorded("pytorch.Linear.__init__")
    def __init__(
        self, in_features, out_features, tp_group, tp_size, parallel_mode, sequence_parallel, **options
    ):
        super().__init__(tp_group, tp_size, parallel_mode, sequence_parallel, options)
        self.in_features = in_features // (self.tp_size if parallel_mode == "row" else 1)
        self.out_features = out_features // (self.tp_size if parallel_mode == "column" else 1)
        self._allocate("weight", "bias", self.out_features, self.in_features, options)

    @recorded("pytorch.Linear.forward")
    def forward(self, inp, is_first_microbatch, **_):
        bias = self.bias if self.apply_bias else None
        out = _Linear.apply(self.weight, inp, bias, self, is_first_microbatch)
        return (out, self.bias) if self.return_bias else out


# pytorch/module/{layernorm,rmsnorm,layernorm_linear}.py


class RMSNorm(nn.Module):
    @recorded("pytorch.RMSNorm.__init__")
    def __init__(self, normalized_shape, eps, sequence_parallel, params_dtype, hidden_size, kwargs, **_):
        super().__init__()
        self.shape, self.eps = (hidden_size or normalized_shape,), eps
        self.weight = nn.Parameter(torch.ones(self.shape, dtype=params_dtype, device=kwargs.get("device")))
        self.weight.sequence_parallel = sequence_parallel

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.shape, self.weight, self.eps)


class LayerNorm(RMSNorm):
    @recorded("pytorch.LayerNorm.__init__")
    def __init__(self, sequence_parallel, params_dtype, kwargs, **options):
        super().__init__(sequence_parallel=sequence_parallel, params_dtype=params_dtype, **options, **kwargs)
        self.bias = nn.Parameter(torch.zeros(self.shape, dtype=params_dtype, device=kwargs.get("device")))
        self.bias.sequence_parallel = sequence_parallel

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.shape, self.weight, self.bias, self.eps)


class LayerNormLinear(Linear):
    @recorded("pytorch.LayerNormLinear.__init__")
    def __init__(self, in_features, eps, normalization, sequence_parallel, **options):
        own = ("zero_centered_gamma", "return_layernorm_output", "return_layernorm_output_gathered")
        assert not any(options.pop(name) for name in own)
        super().__init__(in_features=in_features, sequence_parallel=sequence_parallel, **options)
        self.eps, self.normalization = eps, normalization
        like = {"dtype": options["params_dtype"], "device": options["device"]}
        self.layer_norm_weight = nn.Parameter(torch.ones(in_features, **like))
        self.layer_norm_weight.sequence_parallel = self.sequence_parallel
        self.layer_norm_bias = None
        if normalization == "LayerNorm":
            self.layer_norm_bias = nn.Parameter(torch.zeros(in_features, **like))
            self.layer_norm_bias.sequence_parallel = self.sequence_parallel

    @recorded("pytorch.LayerNormLinear.forward")
    def forward(self, inp, **options):
        shape = inp.shape[-1:]
        if self.normalization == "LayerNorm":
            normed = F.layer_norm(inp, shape, self.layer_norm_weight, self.layer_norm_bias, self.eps)
        else:
            normed = F.rms_norm(inp, shape, self.layer_norm_weight, self.eps)
        return super().forward(normed, **options)


# pytorch/module/grouped_linear.py


class _GroupedLinear(torch.autograd.Function):
    """pytorch/module/grouped_linear.py: _GroupedLinear."""

    @staticmethod
    def forward(ctx, inp, splits, module, is_first_microbatch, *weights_and_biases):
        count = len(splits)
        weights, biases = weights_and_biases[:count], weights_and_biases[count:]
        ctx.save_for_backward(inp, *weights)
        ctx.splits, ctx.biased, ctx.fused = splits, bool(biases), module.fuse_wgrad_accumulation
        ctx.main_grads = (lambda: [w.main_grad for w in weights]) if ctx.fused else (lambda: [None] * count)
        ctx.store, ctx.accumulate = module.wgrad_store, not is_first_microbatch
        parts = [x.matmul(w.t()) for x, w in zip(inp.split(splits), weights, strict=True)]
        if biases:
            parts = [part + bias for part, bias in zip(parts, biases, strict=True)]
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad_output):
        inp, *weights = ctx.saved_tensors
        main_grads = ctx.main_grads()
        if ctx.fused:
            for weight, main_grad in zip(weights, main_grads, strict=True):
                weight.main_grad = main_grad
        grads = grad_output.contiguous().split(ctx.splits)
        dgrad = (
            torch.cat([dy.matmul(w) for dy, w in zip(grads, weights, strict=True)])
            if ctx.needs_input_grad[0]
            else None
        )
        # uninitialised memory there, which autograd is handed before it is filled where the computation is delayed
        wgrads = main_grads if ctx.fused else [torch.full_like(w, float("nan")) for w in weights]

        def grouped_gemm_wgrad(inputs, outputs, into):
            for x, dy, out in zip(inputs, outputs, into, strict=True):
                _weight_gemm(x, dy, out, ctx.fused and ctx.accumulate)
            return into, [dy.sum(0) for dy in outputs] if ctx.biased else [None] * len(into), None

        bgrads: list[Tensor | None] = [None] * len(weights)
        inputs = inp.detach().split(ctx.splits)
        if ctx.store is not None and ctx.store.delay_wgrad_compute():
            ctx.store.put([inputs, grads, wgrads], grouped_gemm_wgrad)
        else:
            _, bgrads, _ = grouped_gemm_wgrad(inputs, grads, wgrads)
        shown = [_shown(w, m, g, ctx.fused) for w, m, g in zip(weights, main_grads, wgrads, strict=True)]
        return dgrad, None, None, None, *shown, *(bgrads if ctx.biased else ())


class GroupedLinear(TransformerEngineBaseModule):
    @recorded("pytorch.GroupedLinear.__init__")
    def __init__(
        self,
        num_gemms,
        in_features,
        out_features,
        tp_group,
        tp_size,
        parallel_mode,
        sequence_parallel,
        **options,
    ):
        super().__init__(tp_group, tp_size, parallel_mode, sequence_parallel, options)
        self.num_gemms = num_gemms
        self.in_features = in_features // (self.tp_size if parallel_mode == "row" else 1)
        self.out_features = out_features // (self.tp_size if parallel_mode == "column" else 1)
        for i in range(num_gemms):
            self._allocate(f"weight{i}", f"bias{i}", self.out_features, self.in_features, options)

    @recorded("pytorch.GroupedLinear.forward")
    def forward(self, inp, m_splits, is_first_microbatch, **_):
        assert len(m_splits) == self.num_gemms and all(isinstance(split, int) for split in m_splits)
        weights = [getattr(self, name) for name in self.weight_names]
        biases = [getattr(self, name) for name in self.bias_names]
        used = biases if self.apply_bias else []
        out = _GroupedLinear.apply(inp, m_splits, self, is_first_microbatch, *weights, *used)
        return (out, biases) if self.return_bias else out

    @recorded("pytorch.GroupedLinear.backward_dw")
    def backward_dw(self):
        if not self.need_backward_dw():
            return
        if self.wgrad_store.context is None or self.wgrad_store.context.empty():
            return
        (_, bgrads, _), tensors = self.wgrad_store.pop()
        for i, wgrad in enumerate(tensors[2]):
            weight, bias = getattr(self, f"weight{i}"), getattr(self, f"bias{i}")
            if not self.fuse_wgrad_accumulation:
                weight.grad = wgrad.to(weight.dtype)
            if self.use_bias and bias.grad is None:
                bias.grad = bgrads[i].to(bias.dtype)
        for hook in self.wgrad_accumulation_and_reduce_hooks:
            hook()


# pytorch/attention


class DotProductAttention(nn.Module):
    @recorded("pytorch.DotProductAttention.__init__")
    def __init__(self, num_attention_heads, kv_channels, attention_dropout, softmax_scale, **_):
        super().__init__()
        assert not attention_dropout, "the stub drops nothing out"
        width = kv_channels if isinstance(kv_channels, int) else kv_channels[0]
        self.scale = softmax_scale or width**-0.5

    @recorded("pytorch.DotProductAttention.forward")
    def forward(self, query_layer, key_layer, value_layer, attention_mask, attn_mask_type, **_):
        assert attn_mask_type == ("causal" if attention_mask is None else "arbitrary")
        s, b, heads, width = query_layer.shape
        q, k, v = (t.permute(1, 2, 0, 3) for t in (query_layer, key_layer, value_layer))
        d_v = v.shape[-1]
        out = F.scaled_dot_product_attention(
            q,
            k,
            F.pad(v, (0, width - d_v)) if d_v < width else v,
            attn_mask=None if attention_mask is None else ~attention_mask,
            is_causal=attention_mask is None,
            scale=self.scale,
            enable_gqa=k.shape[1] != heads,
        )
        return out[..., :d_v].permute(2, 0, 1, 3).reshape(s, b, heads * d_v)

    @recorded("pytorch.DotProductAttention.set_context_parallel_group")
    def set_context_parallel_group(self, **_):
        raise NotImplementedError


# pytorch/cpp_extensions


@recorded("pytorch.cpp_extensions.general_gemm")
def general_gemm(A, B, layout, out_dtype, out, bias, **_):
    a, b = A.to(out_dtype or A.dtype), B.to(out_dtype or B.dtype)
    product = b.matmul({"TN": a.t(), "NN": a}[layout]) if layout != "NT" else b.t().matmul(a)
    if bias is not None:
        product = product + bias
    return [product if out is None else out.copy_(product), None, None, None]


# What Megatron-Core only has to find.


def _unused(name: str) -> Callable:
    @recorded(name)
    def function(**_: Any) -> None:
        raise NotImplementedError(f"{name} is not part of the stub")

    return function


class CudaRNGStatesTracker:
    pass


class FP8GlobalStateManager:
    @staticmethod
    def is_fp8_enabled() -> bool:
        return False


class QuantizedTensor:
    pass


class DelayedScaling:
    pass


for _method in ("backward_dw", "need_backward_dw"):
    _name = f"pytorch.Linear.{_method}"
    if _name in RECORDED[VERSION]:
        setattr(
            TransformerEngineBaseModule,
            _method,
            recorded(_name)(getattr(TransformerEngineBaseModule, _method)),
        )

_module("", __version__=VERSION)
_module("common")
_module("common.recipe", DelayedScaling=DelayedScaling)
_module("pytorch", DotProductAttention=DotProductAttention)
_module(
    "pytorch.module.base",
    get_dummy_wgrad=get_dummy_wgrad,
    TransformerEngineBaseModule=TransformerEngineBaseModule,
    **(
        {"get_workspace": lambda: None}
        if "workspace" in RECORDED[VERSION]["pytorch.cpp_extensions.general_gemm"]
        else {}
    ),
)
_module("pytorch.module._common", WeightGradStore=WeightGradStore)
for _class, _file in (
    (Linear, "linear"),
    (GroupedLinear, "grouped_linear"),
    (LayerNormLinear, "layernorm_linear"),
    (LayerNorm, "layernorm"),
    (RMSNorm, "rmsnorm"),
):
    _module(f"pytorch.module.{_file}", **{_class.__name__: _class})
    setattr(sys.modules["transformer_engine.pytorch"], _class.__name__, _class)
_module("pytorch.fp8", FP8GlobalStateManager=FP8GlobalStateManager)
_module("pytorch.tensor", QuantizedTensor=QuantizedTensor)
_module(
    "pytorch.distributed",
    CudaRNGStatesTracker=CudaRNGStatesTracker,
    activation_recompute_forward=None,
    is_fp8_activation_recompute_enabled=lambda: False,
)
_module(
    "pytorch.ops", Sequential=type("Sequential", (), {}), FusibleOperation=type("FusibleOperation", (), {})
)
_module("pytorch.cpp_extensions", general_gemm=general_gemm)
for _name in RECORDED[VERSION]:
    _place, _, _function = _name.rpartition(".")
    if _place.split(".")[-1] in ("permutation", "router", "rope", "cross_entropy", "fp8"):
        _module(_place, **{_function: _unused(_name)})
