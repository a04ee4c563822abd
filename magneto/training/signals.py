"""Save and stop a run on SIGTERM, SIGINT and SIGUSR1."""

import signal
from types import FrameType
from typing import Any, Self


class Interrupted(BaseException):
    """Raised when the run was asked to stop (SIGTERM, SIGINT or SIGUSR1).

    A BaseException, so that no handler of ordinary errors takes it for one.
    """


class StopSignals:
    """Turn SIGTERM, SIGINT and SIGUSR1 into `Interrupted`, for as long as the context lasts.

    SIGUSR1 is what SLURM sends before a job's time is up (`#SBATCH --signal=USR1@120`): the job is also to be queued again
    (`requeue`).

    At once where nothing has to be saved; while `defer` is in force, a first signal is only noted in `received`, so that
    the training step ends and its state is saved (`Checkpoints`), and a second one stops at once.
    """

    def __init__(self) -> None:
        self.received = False
        self.requeue = False
        self._deferred = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
        self._before = {number: signal.getsignal(number) for number in numbers}
        self._install()
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def defer(self) -> None:
        """Only note the next signal. Takes the place of Lightning's handler, which leaves a validation unsaved."""
        self._deferred = True
        self._install()

    def resume(self) -> None:
        """Stop at once again: also now, if a signal was noted meanwhile.

        Raises:
            Interrupted: a signal was noted.
        """
        self._deferred = False
        if self.received:
            raise Interrupted

    def _install(self) -> None:
        for number in self._before:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first, self.received = not self.received, True
        self.requeue = self.requeue or number == signal.SIGUSR1
        if not (self._deferred and first):
            raise Interrupted
