"""The stub's linears, and how they delay weight gradients (pytorch/module/{_common,base,linear}.py)."""

from __future__ import annotations

import queue
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tests.engine.signatures import recorded


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


@recorded("pytorch.module.base.get_dummy_wgrad")
def get_dummy_wgrad(shape, dtype, zero):
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
