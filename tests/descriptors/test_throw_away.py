"""A kind and a schedule that a registry has one line of each for: the program takes them, and their tests are found."""

import json
import re
import subprocess
import sys

import pytest

from tests.ranks import ROOT

pytestmark = pytest.mark.ranks


def call(*words, **options):
    return subprocess.run(
        [sys.executable, "-m", *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        **options,
    )


def test_the_program_takes_them(tmp_path):
    """Configuration, planner, recomputation, layers, optimizer, pipeline and training, from their descriptors alone."""
    done = call("tests.descriptors.drive", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    n, C, layers, ffn, vocabulary = 3, 32, 2, 48, 257
    assert seen["warnings"] == [] and seen["kept by dump"] and not seen["torch"]
    for said, words in zip(
        seen["refused"],
        [
            "connection.leak = 2 is out of range; it must be from 0 to 1",
            "connection.leek is not a setting; did you mean connection.leak?",
            "did you mean last_first?",
            "makes 3 micro-batches a rank, and parallel.schedule = last_first with parallel.pipeline = 2 takes "
            "multiples of 2: it likes pairs; use 2 or 4",
            "parallel.schedule = last_first has no pairs",
        ],
        strict=True,
    ):
        assert words in said
    reason = "connection.kind is throwaway"
    assert seen["idle"]["connection.tanh"] == seen["idle"]["kernels"] == reason
    assert "connection.leak" not in seen["idle"] and seen["idle for mhc"] == "connection.kind is mhc"
    assert seen["connections"] == 2 * layers * (n + n * C + C)
    # without the two norms a layer that the connections replace
    attention, mlp = 4 * C * C, 3 * C * ffn
    layer = attention + mlp
    assert seen["parameters"] == layers * layer + C + 2 * C * vocabulary + seen["connections"]
    assert seen["on ranks"] == [seen["parameters"] // 2 - C // 2, seen["parameters"] // 2 + C // 2]
    assert seen["flops"] == 3 * 2 * layers * (4 * n * C - C)
    assert seen["width"] == n
    assert seen["plan"] == 16 * (2 * n * C * 4 + 4 * C * 4)
    assert seen["held"] == [4, 0] and seen["rule"] == "ARCHITECTURE"
    status, losses = seen["trained"]
    assert status == 0 and len(losses) == 2 and losses[1] < losses[0]


@pytest.mark.parametrize(
    ("tests", "name", "least"),
    [
        ("tests/connections", "throwaway", 20),
        ("tests/schedules/test_properties.py tests/schedules/test_cli.py", "last_first", 3),
    ],
    ids=["kind", "schedule"],
)
def test_their_tests_are_found(tests, name, least):
    """By their names, among the tests of every kind and every schedule."""
    options = ["-p", "tests.descriptors.throw_away", "-k", name, "-q", "-p", "no:cacheprovider"]
    done = call("pytest", *tests.split(), *options)
    assert done.returncode == 0, done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= least, done.stdout


def test_a_module_that_is_not_as_described_is_refused():
    code = (
        "import tests.descriptors.throw_away, dataclasses; from hcmegatron.connections import kinds, build\n"
        "from hcmegatron.config.schema import Connection\n"
        "kinds.KINDS['throwaway'] = dataclasses.replace(kinds.KINDS['throwaway'], parameters=lambda conn, C: {})\n"
        "build.build_connection(Connection(kind='throwaway'), 8, 0, norm_eps=0.0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert "AssertionError: ThrowAway has parameters" in done.stderr, done.stderr
