"""magneto: an experiment framework for Foundation Transformers (Lightning, Hydra, Weights & Biases)."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from magneto.tasks.base import Task

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(path: str | Path) -> "Task":
    """Return a trained model in evaluation mode, on the CPU.

    ```python
    model = magneto.load("runs/asr/magneto-tiny-seed1")
    model.predict("a.wav")  # {"path": "a.wav", "transcript": "..."}
    ```

    Args:
        path: a run's folder (its export, else its best checkpoint), a checkpoint or an export folder.

    Raises:
        MagnetoError: there is no such model, or it is damaged.
    """
    from magneto.tasks.registry import load_task  # late: it imports torch, which takes seconds

    return load_task(path)
