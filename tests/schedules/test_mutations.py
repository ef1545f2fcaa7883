"""Random damage to valid schedules: validation against an executor that computes with them."""

import random
from collections import Counter
from dataclasses import replace

import pytest

from schedules.actions import FB, Action, B, F, Kind
from schedules.generators import generate
from schedules.schedule import Message, ScheduleStep, lower
from schedules.validate import InvalidSchedule, problems, validate
from tests.schedules.executor import BAD, execute

CASES = [
    ("gpipe", 3, 4),
    ("1f1b", 4, 6),
    ("interleaved", 2, 5),
    ("interleaved", 3, 6),
    ("zb_h1", 4, 6),
    ("zb_v", 2, 5),
    ("zb_v", 3, 6),
    ("dualpipe", 2, 4),
    ("dualpipe", 4, 10),
    ("dualpipev", 2, 5),
    ("dualpipev", 3, 7),
]
PER_KIND = 8


def rebuilt(schedule, lists):
    return replace(schedule, actions=tuple(map(tuple, lists)))


def damage_actions(schedule, rng, how):
    """The schedule with one mistake, or None where there is nothing of the sort to damage."""
    lists = [list(actions) for actions in schedule.actions]
    rank = rng.randrange(schedule.ranks)
    row = lists[rank]
    i, j = sorted(rng.sample(range(len(row)), 2))
    other = lists[rng.randrange(schedule.ranks)]
    if how == "drop":
        row.pop(i)
    elif how == "double":
        row.insert(j, row[i])
    elif how == "swap":
        row[i], row[j] = row[j], row[i]
    elif how == "swap neighbours":
        row[i], row[i - 1] = row[i - 1], row[i]
    elif how == "move":
        row.insert(j, row.pop(i))
    elif how == "to another rank":
        other.insert(rng.randrange(len(other) + 1), row.pop(i))
    elif how == "another micro-batch":
        a = row[i]
        if a.kind is Kind.FB:
            return None
        row[i] = a._replace(microbatch=rng.randrange(schedule.microbatches))
    elif how == "another kind":
        a = row[i]
        if a.kind is Kind.FB:
            return None
        row[i] = a._replace(kind=rng.choice([k for k in (Kind.F, Kind.B, Kind.I, Kind.W) if k is not a.kind]))
    elif how == "split the pair":
        pairs = [k for k, a in enumerate(row) if a.kind is Kind.FB]
        if not pairs:
            return None
        k = rng.choice(pairs)
        parts = list(row[k].parts)
        rng.shuffle(parts)
        row[k : k + 1] = parts
    elif how == "cross pairs":
        pairs = [k for k, a in enumerate(row) if a.kind is Kind.FB]
        if len(pairs) < 2:
            return None
        k, n = rng.sample(pairs, 2)
        (f1, b1), (f2, b2) = row[k].parts, row[n].parts
        row[k], row[n] = FB(f1, b2), FB(f2, b1)
    elif how == "pair up":
        found = [k for k in range(len(row) - 1) if row[k].kind is Kind.F and row[k + 1].kind is Kind.B]
        if not found:
            return None
        k = rng.choice(found)
        row[k : k + 2] = [FB(row[k], row[k + 1])]
    return rebuilt(schedule, lists)


ACTION_DAMAGE = (
    "drop",
    "double",
    "swap",
    "swap neighbours",
    "move",
    "to another rank",
    "another micro-batch",
    "another kind",
    "split the pair",
    "cross pairs",
    "pair up",
)


def damage_messages(schedule, rng, how):
    steps = [list(rank) for rank in lower(schedule)]
    field = rng.choice(["sends", "receives"])
    places = [(r, i) for r, row in enumerate(steps) for i, step in enumerate(row) if getattr(step, field)]
    r, i = rng.choice(places)
    messages = list(getattr(steps[r][i], field))
    k = rng.randrange(len(messages))
    if how == "drop":
        messages.pop(k)
    elif how == "double":
        messages.insert(k, messages[k])
    elif how == "another micro-batch":
        messages[k] = messages[k]._replace(microbatch=rng.randrange(schedule.microbatches))
    elif how == "another channel":
        m = messages[k]
        messages[k] = m._replace(source=m.target, target=m.source)
    elif how in ("cross", "move"):
        n = rng.choice([n for rank, n in places if rank == r])
        if n == i:
            return None
        others = list(getattr(steps[r][n], field))
        if how == "cross":
            o = rng.randrange(len(others))
            messages[k], others[o] = others[o], messages[k]
        else:
            others.append(messages.pop(k))
        steps[r][n] = steps[r][n]._replace(**{field: tuple(others)})
    steps[r][i] = steps[r][i]._replace(**{field: tuple(messages)})
    return steps


MESSAGE_DAMAGE = ("drop", "double", "another micro-batch", "another channel", "cross", "move")


def exceeds_the_limit(schedule):
    for actions, limit in zip(schedule.actions, schedule.live_limit, strict=True):
        parts = [part.kind for action in actions for part in action.parts]
        freed = (Kind.B, Kind.W)
        if any(
            parts[:i].count(Kind.F) - sum(k in freed for k in parts[: i - 1]) > limit
            for i in range(1, len(parts))
        ):
            return True
    return False


def reasons_against_harmless(schedule, steps, found):
    """Why validation may refuse what the executor finds harmless. Anything else would be a false alarm."""
    causes = {problem.cause for problem in found}
    if "memory" in causes and exceeds_the_limit(schedule):
        causes -= {"memory"}  # more live chunks than published; right, but not what was promised
    if "deadlock" in causes and execute(schedule, steps, window=schedule.posted) == "hangs":
        causes -= {"deadlock"}  # hangs once sends block; the executor's do not
    if "order" in causes and all("overlaps" in p.text for p in found if p.cause == "order"):
        causes -= {"order"}  # a pair whose halves need each other: right one after the other, not overlapped
    if "message" in causes and steps != [list(rank) for rank in lower(schedule)]:
        causes -= {"message"}  # a message at another action than the one it belongs to, before it is needed
    return causes


def test_every_harmful_mutation_is_rejected_and_no_harmless_one_without_reason():
    rng = random.Random(4)
    verdicts, excused = Counter(), Counter()
    for name, P, M in CASES:
        schedule = generate(name, P, M)
        assert (
            execute(schedule, lower(schedule))
            == execute(schedule, lower(schedule), schedule.posted)
            == "fine"
        )
        for how in ACTION_DAMAGE + tuple(f"message: {h}" for h in MESSAGE_DAMAGE):
            for _ in range(PER_KIND):
                if how.startswith("message: "):
                    mutant, steps = schedule, damage_messages(schedule, rng, how.removeprefix("message: "))
                    if steps is None:
                        continue
                    found = problems(schedule, steps)
                else:
                    mutant = damage_actions(schedule, rng, how)
                    if mutant is None or mutant == schedule:
                        continue
                    found = problems(mutant)
                    try:
                        steps = [list(rank) for rank in lower(mutant)]
                    except IndexError:
                        steps = None
                outcome = execute(mutant, steps)
                verdicts[outcome, bool(found)] += 1
                context = (name, P, M, how, outcome, found[:3])
                if outcome in BAD:
                    assert found, context
                elif found:
                    causes = {problem.cause for problem in found}
                    assert not reasons_against_harmless(mutant, steps, found), context
                    excused[min(causes)] += 1
                else:
                    assert execute(mutant, steps, window=schedule.posted) == "fine", context
    assert sum(verdicts.values()) >= 1000
    for outcome in BAD:
        assert verdicts[outcome, True] >= 50, verdicts
    assert verdicts["fine", False] >= 50, verdicts
    assert excused.keys() <= {"memory", "deadlock", "order", "message"}, excused


def rejection(schedule, steps=None):
    with pytest.raises(InvalidSchedule) as caught:
        validate(schedule, steps)
    assert str(caught.value).startswith(f"schedule {schedule.name}: {caught.value.problems[0].text}")
    assert "\n" not in str(caught.value)
    return "; ".join(problem.text for problem in caught.value.problems)


def test_messages_name_rank_and_action():
    schedule = generate("1f1b", 2, 3)
    rows = [list(actions) for actions in schedule.actions]
    assert rows[1] == [F(1, 0), B(1, 0), F(1, 1), B(1, 1), F(1, 2), B(1, 2)]
    assert "rank 1: 1B2, or 1I2 and 1W2, is missing" in rejection(rebuilt(schedule, [rows[0], rows[1][:-1]]))
    assert "rank 1: 1F0 is missing" in rejection(rebuilt(schedule, [rows[0], rows[1][1:]]))
    assert "rank 0: 0F0 is repeated, at 0, 6" in rejection(rebuilt(schedule, [[*rows[0], F(0, 0)], rows[1]]))
    swapped = [rows[1][1], rows[1][0], *rows[1][2:]]
    assert "rank 1: 1B0 at 0 runs before 1F0" in rejection(rebuilt(schedule, [rows[0], swapped]))
    crossed = [F(1, 1), B(1, 1), F(1, 0), B(1, 0), F(1, 2), B(1, 2)]
    assert (
        "rank 1: 1F1 receives the activation of micro-batch 1 from stage 0 to stage 1, "
        "but rank 0 sends micro-batch 0 first"
    ) in rejection(rebuilt(schedule, [rows[0], crossed]))
    early = [F(0, 0), B(0, 0), F(0, 1), F(0, 2), B(0, 1), B(0, 2)]
    late = [F(1, 0), F(1, 1), B(1, 0), B(1, 1), F(1, 2), B(1, 2)]
    assert (
        "rank 0: deadlock before 0B0, waiting for rank 1 to send the gradient of micro-batch 0"
        in rejection(rebuilt(schedule, [early, late]))
    )
    assert "rank 0: 0F1 makes 2 live chunks, 1 are allowed" in rejection(replace(schedule, live_limit=(1, 1)))
    assert "rank 1: 0F1: stage 0 lives on rank 0" in rejection(
        rebuilt(schedule, [rows[0], [F(0, 1), *rows[1]]])
    )
    assert "rank 0: 0F7: stage 0 takes micro-batches 0 .. 2" in rejection(
        rebuilt(schedule, [[F(0, 7), *rows[0]], rows[1]])
    )
    assert "stage 5 does not exist" in rejection(rebuilt(schedule, [rows[0], [F(5, 0), *rows[1]]]))
    split = [*rows[1][:-1], Action(Kind.I, 1, 2)]
    assert "rank 1: 1W2 is missing, 1I2 is there" in rejection(rebuilt(schedule, [rows[0], split]))
    whole = [*rows[1], Action(Kind.W, 1, 2)]
    assert "rank 1: 1W2 repeats part of 1B2" in rejection(rebuilt(schedule, [rows[0], whole]))
    assert "1 lists of actions for 2 ranks" in rejection(rebuilt(schedule, rows[:1]))


def test_messages_at_fault_are_named():
    schedule = generate("1f1b", 2, 3)
    steps = [list(rank) for rank in lower(schedule)]
    steps[1][0] = ScheduleStep(F(1, 0), (), ())
    text = rejection(schedule, steps)
    assert "rank 1: 1F0 does not receive the activation of micro-batch 0 from stage 0 to stage 1" in text
    steps = [list(rank) for rank in lower(schedule)]
    stray = Message(Kind.B, 1, 0, 2, 1, 0)
    steps[1][0] = steps[1][0]._replace(sends=(stray,))
    text = rejection(schedule, steps)
    assert "rank 1: 1F0 has no reason to send the gradient of micro-batch 2 from stage 1 to stage 0" in text


def test_halves_of_a_pair_may_not_need_each_other():
    schedule = generate("1f1b", 1, 2)
    paired = rebuilt(schedule, [[FB(F(0, 0), B(0, 0)), F(0, 1), B(0, 1)]])
    assert "rank 0: 0B0 at 0 overlaps 0F0, whose result it needs" in rejection(paired)
