"""Some rows of tests/training/truth_table.py, which has one for every key of the schema; and that it can fail."""

import pytest

from hcmegatron.config import check_config
from hcmegatron.config.types import leaves
from tests.training.truth_table import BASES, LEFT_OUT, Table, Trained, judged


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return Table(tmp_path_factory.mktemp("truth"))


@pytest.mark.ranks
@pytest.mark.parametrize(
    "key, said",
    [
        ("training.log_every", "bit for bit"),
        ("moe.grouped", "rounding"),
        ("training.global_batch", "changes"),
        ("optimizer.beta1", "changes"),
        ("data.seed", "refused"),
    ],
)
def test_what_is_said_of_a_changed_key_is_what_happens(key, said, table):
    row = table.row(key)
    assert row.wrong == "" and row.said.partition(":")[0] == said, row


def test_every_base_is_a_configuration_that_the_command_would_take(table):
    for base in BASES:
        check_config(table.config(base))


def test_every_key_has_another_value_or_a_reason_why_not(table):
    assert not {key for key in leaves() if key not in LEFT_OUT and table.choice(key) is None}


WHOLE = Trained("", "", [{4: "a"}], list(range(8)), {3: 2.0, 4: 1.0})


@pytest.mark.parametrize(
    "said, bits, samples, loss, wrong",
    [
        ("bit for bit", "a", [4, 5, 6, 7], 1.0, ""),
        ("bit for bit", "b", [4, 5, 6, 7], 1.0, "other bits"),
        ("bit for bit", "a", [6, 7], 1.0, "samples [6, 7] and not [4, 5, 6, 7]"),
        ("with the same numbers but for rounding", "b", [4, 5, 6, 7], 1.00001, ""),
        ("with the same numbers but for rounding", "b", [4, 5, 6, 7], 1.001, "more than rounding"),
        ("with changes", "a", [4, 5, 6, 7], 1.0, "nothing changed"),
        ("with changes", "b", [4, 5, 6, 7], 1.1, "the key is not named"),
    ],
)
def test_a_wrong_claim_is_found(said, bits, samples, loss, wrong, table):
    log = f"continuing from x after step 2, {said}\n" + (
        "rounding: key 1 -> 2\n" if "rounding" in said else ""
    )
    config = table.config("experts")
    trained = Trained("", log, [{4: bits}], samples, {3: 2.0, 4: loss})
    assert judged("key", "experts", "1 -> 2", config, WHOLE, trained).wrong == wrong


def test_a_run_that_ends_otherwise_than_by_a_refusal_is_found(table):
    config = table.config("experts")
    for error, wrong in (("x.ConfigError: no", ""), ("KeyError: 'lr'", "ended otherwise")):
        assert judged("key", "", "", config, WHOLE, Trained(error, "", [], [], {})).wrong == wrong
