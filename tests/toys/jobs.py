"""Work for `map_parts`, in a module that a process imports quickly."""

import os
import signal
from pathlib import Path


def double(job: int, folder: Path) -> int:
    """Write the job's number into its folder; die at -1, fail at -2."""
    if job == -1:
        os.kill(os.getpid(), signal.SIGKILL)
    if job == -2:
        raise KeyboardInterrupt
    (folder / "file").write_text(str(job))
    with (folder.parent / "done").open("a") as done:
        done.write(f"{job}\n")
    return 2 * job
