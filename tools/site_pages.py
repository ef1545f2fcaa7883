"""What the documentation site needs beside docs/ as it is (mkdocs.yml, make docs): the README as its first page, and
links to files outside docs/, which a reader of the repository follows there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(?<=\]\()(?!https?:|#)([^)#\s]+)")


def on_files(files: Any, config: Any) -> Any:
    """index.md, made of the README."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "index.md", content=first_page((ROOT / "README.md").read_text())))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links out of docs/ as plain text; a blank line before a list, which Markdown on the web asks for.

    Raises:
        ValueError: such a link leads nowhere, which mkdocs would not see any more.
    """
    return spaced(re.sub(r"\[([^\]]+)\]\((\.\./[^)]+)\)", lambda link: outside(link[1], link[2]), markdown))


def first_page(readme: str) -> str:
    """The README with links as docs/ has them: docs/pipeline.md is pipeline.md, and what lies elsewhere is ../..."""
    return LINK.sub(
        lambda link: link[1].removeprefix("docs/") if link[1].startswith("docs/") else f"../{link[1]}", readme
    )


def outside(text: str, target: str) -> str:
    """The words of a link to a file that is not of the site, and the file's name."""
    if not (ROOT / "docs" / target.partition("#")[0]).exists():
        raise ValueError(f"[{text}]({target}) leads nowhere")
    path = target.removeprefix("../")
    return f"`{path}`" if text.strip("`/") == path.strip("/") else f"{text} (`{path}`)"


def spaced(markdown: str) -> str:
    """A list, or a table, right below a paragraph is part of it on the web, and one of its own in a repository."""
    lines: list[str] = []
    fenced = False
    for line in markdown.split("\n"):
        fenced ^= line.startswith("```")
        before = lines[-1] if lines else ""
        item = re.match(r"[-*] |\d+\. |\|", line)
        if item and not fenced and before and not re.match(r"[-*] |\d+\. |\||\s", before):
            lines.append("")
        lines.append(line)
    return "\n".join(lines)
