"""Megatron's DistributedDataParallel for chunks whose weight gradients may come after their backward."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

import hcmegatron.platform.megatron  # noqa: F401  (installs the CPU adapter before Megatron is imported)
from megatron.core.distributed import DistributedDataParallel


class DataParallel(DistributedDataParallel):
    """Gradients left for later (model/wgrad_store.py) are added, and reported as ready, when they come.

    Autograd calls a weight's hook in I too, without a gradient; Megatron takes that for an error where
    reduction overlaps with backward, and elsewhere has nothing to add.

    A weight gets `gradient_added`, for a matmul that has added to `main_grad` itself to report. Not one that the
    embedding shares: Megatron adds whatever it is then shown. Where a weight is `reported` that way alone
    (model/te_wgrad.py), what autograd has for it is a placeholder.
    """

    def _make_backward_post_hook(self, param: nn.Parameter) -> Callable[..., None]:
        usual = super()._make_backward_post_hook(param)
        fused = self.config.gradient_accumulation_fusion

        def hook(*unused: object) -> None:
            if getattr(param, "reported", False):
                param.grad = None
            elif param.grad is not None:
                usual(*unused)
            elif not getattr(param, "separable", False):
                # Megatron's own linear has added to `main_grad`, and under hooks on saved tensors shows nothing for it.
                (added if fused else usual)()

        def added() -> None:
            # Megatron wants to see a gradient here: any of the weight's precision, since it is told not to add it.
            param.grad, param.grad_added_to_main_grad = param.detach(), True
            usual()
            param.grad_added_to_main_grad = False

        if not getattr(param, "zero_out_wgrad", False):
            param.gradient_added = added
        return hook
