"""`hcmegatron profile`: a few steps of a configuration, on this rank, of which nothing is kept but their profile."""

from __future__ import annotations

from collections.abc import Iterable

from hcmegatron.config.schema import Config
from hcmegatron.data.blend import PreparedCorpus
from hcmegatron.data.corpus import Corpus, find_corpus
from hcmegatron.platform.collective_failure import on_first_rank
from hcmegatron.platform.distributed import process_groups
from hcmegatron.platform.ranks import RankInfo
from hcmegatron.profiling import files
from hcmegatron.profiling.observer import Profiler
from hcmegatron.training import checkpoint
from hcmegatron.training.observer import End
from hcmegatron.training.observer_registry import Factory
from hcmegatron.training.run import one_step, stopped
from hcmegatron.training.run_directory import choose_directory
from hcmegatron.training.setup import assemble_run, warn_of_environment
from hcmegatron.training.stopping import StopFlag


def profile(
    config: Config,
    ranks: RankInfo,
    name: str = "run",
    corpus: Corpus | PreparedCorpus | None = None,
    observers: Iterable[Factory] = (),
) -> int:
    """As training.run.train, whose arguments these are, up to the last step of run.profile_at, counted from here: no
    metrics, evaluations or checkpoints, and no other observers than those given. Without a profile in the end the exit
    status is a failure's, on rank 0, which writes it."""
    corpus = corpus or find_corpus(config.data)
    warn_of_environment(config, ranks)
    with process_groups(config, ranks, corpus.fingerprint) as groups:
        stop = StopFlag(launched=ranks.apart)
        path = on_first_rank(lambda: choose_directory(config, f"profile-{name}"))
        start = checkpoint.find(config, path, corpus.fingerprint)
        with assemble_run(config, ranks, groups, corpus, path, start) as run:
            run.log.say(*run.introduction)
            steps = [run.position.step + step for step in config.run.profile_at]
            with run.observers as watching:
                watching.observers.extend([*(make(run) for make in observers), Profiler(run, steps)])
                run.log.say(*run.stepper.rehearse())
                done = run.position.step
                while done < max(steps) and not stop.agreed():
                    step = one_step(run, done + 1, run.position.samples)
                    run.position = run.after(step)
                    watching.on_step(step)
                    done = run.position.step
                watching.on_end(End(done, stop.name))
            if done < max(steps):
                profiled = sum(step <= done for step in steps)
                run.log.say(f"stopped by {stop.name}: {profiled} of {len(steps)} steps were profiled")
    if done < max(steps):
        return stopped(stop, ranks)
    return int(ranks.rank == 0 and not (path / files.FOLDER / files.SUMMARY).exists())
