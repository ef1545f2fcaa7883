"""What `config` says a kind reads is what the built connections read: no more, no less, and never an error."""

import dataclasses
from typing import get_args

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hcmegatron.config import Config, check_config
from hcmegatron.config.ineffective import ineffective
from hcmegatron.config.schema import Model
from hcmegatron.connections import accounting
from tests.connections.small_network import KINDS, WIDE, Network, config, fits, randomise, tokens

# The optimizer and initialise() read them, and backward alone.
SEEN_ELSEWHERE = ("lr_multiplier", "scale_output_init", "sinkhorn_backward")


def values_of(name):
    """What a field may be, as far as tests try it."""
    hint, own = accounting.fields()[name]
    values = own.metadata["tries"] or ((True, False) if hint is bool else get_args(hint))
    assert len(values) > 1, f"connection.{name}: give its setting() values that tests try"
    return values


# Another value than the default of every field that a connection is built from.
OTHER = {
    name: [value for value in values_of(name) if value != own.default][-1]
    for name, (_, own) in accounting.fields().items()
    if name not in SEEN_ELSEWHERE
}
OTHER["n"], OTHER["pre_eps"] = 3, 1e-3  # divides the small network's 12 channels; shows in single outputs
OTHER["sinkhorn_eps"] = "additive"  # a floor acts on no sum of ordinary logits


def unread(conn):
    """Fields of the connection that have no effect, by the configuration's own rule."""
    return {key.removeprefix("connection.") for key in ineffective(Config(connection=conn))}


def made(conn):
    """Everything that a small network with these connections is and does, as bytes."""
    network = Network(conn, sublayers=2)
    initial = {name: (p.shape, p.detach().numpy().tobytes()) for name, p in network.named_parameters()}
    randomise(torch.nn.ModuleList([*network.connections, network.contract]))
    streams = []
    with torch.no_grad():
        coefficients = []
        network(tokens(), streams=streams, coefficients=coefficients)
        mix = coefficients[-1][:1] if network.connections[-1].single_pass else ()
        outputs = [*streams, network.contract(streams[-1], *mix)]
    assert all(out.isfinite().all() for out in outputs)
    return initial, [out.numpy().tobytes() for out in outputs]


def connections():
    """Any connection that the schema can write, over fields that divide the small network's 12 channels."""
    values = {name: st.sampled_from(values_of(name)) for name in accounting.fields()}
    values |= {"kind": st.sampled_from(KINDS), "n": st.sampled_from([1, 2, 3, 4, 6])}
    return st.builds(type(Config().connection), **values)


@settings(max_examples=25, deadline=None)
@given(connections())
def test_whatever_is_accepted_builds_and_what_is_idle_changes_nothing(conn):
    assume(fits(conn))
    check_config(Config(connection=conn, model=Model(hidden_size=12, heads=3)))
    reference, idle = made(conn), unread(conn)
    assert ("lr_multiplier" in idle) == (not Network(conn).connection_parameters())
    assert made(dataclasses.replace(conn, **{name: OTHER[name] for name in idle & OTHER.keys()})) == reference


@pytest.mark.parametrize(
    "conn",
    [
        *(config(kind, n=2) for kind in KINDS),
        *(config(kind, n=2, contract="head") for kind in WIDE),
        config("mhc", n=2, use_pre=False, use_post=False, use_res=False),
        config("mhc", n=2, use_pre=False, use_post=False, use_res=False, contract="head"),
    ],
    ids=lambda c: f"{c.kind}-{c.contract}-{'predicted' if c.use_pre else 'fixed'}",
)
def test_what_is_not_idle_changes_something(conn):
    reference, idle = made(conn), unread(conn)
    for name in sorted(OTHER.keys() - idle):
        now = getattr(conn, name)
        others = [OTHER[name], *values_of(name)]
        changed = [dataclasses.replace(conn, **{name: other}) for other in others if other != now]
        assert made(next(filter(fits, changed))) != reference, name
