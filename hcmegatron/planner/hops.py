"""What a message between two pipeline stages takes beside the stages' computation, by estimate.

Nothing is measured: a stage's forward is its FLOPs at the rate that large matrix products come to in training, a hop is
the message's bytes on one network port. The ratio decides how early receives are posted on a GPU
(schedules/receives.py), which changes by whole actions only.
"""

from __future__ import annotations

from hcmegatron.config.schema import Config
from hcmegatron.connections import facts
from hcmegatron.planner.flops import training_flops_per_token
from schedules.costs import Costs, Link, StageCosts

FLOPS = 400e12  # a second, of an H100 in bf16: two fifths of its dense peak
BANDWIDTH = 50e9  # bytes a second, of one port of 400 Gbit/s for each GPU
_BYTES = {"bf16": 2, "fp32": 4, "fp64": 8}  # of a number in a message


def pipeline_costs(config: Config, stages: int) -> Costs:
    """Of a schedule over so many stages of the model, in units of a stage's forward (I = W = F).

    Sequence and tensor parallelism divide the computation of a micro-batch; sequence parallelism its messages too.
    """
    parallel = config.parallel
    tokens = config.training.micro_batch * config.data.sequence_length
    forward = tokens * training_flops_per_token(config, 0) / 3 / stages / parallel.tensor / FLOPS
    width = config.model.hidden_size * facts.streams(config.connection)
    size = tokens * width * _BYTES[config.training.dtype]
    if parallel.sequence:
        size /= parallel.tensor
    return Costs(stages=(StageCosts(),), link=Link(latency=size / BANDWIDTH / forward))
