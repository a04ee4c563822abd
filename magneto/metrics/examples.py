"""The base of metrics that keep a row of numbers for each example."""

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class ExampleScores(Metric):
    """Metric over all examples of an evaluation: a mean neither over batches nor over processes.

    Processes gather their rows, and an example that was seen twice (a distributed sampler repeats some, to give each
    process as many) counts once, as the lowest rank saw it. So several processes give exactly the score of one.

    Args:
        width: numbers kept of each example, its id among them.
    """

    full_state_update = False
    higher_is_better: bool | None = True
    is_differentiable = False

    rows: list[Tensor]
    """Each (examples, width) float64: the id, and what else `keep` was given."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.add_state("rows", default=[], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Forget all examples."""
        super().reset()
        # With an empty block of rows, a process that saw no example can take part in the gathering.
        self.rows.append(torch.zeros(0, self.width, dtype=torch.float64, device=self.device))

    def keep(self, *columns: Tensor) -> None:
        """Keep B examples: their ids (B,), and further columns, (B,) or (B, K) each."""
        parts = [part.to(self.device, torch.float64) for part in columns]
        self.rows.append(torch.cat([part if part.ndim > 1 else part[:, None] for part in parts], dim=1))

    def examples(self) -> Tensor:
        """Return (N, width - 1) on the CPU: the rows of all different examples, without their ids."""
        rows = dim_zero_cat(self.rows).cpu()
        _, first = np.unique(rows[:, 0].numpy(), return_index=True)
        return rows[np.sort(first), 1:]
