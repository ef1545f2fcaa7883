"""For every place where the program orders streams or keeps memory, the variants in which its removal is found."""

from __future__ import annotations

from tests.races.sites import Inside, Site, sites

IN_PROCESS = "in_process-p2"  # no configuration: a tensor handed over within a process (worker.handed_over)
_OVERLAP = "dualpipev-p1-overlap-mhc-none-moe"
_ACROSS = "dualpipev-p2-overlap-residual-none-moe"
_REBUILT = "dualpipev-p1-overlap-mhc-block-moe"
_FOLDED = "dualpipev-p1-overlap-triton-short-mhc-block-moe"

CONTROLS: dict[str, tuple[str, ...]] = {
    "hcmegatron/model/separate_wgrad.py _Linear.backward wait": ("1f1b-p2-sp2-dhc-none-dense",),
    "hcmegatron/pipeline/micro_batch_graph.py MicroBatchGraph.forward on": (_OVERLAP,),
    "hcmegatron/pipeline/micro_batch_graph.py MicroBatchGraph.join on": (_OVERLAP,),
    "hcmegatron/pipeline/micro_batch_graph.py MicroBatchGraph.backward on": (_OVERLAP,),
    "hcmegatron/pipeline/micro_batch_graph.py MicroBatchGraph.end_backward on": (
        "dualpipev-p1-overlap-moved-mhc-none-moe",
    ),
    "hcmegatron/pipeline/lanes.py Lanes.on wait_event": (_OVERLAP,),
    "hcmegatron/pipeline/lanes.py Lanes.on wait_stream": (_OVERLAP,),
    "hcmegatron/pipeline/lanes.py Lanes.on record_stream": (_OVERLAP,),
    "hcmegatron/pipeline/overlap.py OverlappedStage.forward join": (_OVERLAP,),
    "hcmegatron/pipeline/overlap.py OverlappedStage.forward_backward on": (_ACROSS,),
    "hcmegatron/pipeline/overlap.py OverlappedStage.forward_backward join": (_OVERLAP,),
    "hcmegatron/pipeline/overlap.py Overlapped.run join": (_OVERLAP,),
    "hcmegatron/recompute/block_checkpoint.py Handle.tensor _used_here": (_REBUILT,),
    "hcmegatron/recompute/block_checkpoint.py _used_here record_stream": (_REBUILT,),
    "hcmegatron/recompute/block_checkpoint.py Block.rebuild _used_here": (_FOLDED,),
    "hcmegatron/recompute/block_checkpoint.py Block.rebuild _used_here 2": (
        "dualpipev-p1-overlap-by4-dropout-dhc-block-moe",
    ),
    "schedules/runtime/in_process.py _Receiving.wait wait_event": (IN_PROCESS,),
    "schedules/runtime/in_process.py _Receiving.wait record_stream": (IN_PROCESS,),
    "schedules/runtime/p2p.py P2PChannels._wait wait": ("1f1b-p2-shc-none-dense", _ACROSS),
}

# What has such a name and orders nothing on a device, or nothing that this checker could miss.
EXEMPT: dict[str, str] = {
    **{
        f"hcmegatron/kernels/tuning.py {where}": "measuring: one kernel at a time, and the host waits for each"
        for where in (
            "_seconds synchronize",
            "device_milliseconds synchronize",
            "device_milliseconds synchronize 2",
        )
    },
    "hcmegatron/model/layer.py ConnectionLayer._route _kept_by_dispatcher": (
        "redundant while every forward is joined: the dispatcher keeps the tensors until the layer routes again, after "
        "that; explicit, so that the merge does not hang on it"
    ),
    **{
        f"hcmegatron/measure/{where}": "measuring: one operation at a time, and the host waits for each"
        for where in (
            "messages.py Hop._beside wait",
            "messages.py Hop._there_and_back wait",
            "messages.py Hop._receive.arrived wait",
            "stages.py done synchronize",
        )
    },
    "hcmegatron/platform/local_launch.py _Launch._wait wait": "a process, not a stream",
    "hcmegatron/studies/runner.py Runner.run wait": "a process, not a stream",
    "hcmegatron/studies/runner.py Runner.run wait 2": "a process, not a stream",
    "hcmegatron/studies/runner.py Runner._ended wait": "a process, not a stream",
    "hcmegatron/train_from_python.py _in_a_process wait": "a process, not a stream",
    "hcmegatron/training/checkpoint.py Checkpoints.rescue wait": "a thread, not a stream",
    "hcmegatron/training/model.py gather_parameters start_param_sync": (
        "begins a gather that nobody has begun: without it weights are old, which is no race, and "
        "tests/model/test_parameter_gather.py finds it"
    ),
    "hcmegatron/pipeline/own_time.py OwnTimes.last synchronize": "for a time to compare",
    "hcmegatron/profiling/observer.py Profiler._synchronise synchronize": "for times to read",
    "hcmegatron/training/step.py Stepper._warm_start synchronize": "for a time to print",
    "schedules/runtime/gpu.py Gpu.synchronize synchronize": "what others call, each of whom stands here itself",
    "schedules/runtime/record.py Record.events synchronize": "for times to read",
    "schedules/runtime/shared_peer.py Send.wait wait": "a thread, between CPUs",
    "schedules/runtime/torch_distributed.py _channel_groups wait": (
        "set-up: nobody reads the token, and the next line waits for the whole device"
    ),
    "schedules/runtime/torch_distributed.py _channel_groups synchronize": (
        "set-up: the host waits for connections, before anything else is enqueued"
    ),
    "schedules/runtime/torch_distributed.py _NcclSend.wait is_completed": (
        "keeps the host from running ahead, and computation from waiting behind a message: time and memory, not order"
    ),
    "schedules/runtime/torch_distributed.py _NcclSend.wait wait": (
        "of what is completed: raises what went wrong, and holds up nothing"
    ),
    "schedules/runtime/torch_distributed.py _StampedSend.wait wait": "gloo, between CPUs",
    "schedules/runtime/torch_distributed.py _StampedSend.wait wait 2": "gloo, between CPUs",
    "schedules/runtime/torch_distributed.py _StampedReceive.wait wait": "gloo, between CPUs",
    "schedules/runtime/torch_distributed.py _StampedReceive.wait wait 2": "gloo, between CPUs",
    "schedules/runtime/watchdog.py Watchdog._watch wait": "a thread, not a stream",
}


# Megatron's own, where gradients are reduced and parameters gathered beside computation: what they would be missed for
# is seen here too.
MEGATRONS = {
    str(each): (each, "dualpipev-p1-overlap-dp2-mhc-none-moe")
    for each in (Inside("finish_param_sync"), Inside("finish_grad_sync"))
}


def controls() -> list[tuple[str, str]]:
    """(variant, site) of each."""
    own = [(variant, site) for site, variants in CONTROLS.items() for variant in variants]
    return own + [(variant, site) for site, (_, variant) in MEGATRONS.items()]


def site(name: str) -> Site | Inside:
    """By the name that a control has it under."""
    return MEGATRONS[name][0] if name in MEGATRONS else sites()[name]
