"""Refusals as they are read, whole: what is wrong, with key and value, and what to do."""

import pytest

from hcmegatron.config import ConfigError, check_config, read_config
from hcmegatron.config.checks import check_world
from tests.ranks import ROOT

FILE = ROOT / "configs/quickstart.yaml"


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            ["--optimizer.lr=1e30", "--optimizer.weight_decay=1e20"],
            "optimizer.lr = 1e+30 with connection.lr_multiplier = 1.0 and optimizer.weight_decay "
            "= 1e+20 makes products beyond 1e+30, which 32-bit numbers do not hold; lower them",
        ),
        (
            [
                "--optimizer.schedule=step",
                "--optimizer.step_decay_at=[0.5,0.6]",
                "--optimizer.step_decay_to=[0.1]",
            ],
            "optimizer.step_decay_at = [0.5, 0.6] and optimizer.step_decay_to = [0.1] differ in l"
            "ength; give every share of training its share of the learning rate",
        ),
        (
            ["--optimizer.schedule=step", "--optimizer.step_decay_at=[]", "--optimizer.step_decay_to=[]"],
            "optimizer.schedule = step with optimizer.step_decay_at = [] never decays; give the s"
            "hares, or use optimizer.schedule=constant",
        ),
        (
            ["--checkpoint.resume=auto", "--checkpoint.load=x", "--run.dir=r"],
            "checkpoint.resume = auto and checkpoint.load = x both say where to start; give one of them",
        ),
        (
            ["--checkpoint.resume=auto"],
            "checkpoint.resume = auto without run.dir; set run.dir to the run directory to continue",
        ),
        (
            ["--training.dtype=fp64", "--kernels=triton"],
            "training.dtype = fp64 does not exist for optimizer.clip = 1.0 and moe.grouped = true"
            " and kernels = triton; fp64 is for tests; set optimizer.clip=0, moe.grouped=false, k"
            "ernels=torch",
        ),
        (
            [
                "--training.dtype=fp64",
                "--moe.grouped=false",
                "--optimizer.clip=0",
                "--parallel.distributed_optimizer=true",
            ],
            "training.dtype = fp64 does not exist for parallel.distributed_optimizer = true; fp64"
            " is for tests; set parallel.distributed_optimizer=false",
        ),
        (
            ["--recompute.mode=block", "--connection.kind=residual"],
            "recompute.mode = block with connection.kind = residual: there is nothing to rebuild,"
            " it keeps no streams; use recompute.mode=full or selective, or another connection",
        ),
        (
            ["--recompute.mode=block", "--recompute.block_length=1000"],
            "recompute.block_length = 1000 is longer than a pipeline stage, which has 2 sub-layer"
            "s (model.layers = 4 ({FILE}:10), 4 stages, two sub-layers a layer); use 1 to 2, pape"
            "r or live",
        ),
        (
            ["--recompute.mode=selective"],
            "recompute.mode = selective with recompute.modules = [] recomputes nothing; name modu"
            "les, for example recompute.modules=[core_attn]",
        ),
        (
            ["--recompute.mode=full", "--recompute.modules=[mlp]"],
            "recompute.mode = full does not go with recompute.modules = ['mlp']; use recompute.mo"
            "de=selective or block, or leave recompute.modules out",
        ),
        (
            ["--recompute.mode=selective", "--recompute.modules=[mlp]", "--moe.first_dense=0"],
            "recompute.modules = ['mlp'], but moe.first_dense = 0 leaves the model without mlp; l"
            "eave mlp out",
        ),
        (
            ["--recompute.mode=selective", "--recompute.modules=[mla_up_proj]", "--model.attention=gqa"],
            "recompute.modules = ['mla_up_proj'], but model.attention = gqa leaves the model with"
            "out mla_up_proj; leave mla_up_proj out",
        ),
        (
            ["--nowhere=1"],
            "nowhere is not a setting; the sections are model, mla, moe, connection, parallel, da"
            "ta, optimizer, training, health, checkpoint, recompute, run, implementation, kernels",
        ),
        (
            ["--model.=1"],
            "'model.' is an empty key; write a setting's name",
        ),
        (
            ["--model.layer=1"],
            "model.layer is not a setting; did you mean model.layers?",
        ),
        (
            ["--hidden_size=3"],
            "hidden_size is not a setting; did you mean model.hidden_size?",
        ),
        (
            ["--optimzer.lr=3"],
            "optimzer.lr is not a setting; did you mean optimizer.lr?",
        ),
        (
            ["--model.attention=mle"],
            "model.attention = mle is not one of gqa, mla; did you mean mla?",
        ),
        (
            ["--model.layers=[1,2,3,4,5]"],
            "model.layers = [1, 2, 3, 4, ...] is not a whole number",
        ),
        (
            ["--model.layers=[1,2,3,4]"],
            "model.layers = [1, 2, 3, 4] is not a whole number",
        ),
        (
            ["--model.layers={a: 1, b: 2, c: 3, d: 4, e: 5}"],
            "model.layers = {a: 1, b: 2, c: 3, d: 4, e: 5} is not a whole number",
        ),
        (
            ["--model.layers=[{a: {b: 1}}, [1]]"],
            "model.layers = [{}, [...]] is not a whole number",
        ),
        (
            ["--model.layers=xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"],
            "model.layers = xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx is not a"
            " whole number",
        ),
        (
            ["--model.layers=xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"],
            "model.layers = xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx... is not a"
            " whole number",
        ),
        (
            ['--model.layers="7"'],
            'model.layers = "7" is not a whole number',
        ),
        (
            ["--connection.n=0"],
            "connection.n = 0 is out of range; it must be at least 1",
        ),
        (
            ["--parallel.expert=2", "--parallel.pipeline=1", "--training.global_batch=3"],
            "training.global_batch = 3 is not a multiple of training.micro_batch = 2 x data-paral"
            "lel size 2 = 4; use 4",
        ),
        (
            ["--training.global_batch=7"],
            "training.global_batch = 7 is not a multiple of training.micro_batch = 2 x data-paral"
            "lel size 1 = 2; use 6 or 8",
        ),
        (
            ["--optimizer.lr=6e29", "--optimizer.weight_decay=2"],
            "optimizer.lr = 6e+29 with connection.lr_multiplier = 1.0 and optimizer.weight_decay "
            "= 2.0 makes products beyond 1e+30, which 32-bit numbers do not hold; lower them",
        ),
        (
            ["--optimizer.lr=6e29", "--connection.lr_multiplier=2"],
            "optimizer.lr = 6e+29 with connection.lr_multiplier = 2.0 and optimizer.weight_decay "
            "= 0.1 makes products beyond 1e+30, which 32-bit numbers do not hold; lower them",
        ),
        (
            [
                "--parallel.overlap_param_gather=true",
                "--parallel.overlap_grad_reduce=true",
                "--parallel.distributed_optimizer=false",
            ],
            "parallel.overlap_param_gather = true gathers the distributed optimizer's shards; set"
            " parallel.distributed_optimizer=true and parallel.overlap_grad_reduce=true",
        ),
        (
            ["--parallel.overlap_param_gather=true", "--parallel.distributed_optimizer=true"],
            "parallel.overlap_param_gather = true gathers the distributed optimizer's shards; set"
            " parallel.distributed_optimizer=true and parallel.overlap_grad_reduce=true",
        ),
        (
            ["--parallel.overlap=true", "--moe.dispatcher=allgather"],
            "parallel.overlap = true with moe.dispatcher = allgather, which gathers all micro-bat"
            "ches' tokens into the same buffer of Megatron's: those of the forward and the backwa"
            "rd would mix; use moe.dispatcher=alltoall",
        ),
        (
            ["--recompute.mode=selective", "--recompute.modules=[shared_experts]", "--moe.shared_experts=0"],
            "recompute.modules = ['shared_experts'], but moe.shared_experts = 0 leaves the model "
            "without shared_experts; leave shared_experts out",
        ),
        (
            [
                "--recompute.mode=selective",
                "--recompute.modules=[shared_experts]",
                "--moe.experts=0",
                "--moe.shared_experts=0",
            ],
            "recompute.modules = ['shared_experts'], but moe.experts = 0 leaves the model without"
            " shared_experts; leave shared_experts out",
        ),
        (
            ["--recompute.mode=selective", "--recompute.modules=[nothing]"],
            "--recompute.modules=[nothing]: recompute.modules = [nothing] is out of range; it mus"
            "t be a list out of core_attn, mla_up_proj, mlp, shared_experts, each once",
        ),
        (
            ["--parallel.tensor=2", "--parallel.sequence=true", "--data.sequence_length=127"],
            "data.sequence_length = 127 is not divisible by parallel.tensor = 2, over which the s"
            "equence is split; use 126 or 128 for data.sequence_length, or a divisor of 127 for p"
            "arallel.tensor",
        ),
        (
            ["--parallel.virtual=2"],
            "parallel.virtual = 2, but parallel.schedule = dualpipev ({FILE}:31) has no chunks to"
            " choose; use an interleaved schedule, or set parallel.virtual=null",
        ),
        (
            ["--parallel.schedule=1f1b", "--parallel.virtual=2"],
            "parallel.virtual = 2, but parallel.schedule = 1f1b has no chunks to choose; use an i"
            "nterleaved schedule, or set parallel.virtual=null",
        ),
        (
            ["--moe.dispatcher=ll"],
            "moe.dispatcher = ll is not one of alltoall, allgather",
        ),
        (
            ["--connection.kind=mcd"],
            "connection.kind = mcd is not one of residual, shc, dhc, sfc, dfc, mhc; did you mean mhc?",
        ),
        (
            [
                *(
                    "--recompute.mode=selective",
                    "--recompute.modules=[mlp]",
                    "--moe.experts=1",
                    "--moe.top_k=1",
                ),
                "--moe.first_dense=0",
            ],
            "recompute.modules = ['mlp'], but moe.first_dense = 0 leaves the model without mlp; leave mlp out",
        ),
    ],
)
def test_a_refusal_is_this_line(settings, line):
    with pytest.raises(ConfigError) as refused:
        check_config(*read_config(FILE, settings))
    said = str(refused.value).removeprefix(f"{settings[0]}: ")
    assert said == line.replace("{FILE}", str(FILE))


@pytest.mark.parametrize(
    "settings",
    [
        ["--recompute.mode=block", "--recompute.block_length=2"],  # as long as the stage
        ["--recompute.mode=selective", "--recompute.modules=[mlp]"],  # one dense layer before the experts
        ["--recompute.mode=selective", "--recompute.modules=[mlp]", "--moe.experts=0"],
        ["--recompute.mode=selective", "--recompute.modules=[mla_up_proj]"],
        ["--recompute.mode=selective", "--recompute.modules=[shared_experts]"],
        ["--recompute.mode=selective", "--recompute.modules=[core_attn]"],
        [
            "--recompute.mode=selective",
            "--recompute.modules=[shared_experts]",
            "--moe.experts=1",
            "--moe.top_k=1",
        ],
        ["--optimizer.schedule=step", "--optimizer.step_decay_at=[0.5]", "--optimizer.step_decay_to=[0.1]"],
        ["--optimizer.step_decay_at=[]", "--optimizer.step_decay_to=[]"],  # of another schedule than step
        ["--optimizer.lr=1e30", "--optimizer.weight_decay=0"],
        ["--parallel.overlap=false", "--moe.dispatcher=allgather"],
    ],
)
def test_what_is_just_inside_is_taken(settings):
    check_config(*read_config(FILE, settings))


def test_a_warmup_as_long_as_the_run_is_warned_of():
    for warmup, warned in ((9, False), (10, True)):
        settings = ["--training.steps=10", f"--optimizer.warmup_steps={warmup}"]
        assert any("warmup" in line for line in check_config(*read_config(FILE, settings))) == warned


@pytest.mark.parametrize(
    ("settings", "ranks", "line"),
    [
        (
            ["--parallel.expert=2", "--parallel.pipeline=1"],
            3,
            "world size 3 is not a multiple of 2, as parallel.pipeline = 1 x parallel.tensor = 1, parallel.expert = 2 "
            "x parallel.expert_tensor = 1 asks for; start 2 or 4 ranks, or change the layout",
        ),
        (
            [
                "--parallel.expert=2",
                "--parallel.expert_tensor=2",
                "--parallel.tensor=2",
                "--parallel.pipeline=1",
            ],
            6,
            "world size 6 is not a multiple of 4, as parallel.pipeline = 1 x parallel.tensor = 2, parallel.expert = 2 "
            "x parallel.expert_tensor = 2 asks for; start 4 or 8 ranks, or change the layout",
        ),
        (
            ["--parallel.expert=1"],
            3,
            "world size 3 is not a multiple of 2, as parallel.pipeline = 2 x parallel.tensor = 1 asks for; start 2 or "
            "4 ranks, or change the layout",
        ),
    ],
)
def test_ranks_that_do_not_fit_a_layout(settings, ranks, line):
    config, _ = read_config(FILE, settings)
    with pytest.raises(ConfigError) as refused:
        check_world(config, ranks)
    assert str(refused.value) == line
