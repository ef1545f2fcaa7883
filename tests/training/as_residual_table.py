"""Held-out losses over a residual checkpoint's weights, and how far streams part: the table of docs/checkpoints.md.

python -m tests.training.as_residual_table
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from hcmegatron.config.schema import Config
from tests.ranks import run_ranks
from tests.small_configs import tiny
from tests.training import as_residual_workers
from tests.training.reshard_cases import RUN

STEPS = 6
# settings of the connection, of the layout, ranks; every kind but those that are what they were
WARM = {
    "shc": ({"kind": "shc", "contract": "mean"}, {}, 1),
    "dhc": ({"kind": "dhc", "contract": "mean"}, {}, 1),
    "sfc": ({"kind": "sfc"}, {}, 1),
    "dfc": ({"kind": "dfc"}, {}, 1),
    "mhc": ({"kind": "mhc", "contract": "mean"}, {}, 1),
    "mhc, mean read": ({"kind": "mhc", "contract": "mean", "use_pre": False}, {}, 1),
    "mhc, single-pass": ({"kind": "mhc", "contract": "mean", "single_pass": True}, {}, 1),
    "mhc_lite": ({"kind": "mhc_lite", "contract": "mean"}, {}, 1),
    "krom": ({"kind": "krom", "contract": "mean"}, {}, 1),
    "ihc": ({"kind": "ihc", "contract": "mean"}, {}, 1),
    "mhc, learned contraction, PP 2": ({"kind": "mhc", "contract": "head"}, {"pipeline": 2}, 2),
    "mhc, TP 2 + SP": ({"kind": "mhc", "contract": "mean"}, {"tensor": 2, "sequence": True}, 2),
}


def network(
    text: Path, directory: Path, connection: dict, parallel: dict, steps: int = STEPS, **sections: dict
) -> Config:
    """The stream of a trained network is about 1 large; so that norm_eps is as small beside it, embeddings are here."""
    sections = {"parallel": {"pipeline": 1, **parallel}, "connection": {"n": 4, **connection}, **sections}
    sections["checkpoint"] = {"save_every": 0, **sections.get("checkpoint", {})}
    config = tiny(text, directory, **sections)
    config.model.hidden_dropout, config.model.init_std, config.moe.ffn_hidden_size = 0.0, 0.5, 16
    config.data.holdout, config.training.steps, config.optimizer.lr = 0.2, steps, 1e-2
    return config


def corpus(folder: Path) -> Path:
    """A small text."""
    text = folder / "text.txt"
    text.write_text("".join(f"line {n * 7919 % 1000}: {'ab' * (n % 9)} {n * n}\n" for n in range(400)))
    return text


def main(steps: int = 100) -> None:
    """Train a residual network for `steps` steps, and every row of WARM from it for as many."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text, source = corpus(folder), folder / "residual"
        config = network(text, source, {"kind": "residual"}, {}, steps)
        (found,) = run_ranks(1, as_residual_workers.trained, config, **RUN | {"timeout": 900})
        print("| | held-out loss before step 1 | streams apart | held-out loss after | streams apart |")
        print("|---|---|---|---|---|")
        print(f"| the residual checkpoint | {found['after'][0]:.7f} | | | |", flush=True)
        for row, (connection, parallel, ranks) in WARM.items():
            start = {"init_from": str(source)}
            config = network(text, folder / row, connection, parallel, steps, checkpoint=start)
            found, *_ = run_ranks(ranks, as_residual_workers.trained, config, **RUN | {"timeout": 900})
            (before, apart), (after, parted) = found["before"], found["after"]
            print(f"| {row} | {before:.7f} | {apart:.2g} | {after:.4f} | {parted:.2g} |", flush=True)


if __name__ == "__main__":
    main()
