"""How native kernels come to be: compiled at first use, kept, and without a compiler a reason in words."""

import os
import re
import subprocess
import sys
import tempfile

import pytest
import torch

from hcmegatron.config import ConfigError, load_config
from hcmegatron.kernels.native import build, library, sinkhorn
from hcmegatron.kernels.select import NATIVE_FILES, select_kernels
from hcmegatron.training.device_check import check_device
from tests.ranks import ROOT

CC = build.shutil.which("cc")
compiles = pytest.mark.skipif(CC is None, reason="there is no cc here")
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens where there is no GPU")
CACHES = (library.obstacle, library.function, library._loaded, sinkhorn.differs)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty folder for libraries, none of which is loaded."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("HCMEGATRON_CACHE", str(folder))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    import triton

    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    for each in CACHES:
        each.cache_clear()
    yield folder
    for each in CACHES:
        each.cache_clear()


def kept(folder):
    return sorted(path.name.rpartition("-")[0] for path in folder.iterdir()) if folder.exists() else []


def refused(**arguments):
    with pytest.raises(ValueError) as error:
        select_kernels("native", **{"n": 2} | arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_functions_take_what_they_are_called_with():
    """Every function of the C files is listed, with its arguments in their order."""
    definition = re.compile(r"^(void|int) (\w+)\(([^)]*)\) \{", re.M)
    letters = {"int64_t": "l", "int": "i", "float": "f"}
    found = {
        (file.stem, name): "".join(
            "p" if "*" in each else letters[each.split()[0]] for each in arguments.split(",")
        )
        for file in build.SOURCES.glob("*.c")
        for _, name, arguments in definition.findall(file.read_text())
    }
    assert found == {
        (file, name): taken.replace(" ", "")
        for file, functions in library._FUNCTIONS.items()
        for name, taken in functions.items()
    }


@no_gpu
@compiles
def test_no_more_is_compiled_than_is_used(cache):
    select_kernels("torch", n=1, sinkhorn=True)
    assert select_kernels("auto", n=1).reason == "torch: no CUDA device"
    assert kept(cache) == []
    by = library.compiled_by(1, "sinkhorn")
    chosen = select_kernels("auto", n=1, sinkhorn=True)
    assert (chosen.name, chosen.reason) == ("torch", f"torch: no CUDA device; Sinkhorn compiled by {by}")
    assert kept(cache) == ["sinkhorn-n1"]
    chosen = select_kernels("native", n=1, dtype=torch.bfloat16)
    assert (chosen.name, chosen.reason) == ("native", f"native: n=1, bf16, compiled by {by}")
    assert kept(cache) == [f"{name}-n1" for name in sorted((*NATIVE_FILES, "sinkhorn"))]


@no_gpu
@compiles
def test_where_sinkhorn_stays_torchs(cache, monkeypatch):
    def reason(n, **arguments):
        return select_kernels("auto", n=n, sinkhorn=True, **arguments).reason

    assert reason(2, dtype=torch.float64) == "torch: fp64"
    assert reason(5) == "torch: no CUDA device; Sinkhorn by torch: n=5, its bits are torch's up to n=4"
    assert reason(2, device="meta").startswith("torch: ") and kept(cache) == []
    monkeypatch.setattr(sinkhorn, "forward", lambda L, iterations, eps: L)
    assert reason(1).endswith("'s bits differ from torch's on this processor")


def test_without_a_compiler(monkeypatch):
    monkeypatch.setenv("PATH", "")
    words = select_kernels("auto", n=2, device="cpu", sinkhorn=True).reason
    assert words.endswith("; Sinkhorn by torch: no C compiler")
    assert refused(device="cpu") == (
        "kernels=native cannot run: no C compiler; install gcc or clang, or pip install 'hcmegatron[native]'; use "
        "kernels=auto or torch"
    )
    for each in CACHES:
        each.cache_clear()
    monkeypatch.setenv("CC", "nowhere -v")
    assert "no C compiler: CC=nowhere -v is not found" in refused(device="cpu")


@pytest.mark.parametrize(
    "program", ["#!/bin/sh\necho here >&2\necho 'cc: error: no ink' >&2\nexit 3\n", "\0", "#!/bin/sh\n"]
)
def test_a_compiler_that_fails(program, tmp_path, monkeypatch, cache):
    """It fails, is no program, or makes nothing."""
    compiler = tmp_path / "own-cc"
    compiler.write_text(program)
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    words = refused(device="cpu")
    assert str(compiler) in words or "no library in" in words
    assert "no ink" in words or "exit" not in program
    chosen = select_kernels("auto", n=2, device="cpu", sinkhorn=True)
    assert chosen.name == "torch" and "; Sinkhorn by torch: " in chosen.reason and "\n" not in chosen.reason
    assert [path for path in cache.iterdir() if path.name.startswith(".")] == []  # what was begun


@compiles
@pytest.mark.parametrize("obstacle", ["a file", "others may write"])
def test_a_cache_that_cannot_be_used(obstacle, tmp_path, monkeypatch, cache):
    if obstacle == "a file":
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("HCMEGATRON_CACHE", str(tmp_path / "file/cache"))
    else:
        cache.mkdir()
        cache.chmod(0o777)
    assert library.obstacle(1, "sinkhorn") is None
    assert kept(cache) == [] and kept(tmp_path / f"hcmegatron-{os.getuid()}") == ["sinkhorn-n1"]


@compiles
def test_a_damaged_library_is_made_again(cache, tmp_path, monkeypatch):
    assert library.obstacle(1, "sinkhorn") is None
    (made,) = cache.iterdir()
    damaged = tmp_path / "another" / made.name
    damaged.parent.mkdir()
    damaged.write_bytes(made.read_bytes()[:100])
    monkeypatch.setenv("HCMEGATRON_CACHE", str(damaged.parent))
    library.obstacle.cache_clear(), library._loaded.cache_clear()
    assert library.obstacle(1, "sinkhorn") is None
    assert damaged.stat().st_size == made.stat().st_size


@compiles
def test_a_library_is_known_by_all_that_it_depends_on(cache, monkeypatch):
    names = {
        build._key(["cc", "-DN=2"], CC),
        build._key(["cc", "-DN=3"], CC),
        build._key(["cc", "-DN=2"], sys.executable),
    }
    monkeypatch.setattr(build, "_processor", lambda: "another")
    names.add(build._key(["cc", "-DN=2"], CC))
    assert len(names) == 4


@compiles
def test_processes_that_compile_at_the_same_time(cache):
    program = (
        "from hcmegatron.kernels.native.build import library; print(library('sinkhorn', 2).sinkhorn_forward)"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for _ in range(4)
    ]
    for process in started:
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 0, said.decode()
    assert kept(cache) == ["sinkhorn-n2"]


def test_what_native_is_not_for():
    assert refused(device="cuda") == (
        "kernels=native cannot run: streams on cuda, and it is for CPUs; use kernels=auto or torch"
    )
    assert "cannot run: fp64;" in refused(device="cpu", dtype=torch.float64)
    assert "cannot run: fp16;" in refused(device="cpu", dtype=torch.float16)
    assert "cannot run: n=9, its kernels hold up to 8;" in refused(device="cpu", n=9)


@no_gpu
def test_a_run_that_asks_for_native_is_refused_before_it_starts(monkeypatch):
    monkeypatch.setenv("PATH", "")
    config = load_config(ROOT / "configs/quickstart.yaml", ["--kernels=native"])
    with pytest.raises(ConfigError, match=r"^kernels=native cannot run: no C compiler; install gcc"):
        check_device(config)
