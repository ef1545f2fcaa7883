"""Train on one GPU, both stages of a V on it, deterministically.

python -m tests.pipeline.cuda_run DIRECTORY overlap|serialised [STEPS]
"""

import os
import sys

import torch

from hcmegatron.config.schema import Config
from hcmegatron.platform.ranks import discover
from hcmegatron.training.run import train


def main(directory: str, overlap: bool, steps: int = 200) -> None:
    torch.use_deterministic_algorithms(True)
    config = Config()
    m, e = config.model, config.moe
    m.layers, m.hidden_size, m.heads, m.ffn_hidden_size = 4, 128, 4, 256
    e.experts, e.top_k, e.ffn_hidden_size, e.shared_experts, e.first_dense = 8, 2, 128, 1, 1
    config.parallel.schedule, config.parallel.overlap = "dualpipev", overlap
    t = config.training
    t.steps, t.global_batch, t.micro_batch, t.eval_every, t.dtype = steps, 8, 2, 0, "bf16"
    config.run.dir, config.run.tensorboard = directory, False
    train(config, discover(os.environ))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] == "overlap", *map(int, sys.argv[3:]))
