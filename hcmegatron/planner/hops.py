"""What a message between two pipeline stages takes beside the stages' computation.

Unless parallel.costs names what was measured, it is an estimate: a stage's forward is its FLOPs at the rate that whole
training steps come to on an H100 (less than its matrix products alone, which `hcmegatron plan` takes one by one), a hop
is the message's bytes on the network of planner/machines.py. The ratio decides how early receives are posted on a GPU
(schedules/receives.py), which changes by whole actions only.
"""

from __future__ import annotations

from hcmegatron.config.schema import Config
from hcmegatron.connections import accounting
from hcmegatron.planner import measured
from hcmegatron.planner.flops import training_flops_per_token
from hcmegatron.planner.machines import MACHINES
from hcmegatron.planner.state_bytes import ITEMSIZE
from schedules.costs import Costs, Link, StageCosts
from schedules.schedule import Schedule

H100 = MACHINES["h100"]
FLOPS = 0.4e12 * H100.peak_tflops  # a second: the best published steps reach 0.3 to 0.41 of the dense peak
BANDWIDTH = 1e9 * H100.network_gbs * H100.link_share  # bytes a second


def hop_costs(config: Config, schedule: Schedule) -> Costs:
    """Of the configuration's schedule: measured ones (parallel.costs), or else the estimate.

    Raises:
        ConfigError: the file of parallel.costs cannot be read.
    """
    if config.parallel.costs is not None:
        return measured.read(config.parallel.costs).costs(config, schedule)
    return pipeline_costs(config, schedule.placement.model_stages)


def pipeline_costs(config: Config, stages: int) -> Costs:
    """Of a schedule over so many stages of the model, in units of a stage's forward (I = W = F), by estimate.

    Sequence and tensor parallelism divide the computation of a micro-batch; sequence parallelism its messages too.
    """
    parallel = config.parallel
    tokens = config.training.micro_batch * config.data.sequence_length
    forward = tokens * training_flops_per_token(config, 0) / 3 / stages / parallel.tensor / FLOPS
    itemsize = ITEMSIZE[config.training.dtype]
    size = tokens * accounting.message_bytes(config.connection, config.model.hidden_size, itemsize)
    if parallel.sequence:
        size /= parallel.tensor
    return Costs(stages=(StageCosts(),), link=Link(latency=size / BANDWIDTH / forward))
