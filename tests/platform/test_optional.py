"""Optional packages are found by what they can do, and the wrong apex is not imported."""

import importlib
import sys

import pytest

from hcmegatron.platform import optional


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    for probe in (optional.transformer_engine, optional.nvidia_apex, optional.triton):
        probe.cache_clear()
    yield
    for probe in (optional.transformer_engine, optional.nvidia_apex, optional.triton):
        probe.cache_clear()


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Packages as a dict of file -> text, first on the path."""

    def write(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        monkeypatch.syspath_prepend(str(tmp_path))
        importlib.invalidate_caches()

    yield write
    for name in [n for n in sys.modules if n.split(".")[0] in ("apex", "transformer_engine")]:
        del sys.modules[name]


BOMB = "raise AssertionError('imported')"


def test_the_pyramid_apex_is_told_loudly_and_never_imported(install):
    install({"apex/__init__.py": BOMB, "apex/lib/libapex.py": BOMB})
    found = optional.nvidia_apex()
    assert not found.usable and found.alarming and "pip uninstall apex" in found.words
    assert "apex" not in sys.modules


def test_nvidias_apex_is_found_by_its_modules(install):
    install({f"apex/{part}__init__.py": BOMB for part in ("", "optimizers/", "normalization/")})
    found = optional.nvidia_apex()
    assert found.usable and not found.alarming and "apex" not in sys.modules


def test_a_broken_transformer_engine_says_why(install):
    install(
        {
            "transformer_engine/__init__.py": "",
            "transformer_engine/pytorch.py": "raise OSError('no libcudnn.so')",
        }
    )
    found = optional.transformer_engine()
    assert not found.usable and "OSError: no libcudnn.so" in found.words


def test_a_working_transformer_engine(install):
    install({"transformer_engine/__init__.py": "", "transformer_engine/pytorch.py": ""})
    assert optional.transformer_engine().usable


def test_nothing_installed(monkeypatch):
    monkeypatch.setattr(optional.importlib.util, "find_spec", lambda name: None)
    assert [package.usable for package in optional.packages()] == [False] * 3
    assert all("not installed" in package.words for package in optional.packages())
