"""An executor of schedules that shares nothing with ``validate``: it computes.

Values are expressions. An activation is the chain of stages that a micro-batch went through, a gradient the
chain back; a stage checks nothing and computes on what it is given. Messages go through one
first-in-first-out queue per channel and carry no names, so a crossed message yields a wrong expression. The
result is the multiset of weight gradients per stage of the model, compared with that of one process.
"""

from collections import Counter, defaultdict, deque

BAD = ("hangs", "missing data", "wrong work")


def expected(schedule):
    """Every weight gradient that one process computes."""
    S = schedule.placement.model_stages
    grads = Counter()
    for m in range(schedule.microbatches):
        activations = [("data", m)]
        for s in range(S):
            activations.append((s, activations[-1]))
        grad = ("loss", activations[-1])
        for s in reversed(range(S)):
            grads[s, activations[s], grad] += 1
            grad = (s, activations[s], grad)
    return grads


def execute(schedule, steps, window=None):
    """ "fine", or what goes wrong. ``window``: a send blocks its rank until the receiver has used all but the
    last ``window - 1`` of the channel's earlier messages; None: sends never block."""
    S = schedule.placement.model_stages
    rank_of = schedule.placement.rank_of
    queues, used = defaultdict(deque), Counter()
    sent = Counter()
    ranks = range(len(steps))
    inputs, outputs, saved, leftovers = ([{} for _ in ranks] for _ in range(4))
    grads = Counter()
    position = [0] * len(steps)
    unsent = [[] for _ in steps]
    received = [set() for _ in steps]

    def first(stage):
        return stage % S == 0

    def last(stage):
        return stage % S == S - 1

    def run(part, rank):
        kind, stage, m = part.kind.value, part.stage, part.microbatch
        key = stage, m
        if not 0 <= stage < len(rank_of) or rank_of[stage] != rank:
            raise KeyError(f"stage {stage} has no parameters on rank {rank}")
        if kind == "F":
            value = ("data", m) if first(stage) else inputs[rank].pop(("F", *key))
            saved[rank][key] = value
            out = (stage % S, value)
            if last(stage):
                inputs[rank]["B", stage, m] = ("loss", out)
            elif rank_of[stage + 1] == rank_of[stage]:
                inputs[rank]["F", stage + 1, m] = out
            outputs[rank]["F", stage, m] = out
        elif kind == "W":
            grads[leftovers[rank].pop(key)] += 1
        else:
            grad, value = inputs[rank].pop(("B", *key)), saved[rank].pop(key)
            work = (stage % S, value, grad)
            if kind == "B":
                grads[work] += 1
            else:
                leftovers[rank][key] = work
            if not first(stage) and rank_of[stage - 1] == rank_of[stage]:
                inputs[rank]["B", stage - 1, m] = work
            outputs[rank]["B", stage, m] = work

    def advance(rank):
        """Whether anything happened; KeyError where data is missing."""
        moved = False
        while True:
            for message in list(unsent[rank]):
                channel = message.source, message.target
                if window is None or sent[channel] - used[channel] < window:
                    queues[channel].append(
                        outputs[rank][message.payload.value, message.source, message.microbatch]
                    )
                    sent[channel] += 1
                    unsent[rank].remove(message)
                    moved = True
            if unsent[rank] or position[rank] == len(steps[rank]):
                return moved
            step = steps[rank][position[rank]]
            for i, message in enumerate(step.receives):
                queue = queues[message.source, message.target]
                if i not in received[rank] and queue:
                    inputs[rank][message.payload.value, message.target, message.microbatch] = queue.popleft()
                    received[rank].add(i)
                    moved = True
            if len(received[rank]) < len(step.receives):
                return moved
            for message in step.receives:
                used[message.source, message.target] += 1
            received[rank].clear()
            for part in step.action.parts:
                run(part, rank)
            unsent[rank] = list(step.sends)
            position[rank] += 1
            moved = True

    try:
        while any([advance(rank) for rank in range(len(steps))]):
            pass
    except KeyError:
        return "missing data"
    if any(position[r] < len(steps[r]) or unsent[r] for r in range(len(steps))):
        return "hangs"
    if grads != expected(schedule) or any(queues.values()) or any(leftovers):
        return "wrong work"
    return "fine"
