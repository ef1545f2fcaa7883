"""Documents lead where they say; the site that is made of them is built, where its packages are installed."""

import importlib.util
import os
import re
import subprocess
import sys

import pytest

from tests.ranks import ROOT
from tools import site_pages

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def broken(page, text):
    """Links of a page to files that are not there, or to headings that the file has not."""
    lost = []
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in headings(file.read_text())):
            lost.append(target)
    return lost


def headings(text):
    """As anchors."""
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    assert broken(page, page.read_text()) == []


def test_a_link_that_leads_nowhere_is_found():
    text = "[a](running.md) [b](runing.md) [c](running.md#your-own-run) [d](running.md#your-run) [e](https://e.org/x)"
    assert broken(ROOT / "docs/data.md", text) == ["runing.md", "running.md#your-run"]


def test_the_first_page_is_the_readme_with_the_links_of_docs():
    shown = site_pages.first_page("[a](docs/a.md#b) ![p](docs/p.svg) [l](LICENSE) [w](https://w.org)")
    assert shown == "[a](a.md#b) ![p](p.svg) [l](../LICENSE) [w](https://w.org)"
    page = site_pages.on_page_markdown(
        "See [LICENSE](../LICENSE), [examples/](../examples), [it](../README.md#b).\n- a\n- b"
    )
    assert page == "See `LICENSE`, `examples`, it (`README.md#b`).\n\n- a\n- b"
    with pytest.raises(ValueError, match="leads nowhere"):
        site_pages.on_page_markdown("[x](../nowhere.md)")


@pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None,
    reason="mkdocs is not installed: pip install 'hcmegatron[docs]'",
)
def test_the_site_is_built(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "-q", "-d", tmp_path / "site"]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "hcmegatron.connections.connected.Connected" in (tmp_path / "site/api/index.html").read_text()
    assert "What it does that others do not" in (tmp_path / "site/index.html").read_text()
