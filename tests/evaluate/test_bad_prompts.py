"""What `hcmegatron generate` cannot use is one line and status 2, before anything is started. No torch."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hcmegatron.cli import main
from hcmegatron.data.tokenizer_registry import build_tokenizer
from hcmegatron.training import manifest
from hcmegatron.training.from_checkpoint import configured, find_checkpoint
from tests.data.small_tokenizers import byte_level, sentence_piece
from tests.training.resume_cases import HERE, made, saved


def run(folder: Path, **changes: object) -> Path:
    """A run directory with a checkpoint after step 4, of sequences of 16 tokens."""
    sections = {"data": {"sequence_length": 16, "tokenizer": changes.pop("tokenizer", "byte")}}
    saved(folder / "run", made(**sections), **changes)
    return folder / "run"


def asked(folder: Path, *words: object, **changes: object) -> list[str]:
    """Of a run that is whole, with a prompt where none is given."""
    prompt = [] if any(str(word).startswith("--prompt") for word in words) else ["--prompt=a text"]
    return [str(run(folder, **changes)), *map(str, words), *prompt]


def file(folder: Path, content: bytes, name: str = "p.txt") -> str:
    (folder / name).write_bytes(content)
    return f"--prompts={folder / name}"


def broken(folder: Path, name: str, content: bytes | None) -> list[str]:
    """Of a run whose only checkpoint has lost a file, or has another."""
    words = asked(folder)
    path = folder / "run/checkpoints" / manifest.name(4) / name
    path.unlink() if content is None else path.write_bytes(content)
    return words


def first_format(folder: Path) -> list[str]:
    words = asked(folder)
    old = {"step": 4, "architecture": {}, "layout": {"world_size": 1, "distributed_optimizer": False}}
    old["files"] = {"__0_0.distcp": 7}
    (folder / "run/checkpoints" / manifest.name(4) / "manifest.json").write_text(json.dumps(old))
    return words


def other_version(folder: Path) -> list[str]:
    """Of a run with a setting that this version does not have."""
    words, path = asked(folder), folder / "run/checkpoints" / manifest.name(4)
    told = manifest.read(path)
    replace(told, config={**told.config, "model.depth": 3}).write(path)
    return words


MISTAKES = {
    # the run
    "no run": (
        lambda d: [str(d / "nowhere"), "--prompt=a"],
        "nowhere: there is no such directory; name a run direct",
    ),
    "a file": (
        lambda d: [file(d, b"x")[10:], "--prompt=a"],
        "p.txt: is a file; name a run directory, or a checkpoint",
    ),
    "another directory": (
        lambda d: [str(d), "--prompt=a"],
        ": there is no checkpoint in it; name a run directory",
    ),
    "nothing": (lambda d: [], "the following arguments are required: RUN"),
    "a step that was not saved": (
        lambda d: asked(d, "--step=3"),
        "--step 3: {run} has no checkpoint after it, but aft",
    ),
    "a step that is none": (
        lambda d: asked(d, "--step=last"),
        "--step last: a whole number from 0 to 2147483647",
    ),
    "a step of a checkpoint": (
        lambda d: [f"{run(d)}/checkpoints/step-00000004", "--prompt=a", "--step=4"],
        "is a checkpoint itself; leave --step out, or name its run",
    ),
    "a manifest that is gone": (
        lambda d: broken(d, "manifest.json", None),
        "run: no checkpoint is whole: checkpoint {run}/checkpoints/step-00000004 is partial or no checkpoint: it",
    ),
    "a manifest that is none": (
        lambda d: broken(d, "manifest.json", b"{"),
        "step-00000004 is corrupt: manifest.json is not JSON",
    ),
    "weights that are gone": (
        lambda d: broken(d, "__0_0.distcp", None),
        "step-00000004 is corrupt: __0_0.distcp is missing",
    ),
    "weights that are cut": (
        lambda d: broken(d, "__0_0.distcp", b"weig"),
        "__0_0.distcp has 4 bytes, 7 were written",
    ),
    "an old format": (
        first_format,
        "is of format 1, which does not hold its run's configuration; train a step from it",
    ),
    "settings of another version": (
        other_version,
        "step-00000004: model.depth is no setting of this version; use the one that wrote it",
    ),
    "another tokenizer": (
        lambda d: asked(d, environment={**HERE, "tokenizer": "0123456789abcdef"}),
        "is of another tokenizer: its fingerprint is 0123456789abcdef there, and byte of data.tokenizer = byte",
    ),
    "a tokenizer that is gone": (
        lambda d: asked(d, tokenizer="gone/tokenizer.json"),
        "data.tokenizer = gone/tokenizer.json: there is no such file; name another, or byte",
    ),
    "a tokenizer given that is another": (
        lambda d: asked(d, f"--data.tokenizer={byte_level(d)}"),
        "is of another tokenizer: its fingerprint is byte there, and ",
    ),
    # prompts
    "no prompt": (
        lambda d: [str(run(d))],
        "no prompt; give --prompt TEXT, or --prompts FILE with one in each line",
    ),
    "an empty prompt": (
        lambda d: asked(d, "--prompt="),
        "--prompt: the prompt is empty; give the text to go on from",
    ),
    "white space": (lambda d: asked(d, "--prompt= \n"), ": the prompt is empty; give the text to go on from"),
    "a prompt without text": (
        lambda d: [str(run(d)), "--prompt"],
        "argument --prompt: expected one argument",
    ),
    "a prompt that is too long": (
        lambda d: asked(d, "--prompt=" + "long " * 4),
        "--prompt long long long long : has 20 tokens, and the network was trained on 16 (data.sequence_length)",
    ),
    "one of several that is too long": (
        lambda d: asked(d, "--prompt=short", "--prompt=" + "é" * 9),
        "--prompt ééééééééé: has 18 tokens, and the network was trained on 16",
    ),
    "a prompt that is no text": (
        lambda d: asked(d, "--prompt=a\udcff", tokenizer=str(sentence_piece(d)), environment=fingerprint(d)),
        "--prompt a\\udcff: is not UTF-8 at byte 1, and data.tokenizer has no tokens for single bytes",
    ),
    "no file": (
        lambda d: asked(d, f"--prompts={d / 'none'}"),
        "none: No such file or directory; name a file with a",
    ),
    "a directory": (
        lambda d: asked(d, f"--prompts={d}"),
        ": is a directory; name a file with a prompt in each line",
    ),
    "an empty file": (lambda d: asked(d, file(d, b"\n\n")), "p.txt: is empty; write a prompt in each line"),
    "an empty line": (
        lambda d: asked(d, file(d, b"a\n\nb\n")),
        "p.txt:2: the prompt is empty; give the text",
    ),
    "a binary file": (
        lambda d: asked(d, file(d, b"a\0b")),
        "p.txt: is binary; name a file with a prompt in each line",
    ),
    "a line that is too long": (
        lambda d: asked(d, file(d, b"a\n" + b"b" * 17)),
        "p.txt:2: has 17 tokens, and the net",
    ),
    "a line that is no JSON": (
        lambda d: asked(d, file(d, b'{"prompt": "a"}\n{"prompt": \n', "p.jsonl")),
        'p.jsonl:2: is not {"prompt": "some text"} in JSON; correct it',
    ),
    "a line without a prompt": (
        lambda d: asked(d, file(d, b'{"text": "a"}', "p.jsonl")),
        "p.jsonl:1: is not {",
    ),
    "a prompt that is a number": (
        lambda d: asked(d, file(d, b'{"prompt": 1}', "p.jsonl")),
        "p.jsonl:1: is not {",
    ),
    "half of a surrogate pair": (
        lambda d: asked(d, file(d, b'{"prompt": "\\ud800"}', "p.jsonl")),
        "p.jsonl:1: holds half of a surrogate pair, which is no character; correct it",
    ),
    "two files": (
        lambda d: asked(d, file(d, b"a"), "--prompts=b.txt"),
        "--prompts b.txt: --prompts is given twice, as",
    ),
    # options
    "no tokens": (lambda d: asked(d, "--tokens=0"), "--tokens 0: a whole number from 1 to 2147483647"),
    "half a token": (lambda d: asked(d, "--tokens=1.5"), "--tokens 1.5: a whole number from 1 to 2147483647"),
    "more tokens than fit": (
        lambda d: asked(d, "--tokens=12"),
        "--tokens 12: behind the 6 tokens of --prompt a text there is room for 11, as the network was trained on 16",
    ),
    "nothing drawn at temperature 0": (
        lambda d: asked(d, "--temperature=0", "--top-p=0.9"),
        "--temperature 0: nothing is drawn; use --greedy for the likeliest token",
    ),
    "a temperature of which fp64 overflows": (
        lambda d: asked(d, "--temperature=1e-320"),
        "--temperature 1e-320: 1e-06 or more; use --greedy for the likeliest token",
    ),
    "a temperature below 0": (
        lambda d: asked(d, "--temperature=-1"),
        "--temperature -1: a number, 0 or more and below",
    ),
    "a temperature that is none": (
        lambda d: asked(d, "--temperature=nan"),
        "--temperature nan: a number, 0 or more",
    ),
    "a temperature without end": (
        lambda d: asked(d, "--temperature=inf"),
        "--temperature inf: a number, 0 or more",
    ),
    "a nucleus of nothing": (
        lambda d: asked(d, "--top-p=0"),
        "--top-p 0: above 0 and up to 1, which is all tokens",
    ),
    "a nucleus of more than all": (
        lambda d: asked(d, "--top-p=1.1"),
        "--top-p 1.1: above 0 and up to 1, which is all",
    ),
    "a seed below 0": (lambda d: asked(d, "--seed=-1"), "--seed -1: a whole number from 0 to 2147483647"),
    "a seed for the likeliest": (
        lambda d: asked(d, "--greedy", "--seed=1"),
        "--greedy beside --seed: the likeliest token is not drawn; leave one of them out",
    ),
    "a temperature for the likeliest": (
        lambda d: asked(d, "--greedy", "--temperature=1"),
        "--greedy beside --temperat",
    ),
    # settings
    "another network": (
        lambda d: asked(d, "--model.layers=2"),
        "--model.layers=2: generation takes model.layers from the run, or has no use for it; leave it out",
    ),
    "a rate of learning": (
        lambda d: asked(d, "--optimizer.lr=1"),
        "--optimizer.lr=1: generation takes optimizer.lr",
    ),
    "a setting that is none": (
        lambda d: asked(d, "--parallel.pipe=2"),
        "parallel.pipe is not a setting; did you mean",
    ),
    "a layout that does not fit": (
        lambda d: asked(d, "--parallel.tensor=3"),
        "model.heads = 4 is not divisible by parallel.tensor = 3",
    ),
    "a schedule that does not fit": (
        lambda d: asked(d, "--parallel.pipeline=3", "--parallel.schedule=dualpipe"),
        "parallel.schedule = dualpipe takes multiples of 2, and not parallel.pipeline = 3",
    ),
    "sequences that are not split evenly": (
        lambda d: asked(d, "--parallel.tensor=32", "--parallel.sequence=true"),
        "data.sequence_length = 16 is not divisible by parallel.tensor = 32, over which the sequence is split",
    ),
}


def fingerprint(folder: Path) -> dict:
    return {**HERE, "tokenizer": build_tokenizer(str(sentence_piece(folder))).fingerprint}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_nothing_is_started(mistake, tmp_path, capsys):
    make, words = MISTAKES[mistake]
    assert main(["generate", *make(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1, printed.err
    assert printed.err.startswith("hcmegatron: error: ")
    assert words.replace("{run}", str(tmp_path / "run")) in printed.err


def test_an_older_checkpoint_is_used_where_the_newest_is_damaged_and_said(tmp_path):
    whole = saved(tmp_path / "run", made(data={"sequence_length": 16}), 2)
    damaged = broken(tmp_path, "__0_0.distcp", None)
    path, saved_there, said = find_checkpoint(Path(damaged[0]), None)
    assert path == whole and saved_there.step == 2
    assert said == [
        f"checkpoint {whole.parent}/step-00000004 is corrupt: __0_0.distcp is missing; step-00000002 is used"
    ]


@pytest.mark.parametrize("kernels", ["triton", "native"])
def test_what_the_runs_machine_had_is_asked_for_of_none(kernels, tmp_path):
    path = run(tmp_path) / "checkpoints" / manifest.name(4)
    told = manifest.read(path)
    asked_for = {
        "kernels": kernels,
        "implementation": "te",
        "parallel.pipeline": 8,
        "run.observers": ["a:B"],
    }
    config, warnings = configured(replace(told, config={**told.config, **asked_for}), path, [], 1)
    assert (config.kernels, config.implementation, config.parallel.pipeline) == ("auto", "auto", 1)
    assert config.run.observers == [] and warnings == []
    kept = {"kernels": "torch", "implementation": "local"}
    config, _ = configured(replace(told, config={**told.config, **kept}), path, ["--parallel.tensor=2"], 8)
    assert (config.kernels, config.implementation, config.parallel.tensor) == ("torch", "local", 2)


def test_a_setting_without_effect_is_said(tmp_path):
    path = run(tmp_path) / "checkpoints" / manifest.name(4)
    _, warnings = configured(manifest.read(path), path, ["--moe.grouped=false"], 1)
    assert warnings == ["moe.grouped = false has no effect: moe.experts is 0"]
