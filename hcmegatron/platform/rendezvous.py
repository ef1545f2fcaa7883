"""How the ranks of a job find each other: a key-value store on rank 0, with a word about whom one waits for.

torch's own rendezvous says nothing while a rank is missing, and never ends where something else listens on the port.
Here every rank leaves its facts in the store, rank 0 waits for all of them and compares (platform/agreement.py), and
every rank gets the same verdict before the first collective, which could hang where layouts differ.

torchrun's agent holds a store already; it serves to find rank 0's, which outlives the agent. So ranks whose torchrun
was killed can still save a checkpoint.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta

import torch.distributed as dist

from hcmegatron.config.errors import ConfigError
from hcmegatron.platform import standard_streams
from hcmegatron.platform.agreement import Facts, disagreement, in_words
from hcmegatron.platform.ranks import RankInfo

FIRST_WORD_S = 5.0  # of waiting, after which it is said whom for; then twice as long each time
_POLL_S = 0.1
_VERDICT = "verdict"
_PORT = "hcmegatron port"  # in the store of torchrun's agent: of rank 0's own


def meet_ranks(ranks: RankInfo, facts: Facts, limit: timedelta) -> dist.Store:
    """The store that the ranks of this job share, once all have come and agree. Collective.

    Args:
        facts: what must be the same on every rank.
        limit: how long the others may take.

    Raises:
        ConfigError: ranks are missing, differ in their facts, or come twice; the port is taken. On every rank that
            can be told, with the same words.
    """
    if ranks.world_size == 1:
        return dist.HashStore()
    waiting = _Waiting(ranks, limit.total_seconds())
    store = _store(ranks, waiting)
    store.set_timeout(limit)
    store = dist.PrefixStore("rendezvous", store)
    if store.add(f"came {ranks.rank}", 1) > 1:
        store.set("twice", str(ranks.rank))  # for rank 0, which tells the first one
        raise ConfigError(_twice(ranks.rank, waiting))
    store.set(_key(ranks.rank), json.dumps(dict(facts)))
    if ranks.rank == 0:
        verdict = _judge(store, ranks, waiting)
        store.set(_VERDICT, verdict)
        if verdict:
            _until_heard(store, ranks)
    else:
        verdict = _hear(store, ranks, waiting)
        store.add("heard", 1)
    if verdict:
        raise ConfigError(verdict)
    return store


def join_store(ranks: RankInfo, limit: timedelta, setting: str) -> dist.Store:
    """Rank 0's store, without waiting for any other rank.

    Args:
        limit: how long rank 0 may take.
        setting: what the user calls that.

    Raises:
        ConfigError: rank 0 is not to be reached; or, on rank 0, the port is taken.
    """
    return dist.PrefixStore("joined", _store(ranks, _Waiting(ranks, limit.total_seconds(), setting)))


class _Waiting:
    """A deadline, and what is said until then: after FIRST_WORD_S, and then ever more rarely."""

    def __init__(self, ranks: RankInfo, limit: float, setting: str = "parallel.timeout_s") -> None:
        self.ranks, self.limit, self.setting = ranks, limit, setting
        self.begin = time.monotonic()
        self.next = FIRST_WORD_S
        # One rank of a machine speaks; whoever starts ranks by hand looks at each of them.
        self.speaks = ranks.local_rank == 0 or ranks.source == "the environment"

    @property
    def left(self) -> float:
        """Seconds until the deadline; 0 after it."""
        return max(0.0, self.begin + self.limit - time.monotonic())

    @property
    def place(self) -> str:
        """Where rank 0 is to be found."""
        return f"{self.ranks.master_addr}:{self.ranks.master_port}"

    def pause(self, whom: str) -> None:
        """Wait a moment, and say whom for where that is due."""
        spent = time.monotonic() - self.begin
        if spent > self.next:
            self.next *= 2
            if self.speaks:
                standard_streams.tell(
                    f"hcmegatron: rank {self.ranks.rank}: waiting for {whom} of {self.ranks.world_size} "
                    f"at {self.place}, {spent:.0f} s so far, of at most {self.limit:.0f}"
                )
        time.sleep(min(_POLL_S, self.left))

    def missing(self, whom: str, why: str = "") -> ConfigError:
        """The deadline has passed."""
        return ConfigError(
            f"{whom} of {self.ranks.world_size} did not come to {self.place} within {self.setting} = "
            f"{self.limit:.0f} s{why}; start every rank, with the same MASTER_ADDR and MASTER_PORT"
        )


def _store(ranks: RankInfo, waiting: _Waiting) -> dist.Store:
    """Rank 0's store: held here, or reached."""
    first, address, port = ranks.rank == 0, ranks.master_addr, ranks.master_port
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        agent = _reach(address, lambda: port, ranks, waiting)
        if first:
            store = _hold(address, 0, ranks)
            agent.set(_PORT, str(store.port))
            return store
        while not agent.check([_PORT]):
            if not waiting.left:
                raise waiting.missing("rank 0")
            waiting.pause("rank 0")
        # Asked at every attempt: the agent's store outlives the ranks that torchrun starts anew (--max-restarts), and
        # has the port of the rank 0 before until this one has set its own.
        return _reach(address, lambda: int(agent.get(_PORT)), ranks, waiting)
    return _hold(address, port, ranks) if first else _reach(address, lambda: port, ranks, waiting)


def _hold(address: str, port: int, ranks: RankInfo) -> dist.TCPStore:
    try:
        return dist.TCPStore(address, port, ranks.world_size, is_master=True, wait_for_workers=False)
    except RuntimeError as error:
        reason = "another program listens there" if "EADDRINUSE" in str(error) else first_line(error)
        raise ConfigError(
            f"MASTER_PORT = {port} of this machine cannot be used ({reason}); set MASTER_PORT to a free port, the "
            "same for all ranks"
        ) from None


def _reach(address: str, where: Callable[[], int], ranks: RankInfo, waiting: _Waiting) -> dist.TCPStore:
    """The store that is, or will be, held at the address. where: at which port, as far as is known now."""
    while (refused := _knock(address, port := where(), waiting.left)) is not None:
        if not waiting.left:
            raise waiting.missing("rank 0", f" ({refused})")
        waiting.pause("rank 0")
    # torch waits without end for the answer of something that is no store of its own.
    found: list[dist.TCPStore | RuntimeError] = []

    def connect() -> None:
        try:
            timeout = timedelta(seconds=max(1.0, waiting.left))
            found.append(
                dist.TCPStore(address, port, ranks.world_size, wait_for_workers=False, timeout=timeout)
            )
        except RuntimeError as error:
            found.append(error)

    threading.Thread(target=connect, name="rendezvous", daemon=True).start()
    while not found and waiting.left:
        waiting.pause("an answer of rank 0")
    if found and not isinstance(found[0], RuntimeError):
        return found[0]
    raise ConfigError(
        f"what listens at {address}:{port} is not rank 0 of this job: it did not answer within {waiting.setting} = "
        f"{waiting.limit:.0f} s; set MASTER_ADDR and MASTER_PORT to rank 0's host and a free port of it"
    )


def _knock(address: str, port: int, limit: float) -> str | None:
    """Why nothing listens there; None if something does."""
    try:
        socket.create_connection((address, port), timeout=min(5.0, max(0.1, limit))).close()
    except OSError as error:
        return str(error)
    return None


def _judge(store: dist.Store, ranks: RankInfo, waiting: _Waiting) -> str:
    """On rank 0: wait for all, compare. "" or what is wrong."""
    missing = list(range(1, ranks.world_size))
    while missing := [rank for rank in missing if not store.check([_key(rank)])]:
        if store.check(["twice"]):
            break
        if not waiting.left:
            return str(waiting.missing(in_words(missing)))
        store.set("missing", in_words(missing))
        waiting.pause(in_words(missing))
    if store.check(["twice"]):
        return _twice(int(store.get("twice")), waiting)
    return disagreement([json.loads(store.get(_key(rank))) for rank in range(ranks.world_size)]) or ""


def _until_heard(store: dist.Store, ranks: RankInfo) -> None:
    """The store goes with rank 0, so it stays until all that came have read the verdict."""
    there = sum(store.check([_key(rank)]) for rank in range(1, ranks.world_size))
    end = time.monotonic() + FIRST_WORD_S
    while store.add("heard", 0) < there and time.monotonic() < end:
        time.sleep(_POLL_S)


def _twice(rank: int, waiting: _Waiting) -> str:
    return (
        f"two processes say that they are rank {rank} of {waiting.ranks.world_size} at {waiting.place}; give every "
        "process a rank of its own, and every job a MASTER_PORT of its own"
    )


def _hear(store: dist.Store, ranks: RankInfo, waiting: _Waiting) -> str:
    """On the other ranks: rank 0's verdict."""
    try:
        while not store.check([_VERDICT]):
            # Rank 0's patience ends a little earlier or later than this one's.
            if time.monotonic() > waiting.begin + waiting.limit + FIRST_WORD_S:
                return str(waiting.missing("some rank"))
            waiting.pause(store.get("missing").decode() if store.check(["missing"]) else "rank 0")
        return store.get(_VERDICT).decode()
    except RuntimeError as error:
        return f"rank 0 of {ranks.world_size} at {waiting.place} has gone ({first_line(error)}); see what it said"


def _key(rank: int) -> str:
    return f"facts {rank}"


def first_line(error: BaseException) -> str:
    """An exception's words without the native stack frames that torch puts below them."""
    return str(error).partition("\n")[0]
