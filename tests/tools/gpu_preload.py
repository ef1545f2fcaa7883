"""What the phases of a check import, once, with Triton's interpreter: it is chosen when Triton is first imported."""

# ruff: noqa: F401

import os

os.environ["TRITON_INTERPRET"] = "1"

import pytest

import tests.pipeline.dualpipe_workers
import tools.bench_kernels
import tools.bench_layer
import tools.bench_pipeline
import tools.bench_recompute
import tools.gpu_check.__main__
import tools.gpu_check.messages
import tools.gpu_check.overlap
import tools.profile_overlap
