"""Find or fetch a corpus: one mechanism for all of them.

In this order, the first that works: the folder that the user names; the result of an earlier run; a copy installed on
the machine; the package (of Debian, of the Python package index, or of npm), unpacked into the data folder without
installing it; the upstream project's release archive over HTTPS. Versions and SHA-256 sums are pinned. Beside the sums
of the archives there is one of the needed files themselves, which holds for every way of getting them.

Downloads are kept under `$MAGNETO_CACHE` (default: ~/.cache/magneto), so that a second clone needs none; they continue
where they stopped, and a folder appears under its final name only when it is complete.
"""

import importlib.metadata
import json
import logging
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from filelock import FileLock

from magneto.data.corpora.archives import download, unpack
from magneto.data.corpora.package import Located, Package, Unavailable, fetch_package
from magneto.data.io.digest import content_digest, needed_files
from magneto.errors import DataError

log = logging.getLogger(__name__)


def locate(package: Package, data_dir: Path, folder: str | None = None) -> Located:
    """Find or fetch a corpus.

    Raises:
        DataError: `folder` does not hold it, or no way works; the message lists all ways and what can be done.
    """
    if folder is not None:
        return _warn_unverified(package, _named(package, Path(folder).expanduser()))
    home = data_dir / "raw" / f"{package.name}-{package.version}"
    home.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(home.with_name(home.name + ".lock")):
        tried: list[str] = []
        for way in (_fetched, _installed, _from_package, _from_archive):
            try:
                located = way(package, home)
                return located if way is _fetched else _warn_unverified(package, located)
            except Unavailable as reason:
                if str(reason):
                    tried.append(f"  - {reason}")
                    if (
                        way is not _installed
                    ):  # usual on most machines; the download that follows is announced
                        log.info("%s: %s", package.name, reason)
    raise DataError(
        f"The corpus {package.name} ({package.version}) is not available. Tried:\n" + "\n".join(tried) + "\n"
        f"Install it (for example `{package.install_command}`), or try again with a network, or get it from "
        f"{package.homepage} on any machine, unpack it and set data.corpora.NAME.folder=... to its folder."
    )


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
    note = home / "fetched.json"
    if not note.is_file():
        raise Unavailable
    values = json.loads(note.read_text())
    located = Located(home / values.pop("inside"), **values)
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
            return _check(package, root, "installed")
    raise Unavailable(f"not installed locally: nothing in {', '.join(map(str, roots)) or 'any known folder'}")


def _from_package(package: Package, home: Path) -> Located:
    return _publish(package, home, fetch_package(package, _writable_cache(home)), package.inside, "package")


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
    """Return the folder of downloads: of the user, or where that cannot be written, in the data folder."""
    chosen = os.environ.get("MAGNETO_CACHE")
    cache = Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "magneto"
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
    return _fetched(package, home)
