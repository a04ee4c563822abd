"""Download a release archive, and unpack it.

pooch would do the first without continuing an interrupted download, which matters for archives of gigabytes, and the
second without Debian packages.
"""

import http.client
import logging
import shutil
import subprocess
import tarfile
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

from magneto.data.io.digest import file_digest

log = logging.getLogger(__name__)

TIMEOUT_S = 20  # without an answer for that long, the next way is tried
CHUNK = 1 << 20


class Unavailable(Exception):
    """One way of getting a corpus does not work here; the message says why."""


def download(url: str, target: Path, sha256: str | None, megabytes: int) -> None:
    """Fetch `url` into `target`, continuing with the part that an interrupted download left in `TARGET.part`.

    Raises:
        Unavailable: the server does not answer or ends early, or the file is damaged.
    """
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
            mode = "ab" if answer.status == 206 else "wb"  # 206: the server sends only the missing part
            with part.open(mode) as file:
                shutil.copyfileobj(answer, file, CHUNK)
            # Of HTTP, where a connection that ends early raises nothing.
            if missing := getattr(answer, "length", None):
                raise Unavailable(
                    f"{url}: the connection ended early, {missing} bytes are missing. Repeat the command to continue."
                )
    except urllib.error.HTTPError as error:
        if error.code != 416:  # 416: nothing is missing
            raise Unavailable(f"{url}: the server answers {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable(f"{url}: {getattr(error, 'reason', None) or error}") from error
    if sha256 is not None and file_digest(part) != sha256:
        part.unlink()
        raise Unavailable(f"{url}: the file is damaged (SHA-256 differs from the pinned one)")
    part.rename(target)


def unpack(archive: Path, target: Path) -> None:
    """Unpack a .deb (by `dpkg-deb`), .zip, .whl or tar archive into a new folder. Raises `Unavailable` if it cannot be."""
    target.mkdir(parents=True)
    damages = (
        FileNotFoundError,
        tarfile.TarError,
        zipfile.BadZipFile,
        subprocess.CalledProcessError,
        EOFError,
        ValueError,
    )
    try:
        if archive.suffix == ".deb":
            command = ["dpkg-deb", "-x", str(archive), str(target)]
            subprocess.run(command, check=True, capture_output=True)
        elif archive.suffix in (".zip", ".whl"):
            with zipfile.ZipFile(archive) as file:
                file.extractall(target)
        else:
            with tarfile.open(archive) as tar:
                tar.extractall(target, filter="data")
    except damages as error:
        raise Unavailable(f"{archive.name} cannot be unpacked: {error}") from error
