"""Find the configuration folder and the options of its groups."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from magneto.config import schema
from magneto.errors import ConfigError

schema.register()  # conf/config.yaml names it

_PACKAGE = Path(__file__).parents[1]
CONF = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"
"""Configuration folder: inside the package when installed from a wheel, beside it in a checkout."""


def options(group: str) -> list[str]:
    """Return the names that `group=` takes: its files but those in `_base/`, and the default of a dataclass."""
    folder = CONF / group
    names = {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml")}
    own = {"default"} if group in schema.PARTS else set()
    return sorted(own | {name for name in names if not name.startswith("_base/")})


def check_choices(config: Mapping[str, Any]) -> None:
    """Raise `ConfigError` unless a task and its data are chosen where the mode needs them."""
    if config["mode"] in ("train", "prepare", "config"):
        if config["task"] is None:
            raise ConfigError(
                f"task= is missing. Choose from {', '.join(f'task={task}' for task in options('task'))}."
            )
        if config["data"] is None:
            raise ConfigError(f"data= is missing. Choose from {', '.join(options('data'))}.")
