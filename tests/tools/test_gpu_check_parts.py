"""What the phases of a check work out by themselves, where only a GPU gives them something to work on."""

import traceback
import warnings
from types import SimpleNamespace

import pytest
import torch

from hcmegatron.model import accumulate
from tests.pipeline import cuda_run
from tests.ranks import ROOT
from tools import bench_recompute
from tools.gpu_check import correctness, kinds, overlap, probes, speed
from tools.gpu_check.correctness import first_difference
from tools.gpu_check.worker import PhaseContext


def event(name, stream, start, length, category="kernel"):
    return {"cat": category, "name": name, "ts": start, "dur": length, "args": {"stream": stream}}


def test_streams_of_a_trace():
    events = [
        event("spin_kernel(long)", 20, 1, 1),
        event("spin_kernel(long)", 24, 3, 1),
        event("gemm", 7, 10, 10),
        event("gemm", 7, 15, 10),  # one behind the other's start
        event("merge", 24, 18, 4),
        event("all_to_all", 20, 24, 4),
        event("F dispatch", 7, 0, 99, "gpu_user_annotation"),
    ]
    kernels = overlap.of_device(events)
    assert overlap.marked(kernels) == [20, 24]
    assert overlap.busy_streams(kernels) == {7: (2, 15, 5), 24: (1, 4, 4), 20: (1, 4, 1)}
    assert overlap.common([(0, 1), (2, 6)], [(0.5, 3), (4, 5), (5.5, 9)]) == 0.5 + 1 + 1 + 0.5


def test_waits_are_counted_by_line():
    """As torch warns of them, through a package's line and ours; other warnings are none."""

    def waiting():
        warnings.warn("called a synchronizing CUDA operation (Triggered internally at ...)", stacklevel=1)
        warnings.warn(
            "Synchronization debug mode does not yet detect all synchronizing operations", stacklevel=1
        )

    first = waiting.__code__.co_firstlineno
    with overlap.waits("cpu") as places:
        for _ in range(3):
            waiting()
    assert places == {f"tests/tools/test_gpu_check_parts.py:{first + 1}": 3}
    with pytest.warns(UserWarning, match="as ever"):
        warnings.warn("as ever", stacklevel=1)


def test_a_line_is_of_this_project_and_of_the_package_that_waits():
    def frame(filename, line):
        return traceback.FrameSummary(filename, line, "f", lookup_line=False)

    own = frame(f"{ROOT}/hcmegatron/model/experts.py", 49)
    package = frame("/usr/lib/site-packages/megatron/core/router.py", 7)
    brought = frame("/x/gpu-check-1/megatron/core/router.py", 7)
    assert overlap.line_of([own]) == "hcmegatron/model/experts.py:49"
    for other in (package, brought):
        assert overlap.line_of([own, other]) == "hcmegatron/model/experts.py:49, in megatron/core/router.py:7"
        assert overlap.line_of([other]) == "megatron/core/router.py:7"
    inside = frame(f"{ROOT}/.venv/lib/site-packages/torch/a.py", 1)
    assert overlap.line_of([own, inside]) == "hcmegatron/model/experts.py:49, in torch/a.py:1"
    assert overlap.line_of([]) == "an unknown place"


def test_streams_of_high_priority_are_collected(monkeypatch):
    class Stream:
        def __new__(cls, device=None, priority=0, **others):
            return object.__new__(cls)

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    with overlap.made_streams("cuda") as found:
        torch.cuda.Stream()
        first = torch.cuda.Stream(torch.device("cpu"), priority=-1)
        second = torch.cuda.Stream(priority=-2)
    torch.cuda.Stream(priority=-1)
    assert found == [(-1, first), (-2, second)]


def test_runs_that_differ_are_told_in_what():
    run = [(1, 2.5, 0.1), (2, 2.4, 0.1)], {"0": {"w": "ab"}, "1": {"w": "cd"}}
    assert first_difference(run, run) == ""
    assert first_difference(run, (run[0], {"0": {"w": "ab"}, "1": {"w": "ce"}})) == "stage 1: w"
    assert first_difference(run, (run[0], {"0": {"w": "ab"}})) == "stage 1: w"
    assert first_difference(run, ([run[0][0], (2, 2.4, 0.2)], run[1])) == "step 2: (2.4, 0.1) and (2.4, 0.2)"
    assert first_difference(run, (run[0][:1], run[1])) == "2 and 1 steps"
    assert first_difference(([], {}), ([], {})) == "0 and 0 steps"


def test_cases_and_files_are_those_that_there_are():
    assert correctness.CASES == cuda_run.CASES
    files = correctness.files()
    assert {"tests/kernels/test_cuda.py", "tests/pipeline/test_overlap_cuda.py"} <= set(files)
    assert not set(files) & set(correctness.ELSEWHERE)
    assert (ROOT / correctness.ELSEWHERE[0]).exists()
    text = (ROOT / "tests/pipeline/test_overlap_cuda.py").read_text()
    assert f"def {correctness.ELSEWHERE[1]}(" in text


@pytest.mark.parametrize("over", [False, True])
def test_a_call_has_waited_where_the_kernel_is_over(over, monkeypatch):
    """However long it took: it may be slow by itself."""
    event = SimpleNamespace(query=lambda: over)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: SimpleNamespace(record_event=lambda: event))
    monkeypatch.setattr(probes, "spin", lambda stream: None)
    slow = 0.0 if over else 0.6 * probes.SPIN
    seconds, waited = probes.beside_spinning(lambda: probes.time.sleep(slow), "cuda")
    assert waited is over and seconds >= slow


def test_a_pytest_that_cannot_run_its_tests_has_not_passed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(correctness, "files", lambda: ["tests/no_such_test.py"])
    work = PhaseContext(tmp_path / "rows", True, 0.0, arguments={"share": 0, "of": 1})
    with pytest.raises(RuntimeError, match="pytest ended with status 4"):
        correctness.some_tests(work)
    assert "no_such_test.py" in capsys.readouterr().err


def test_linears_of_a_bare_chunk_add_to_no_buffer(monkeypatch):
    """NVIDIA apex on the machine or not: the memory phase's chunks have no wrapper, and so no buffers."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(accumulate, "fused_weight_gradients", lambda: object())
    configs = bench_recompute.configurations(list(speed.STACK))
    assert len(configs) == 4 and {config.training.dtype for config in configs.values()} == {"bf16"}
    assert not any(accumulate.megatron_fuses(config.parallel.schedule, "bf16") for config in configs.values())


def test_how_far_apart_gradients_are():
    exact = {kinds.LOSS: torch.tensor(9.0), "large": torch.tensor([3.0, 4.0]), "small": torch.tensor([1e-6])}
    off = {**exact, "large": torch.tensor([3.0, 4.5])}
    assert kinds.difference(off, exact, 1e-2) == (pytest.approx(0.1), "large")
    noisy = {**exact, "small": torch.tensor([3e-6])}  # twice its size, and 4e-5 of a hundredth of all of them
    assert kinds.difference(noisy, exact, 1e-2) == (pytest.approx(4e-5), "small")
    assert kinds.difference(noisy, exact, 0.0) == (pytest.approx(2.0), "small")
    apart, where = kinds.difference({**off, "small": torch.tensor([float("nan")])}, exact, 1e-2)
    assert where == "small" and not apart <= 1e9


def test_a_failure_is_told_by_its_error_and_not_by_a_picture_of_the_place():
    said = "E   triton.CompilationError: at 8:22:\nE   def f(x):\nE        ^\nE   ValueError('too large')\nE        ^"
    assert correctness._last_line(SimpleNamespace(longrepr=said)) == "E ValueError('too large')"
    assert correctness._last_line(SimpleNamespace(longrepr="E   assert 1 == 2")) == "E assert 1 == 2"
    assert correctness._last_line(SimpleNamespace(longrepr="")) == ""
