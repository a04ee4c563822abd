"""Tux Paint stamps: home recordings of image captions in several languages (see docs/data.md).

A stamp is an image `NAME.png` or `NAME.svg` with captions `NAME.txt` (first line English, then `xx.utf8=...`
lines) and recordings `NAME_desc_xx.ogg`.
"""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from magneto.data.corpora.base import Groups, Skipped, hash_split, listed
from magneto.data.corpora.download import Package, locate
from magneto.data.corpora.speech.base import SpeechCorpus, Utterance
from magneto.data.io.audio import Audio
from magneto.data.transforms.text import normalize_text
from magneto.errors import ConfigError

log = logging.getLogger(__name__)

PACKAGE = Package(
    name="tuxpaint-stamps-default",
    version="2022.06.04-1",
    sha256="6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
    inside="usr/share/tuxpaint/stamps",
    installed=("/usr/share/tuxpaint/stamps", "/usr/local/share/tuxpaint/stamps"),
    patterns=("**/*.txt", "**/*_desc_*.ogg"),
    content_sha256="90d1add3212fd39dd1241a0fe7ebca51fed55c35f5b0bbb487f269b8c36d061d",
    archive="https://downloads.sourceforge.net/project/tuxpaint/tuxpaint-stamps/2022-06-04/"
    "tuxpaint-stamps-2022.06.04.tar.gz",
    archive_sha256="842065576fae554358e00e51d71a492616a6490b12b592228067477c287a0bf8",
    archive_inside="tuxpaint-stamps-2022.06.04/stamps",
    megabytes=161,
    homepage="https://tuxpaint.org/stamps/",
)

# Correlation of caption length and duration of the recording: 0.93 to 0.98 for the first row, far below for
# the others.
FITTING = ("es", "fr", "ro", "bg", "ru")
DOUBTFUL = {"el": "correlation of text and duration 0.77", "da": "correlation of text and duration 0.74",
            "nl": "few recordings, not examined", "lt": "few recordings, not examined"}  # fmt: skip
UNFIT = {"ca": 0.22, "be": 0.24}
VAL, TEST = 0.04, 0.06


class StampsReader:
    """Spoken captions of the Tux Paint stamps.

    Splits are by stamp: all languages of a stamp, stamps with an equal caption in some language, and stamps that share a
    recording have one split, fixed by a hash.

    Args:
        languages: codes as in the file names; the default five are those whose text fits the audio.
        folder: the folder of `animals`, `clothes`, ...; None: find or fetch it.
    """

    def __init__(self, languages: Sequence[str] = FITTING, folder: str | None = None) -> None:
        fitting = ", ".join(FITTING)
        if not languages:
            raise ConfigError(f"data: languages is empty; the Tux Paint stamps have {fitting}.")
        for language in languages:
            if language in UNFIT:
                raise ConfigError(
                    f"data: language {language!r} of the Tux Paint stamps is refused: its captions are not "
                    "spoken in the recordings (correlation of length and duration "
                    f"{UNFIT[language]}). Use {fitting}."
                )
            if language not in FITTING and language not in DOUBTFUL:
                raise ConfigError(
                    f"data: the Tux Paint stamps have no usable recordings in {language!r}. Use {fitting}, "
                    f"or with care {', '.join(DOUBTFUL)}."
                )
            if language in DOUBTFUL:
                log.warning("Tux Paint stamps in %r: %s; texts may be wrong.", language, DOUBTFUL[language])
        self.languages = tuple(languages)
        self.folder = folder

    def fingerprint(self) -> dict[str, Any]:
        """See `Reader`."""
        settings = {"recipe": 1, "split": [VAL, TEST], "languages": list(self.languages)}
        return PACKAGE.fingerprint(self.folder, **settings)

    def load(self, data_dir: Path) -> SpeechCorpus:
        """Return the distinct recordings with a caption. Byte-identical copies of a recording are skipped."""
        located = locate(PACKAGE, data_dir, self.folder)
        return SpeechCorpus(*listed(_read(located.root, self.languages)), located.origin())


def _captions(file: Path) -> dict[str, str]:
    if not file.is_file():
        return {}
    lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
    pairs = (line.split(".utf8=", 1) for line in lines if ".utf8=" in line)
    return {language.strip(): caption.strip() for language, caption in pairs}


def _read(root: Path, languages: Sequence[str]) -> Iterator[Utterance | Skipped]:
    found: dict[bytes, tuple[str, str, str, str]] = {}  # digest -> recording, stamp, language, caption
    groups = Groups()
    captions = cache(_captions)
    # The default languages always take part in the grouping, so that a choice of languages does not move a split.
    for path in sorted(root.glob("**/[!.]*_desc_*.ogg")):
        stamp, _, language = path.name.removesuffix(".ogg").rpartition("_desc_")
        if language not in languages and language not in FITTING:
            continue
        name = path.relative_to(root).as_posix()
        caption = captions(path.with_name(stamp + ".txt")).get(language, "")
        stamp = path.with_name(stamp).relative_to(root).as_posix()
        digest = hashlib.sha256(path.read_bytes()).digest()
        groups.union(stamp, ("audio", digest))
        if normalize_text(caption):
            groups.union(stamp, ("caption", language, normalize_text(caption)))
        if language not in languages:
            continue
        if not caption:
            yield Skipped(name, str(path), "no caption in its language")
        elif digest in found:
            yield Skipped(name, str(path), "copy of another recording")
        else:
            found[digest] = name, stamp, language, caption
    names = groups.names()
    for name, stamp, language, caption in found.values():
        group = names[stamp]
        yield Utterance(
            id=name,
            audio=Audio(root / name),
            text=caption,
            language=language,
            speaker=language,  # one or two voices a language; the files do not say which
            group=group,
            split=hash_split(group, val=VAL, test=TEST),
        )
