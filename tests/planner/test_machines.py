"""Machines: known ones, one's own in YAML, and what none can be."""

import pytest

from hcmegatron.config import ConfigError
from hcmegatron.planner.layout import Group
from hcmegatron.planner.machines import MACHINES, MATMUL_BY_SIZE, check_machine, find_machine, matmul_share
from hcmegatron.planner.rates import Assumptions, Rates

OWN = "peak_tflops: 100\nmatmul_tflops: 80\nmemory_gib: 40\ncopy_tbs: 1\ngpus_per_node: 4\nnvlink_gbs: 100\n"


@pytest.mark.parametrize("name", MACHINES)
def test_known_machines_can_exist(name):
    assert check_machine(find_machine(name), name) is MACHINES[name]


@pytest.mark.parametrize("name, nearest", [("h10", "h100"), ("H-200s", "h200"), ("mi300", "mi300x")])
def test_an_unknown_gpu_names_the_nearest(name, nearest):
    with pytest.raises(ConfigError, match=f"did you mean {nearest}"):
        find_machine(name)


def test_one_s_own(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(OWN + "network_gbs: 12.5\n")
    assert (find_machine(str(path)).name, find_machine(str(path)).network_gbs) == ("mine", 12.5)
    path.write_text("extends: h100\nnetwork_gbs: 25\n")
    mine = find_machine(str(path))
    assert (mine.network_gbs, mine.peak_tflops, mine.name) == (25, 989, "mine")


@pytest.mark.parametrize(
    "text, words",
    [
        (OWN, "lacks network_gbs"),
        ("[1]: 3\n", "[1] is not a key"),
        ("peak_tflops: {a: 3}\n", "peak_tflops = {a: ...} is not a number"),
        ("extends: mine.yaml\n", "extends itself"),
        ("extends: h100\nmemory_gib: -3\n", "memory_gib = -3: a machine's figures are more than 0"),
        ("extends: h100\nkernel_us: 1e-300\n", "kernel_us = 1e-300: no machine's"),
        ("extends: h100\nmatmul_tflops: 2000\n", "more than peak_tflops = 989"),
        ("extends: h100\nlink_share: 1.5\n", "at most 1"),
        ("extends: h100\nnvlink_gb: 1\n", "did you mean nvlink_gbs"),
        ("extends: h100\ncopy_tbs: fast\n", "copy_tbs = fast is not a number"),
        ("extends: h100\ncopy_tbs: 1\ncopy_tbs: 2\n", "given twice"),
        ("extends: h1000\n", "did you mean h100"),
        ("extends: mine.yaml\n", "mine.yaml: extends itself; break the circle"),
        ("[a]: 3\n", "[a] is not a key; write key: value"),
        ("extends: h100\ncopy_tbs: [1]\n", "copy_tbs = [1] is not a number"),
        ("- 1\n", "expected keys and values"),
        ("a: [\n", "is not YAML"),
    ],
)
def test_what_no_machine_is(tmp_path, text, words):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as refused:
        find_machine(str(path))
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_a_missing_file():
    with pytest.raises(ConfigError, match="No such file"):
        find_machine("nowhere.yaml")


def test_matmul_shares_are_the_table_and_grow_between():
    assert [matmul_share(size) for size, _ in MATMUL_BY_SIZE] == [share for _, share in MATMUL_BY_SIZE]
    shares = [matmul_share(size) for size in (1, 32, 100, 700, 3000, 1e6)]
    assert shares == sorted(shares) and shares[0] > 0 and shares[-1] < 1


def rates(**assumed):
    return Rates(find_machine("h100"), Assumptions(**assumed), "bf16")


def test_a_large_matmul_runs_at_the_measured_rate_and_a_thin_one_at_copy_speed():
    own = rates()
    assert own.matmul(8192, 8192, 8192, 2) == pytest.approx(2 * 8192**3 / (0.93 * 794e12))
    # 24 columns: reading 8192 x 10240 in bf16 takes longer than multiplying at the tensor cores' peak would
    assert own.matmul(8192, 24, 10240, 2) >= 2 * 8192 * 10240 / 3.0e12


def test_an_all_to_all_is_as_slow_as_its_slower_link():
    own = rates()
    within, across = own.all_to_all(8e9, Group(8, 8), 1), own.all_to_all(8e9, Group(16, 8), 1)
    assert within == pytest.approx(7e9 / (0.8 * 450e9) + 10e-6)
    assert across == pytest.approx(4e9 / (0.8 * 50e9) + 25e-6)
    assert rates(fused=True).all_to_all(8e9, Group(16, 8), 8) < across / 3  # once a node, not once an expert


def test_a_ring_that_spans_nodes_uses_all_their_adapters():
    own = rates()
    assert own.ring(1e9, Group(16, 8)) == pytest.approx(15 / 16 / (0.8 * 400) + 4 * 25e-6)
    assert own.ring(1e9, Group(16, 1)) == pytest.approx(15 / 16 / (0.8 * 50) + 4 * 25e-6)
    assert own.ring(1e9, Group(1, 1)) == 0
