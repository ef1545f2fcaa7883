"""Connections over a residual checkpoint's weights compute what it did, and then part; what cannot be is refused."""

import argparse
import errno
import math
import os

import pytest
import torch
import torch.distributed.checkpoint as dcp

from hcmegatron import cli
from hcmegatron.config import ConfigError, check_config
from hcmegatron.connections.kinds import KINDS
from hcmegatron.connections.kinds.manifold import MHC, ManifoldSettings
from hcmegatron.training import checkpoint_cli, resume, to_residual
from tests.ranks import run_ranks
from tests.training import as_residual_workers, workers
from tests.training.as_residual_table import STEPS, WARM, corpus, network
from tests.training.reshard_cases import RUN


@pytest.fixture(scope="module")
def residual(tmp_path_factory):
    """(text, run directory, held-out loss) of a residual network."""
    folder = tmp_path_factory.mktemp("residual")
    text = corpus(folder)
    config = network(text, folder / "run", {"kind": "residual"}, {})
    (found,) = run_ranks(1, as_residual_workers.trained, config, **RUN)
    return text, folder / "run", found["after"][0]


@pytest.mark.ranks
@pytest.mark.parametrize("name", WARM)
def test_the_function_stays_and_the_streams_part(name, residual, tmp_path):
    text, source, loss = residual
    connection, parallel, ranks = WARM[name]
    config = network(text, tmp_path / "run", connection, parallel, checkpoint={"init_from": str(source)})
    check_config(config)
    for found in run_ranks(ranks, as_residual_workers.trained, config, **RUN):
        (before, apart), (after, parted) = found["before"], found["after"]
        assert before == pytest.approx(loss, rel=2e-6) and after != before
        if KINDS[connection["kind"]].streams(config.connection) > 1:
            assert parted > 3e-4 and (apart < 1e-6 or "use_pre" in connection)
    log = (tmp_path / "run/train.log").read_text()
    assert (
        f"beginning with the weights of {source}/checkpoints/step-{STEPS:08d}, after step {STEPS}; its" in log
    )


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("pre_eps", [0.0, 1e-6])
def test_of_equal_streams_mhc_reads_one_and_writes_all_alike(n, pre_eps):
    for k in range(2 * n):
        values = MHC.as_residual(ManifoldSettings(n=n, pre_eps=pre_eps), k)
        pre = torch.tensor(values["b_pre"], dtype=torch.float64).sigmoid() + pre_eps
        assert float(pre.sum()) == pytest.approx(1.0, abs=1e-12 if n > 1 else 2e-3)
        assert int(pre.argmax()) == k % n and values["b_post"] == [0.0] * n
    mean_read = MHC.as_residual(ManifoldSettings(n=4, use_pre=False), 1)
    post = [2 / (1 + math.exp(-b)) for b in mean_read["b_post"]]
    assert "b_pre" not in mean_read and sum(post) == pytest.approx(4.0) and max(post) == post[1] > 1.05


def start(text, directory, source, **sections):
    config = network(text, directory, sections.pop("connection", {"kind": "mhc"}), {}, **sections)
    config.checkpoint.init_from = str(source)
    check_config(config)
    return resume.find_start(config, directory, "text")


@pytest.mark.ranks
def test_what_cannot_be_is_said_in_a_line(residual, tmp_path):
    text, source, _ = residual
    found = start(text, tmp_path, source)
    assert (
        found.weights_only
        and found.position.step == 0
        and "its optimizer state is left there" in found.says[0]
    )
    refused = {
        "model.hidden_size = 16 there, 32 here; set it to match": (source, {"model": {"hidden_size": 32}}),
        "elsewhere: there is no such directory; name a checkpoint": (tmp_path / "elsewhere", {}),
        "both say where to start; give one of them": (source, {"checkpoint": {"load": str(source)}}),
    }
    for words, (path, sections) in refused.items():
        with pytest.raises(ConfigError, match=words) as error:
            start(text, tmp_path / "new", path, **sections)
        assert "\n" not in str(error.value)


def test_a_kind_that_cannot_begin_so_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(type(KINDS["mhc"]), "continues_residual", property(lambda kind: kind.name == "shc"))
    with pytest.raises(ConfigError, match="cannot begin as the residual network; use one of shc"):
        start(tmp_path / "text.txt", tmp_path, tmp_path)


@pytest.fixture(scope="module")
def at_its_beginning(residual, tmp_path_factory):
    """The run directory of mHC with the residual network's weights, after a step that moves nothing by 1e-11."""
    text, source, _ = residual
    directory = tmp_path_factory.mktemp("mhc") / "run"
    config = network(text, directory, {"kind": "mhc"}, {}, checkpoint={"init_from": str(source)})
    config.training.steps, config.optimizer.lr = 1, 1e-11
    run_ranks(1, as_residual_workers.trained, config, **RUN)
    return directory


@pytest.mark.ranks
def test_and_back_to_residuals(residual, at_its_beginning, tmp_path, capsys):
    text, _, loss = residual
    assert cli.main(["checkpoint", "contract", str(at_its_beginning), str(tmp_path / "back")]) == 0
    path = tmp_path / "back/checkpoints/step-00000001"
    assert capsys.readouterr().out.startswith(f"{path}: step 1, ")
    assert cli.main(["checkpoint", "verify", str(path)]) == 0
    before = workers.content(at_its_beginning / "checkpoints/step-00000001")
    after = workers.content(path)
    assert after == {key: held for key, held in before.items() if "_connection." not in key}
    assert any("exp_avg" in key for key in after) and len(before) > len(after)
    load = {"load": str(path)}
    config = network(text, tmp_path / "on", {"kind": "residual"}, {}, checkpoint=load)
    (found,) = run_ranks(1, as_residual_workers.trained, config, **RUN)
    assert found["before"][0] == pytest.approx(loss, rel=2e-6)


@pytest.mark.ranks
def test_what_cannot_be_contracted(residual, at_its_beginning, tmp_path):
    text, source, _ = residual
    trained = tmp_path / "trained"
    config = network(text, trained, {"kind": "mhc"}, {}, checkpoint={"init_from": str(source)})
    config.training.steps = 1
    run_ranks(1, as_residual_workers.trained, config, **RUN)
    (tmp_path / "there").mkdir()
    refused = {
        "so its connections cannot be left out; contract one that": (trained, tmp_path / "new"),
        "is of residual connections already; use it as it is": (source, tmp_path / "new"),
        "there is there already; name a directory": (at_its_beginning, tmp_path / "there"),
        "nowhere: there is no such directory": (tmp_path / "nowhere", tmp_path / "new"),
    }
    for words, (path, into) in refused.items():
        with pytest.raises(ConfigError, match=words) as error:
            checkpoint_cli.main(argparse.Namespace(action="contract", path=path, into=into))
        assert "\n" not in str(error.value) and not (tmp_path / "new").exists()
    with pytest.raises(ConfigError, match="contract takes a path and one directory that is made"):
        checkpoint_cli.main(argparse.Namespace(action="contract", path=source, into=None))


@pytest.mark.ranks
def test_a_full_disk_is_said_and_leaves_nothing(at_its_beginning, tmp_path, monkeypatch):
    def raises(error):
        def write(*_):
            raise error

        return write

    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for target, name in ((dcp.FileSystemWriter, "write_data"), (to_residual, "summed")):
        with monkeypatch.context() as patched:
            patched.setattr(target, name, raises(full))
            with pytest.raises(
                ConfigError, match="new cannot be written: No space left on device; name"
            ) as said:
                to_residual.contract(at_its_beginning / "checkpoints/step-00000001", tmp_path / "new")
            assert "\n" not in str(said.value) and not (tmp_path / "new").exists()
    monkeypatch.setattr(to_residual, "summed", raises(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        to_residual.contract(at_its_beginning / "checkpoints/step-00000001", tmp_path / "new")
    assert not (tmp_path / "new").exists()
