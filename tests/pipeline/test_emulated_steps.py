"""Whole training steps on an emulated GPU: the lines that run on a real one, over streams and communicators by NCCL's
rules (tests/emulated). They give the CPU's results bit for bit, run to their end on the hardware queues that a run asks
for, and the host waits for the device nowhere inside F, B, I and W but where Megatron's dispatcher does."""

from importlib.metadata import version

import pytest

from hcmegatron.pipeline.cuda_streams import streams
from tests.emulated.queues import disagreements, left_over
from tests.ranks import run_ranks
from tests.small_configs import small_config

pytestmark = pytest.mark.ranks
RUN = {"preload": ("tests.pipeline.emulated_workers",), "timeout": 250, "process_group": False}
QUEUES = 32  # platform/cuda_environment.py


def config_for(schedule, moe, overlap=False, pipeline=2, data=1, **sections):
    config = small_config("mhc", moe, **sections)
    p = config.parallel
    p.schedule, p.pipeline, p.overlap = schedule, pipeline, overlap
    p.virtual = 2 if schedule == "interleaved" else None
    config.model.layers = max(4, 2 * pipeline)
    config.training.global_batch, config.training.micro_batch = data * (2 * pipeline + 2), 1
    config.kernels = "torch"
    return config


BF16 = {"dtype": "bf16"}
TWO = [
    config_for("gpipe", False),
    config_for("1f1b", True),
    config_for("interleaved", True),
    config_for("zb_h1", True, training=BF16),
    config_for("zb_v", True),
    config_for("dualpipev", True, True),
    config_for("dualpipev", False, True, recompute={"mode": "block"}, model={"hidden_dropout": 0.1}),
    config_for("dualpipe", True, True, training=BF16, recompute={"mode": "block"}),
]
SPLIT = {"tensor": 2, "sequence": True, "expert": 2}
FOUR = [
    config_for("dualpipev", True, True, pipeline=4, model={"layers": 8}),
    config_for("1f1b", True, parallel=SPLIT),
    config_for("zb_v", True, data=2, training=BF16, parallel={"expert": 2}),  # and sharded optimizer state
]


class Steps:
    """By configuration and rank, what `emulated_workers.Step` holds."""

    def __init__(self, world, configs):
        self.configs = configs
        found = [
            run_ranks(world, where, configs, **RUN)
            for where in ("tests.pipeline.emulated_workers:on_gpu", "tests.pipeline.emulated_workers:on_cpu")
        ]
        self.gpu, self.cpu = ([list(steps) for steps in zip(*ranks, strict=True)] for ranks in found)


@pytest.fixture(scope="module", params=[(2, TWO), (4, FOUR)], ids=["2 ranks", "4 ranks"])
def steps(request):
    return Steps(*request.param)


def test_loss_gradients_and_weights_are_the_cpus_bit_for_bit(steps):
    for config, emulated, plain in zip(steps.configs, steps.gpu, steps.cpu, strict=True):
        for own, other in zip(emulated, plain, strict=True):
            assert len(own.gradients) > 10 and own.log and not other.log
            assert own.losses == other.losses, config.parallel
            assert own.gradients == other.gradients, config.parallel
            assert own.weights == other.weights, config.parallel


def test_every_communicator_gets_the_same_operations_on_all_its_members(steps):
    for config, emulated in zip(steps.configs, steps.gpu, strict=True):
        assert disagreements([step.log for step in emulated]) == [], config.parallel
        assert any(item.kind == "collective" for item in emulated[0].log)


def test_with_the_queues_that_are_set_the_step_completes(steps):
    for config, emulated in zip(steps.configs, steps.gpu, strict=True):
        logs = [step.log for step in emulated]
        assert left_over(logs, QUEUES) == 0, config.parallel
        assert left_over(logs, 1) > 0, "a model that finds nothing"
        if config.parallel.overlap and config.parallel.pipeline == 4:
            assert left_over(logs, 8) > 0, "CUDA's default, of which the run warns"


def test_the_streams_in_use_are_no_more_than_the_warning_counts(steps):
    for config, emulated in zip(steps.configs, steps.gpu, strict=True):
        for step in emulated:
            used = {item.stream for item in step.log if item.stream}
            assert 1 + config.parallel.pipeline // 2 <= len(used) <= streams(config.parallel), config.parallel


# Waits of Megatron's all-to-all dispatcher, once for every micro-batch in every layer with experts: it needs, on the
# host, how many tokens come from and go to each rank (which it copies there beside computation, and waits for), and in
# 0.16.1 how many the routing map selects (masked_select), twice: of tokens and of probabilities.
DISPATCHER = {("an event", "token_dispatcher.py:_maybe_dtoh_and_synchronize"): 1}
if version("megatron-core").startswith("0.16."):
    DISPATCHER["aten.masked_select", "moe_utils.py:permute"] = 2
COMPUTING = ("F", "B", "I", "W", "FB")


def test_inside_actions_the_host_waits_only_where_megatrons_dispatcher_does(steps):
    for config, emulated in zip(steps.configs, steps.gpu, strict=True):
        total = {}
        for step in emulated:
            for (phase, what, where), count in step.waits.items():
                if phase in COMPUTING:
                    assert (what, where) in DISPATCHER, (config.parallel, phase, what, where, count)
                    total[what, where] = total.get((what, where), 0) + count
        p = config.parallel
        data_parallel = len(emulated) // (p.pipeline * p.tensor)
        microbatches = config.training.global_batch // data_parallel
        with_experts = config.model.layers - config.moe.first_dense if config.moe.experts else 0
        routed = with_experts * microbatches * len(emulated) // p.pipeline
        expected = {place: times * routed for place, times in DISPATCHER.items() if routed}
        assert total == expected, config.parallel


# What is left of a step: losses and token counts, Megatron's norm of the gradients, and its check of the count.
UPDATE = {
    ("finalising", "aten._local_scalar_dense", "finalize_model_grads.py:finalize_model_grads"),
    ("update", "a copy to the device", "utils.py:local_multi_tensor_l2_norm"),
    ("update", "aten._local_scalar_dense", "utils.py:local_multi_tensor_l2_norm"),
    ("update", "aten._local_scalar_dense", "clip_grads.py:get_grad_norm_fp32"),
    ("update", "aten._local_scalar_dense", "loss.py:mean"),
}


def test_outside_actions_every_wait_is_known(steps):
    """No communicator is made in a step, no pinned memory allocated; sends are waited for one by one."""
    for config, emulated in zip(steps.configs, steps.gpu, strict=True):
        for step in emulated:
            sent = sum(item.kind == "send" for item in step.log)
            outside = {place: n for place, n in step.waits.items() if place.phase not in COMPUTING}
            messages = [n for place, n in outside.items() if place[:2] == ("messages", "a message")]
            assert messages == [sent]
            unknown = {place for place in outside if place.phase != "messages"} - UPDATE
            assert not unknown, (config.parallel, unknown)


def test_what_happens_once_and_waits_happens_in_the_warm_start(steps):
    """Communicators are made, and pinned memory is allocated, before a receive is posted that could hold them up."""
    for config, emulated in zip(steps.configs, steps.gpu, strict=True):
        for step in emulated:
            once = [p for p in step.before if p.what in ("a communicator's members", "a pinned allocation")]
            assert [p for p in once if p.phase != "elsewhere"] == [], config.parallel
    made = [p.where for step in steps.gpu[0] for p in step.before if p.what == "a communicator's members"]
    assert set(made) == {"communicators.py:start_communicators"}


def test_no_operation_takes_tensors_of_both_memories(steps):
    assert [step.mixed for emulated in steps.gpu for step in emulated if step.mixed] == []


def test_the_record_has_the_times_of_every_action(steps):
    """From timed events that the host has waited for, without which the emulated device gives no time."""
    for config, emulated in zip(steps.configs, steps.gpu, strict=True):
        for step in emulated:
            assert len(step.events) >= 2 * config.training.global_batch // len(emulated)
            assert all(0 <= start <= end for start, end in step.events)
            assert step.events[-1][1] > 0
