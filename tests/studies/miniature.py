"""A study of two kinds and two branches each, small enough for seconds, on the project's own documentation."""

from __future__ import annotations

from pathlib import Path

from tests.ranks import ROOT

MINIATURE = f"""
base: stability
retries: 9
settings:
  model.layers: 1
  model.hidden_size: 8
  model.heads: 2
  model.ffn_hidden_size: 12
  data.sequence_length: 32
  data.paths: [{ROOT}/docs/checkpoints.md, {ROOT}/docs/launch.md]
  data.holdout: 0.05
  optimizer.schedule: wsd
  optimizer.warmup_steps: 2
  training.steps: 16
  training.global_batch: 4
  training.micro_batch: 4
  training.eval_batches: 1
  diagnostics.every: 8
  checkpoint.save_every: 2
  run.peak_tflops: 0.01
axes:
  kind: [residual, shc]
  seed: [1]
decay: {{share: 0.25, branches: [0.5, 0.75]}}
stop: {{diverged_steps: 8}}
"""
RUNS = [f"{kind}-seed1{branch}" for kind in ("residual", "shc") for branch in ("", "--at0.5", "--at0.75")]


def write_study(folder: Path, text: str = MINIATURE) -> Path:
    """The study's file."""
    file = folder / "mini.yaml"
    file.write_text(text)
    return file
