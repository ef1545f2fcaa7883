"""Errors of a layout against one process."""

from __future__ import annotations

import numpy as np

from tests.model.workers import Step


def largest_errors(reference: Step, ranks: list[Step]) -> dict[str, float]:
    """Largest difference of loss, gradients and updated parameters, all ranks; gradients and updates are relative to
    the reference's gradient norm (updates are of a step of 0.1 times the gradient)."""
    norm = np.sqrt(sum(float((grad**2).sum()) for grad, _ in reference.tensors.values()))
    assert norm > 0
    seen = set()
    errors = {"loss": 0.0, "gradients": 0.0, "updated": 0.0}
    losses = [step.loss for step in ranks if step.loss is not None]
    assert losses, "no rank reported a loss"
    errors["loss"] = max(abs(loss - reference.loss) for loss in losses)
    whole = assemble(reference)
    for step in ranks:
        for (key, leading, offset), (grad, data) in step.tensors.items():
            seen.add((key, leading))
            region = tuple(slice(o, o + n) for o, n in zip(offset, data.shape, strict=True))
            ref_grad, ref_data = whole[(key, leading)]
            errors["gradients"] = max(
                errors["gradients"], float(np.abs(grad - ref_grad[region]).max()) / norm
            )
            errors["updated"] = max(errors["updated"], float(np.abs(data - ref_data[region]).max()) / norm)
    assert seen == set(whole), f"parameters that no rank has: {set(whole) - seen}"
    return errors


def assemble(step: Step) -> dict[tuple, tuple[np.ndarray, np.ndarray]]:
    """Whole tensors from one process's parts (fused projections come in several)."""
    extent: dict[tuple, list[int]] = {}
    for (key, leading, offset), (_, data) in step.tensors.items():
        size = extent.setdefault((key, leading), [0] * data.ndim)
        for axis, (o, n) in enumerate(zip(offset, data.shape, strict=True)):
            size[axis] = max(size[axis], o + n)
    whole = {place: (np.full(size, np.nan), np.full(size, np.nan)) for place, size in extent.items()}
    for (key, leading, offset), (grad, data) in step.tensors.items():
        region = tuple(slice(o, o + n) for o, n in zip(offset, data.shape, strict=True))
        whole[(key, leading)][0][region] = grad
        whole[(key, leading)][1][region] = data
    return whole
