"""Find out which code a run was made with: the commit and the versions of libraries."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path


def git_revision() -> str | None:
    """The commit that this package was checked out at, with `-dirty` when files differ; None outside a checkout.

    An installed copy may lie inside a repository of its user, whose commits say nothing of it: git must know this file.
    """
    try:
        subprocess.run(
            ["git", "ls-files", "--error-unmatch", Path(__file__).name],
            cwd=Path(__file__).parent, capture_output=True, timeout=10, check=True,
        )  # fmt: skip
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def versions() -> dict[str, str]:
    """Versions of what the numbers of a run depend on."""
    names = ("magneto", "torch", "torchaudio", "torchvision", "lightning", "hydra-core", "wandb", "numpy")
    installed = {"python": platform.python_version(), "platform": platform.platform()}
    for name in names:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed
