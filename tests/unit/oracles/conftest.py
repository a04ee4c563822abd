"""Makes torchscale importable."""

import sys
import warnings
from importlib.util import find_spec
from types import ModuleType


def _provide_fairscale() -> None:
    """torchscale 0.3.0 imports two names of fairscale, which is no longer maintained and is not installed.

    Both wrap layers for activation checkpointing and sharding, which no oracle switches on.
    """
    if find_spec("fairscale") is not None:
        return
    package, nn = ModuleType("fairscale"), ModuleType("fairscale.nn")
    for name in ("checkpoint_wrapper", "wrap"):
        setattr(nn, name, lambda module: module)
    sys.modules.update({"fairscale": package, "fairscale.nn": nn})


if find_spec("torchscale") is not None and find_spec("timm") is not None:
    _provide_fairscale()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it takes drop_path from where timm 0.6 had it
        import torchscale.component.droppath  # noqa: F401
