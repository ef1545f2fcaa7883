"""What the README and the pages that it has been shortened to print is what the commands do."""

import importlib
import re
import shlex

import pytest

from hcmegatron import cli
from hcmegatron.connections.kinds import KINDS
from hcmegatron.data import cli as data_cli
from tests.ranks import ROOT

OTHERS = ("running", "pipeline", "recompute", "studies", "library", "checkpoints", "optimizers", "mhc")
PAGES = ("README.md", *(f"docs/{page}.md" for page in OTHERS))
README = "\n".join((ROOT / page).read_text() for page in PAGES)
LINES = dict.fromkeys(line for line in README.splitlines() if re.match(r" {4}hcmegatron ", line))
COMMANDS = list(
    {tuple(words): words for words in (shlex.split(line, comments=True)[1:] for line in LINES)}.values()
)


# What they do with a run, a table or a cluster is in their own tests; here, that their words are taken.
OF_RUNS = {"profile", "report", "generate", "study", "launch", "doctor", "checkpoint"}
UNNAMED = {"diagnostics", "replay", "status", "logs", "cancel"}  # on pages of their own


def test_there_are_commands_of_every_verb():
    assert {words[0] for words in COMMANDS} == {"train", "config", *cli.VERBS} - UNNAMED
    assert len(COMMANDS) >= 6


@pytest.mark.parametrize("words", [words for words in COMMANDS if "--help" not in words], ids=" ".join)
def test_commands_are_accepted_as_printed(words, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("COLUMNS", "120")
    if words[0] in OF_RUNS:
        parsed = []
        module = importlib.import_module(cli.VERBS[words[0]][0])
        monkeypatch.setattr(module, "main", lambda options, *settings, **others: parsed.append(options) or 0)
        assert cli.main(words) == 0 and len(parsed) == 1
        return
    if words[0] == "schedule":
        monkeypatch.chdir(tmp_path)
        (tmp_path / "docs").mkdir()
        assert cli.main(words) == 0
        (table,) = re.findall(r"```\n(schedule  .*?)```", README, re.DOTALL)
        assert capsys.readouterr().out.endswith(table)
    elif words[0] == "data":
        monkeypatch.setattr(data_cli, "main", lambda options: 0)  # what they do: tests/data/test_prepare.py
        assert cli.main(words) == 0
    elif words[0] == "plan":
        monkeypatch.chdir(ROOT)
        assert cli.main(words) == 0
    else:
        monkeypatch.chdir(ROOT)
        own = tmp_path / "my.yaml"
        own.write_text("model: {layers: 4}\n")
        settings = [str(own) if word == "my.yaml" else word for word in words[1:]]
        if "--restarts" in settings:  # an option of train's own
            place = settings.index("--restarts")
            del settings[place : place + 2]
        assert cli.main(["config", *settings]) == 0
        assert capsys.readouterr().err == ""


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_every_setting_that_is_named_exists():
    from hcmegatron.config.types import leaves

    sections = "model|mla|moe|connection|parallel|data|optimizer|training|checkpoint|recompute|run"
    named = set(re.findall(rf"(?<![\w./-])(?:--)?((?:{sections})\.[a-z_]+)(?![\w.(*/]|\.py)", README))
    named -= {"connection.streams", "connection.normalises"}  # a module's, of the library
    unknown = {key for key in named - leaves().keys() if not key.endswith((".py", ".yaml", ".md"))}
    assert len(named) > 9 and unknown == set(), unknown


def test_the_readme_counts_the_kinds():
    words = [
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
    ]
    (counted,) = re.findall(r"\*\*(\w+) kinds of connection, and the plain residual", README)
    assert counted.lower() == words[len(KINDS.keys() - {"residual"}) - 1]
