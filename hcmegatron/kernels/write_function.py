"""Every connection's write on Triton: launches and autograd."""

from __future__ import annotations

import torch
import triton
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx, once_differentiable

from hcmegatron.kernels import tiles, triton_write
from hcmegatron.kernels.autocast import without_autocast


class WriteFunction(Function):
    """(H, y, post, res, bias) -> H', and the next read's projection where `fold` gives its phi.

    Without res the carry is the identity: H is not kept, and its gradient is that of H'.
    """

    @staticmethod
    @without_autocast
    def forward(
        ctx: FunctionCtx,
        H: Tensor,
        y: Tensor,
        post: Tensor,
        res: Tensor | None,
        bias: Tensor | None,
        dropout: float,
        fold: Tensor | None,
    ) -> tuple[Tensor, ...]:
        T, n, C = H.shape
        out = torch.empty_like(H)
        # Drawn on the device, without waiting, from the generator that dropout would use. A run has more masks than
        # there are numbers of 31 bits.
        seed = torch.randint(2**63 - 1, (1,), device=H.device) if dropout else post
        given = bias if bias is not None else y
        flags = {"N": n, "R": y.shape[1], "C": C, "HAS_BIAS": bias is not None, "DROPOUT": dropout > 0}
        flags["IDENTITY"] = res is None
        matrix = post if res is None else res  # stands in, unread
        proj = square = None
        if fold is not None:
            proj, square = post.new_empty(T, fold.shape[1]), post.new_empty(T)
            size = tiles.tile("write_fold_dropout" if dropout else "write_fold", H)
            if T:
                triton_write.write_fold[(triton.cdiv(T, size.BT),)](
                    H,
                    y,
                    given,
                    seed,
                    post,
                    matrix,
                    out,
                    fold,
                    proj,
                    square,
                    T,
                    dropout,
                    K=fold.shape[1],
                    KP=tiles.columns(fold.shape[1]),
                    V=size.V,
                    PRECISION=tiles.precision(H),
                    **flags,
                    **size.launch,
                )
            ctx.mark_non_differentiable(proj, square)
        elif T:
            size = tiles.tile("write_forward", H)
            triton_write.write_forward[(triton.cdiv(T, size.BT), triton.cdiv(C, size.BC))](
                H, y, given, seed, post, matrix, out, T, dropout, **flags, **size.launch
            )
        ctx.save_for_backward(None if res is None else H, y, given, seed, post, res)
        ctx.flags, ctx.dropout = flags, dropout
        ctx.set_materialize_grads(False)  # the projection has none, and no zeros are to be made for it
        return out, proj, square

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: FunctionCtx, dout: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        H, y, bias, seed, post, res = ctx.saved_tensors
        T, identity, dpost = len(post), res is None, torch.empty_like(post)
        dout = dout.contiguous()
        dH, dres = (dout, None) if identity else (torch.empty_like(H), torch.empty_like(res))
        with_bias = ctx.flags["HAS_BIAS"]
        # the bias has the sum of what y has rounded
        dy = torch.empty_like(y, dtype=torch.float32 if with_bias else y.dtype)
        if T:
            size = tiles.tile("write_backward", dout)
            triton_write.write_backward[(triton.cdiv(T, size.BT),)](
                dout,
                dout if identity else H,  # stand-ins, unread
                y,
                bias,
                seed,
                post,
                post if identity else res,
                dH,
                dy,
                dpost,
                dpost if identity else dres,
                T,
                ctx.dropout,
                V=size.V,
                **ctx.flags,
                **size.launch,
            )
        dbias = dy.sum(0).to(bias.dtype) if with_bias else None
        return dH, dy.to(y.dtype), dpost, dres, dbias, None, None
