"""Held-out text in groups of micro-batches, between which a signal is heard."""

from types import SimpleNamespace

import pytest

from hcmegatron.config import Config
from hcmegatron.training.run import evaluate


class Held(SimpleNamespace):
    """Ten micro-batches whose losses are their numbers."""

    micro_batches, bytes = 10, 5

    def __call__(self, index):
        return index


@pytest.mark.parametrize(
    "answers, counts, loss",
    [
        ([False] * 4, [3, 3, 3, 1], 9.0),
        ([True], [], None),
        ([False, False, True], [3, 3], None),
    ],
)
def test_groups_are_a_steps_time_and_those_of_a_stopped_run_no_result(answers, counts, loss):
    seen, asked = [], list(answers)

    def of_group(make, count):
        seen.append(count)
        return float(sum(map(make, range(count))))

    stepper = SimpleNamespace(evaluate=of_group, batches=SimpleNamespace(micro_batches=1))
    run = SimpleNamespace(stepper=stepper, validations=[Held()], config=Config())
    found = evaluate(run, 7, lambda: asked.pop(0))
    assert (found and found.loss) == loss
    assert seen == counts and asked == []
