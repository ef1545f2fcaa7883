"""What the phases of a check import, once. No Triton kernel is among it: it would not be interpreted later."""

import pytest  # noqa: F401

import tests.pipeline.dualpipe_workers  # noqa: F401
import tools.bench_layer
import tools.bench_pipeline
import tools.bench_recompute
import tools.gpu_check.__main__
import tools.gpu_check.messages
import tools.gpu_check.overlap
import tools.profile_overlap  # noqa: F401
