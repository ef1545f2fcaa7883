"""The stub's other modules: norms, what joins a norm and a linear, grouped linears, attention
(pytorch/module/{rmsnorm,layernorm,layernorm_linear,grouped_linear}.py, pytorch/attention, pytorch/cpp_extensions)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.engine.signatures import recorded
from tests.engine.stub_linear import Linear, TransformerEngineBaseModule, _shown, _weight_gemm


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


@recorded("pytorch.cpp_extensions.general_gemm")
def general_gemm(A, B, layout, out_dtype, out, bias, **_):
    a, b = A.to(out_dtype or A.dtype), B.to(out_dtype or B.dtype)
    product = b.matmul({"TN": a.t(), "NN": a}[layout]) if layout != "NT" else b.t().matmul(a)
    if bias is not None:
        product = product + bias
    return [product if out is None else out.copy_(product), None, None, None]
