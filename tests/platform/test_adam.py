"""Adam's state, where torch keeps the count beside the moments and where others keep it in the group."""

import torch

from hcmegatron.platform.adam import moments, set_updates, updates


class Fused(torch.optim.SGD):
    """As Transformer Engine's and apex's: the count is in the group, and does not go up in one without parameters."""

    def step(self, closure=None):
        for group in self.param_groups:
            if group["params"]:
                group["step"] = group.get("step", 0) + 1


def test_both_places_of_the_count():
    parameters = [torch.zeros(3, requires_grad=True), torch.zeros(2, requires_grad=True)]
    adam, fused = torch.optim.AdamW(parameters), Fused(parameters, lr=1.0)
    for optimizer in (adam, fused):
        for parameter in parameters:
            found = moments(optimizer, parameter)
            assert {name: value.tolist() for name, value in found.items()} == {
                "exp_avg": [0.0] * len(parameter),
                "exp_avg_sq": [0.0] * len(parameter),
            }
        assert updates(optimizer) == 0
        set_updates(optimizer, 7)
        assert updates(optimizer) == 7
    assert fused.param_groups[0]["step"] == 7 and "step" not in fused.state[parameters[0]]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    adam.step()
    assert [int(adam.state[parameter]["step"]) for parameter in parameters] == [8, 8]


def test_a_group_without_parameters_does_not_count():
    """As of a flat shard that has nothing of a group."""
    here = [torch.zeros(3, requires_grad=True)]
    fused = Fused([{"params": here}, {"params": []}], lr=1.0)
    set_updates(fused, 7)
    fused.step()
    assert updates(fused) == 8
    fused.param_groups[1]["step"] = 7  # of a state from before the group was empty
    assert updates(fused) == 8
