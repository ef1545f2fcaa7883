"""Refusals as they are read, whole: what is wrong, with key and value, and what to do."""

import pytest

from hcmegatron.config import ConfigError, check_config, read_config
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
            "ta, optimizer, training, checkpoint, recompute, run, implementation, kernels",
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
        ["--optimizer.lr=1e30", "--optimizer.weight_decay=1", "--optimizer.min_lr_ratio=0"],
        ["--recompute.mode=selective", "--recompute.modules=[mlp]"],  # one dense layer before the experts
        ["--recompute.mode=selective", "--recompute.modules=[mlp]", "--moe.experts=0"],
        ["--recompute.mode=selective", "--recompute.modules=[mla_up_proj]"],
        ["--optimizer.step_decay_at=[]", "--optimizer.step_decay_to=[]"],  # of another schedule than step
    ],
)
def test_what_is_just_inside_is_taken(settings):
    check_config(*read_config(FILE, settings))


def test_a_warmup_as_long_as_the_run_is_warned_of():
    for warmup, warned in ((9, False), (10, True)):
        settings = ["--training.steps=10", f"--optimizer.warmup_steps={warmup}"]
        assert any("warmup" in line for line in check_config(*read_config(FILE, settings))) == warned
