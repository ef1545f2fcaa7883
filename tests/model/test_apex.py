"""NVIDIA apex's fused kernels: where they are called, with what, and where torch stays.

A stub has the signatures of apex's published source (csrc/megatron/fused_weight_gradient_dense.cpp,
apex/normalization/fused_layer_norm.py). It computes on the CPU, which takes CUDA's part here.
"""

import importlib
import sys
import warnings
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from hcmegatron.model import accumulate
from hcmegatron.platform import optional
from tests.ranks import run_ranks
from tests.small_configs import small

PROBES = (optional.nvidia_apex, optional.fused_weight_gradients, optional.fused_norms)


@pytest.fixture
def apex(tmp_path, monkeypatch):
    """Installed, with everything built. The calls made of it."""
    made = []

    def wgrad_gemm_accum_fp32(input, d_output, d_weight):
        assert input.is_contiguous() and d_output.is_contiguous() and d_weight.is_contiguous()
        assert input.dtype == d_output.dtype and d_weight.dtype is torch.float32
        made.append("wgrad_gemm_accum_fp32")
        d_weight.add_(d_output.reshape(-1, d_output.shape[-1]).t().float() @ input.flatten(0, -2).float())

    def fused_rms_norm_affine(input, weight, normalized_shape, eps=1e-6, memory_efficient=False):
        made.append("fused_rms_norm_affine")
        return F.rms_norm(input, normalized_shape, weight, eps)

    def fused_layer_norm_affine(input, weight, bias, normalized_shape, eps=1e-6, memory_efficient=False):
        made.append("fused_layer_norm_affine")
        return F.layer_norm(input, normalized_shape, weight, bias, eps)

    for part in ("", "optimizers/", "normalization/"):
        (tmp_path / "apex" / part).mkdir(exist_ok=True, parents=True)
        (tmp_path / "apex" / part / "__init__.py").touch()
    (tmp_path / "apex" / "normalization" / "fused_layer_norm.py").touch()
    for extension in ("fused_weight_gradient_mlp_cuda", "fused_layer_norm_cuda"):
        (tmp_path / f"{extension}.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    _forget()
    modules = {
        "fused_weight_gradient_mlp_cuda": {"wgrad_gemm_accum_fp32": wgrad_gemm_accum_fp32},
        "apex.normalization.fused_layer_norm": {
            "fused_rms_norm_affine": fused_rms_norm_affine,
            "fused_layer_norm_affine": fused_layer_norm_affine,
        },
    }
    for name, functions in modules.items():
        module = optional._extension(name)
        assert isinstance(module, ModuleType)
        vars(module).update(functions)
    yield made
    _forget()
    for name in [n for n in sys.modules if n.split(".")[0] == "apex" or n.startswith("fused_")]:
        del sys.modules[name]


def _forget():
    for probe in PROBES:
        probe.cache_clear()


@pytest.fixture
def on_cuda(monkeypatch):
    monkeypatch.setattr(accumulate, "on_cuda", lambda tensor: True)


def operands(dtype):
    generator = torch.Generator().manual_seed(3)
    left, right = (torch.randn(*size, generator=generator).to(dtype) for size in ((6, 9), (6, 4)))
    return torch.ones(9, 4), left.t(), right


def test_a_16_bit_product_is_added_by_the_fused_kernel(apex, on_cuda):
    into, left, right = operands(torch.bfloat16)
    expected = into.double() + left.double() @ right.double()
    accumulate.add_product(into, left, right)
    assert apex == ["wgrad_gemm_accum_fp32"]
    assert float((into.double() - expected).abs().max()) < 1e-5


@pytest.mark.parametrize("what", ["fp32", "on a CPU", "a view", "a sum in 64 bits"])
def test_what_stays_with_torch(apex, what, monkeypatch):
    monkeypatch.setattr(accumulate, "on_cuda", lambda tensor: what != "on a CPU")
    into, left, right = operands(torch.float32 if what == "fp32" else torch.bfloat16)
    if what == "a view":
        into = torch.ones(4, 9).t()
        monkeypatch.setattr(
            torch, "mm", lambda a, b, out_dtype: torch.matmul(a.to(out_dtype), b.to(out_dtype))
        )
    elif what == "a sum in 64 bits":
        into = into.double()
    expected = into.double() + left.double() @ right.double()
    accumulate.add_product(into, left, right)
    assert apex == []
    assert float((into.double() - expected).abs().max()) < 1e-5


def test_without_apex_the_product_is_made_in_32_bits(on_cuda, monkeypatch):
    _forget()
    made = []

    def mm(a, b, out_dtype):
        made.append(out_dtype)
        return torch.matmul(a.to(out_dtype), b.to(out_dtype))

    monkeypatch.setattr(torch, "mm", mm)
    accumulate.add_product(*operands(torch.bfloat16))
    assert made == [torch.float32]


@pytest.mark.parametrize("schedule", ["1f1b", "zb_h1", "megatron_1f1b"])
def test_the_run_says_how_weight_gradients_are_added(apex, schedule, monkeypatch):
    """And where Megatron's own schedules have its linears use the same kernel."""
    (here,) = accumulate.described(schedule, "bf16", [torch.nn.Linear(1, 1)])
    assert "apex" not in here and not accumulate.megatron_fuses(schedule, "bf16")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    (line,) = accumulate.described(schedule, "bf16", [torch.nn.Linear(1, 1)])
    assert line == "weight gradients of all linears: added by NVIDIA apex, in fp32"
    assert accumulate.megatron_fuses(schedule, "bf16") == (schedule == "megatron_1f1b")
    assert accumulate.described(schedule, "fp32", []) == [
        "weight gradients of all linears: added by torch, in fp32"
    ]
    assert not accumulate.megatron_fuses(schedule, "fp32")


def test_an_extension_that_does_not_import_is_told(apex, tmp_path):
    (tmp_path / "fused_weight_gradient_mlp_cuda.py").write_text("raise OSError('undefined symbol')")
    sys.modules.pop("fused_weight_gradient_mlp_cuda")
    with pytest.warns(UserWarning, match="fused_weight_gradient_mlp_cuda.*OSError: undefined symbol"):
        assert optional.fused_weight_gradients() is None


def test_an_extension_that_lacks_what_it_imports_is_told(apex, tmp_path):
    (tmp_path / "fused_weight_gradient_mlp_cuda.py").write_text("import no_such_module_of_apex")
    sys.modules.pop("fused_weight_gradient_mlp_cuda")
    with pytest.warns(UserWarning, match="fused_weight_gradient_mlp_cuda.*No module named 'no_such_module"):
        assert optional.fused_weight_gradients() is None
    (tmp_path / "fused_weight_gradient_mlp_cuda.py").unlink()
    optional.fused_weight_gradients.cache_clear()
    importlib.invalidate_caches()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert optional.fused_weight_gradients() is None  # simply not there


def test_pyramids_apex_has_no_norms(apex, tmp_path):
    (tmp_path / "apex" / "optimizers" / "__init__.py").unlink()
    (tmp_path / "apex" / "optimizers").rmdir()
    _forget()
    assert optional.nvidia_apex().alarming and optional.fused_norms() is None


@pytest.mark.parametrize("kind", ["rmsnorm", "layernorm", "rmsnorm_plain"])
def test_norms(apex, kind, monkeypatch):
    from hcmegatron.model import norms

    config = SimpleNamespace(params_dtype=torch.float32, sequence_parallel=False)
    norm, x = norms.Norm(config, 8, 1e-5, kind), torch.randn(3, 8, requires_grad=True)
    here = norm(x)
    assert apex == []
    fits = norms._fits
    monkeypatch.setattr(norms, "_fits", lambda x, weight: weight is not None and not fits(x, weight))
    assert torch.equal(norm(x), here)
    name = f"fused_{'layer' if kind == 'layernorm' else 'rms'}_norm_affine"
    assert apex == ([] if kind.endswith("plain") else [name])


@pytest.mark.ranks
@pytest.mark.parametrize("mode", ["none", "block"])
def test_megatrons_own_linears_fuse(mode):
    """And report their gradients to the overlapped reduction, also where recomputation's hooks leave autograd nothing
    to show for a weight."""
    config = small(
        "dense", "shc", schedule="megatron_1f1b", overlap_grad_reduce=True, distributed_optimizer=True
    )
    config.recompute.mode, config.recompute.block_length = mode, "2"
    ranks = run_ranks(
        2, "tests.engine.apex_workers:both", config, preload=("tests.engine.apex_workers",), timeout=120
    )
    for (usual, none), (fused, some) in ranks:
        assert none == 0 and some > 0
        assert fused.loss == usual.loss and fused.norm == pytest.approx(usual.norm, rel=1e-5)
        for (*place, expected), (*there, got) in zip(usual.gradients, fused.gradients, strict=True):
            assert place == there
            assert abs(got - expected).max() <= 1e-5 * usual.norm, place
