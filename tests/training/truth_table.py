"""What a run that continues says of every setting that was changed, against what then happens.

    python -m tests.training.truth_table [--keys REGEX] [--markdown FILE]

For each key of the schema a base configuration is searched in which it has an effect, and another value that the checks
let pass. A run of that base is trained for four steps with a checkpoint after two; from it, the same run is continued
with the key changed. Claims and facts have to agree:

- bit for bit: the same samples, and every rank has the same bits of weights and optimizer after step 4;
- rounding: the same samples, and losses that differ by no more than one part in 10,000;
- changes: the samples go on where the first two steps ended; and other bits, or the change was no change;
- refused: no step is trained.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin

from hcmegatron.config import Config, ConfigError, check_config
from hcmegatron.config.checks.layout import smallest_world
from hcmegatron.config.ineffective import ineffective
from hcmegatron.config.types import flatten, leaves
from hcmegatron.connections import accounting
from tests.ranks import observe_ranks
from tests.small_configs import tiny
from tests.training import checkpoint_workers

RUN = {"preload": ("tests.training.workers",), "process_group": False, "timeout": 120, "grace": 10.0}
CONTINUED = checkpoint_workers.continued
WORDS = {
    "bit for bit": "bit for bit",
    "with the same numbers but for rounding": "rounding",
    "with changes": "changes",
}

# Settings that name what is continued, or need what is not here: key -> why no value is tried.
LEFT_OUT = {
    "health.on_bad_step": "it acts on a step that is not finite, and all of these are",
    "health.loss_spike": "it acts on a spike, and in four steps there is none",
    "health.grad_norm_spike": "it acts on a spike, and in four steps there is none",
    "health.spike_window": "it acts on a spike, and in four steps there is none",
    "health.leave_out_batches": "it acts on a rewind, and all of these steps are finite",
    "run.dir": "it says which run is continued",
    "checkpoint.load": "it begins a new run",
    "checkpoint.init_from": "it begins a new run",
    "run.wandb": "it needs the package wandb",
    "parallel.costs": "it needs measured costs, by which receives are posted on GPUs",
    "data.validation": "it needs prepared data sets (tests/data)",
    "data.test": "it needs prepared data sets (tests/data)",
    "data.tokenizer": "it needs another vocabulary (tests/data)",
    "implementation": "it needs Transformer Engine, or is local already",
}
# Where doubling, halving and the neighbours of a value would show nothing: key -> values.
VALUES: dict[str, list[Any]] = {
    "optimizer.clip": [0.01],
    "optimizer.eps": [0.1],
    "muon.lr": [0.05],
    "muon.weight_decay": [0.9],
    "optimizer.step_decay_at": [[0.8, 0.9]],
    "optimizer.step_decay_to": [[0.9, 0.1]],
    "optimizer.warmup_steps": [4],
    "moe.expert_bias_rate": [0.5],
    "checkpoint.resume": ["required"],
    "health.diverged_after": [50],
    "run.observers": [["hcmegatron.training.observer:Observer"]],
    "training.seed": [99],
    "training.eval_prompt": ["line 1"],
    "diagnostics.ablation_every": [100],
    "health.slow_factor": [1000.0],
    "run.profile_at": [[3]],
    "checkpoint.keep_at": [[3]],
    "optimizer.decay_steps": [2],
    "recompute.modules": [["core_attn"]],
    "connection.lr_multiplier": [5.0],
    "data.suffixes": [[".txt"]],
}
STEP_DECAY = {"schedule": "step", "step_decay_at": [0.5, 0.9], "step_decay_to": [0.5, 0.1]}
GQA = {"attention": "gqa", "layers": 4}
TWO = {"global_batch": 4}
# Bases, the cheapest first: sections over `tiny`.
BASES: dict[str, dict[str, dict[str, Any]]] = {
    "experts": {"parallel": {"pipeline": 1}, "optimizer": STEP_DECAY},
    "muon": {"parallel": {"pipeline": 1}, "optimizer": {"name": "muon"}},
    "cosine": {"parallel": {"pipeline": 1}, "training": {"eval_prompt": "line"}},
    "dense": {
        "parallel": {"pipeline": 1},
        "model": {**GQA, "vocab_size": 300},
        "moe": {"experts": 0},
        "optimizer": {"schedule": "wsd", "decay_steps": 1},
        "recompute": {"mode": "block", "block_length": "2"},
    },
    "selective": {
        "parallel": {"pipeline": 1},
        "model": GQA,
        "recompute": {"mode": "selective", "modules": ["mlp"]},
    },
    "hyper": {"parallel": {"pipeline": 1}, "model": GQA, "connection": {"kind": "dhc", "n": 2}},
    "frac": {"parallel": {"pipeline": 1}, "model": GQA, "connection": {"kind": "dfc", "n": 2}},
    "tensor": {"parallel": {"pipeline": 1, "tensor": 2}, "model": GQA, "moe": {"experts": 0}},
    "tensor and experts": {
        "parallel": {"pipeline": 1, "tensor": 2, "sequence": True, "distributed_optimizer": True},
        "moe": {"ffn_hidden_size": 16},
    },
    "line": {"parallel": {"pipeline": 2, "schedule": "1f1b"}, "training": TWO},
    "chunks": {
        "parallel": {"pipeline": 2, "schedule": "interleaved", "virtual": 2},
        "model": {"layers": 8},
        "training": TWO,
    },
    "V": {"parallel": {"pipeline": 2, "schedule": "dualpipev"}, "model": {"layers": 4}, "training": TWO},
    "data parallel": {
        "parallel": {"pipeline": 1, "expert": 2, "distributed_optimizer": True, "overlap_grad_reduce": True},
        "training": TWO,
    },
}


class Row(NamedTuple):
    """A key that was changed; `wrong` where what was said is not what happened."""

    key: str
    base: str
    change: str
    said: str
    happened: str
    wrong: str


class Trained(NamedTuple):
    """A run of the worker: what it said, and per rank its hashes and samples; losses by step."""

    error: str
    log: str
    hashes: list[dict[int, str]]
    samples: list[int]
    losses: dict[int, float]


class Table:
    """Makes rows. Bases are trained once, when a key first needs them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.text = folder / "text.txt"
        self.text.write_text(
            "".join(f"line {n * 7919 % 1000}: {'ab' * (n % 9)} {n * n}\n" for n in range(400))
        )
        self.same_text = folder / "elsewhere/text.txt"
        self.same_text.parent.mkdir()
        shutil.copy(self.text, self.same_text)
        self.whole: dict[str, Trained] = {}

    def config(self, base: str) -> Config:
        """Of a base's own run."""
        return tiny(self.text, self.folder / base / "run", **copy.deepcopy(BASES[base]))

    def row(self, key: str) -> Row:
        """Change a key and continue."""
        if key in LEFT_OUT:
            return Row(key, "", "", "", f"not tried: {LEFT_OUT[key]}", "")
        found = self.choice(key)
        if found is None:
            return Row(key, "", "", "", "not tried: it has one value", "")
        base, config = found
        whole = self.of(base)
        directory = self.folder / "continued"
        shutil.copytree(self.folder / base / "run", directory)
        shutil.rmtree(directory / "checkpoints/step-00000004")
        config.run.dir = str(directory)
        if key != "checkpoint.resume":
            config.checkpoint.resume = "auto"
        trained = train(config)
        shutil.rmtree(directory)
        before, after = flatten(self.config(base))[key], flatten(config)[key]
        return judged(key, base, f"{json.dumps(before)} -> {json.dumps(after)}", config, whole, trained)

    def of(self, base: str) -> Trained:
        """The whole run of a base."""
        if base not in self.whole:
            self.whole[base] = train(self.config(base))
            assert not self.whole[base].error, self.whole[base].error
        return self.whole[base]

    def choice(self, key: str) -> tuple[str, Config] | None:
        """The first base and value that the checks let pass, where the key has an effect; else the first at all."""
        spare = None
        for base in BASES:
            for value in self.values(key, flatten(self.config(base))[key]):
                config = self.config(base)
                section, _, leaf = key.rpartition(".")
                setattr(getattr(config, section) if section else config, leaf, value)
                try:
                    check_config(config)
                    smallest_world(config)
                except ConfigError:
                    continue
                if key not in ineffective(config) and key not in ineffective(self.config(base)):
                    return base, config
                spare = spare or (base, config)
        return spare

    def values(self, key: str, before: Any) -> Iterator[Any]:
        """Other values than `before`."""
        hint = leaves()[key]
        name = key.removeprefix("connection.")
        found: list[Any] = list(VALUES.get(key, []))
        if key == "data.paths":
            found = [[str(self.same_text)]]
        if name in accounting.fields():
            found += accounting.fields()[name][1].metadata["tries"]
        for kind in (hint, *get_args(hint)):
            if isinstance(kind, str):
                found.append(kind)
            found += [
                option
                for option in get_args(kind)
                if isinstance(option, str) and get_origin(kind) is not list
            ]
        if hint is bool or bool in get_args(hint):
            found += [True, False]
        elif isinstance(before, int | float) and not isinstance(before, bool):
            found += [
                before * 2,
                before + 1,
                before / 2 if isinstance(before, float) else before // 2,
                1,
                0.1,
                0,
            ]
            found = [type(before)(value) if isinstance(value, int | float) else value for value in found]
        elif get_origin(hint) is list:
            pass  # named in VALUES, or by its type
        elif int in get_args(hint):
            found += [2, 1]
        elif float in get_args(hint):
            found += [1.0]
        elif hint is str:
            found += ["1", "2"]
        yield from (value for value in found if value != before)


def train(config: Config) -> Trained:
    """Train on as many ranks as hold the model once (as hold its experts, where they are shared out)."""
    ranks = smallest_world(config)
    outcomes = observe_ranks(ranks, CONTINUED, config, **RUN)
    failed = next((outcome for outcome in outcomes if outcome.exit_code), None)
    directory = Path(config.run.dir)
    log = directory / "train.log"
    if failed:
        return Trained((failed.error or failed.output).strip().splitlines()[-1], "", [], [], {})
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return Trained(
        "",
        log.read_text(),
        [outcome.result["hashes"] for outcome in outcomes],
        sorted({sample for outcome in outcomes for sample in outcome.result["samples"]}),
        {line["step"]: line["loss"] for line in lines if line["kind"] == "train"},
    )


def judged(key: str, base: str, change: str, config: Config, whole: Trained, trained: Trained) -> Row:
    """Compare what was said with what happened."""
    if trained.error:
        refused = "ConfigError" in trained.error
        said = "refused: " + trained.error.partition("ConfigError: ")[2] if refused else trained.error
        return Row(key, base, change, said, "no step trained", "" if refused else "ended otherwise")
    (line,) = re.findall(r"continuing from \S+ after step 2, (.*)", trained.log)
    said = WORDS[line]
    batch = config.training.global_batch
    began = 2 * len(whole.samples) // 4
    steps = config.training.steps - 2
    expected = list(range(began, began + steps * batch))
    same_bits = [rank.get(4) for rank in trained.hashes] == [rank[4] for rank in whole.hashes]
    off = max(abs(trained.losses[n] / whole.losses[n] - 1) for n in (3, 4) if n in trained.losses)
    happened = "the same bits" if same_bits else f"losses off by {off:.1e}"
    wrong = ""
    if trained.samples != expected:
        wrong = f"samples {trained.samples} and not {expected}"
    elif said == "bit for bit" and not same_bits:
        wrong = "other bits"
    elif said == "rounding" and off > 1e-4:
        wrong = "more than rounding"
    elif said == "changes" and same_bits:
        wrong = "nothing changed"
    elif said != "bit for bit" and f"{key} " not in trained.log:
        wrong = "the key is not named"
    return Row(key, base, change, said, happened, wrong)


def main(argv: list[str]) -> int:
    """Print the table; 1 where a claim is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.training.truth_table")
    parser.add_argument("--keys", default="", help="those that this regular expression finds")
    asked = parser.parse_args(argv)
    rows = []
    with tempfile.TemporaryDirectory(prefix="truth-") as folder:
        table = Table(Path(folder))
        for key in leaves():
            if re.search(asked.keys, key):
                rows.append(table.row(key))
                row = rows[-1]
                mark = f"  WRONG: {row.wrong}" if row.wrong else ""
                print(
                    f"{row.key} | {row.base} | {row.change} | {row.said[:120]} | {row.happened}{mark}",
                    flush=True,
                )
    wrong = sum(bool(row.wrong) for row in rows)
    print(f"{len(rows)} keys, {sum(bool(row.said) for row in rows)} changed, {wrong} wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
