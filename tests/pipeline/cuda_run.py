"""Train on one GPU, both stages of a V on it, deterministically; what is left of it are metrics and weights.json.

python -m tests.pipeline.cuda_run DIRECTORY CASE overlap|serialised [STEPS]
"""

import json
import sys
from contextlib import nullcontext
from pathlib import Path

import torch

from tests.pipeline.dualpipe_workers import run
from tools.profile_overlap import all_to_all_of_one_rank, small_case

# all-to-all: dispatch and combine are NCCL's kernels on the lane of communication, which one rank alone leaves out
CASES = ("plain", "block", "all-to-all")


def main(directory: str, case: str, overlap: bool, steps: int = 200) -> None:
    assert case in CASES
    torch.use_deterministic_algorithms(True)
    config = small_case()
    config.parallel.overlap = overlap
    config.recompute.mode = "block" if case == "block" else "none"
    config.training.steps, config.training.eval_every = steps, 0
    config.run.dir, config.run.tensorboard = directory, False
    with all_to_all_of_one_rank() if case == "all-to-all" else nullcontext():
        digests = run(config)
    (Path(directory) / "weights.json").write_text(json.dumps(digests))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3] == "overlap", *map(int, sys.argv[4:]))
