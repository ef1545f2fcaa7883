"""What the command's exit status says to the script that started it. No torch.

0: the run is finished, or was already. Under torchrun, mpirun and srun also a run that was stopped, because those take
every other status for a failure and end the ranks that are still busy; its output says which it is, as does a file that
a job's script has named (launcher_end.py).
1: a rank failed, was lost to a launcher, had its torchrun die, or the last checkpoint could not be saved; the output
says why.
128 + N: a rank was killed by signal N.
"""

USER_ERROR = (
    2  # a mistake in the command line, the configuration, the data or the checkpoints; nothing was trained
)
DIVERGED = 3  # training.max_bad_steps bad steps in a row, or one with health.on_bad_step=stop
CORRUPTED = 4  # ranks that have to hold or compute the same bits did not (health.on_difference)
STOPPED = 75  # by a signal: with checkpoint.resume=auto the same command goes on (sysexits.h: EX_TEMPFAIL)
HANG = 124  # no progress for parallel.timeout_s: schedules/runtime/watchdog.py's
