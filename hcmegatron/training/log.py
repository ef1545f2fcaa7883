"""The run's voice: lines on the terminal and in train.log, from rank 0.

None of it is the run: where one of these places fails, the others say so once and training goes on.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hcmegatron.training.sink import Sink, writable


class Log:
    """Writes lines to the log file and the terminal.

    A terminal gets a progress bar with a line per evaluation above it; anything else gets plain lines. On ranks other
    than 0 every method does nothing.

    Args:
        directory: the run directory, which exists; None on other ranks.
        first_step: of this process, 1-based.
        watched: whether a terminal is a person's. False under a launcher, which may give a rank a terminal whose
            output goes to a file.

    Raises:
        ConfigError: the run directory cannot be written.
    """

    def __init__(
        self, directory: Path | None, steps: int = 0, first_step: int = 1, watched: bool = True
    ) -> None:
        self.active = directory is not None
        if directory is None:
            return
        with writable(directory):
            self._file = Sink.append(directory / "train.log", self.report)
        self._bar: Progress | None = None
        self._output = Sink("standard output", 1, self.report)
        if watched and self._output.isatty():
            self._bar = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[status]}"),
                console=Console(file=self._output),
            )
            self._task = self._bar.add_task("", total=steps, completed=first_step - 1, status="")
            self._bar.start()
            self._bar.console.show_cursor(True)  # it would stay hidden if this process were killed

    def say(self, *lines: str) -> None:
        """Lines for the file and the terminal."""
        if not self.active:
            return
        for line in lines:
            self._file.write(line + "\n")
            if self._bar:
                self._bar.console.print(line, markup=False, highlight=False)
            else:
                self._output.write(line + "\n")

    def step(self, number: int, line: str, status: str, show: bool) -> None:
        """A step's line: always for the file, for the terminal where `show`. A bar moves on and has the status."""
        if not self.active:
            return
        if self._bar:
            self._file.write(line + "\n")
            self._bar.update(self._task, completed=number, status=status)
        elif show:
            self.say(line)
        else:
            self._file.write(line + "\n")

    def report(self, line: str) -> None:
        """What a place has to say about itself, to the others."""
        for place in (self._file, self._output):
            place.write(line + "\n")

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.active:
            return
        if self._bar:
            self._bar.stop()
        if error is not None:
            self._file.write(f"ended by {kind.__name__ if kind else 'error'}: {error}\n")
        self._file.close()
