"""Executes a validated schedule over a transport. Knows torch, but no model.

schedule = generate("dualpipev", ranks=4, microbatches=32)
stages = {stage: MyStage(...) for stage in schedule.placement.stages_of(rank)}  # see stage.py
transport = DistributedTransport(group, schedule.placement, device)
watchdog = Watchdog(store.clone(), rank, ranks, limit=300.0, directory=run_directory)
runtime = Runtime(
    schedule, rank, stages, transport,
    shape=lambda message: (lengths[message.microbatch], width), dtype=torch.bfloat16, device=device,
    watchdog=watchdog,
)
record = runtime.step()
"""

from schedules.runtime.choose import cpu_transport
from schedules.runtime.in_process import InProcessWorld, step_all
from schedules.runtime.p2p import PipelineError
from schedules.runtime.record import Record, RecordedAction
from schedules.runtime.runtime import Runtime
from schedules.runtime.shared_memory import SharedMemoryTransport
from schedules.runtime.stage import OverlappingStage, Stage
from schedules.runtime.torch_distributed import DistributedTransport
from schedules.runtime.transport import Transport
from schedules.runtime.watchdog import Watchdog

__all__ = [
    "DistributedTransport",
    "InProcessWorld",
    "OverlappingStage",
    "PipelineError",
    "Record",
    "RecordedAction",
    "Runtime",
    "SharedMemoryTransport",
    "Stage",
    "Transport",
    "Watchdog",
    "cpu_transport",
    "step_all",
]
