"""The training loader of a whole run: it knows its position, so that a resumed run goes on with the very next batch."""

import atexit
import multiprocessing
import signal
import time
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from magneto.errors import UserError


def ignore_signals(worker: int) -> None:
    """Let the main process alone answer a request to stop, which `timeout` and schedulers send to every process.

    A worker that ended would take with it the step in which the run's state is saved. To be a loader's `worker_init_fn`.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


@atexit.register  # before multiprocessing's own, which sends SIGTERM and waits
def _end_workers() -> None:
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


class RunLoader(DataLoader[Any]):
    """A DataLoader over all training batches of a run, from the first step to the last.

    Its length is the length of the run, also when it goes on in the middle. `state_dict` and `load_state_dict` are the
    protocol by which Lightning keeps a loader's position in its checkpoints.

    Args:
        dataset, batch_sampler and the rest: as for DataLoader; the batch sampler has `total_batches` and `start`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.consumed = 0
        self._wait_seconds = 0.0

    def __len__(self) -> int:
        return int(self.batch_sampler.total_batches)  # type: ignore[union-attr]

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self.batch_sampler.start = self.consumed  # type: ignore[union-attr]
        batches = super().__iter__()
        while True:
            started = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._wait_seconds += time.perf_counter() - started
            self.consumed += 1
            yield batch

    def take_wait_seconds(self) -> float:
        """Seconds that the training loop has waited for batches since the last call."""
        seconds, self._wait_seconds = self._wait_seconds, 0.0
        return seconds

    def state_dict(self) -> dict[str, int]:
        """Batches handed out so far."""
        return {"consumed": self.consumed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after `state["consumed"]` batches."""
        consumed = state.get("consumed") if isinstance(state, dict) else None
        if not isinstance(consumed, int) or not 0 <= consumed <= len(self):
            raise UserError(
                f"The checkpoint stands at batch {consumed!r} of a run of {len(self)}. Use the other checkpoint of the run "
                "(best.ckpt or last.ckpt), or start anew with resume=never."
            )
        self.consumed = consumed
