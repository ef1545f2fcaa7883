"""Everybody meets everybody in as few rounds as can be, and bad pairs are laid to machines or to links."""

import json
from itertools import combinations
from types import MethodType, SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from launch.doctor.board import Board
from launch.doctor.examination import cores_of_machines, take_turns
from launch.doctor.links import PASSES, ROUND_S, Links, partners
from launch.doctor.rounds import blame, cover, rounds


def test_four_and_five_players():
    assert rounds(4) == [[(0, 3), (1, 2)], [(0, 2), (1, 3)], [(0, 1), (2, 3)]]
    assert [len(turn) for turn in rounds(5)] == [2, 2, 2, 2, 2]
    assert rounds(1) == [[]] and rounds(2) == [[(0, 1)]]


@pytest.mark.parametrize("players", [2, 3, 7, 8, 63, 64])
def test_every_pair_meets_once_and_nobody_is_in_two_pairs(players):
    turns = rounds(players)
    assert len(turns) == players - 1 + players % 2
    assert sorted(pair for turn in turns for pair in turn) == list(combinations(range(players), 2))
    for turn in turns:
        busy = [player for pair in turn for player in pair]
        assert len(busy) == len(set(busy)) == players - players % 2


class Wire(Links):
    """Links over a wire of so many bytes a second, with the seconds that it was busy."""

    def __init__(self, rate):
        super().__init__(torch.device("cpu"), 0, print)
        self.rate, self.busy = rate, 0.0

    def _exchange(self, partner, size):
        seconds = 30e-6 + size / self.rate
        self.busy += seconds
        return seconds

    @staticmethod
    def _send_and_receive(partner, mine, theirs):
        theirs.copy_(mine)


@pytest.mark.parametrize("rate", [12.5e6, 125e6, 1e9, 40e9])
@pytest.mark.parametrize("size", [1 << 16, 8 << 20, 1 << 30])
def test_64_machines_take_less_than_a_minute(rate, size):
    """From 100 Mbit/s up, whatever the run's message is."""
    wire = Wire(rate)
    wire._pair(1, size)
    assert wire.busy < 1.1 * ROUND_S
    assert PASSES * len(rounds(64)) * wire.busy < 41


def test_ranks_hear_of_the_others_in_one_answer():
    """512 ranks that each read every other's card would ask the store 262,144 times."""
    store, asked = dist.HashStore(), []
    board = SimpleNamespace(ranks=SimpleNamespace(rank=0), store=store, _poll=0.0)
    for name in ("pin", "_gather", "exchange"):
        setattr(board, name, MethodType(getattr(Board, name), board))
    board.read = lambda topic, rank: asked.append((topic, rank)) or Board.read(board, topic, rank)
    for rank in (1, 2):
        store.set(f"card {rank}", json.dumps({"of": rank}))
    everybody = {0: {"of": 0}, 1: {"of": 1}, 2: {"of": 2}}
    assert board.exchange("card", {"of": 0}, 5.0, range(3)) == everybody
    board.ranks.rank = 2
    asked.clear()
    assert board.exchange("card", {"of": 2}, 5.0, range(3)) == everybody and asked == [("card: who came", 0)]


@pytest.mark.parametrize("nodes", [[[0, 1, 2], [3, 4, 5]], [[0], [1], [2]], [[0, 2, 4], [1, 3]]])
def test_partners_have_each_other_in_the_same_round(nodes):
    """And every two ranks of a machine meet once, as every two machines do, rank i with rank i."""
    ranks = sorted(rank for own in nodes for rank in own)
    turns = {rank: partners(nodes, rank) for rank in ranks}
    for what in (0, 1):
        assert len({len(turns[rank][what]) for rank in ranks}) == 1
        for rank in ranks:
            for number, other in enumerate(turns[rank][what]):
                assert other is None or turns[other][what][number] == rank
    node = {rank: index for index, own in enumerate(nodes) for rank in own}
    met = [(node[rank], node[other]) for rank in ranks for other in turns[rank][1] if other is not None]
    assert set(met) == {(a, b) for a in range(len(nodes)) for b in range(len(nodes)) if a != b}
    for rank in ranks:
        others = [other for other in turns[rank][0] if other is not None]
        assert sorted(others) == [other for other in ranks if node[other] == node[rank] and other != rank]


def test_ranks_of_a_machine_that_has_few_cores_multiply_one_after_the_other():
    """Every rank knows the turns of all, whatever its own cores."""
    small, large, gpus = (
        {"machine": m, "cores": c, "gpus": g}
        for m, c, g in (("a", [0, 1], 0), ("b", range(8), 0), ("c", [0, 1], 8))
    )
    cards = dict(enumerate([small, small, large, large, small, large, gpus, gpus]))
    assert take_turns(cards) == {0: 0, 1: 1, 2: 0, 3: 0, 4: 2, 5: 0, 6: 0, 7: 0}


def test_ranks_that_are_bound_to_cores_of_their_own_have_all_of_them_together():
    cards = {rank: {"machine": "a", "cores": [2 * rank, 2 * rank + 1], "gpus": 0} for rank in range(4)}
    assert cores_of_machines(cards.values()) == {"a": 8} and take_turns(cards) == {0: 0, 1: 0, 2: 0, 3: 0}


def test_a_machine_whose_row_is_bad_is_told_from_a_bad_link():
    assert blame(range(5), [(0, 3), (1, 3), (2, 3), (3, 4)]) == ([3], [])
    assert blame(range(5), [(1, 3)]) == ([], [(1, 3)])
    assert blame(range(5), [(0, 3), (1, 3), (2, 3), (3, 4), (0, 1)]) == ([3], [(0, 1)])
    assert blame(range(6), [(0, 3), (3, 5)]) == ([], [(0, 3), (3, 5)])  # two of five: not most of its row
    assert blame(range(2), [(0, 1)]) == ([], [(0, 1)])  # nobody can tell which
    assert blame(range(4), []) == ([], [])


def test_the_fewest_machines_without_which_no_bad_link_is_left():
    assert cover([(0, 3), (3, 5), (1, 2)]) == [2, 3]
    assert cover([(0, 1)]) == [1]  # rank 0's machine runs the batch script
    assert cover([]) == []
