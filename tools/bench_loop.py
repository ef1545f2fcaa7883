"""What the training loop adds to the bare forward, backward and optimizer of the same model.

    python -m tools.bench_loop

One process, the quickstart's model, alternating: a step of the loop (data, schedule, finite checks, metrics,
log files) and the same micro-batches through model and optimizer with nothing around them.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import hcmegatron.platform.megatron  # noqa: F401  (installs the CPU adapter first)
from hcmegatron.config.load import load
from hcmegatron.data.corpus import find
from hcmegatron.data.dataset import Batches, Text
from hcmegatron.data.tokenizer import ByteTokenizer
from hcmegatron.model.gpt import padded_vocab
from hcmegatron.pipeline.schedule import build_schedule
from hcmegatron.platform.distributed import process_groups
from hcmegatron.platform.ranks import RankInfo, free_port
from hcmegatron.training.figures import Figures
from hcmegatron.training.model import build_model
from hcmegatron.training.optimizer import build_optimizer, learning_rate, set_learning_rate
from hcmegatron.training.recorder import Recorder
from hcmegatron.training.step import Stepper
from hcmegatron.training.stopping import Finite
from tools.aims import Aims, status
from tools.alternate import alternating, ratio

ROUNDS = 15


def main() -> int:
    """Prints both medians and the ratio, loop over bare; returns 1 where it misses its aim."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args()
    config = load(
        "configs/quickstart.yaml",
        ["--parallel.pipeline=1", "--parallel.schedule=megatron_1f1b", "--training.threads=1"],
    )
    alone = RankInfo(0, 1, 0, 1, "127.0.0.1", free_port(), "bench")
    with process_groups(config, alone) as groups, tempfile.TemporaryDirectory() as folder:
        text = Text(find(config.data), ByteTokenizer())
        batches = Batches(text, config)
        vocab_size = padded_vocab(config, text.tokenizer.vocab_size)
        chunks = build_model(config, text.tokenizer.vocab_size, groups)
        optimizer = build_optimizer(config, chunks, groups)
        stepper = Stepper(config, chunks, optimizer, build_schedule(config, chunks, groups), batches, groups)
        figures, finite = Figures(config, vocab_size, 1, 0.1), Finite(config)
        made = [batches(0, index) for index in range(batches.micro_batches)]
        (chunk,) = chunks
        with Recorder(Path(folder), config.training.steps, 1, tensorboard=True) as recorder:

            def loop() -> None:
                set_learning_rate(optimizer, learning_rate(1, config.optimizer, 100), 0.1)
                result = stepper.step(0)
                recorder.step(1, *figures.of(1, result, 1e-3), show=False)
                finite.check(1, result, recorder)

            def bare() -> None:
                chunk.zero_grad_buffer()
                for batch in made:
                    output = chunk(batch["tokens"], batch["position_ids"], None, labels=batch["labels"])
                    output.sum().backward()
                chunk.scale_gradients(1.0 / output.numel() / len(made))
                optimizer.step()

            times = alternating({"loop": loop, "bare": bare}, ROUNDS, warmup=2)
    found = ratio(times, "loop", "bare")
    for name, seconds in times.items():
        print(f"{name}: {1e3 * statistics.median(seconds):.1f} ms a step")
    aims = Aims()
    print(f"loop / bare: {found:.3f} (aim: {aims.at_most('loop / bare', found, 1.05)})")
    return status(aims.missed)


if __name__ == "__main__":
    raise SystemExit(main())
