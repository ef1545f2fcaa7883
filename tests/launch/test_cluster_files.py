"""A site's settings, from a file and from options; every mistake is one line with its place."""

from pathlib import Path

import pytest

from launch import cluster
from launch.job import LaunchError

WHOLE = """
partition: gpu
ranks_per_node: 8
time_limit: 60
exclude: ["gpu[1-3]", odd]
environment: {NCCL_DEBUG: INFO, N: 1}
doctor: true
account: null
"""


def test_a_file_and_options(tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text(WHOLE)
    assert cluster.read(path) == {
        "partition": "gpu",
        "ranks_per_node": 8,
        "time_limit": 60,
        "exclude": ("gpu[1-3]", "odd"),
        "environment": {"NCCL_DEBUG": "INFO", "N": "1"},
        "doctor": True,
        "account": None,
    }
    given = {"nodes": ["4"], "environment": ["A=b=c", "D="], "modules": ["[cuda/12.9]"], "doctor": ["true"]}
    assert cluster.from_options(given) == {
        "nodes": 4,
        "environment": {"A": "b=c", "D": ""},
        "modules": ("cuda/12.9",),
        "doctor": True,
    }
    plain = {"exclude": ["gpu[1,3-5],odd"], "setup": ["ulimit -n 9, x"], "modules": ["[a, b]"]}
    assert cluster.from_options(plain) == {
        "exclude": ("gpu[1,3-5]", "odd"),
        "setup": ("ulimit -n 9, x",),
        "modules": ("a", "b"),
    }
    path.write_text("# nothing\n")
    assert cluster.read(path) == {}


@pytest.mark.parametrize(
    "text, said",
    [
        ("partitions: gpu", r":1: partitions is not a setting of a cluster; did you mean partition\?"),
        ("a: 1\n", r":1: a is not a setting of a cluster; they are name, nodes, "),
        ("qos: a\nnodes: many", r":2: nodes = many is not a whole number"),
        ("nodes: 0", r":1: nodes = 0 is not between 1 and 1000000"),
        ("nodes: 1\nnodes: 2", r":2: nodes is given twice; keep one"),
        ("gpu_visibility: some", r":1: gpu_visibility = some is not one of one, all"),
        ("environment: [A]", r":1: environment = \[A\] is not a list of variables"),
        ("environment: {A: [1]}", r"environment = .* has \[1\] for A, which is no text"),
        ("? [a]\n: b", r":1: \[a\] is no name of a setting"),
        ("{a: 1}: b", r":1: .* is no name of a setting"),
        ("environment: {A: 1, A: 2}", r":1: environment = .* has A twice; keep one"),
        ("environment: {[A]: 1}", r":1: environment = .* has \[A\], which is no name of a variable"),
        ("- a", r": is not a list of settings"),
        ("a: [", r"cannot be read as a cluster file"),
        ("command: [a]", r"command is not a setting of a cluster"),
    ],
)
def test_mistakes_in_a_file(text, said, tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    with pytest.raises(LaunchError, match=said) as refused:
        cluster.read(path)
    assert str(refused.value).startswith(str(path)) and str(refused.value).isprintable()


@pytest.mark.parametrize(
    "given, said",
    [
        ({"nodes": ["x"]}, "--nodes: nodes = x is not a whole number"),
        ({"nodes": ["1", "2"]}, "--nodes 2: is given twice, as 1 before; give it once"),
        ({"environment": ["A"]}, "--environment A: has no value; write --environment NAME=value"),
        ({"ranks_per_node": ["-1"]}, "--ranks-per-node: ranks_per_node = -1 is not between 1 and"),
    ],
)
def test_mistakes_in_options(given, said):
    with pytest.raises(LaunchError, match=said):
        cluster.from_options(given)


def test_which_file_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cluster.find(None, {}) is None
    assert cluster.find(None, {"HCMEGATRON_CLUSTER": "/a"}) == Path("/a")
    assert cluster.find(Path("/b"), {"HCMEGATRON_CLUSTER": "/a"}) == Path("/b")
    own = tmp_path / ".config/hcmegatron/cluster.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("{}")
    assert cluster.find(None, {}) == own
    with pytest.raises(LaunchError, match="/nowhere: cannot be read as a cluster file: No such file"):
        cluster.read(Path("/nowhere"))
