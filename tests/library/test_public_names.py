"""What `import hcmegatron` gives: names that load what they need when they are used, and no more."""

import re
import subprocess
import sys
import tomllib

import pytest
import torch

import hcmegatron
from tests.ranks import ROOT

NAMES = {
    "Config",
    "ConfigError",
    "Connected",
    "Connection",
    "connection",
    "contract",
    "contraction",
    "expand",
    "load_config",
    "parameter_of",
    "register_connection",
    "select_kernels",
    "sinkhorn",
    "train",
}
# What the trainer needs is not found, and importing it raises.
WITHOUT_MEGATRON = "import sys; sys.modules.update(dict.fromkeys(('megatron', 'tensorboard')))\n"


def python(program, **environment):
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        env={"PYTHONPATH": str(ROOT), "PATH": "", **environment},
    )
    return done.returncode, done.stdout, done.stderr


def test_every_name_is_what_it_says():
    assert set(hcmegatron.__all__) == NAMES | {"__version__"}
    assert set(dir(hcmegatron)) == {*hcmegatron.__all__, "launch", "schedules"}
    from hcmegatron.connections.build import connection
    from hcmegatron.train_from_python import train

    assert hcmegatron.connection is connection and hcmegatron.train is train
    assert all(callable(getattr(hcmegatron, name)) for name in NAMES)
    with pytest.raises(AttributeError, match="module 'hcmegatron' has no attribute 'conection'"):
        _ = hcmegatron.conection


def test_the_reference_and_the_table_have_the_same_names():
    """docs/api.md and docs/library.md, and nothing that is public is missing."""
    referred = set(re.findall(r"^::: \S+\.(\w+)$", (ROOT / "docs/api.md").read_text(), re.MULTILINE))
    rows = [line for line in (ROOT / "docs/library.md").read_text().splitlines() if line.startswith("| `")]
    table = set(re.findall(r"`(\w+)", "\n".join(rows)))
    referred = (referred - {"register"}) | {"register_connection"}
    assert referred <= table, referred - table
    assert referred >= NAMES, NAMES - referred


def test_importing_it_is_quick_and_loads_nothing():
    program = (
        "import sys, time; before = set(sys.modules); began = time.process_time(); import hcmegatron\n"
        "took = time.process_time() - began; own = [m for m in set(sys.modules) - before if m.startswith('hcmeg')]\n"
        "assert took < 0.1, took\n"
        "assert sorted(own) == ['hcmegatron', 'hcmegatron.aliases', 'hcmegatron.installation'], own\n"
        "assert not {'torch', 'megatron', 'numpy', 'yaml'} & set(sys.modules)"
    )
    assert python(program) == (0, "", "")


def test_what_launches_loads_nothing_that_is_not_installed_with_the_package():
    program = (
        "import sys; before = set(sys.modules)\n"
        "import launch.cli, launch.status, launch.logs, launch.cancel, launch.doctor.cli\n"
        "new = {name: sys.modules[name] for name in set(sys.modules) - before}\n"
        "print(*{name.partition('.')[0] for name, module in new.items() if getattr(module, '__file__', None)}\n"
        "      - sys.stdlib_module_names)"
    )
    status, out, said = python(program)
    assert status == 0, said
    with (ROOT / "pyproject.toml").open("rb") as file:
        asked = tomllib.load(file)["project"]["dependencies"]
    installed = {re.match(r"[\w-]+", line)[0] for line in asked}
    others = set(out.split()) - {"hcmegatron", "launch", "schedules"}
    assert {"pyyaml" if name == "yaml" else name for name in others} <= installed
    assert "psutil" in others


def test_connections_kernels_and_schedules_need_no_megatron():
    program = (
        WITHOUT_MEGATRON + "import torch, hcmegatron as hc\n"
        "around = hc.connection('mhc', hidden_size=8, streams=2)\n"
        "layer = hc.Connected(torch.nn.Linear(8, 8), around)\n"
        "print(hc.contract(layer(hc.expand(torch.ones(3, 1, 8), 2))).shape, hc.select_kernels('auto', n=2).name)\n"
        "import hcmegatron.schedules.runtime\n"
        "from hcmegatron.schedules import generate, simulate, validate\n"
        "print(validate(generate('dualpipev', 2, 4)))\n"
        "from hcmegatron.__main__ import main\n"
        "for verb in (['schedule', 'zb_v', '--ranks=2', '--microbatches=4'], ['plan', 'quickstart', '--gpus=2'],\n"
        "             ['config', 'quickstart'], ['train', 'quickstart'], ['data', 'show', '.'], ['replay', '.']):\n"
        "    sys.argv = ['hcmegatron', *verb]\n"
        "    print(verb[0], main(), file=sys.stderr)\n"
        "try: hc.train('quickstart')\n"
        "except hc.ConfigError as error: print(error, file=sys.stderr)"
    )
    status, out, said = python(program)
    assert status == 0, said
    assert "torch.Size([3, 1, 8]) torch" in out and "zb_v" in out
    lacking = "needs packages that are not installed (megatron, tensorboard): pip install 'hcmegatron[train]'"
    assert said.splitlines() == [
        "schedule 0",
        "plan 0",
        "config 0",
        *(f"hcmegatron: error: hcmegatron train {lacking}", "train 2"),
        *(f"hcmegatron: error: hcmegatron data {lacking}", "data 2"),
        *(f"hcmegatron: error: hcmegatron replay {lacking}", "replay 2"),
        f"hcmegatron.train {lacking}",
    ]


def test_shapes_that_cannot_be_are_refused_in_a_line():
    h = torch.zeros(2, 3, 4)
    for streams in (0, -1):
        with pytest.raises(ValueError, match=f"^streams={streams}: must be at least 1$"):
            hcmegatron.expand(h, streams)
    with pytest.raises(
        ValueError, match=r"^L is \[4, 3\]: must be \[..., n, n\], square matrices of logits$"
    ):
        hcmegatron.sinkhorn(torch.zeros(4, 3))
    assert hcmegatron.sinkhorn(torch.zeros(0, 4, 4)).shape == (0, 4, 4)
