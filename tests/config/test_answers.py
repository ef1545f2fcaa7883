"""What a configuration is answered, whole: a refusal with key, value and remedy, warnings, or nothing.

`answers/` has them by room, a paragraph each: a command line over configs/quickstart.yaml or over the defaults, or the
file itself behind bars; then what is said. FILE stands for the file's path.
"""

import shlex
from pathlib import Path

import pytest

from hcmegatron.config import ConfigError, check_config, check_world, read_config
from tests.ranks import ROOT

SAID = ("taken", "warned: ", "refused: ")


def asked_and_answered():
    found = []
    for file in sorted(Path(__file__).with_name("answers").glob("*.txt")):
        for paragraph in file.read_text().split("\n\n"):
            lines = paragraph.splitlines()
            asked = [line for line in lines if not line.startswith(SAID)]
            found.append(pytest.param(asked, lines[len(asked) :], id=f"{file.stem}: {' '.join(asked)}"))
    return found


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return tmp_path_factory.mktemp("answers") / "c.yaml"


@pytest.mark.parametrize(("asked", "answered"), asked_and_answered())
def test_an_answer_is_these_lines(asked, answered, written):
    path, overrides, ranks = written, [], None
    if asked[0].startswith("| "):
        written.write_text("".join(f"{line[2:]}\n" for line in asked))
    else:
        base, *overrides = shlex.split(asked[0])
        path = {"defaults": None, "quickstart": ROOT / "configs/quickstart.yaml"}[base]
        if overrides[:1] == ["on"]:
            _, ranks, _, *overrides = overrides
    try:
        config, sources = read_config(path, overrides)
        if ranks:
            check_world(config, int(ranks))
        said = [f"warned: {line}" for line in check_config(config, sources)] or ["taken"]
    except ConfigError as error:
        said = [f"refused: {error}"]
    places = {str(path): "FILE", str(written.parent): "DIR"}
    for place, word in places.items():
        said = [line.replace(place, word) for line in said]
    assert said == answered
