"""Flight of the Amazon Queen: acted English dialogue with the text that is spoken (see docs/data.md).

The freeware talkie is one container, `queen.1c`, with big-endian numbers: the signature `QTBL`, at byte 12
the kind of sound compression (1: MP3), at 13 the number of entries, from 15 on entries of 21 bytes: name
(12), bundle (1), offset (4), size (4). `*.SB` entries are recordings, one MP3 file each; `*.DOG` dialogues
and `*.CUT` cut scenes hold the text. A recording is named after its line:

    dialogue:  key of the dialogue (2 digits), number of the line (4 hex digits), J or P (Joe, or the other
    person), part cut scene: name (padded with _ to 5), number of the line (2 digits), part

where a line falls into parts (1, 2, ... as a hex digit) at its stage directions: `*` and two letters.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magneto.data.corpora.base import Corpus, Skipped, Utterance, hash_split
from magneto.data.corpora.download import Package, listing_digest, locate
from magneto.data.io.audio import Audio
from magneto.data.transforms.text import normalize_text
from magneto.errors import DataError

PACKAGE = Package(
    name="flight-of-the-amazon-queen",
    version="1.0.0-9",
    sha256="40c08fd258d6fe95c46c1eaf5e9137f84ba330657995a281bd887c94a560a0f1",
    inside="usr/share/scummvm/flight-of-the-amazon-queen",
    installed=(
        "/usr/share/scummvm/flight-of-the-amazon-queen",
        "/usr/share/games/flight-of-the-amazon-queen",
    ),
    patterns=("queen.1c",),
    content_sha256="ba3fc2f1a58cbdd97a76039b23d0921133e3e3f004aef460550bf15638bd4a98",
    archive="https://downloads.scummvm.org/frs/extras/Flight%20of%20the%20Amazon%20Queen/"
    "FOTAQ_Talkie-1.0.zip",
    archive_sha256=None,
    archive_inside=".",
    megabytes=35,
    homepage="https://www.scummvm.org/games/",
)

HEADER, ENTRY, RESOURCE_HEADER = 15, 21, 20
MP3 = 1
SILENT_DIRECTIONS = ("GD", "GM")  # after these the text so far is not spoken
POSITION = "XY"  # a direction with nine more characters: where the speaker stands
HERO = "JOE"
VAL, TEST = 0.04, 0.06


class FotaqReader:
    """English dialogue of the game Flight of the Amazon Queen: about 6,000 lines by some 30 characters.

    folder: where `queen.1c` is; None: find or fetch it. Splits go by dialogue: all lines of a dialogue or cut
    scene stand on one side. A line of the validation or test side whose text also occurs on an earlier side
    is left out.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder

    def fingerprint(self) -> dict[str, Any]:
        """Settings and versions that decide the examples."""
        fingerprint: dict[str, Any] = {
            "corpus": PACKAGE.name,
            "version": PACKAGE.version,
            "recipe": 1,
            "split": [VAL, TEST],
        }
        if self.folder is not None:
            fingerprint["files"] = listing_digest(Path(self.folder).expanduser(), PACKAGE.patterns)
        return fingerprint

    def load(self, data_dir: Path) -> Corpus:
        """All recordings with a text."""
        located = locate(PACKAGE, data_dir, self.folder)
        return Corpus(*read_container(located.root / "queen.1c"), located.facts())


@dataclass(frozen=True)
class Line:
    """A part of a line as the script has it."""

    text: str
    speaker: str
    scene: str


def read_container(path: Path) -> tuple[list[Utterance], list[Skipped]]:
    """Recordings with their texts out of `queen.1c`. Raises `DataError` for a file of another kind or a
    damaged one.
    """
    data = path.read_bytes()
    try:
        entries = _entries(data, path)
        lines = dict(_script(data, entries))
    except (struct.error, IndexError) as error:
        raise DataError(
            f"{path} is damaged or cut off: its tables point outside of the file. Get it again."
        ) from error
    recordings = {
        name.removesuffix(".SB"): place for name, place in sorted(entries.items()) if name.endswith(".SB")
    }
    skipped = [
        Skipped(key, str(path), "recording without text")
        for key in recordings
        if key not in lines or not lines[key].text
    ]
    spoken = {key: lines[key] for key in recordings if key in lines and lines[key].text}
    utterances, repeated = _utterances(path, recordings, spoken)
    return utterances, skipped + repeated


def _entries(data: bytes, path: Path) -> dict[str, tuple[int, int]]:
    """The container's table: name -> (offset, size)."""
    if data[:4] != b"QTBL":
        raise DataError(
            f"{path} is not a container of Flight of the Amazon Queen (it does not begin with QTBL)."
        )
    kind, count = struct.unpack_from(">BH", data, 12)
    if kind != MP3:
        raise DataError(
            f"{path} holds sound of kind {kind}, not MP3 ({MP3}): use the talkie version that "
            f"{PACKAGE.name} {PACKAGE.version} holds."
        )
    entries = {}
    for place in range(HEADER, HEADER + count * ENTRY, ENTRY):
        name, offset, size = struct.unpack_from(">12sxII", data, place)
        if offset + size > len(data):
            raise struct.error
        entries[name.split(b"\0")[0].decode("latin-1").upper()] = (offset, size)
    return entries


def _script(data: bytes, entries: dict[str, tuple[int, int]]) -> Iterator[tuple[str, Line]]:
    """Names of recordings with the lines that are spoken in them."""
    for name, (offset, size) in entries.items():
        resource = data[offset + RESOURCE_HEADER : offset + size]
        stem, _, suffix = name.rpartition(".")
        lines = (
            _dialogue(resource, stem)
            if suffix == "DOG"
            else _cut_scene(resource, stem)
            if suffix == "CUT"
            else ()
        )
        for key, speaker, text in lines:
            for number, part in _parts(text):
                yield f"{key}{number:X}", Line(part, speaker, stem)


def _dialogue(data: bytes, name: str) -> Iterator[tuple[str, str, str]]:
    """Lines of a dialogue as (key, speaker, text).

    Big-endian: at 0 the number of levels of the tree of choices (negative: a variant), at 4 the key, at 6 and
    8 how many lines Joe and the other person have, at 22 where the other's begin, at 26 where the two closing
    lines stand; the tree is at 32, 96 bytes a level, and Joe's lines follow it. A line is a condition (2),
    its number (2) and a string.
    """
    levels, key, joe_count, other_count = struct.unpack_from(">h2xhhh", data, 0)
    other_start, closing = struct.unpack_from(">H2xH", data, 22)
    joe_start = 32 + abs(levels) * 96
    other = name.rstrip("0123456789")
    for start, count, side, speaker in (
        (joe_start, joe_count, "J", HERO),
        (other_start, other_count, "P", other),
    ):
        place = start
        for _ in range(count):
            (number,) = struct.unpack_from(">H", data, place + 2)
            text, place = _string(data, place + 4, align=4)
            yield f"{key:02d}{number:04X}{side}", speaker, text
    if (
        joe_count and struct.unpack_from(">H", data, joe_start + 2)[0] == 0
    ):  # Joe's opening has a name of its own, too
        yield f"{key:02d}SSSSJ", HERO, _string(data, joe_start + 4, align=4)[0]
    text, place = _string(data, closing, align=2)
    yield f"{key:02d}XXXXP", other, text
    yield f"{key:02d}XXXXJ", HERO, _string(data, place, align=2)[0]


def _cut_scene(data: bytes, name: str) -> Iterator[tuple[str, str, str]]:
    """Lines of a cut scene; who speaks is not recorded. At 2 the number of lines, at 8 where a comment and
    the lines stand.
    """
    count, place = struct.unpack_from(">2xh4xH", data, 0)
    _, place = _string(data, place, align=2)
    for number in range(1, abs(count) + 1):
        text, place = _string(data, place, align=2)
        if text and text != "*" and not text.startswith("#"):
            yield f"{name:_<5}{number:02d}", "unknown", text


def _string(data: bytes, place: int, align: int) -> tuple[str, int]:
    """A string behind its length byte, and the (aligned) place after it."""
    stop = place + 1 + data[place]
    text = data[place + 1 : stop].decode("latin-1")
    return text, (stop + align - 1) // align * align if text else stop


def _parts(line: str) -> Iterator[tuple[int, str]]:
    """The spoken parts of a line with their numbers, divided by stage directions."""
    number, start, place = 1, 0, line.find("*")
    while place >= 0:
        direction = line[place + 1 : place + 3]
        if direction not in SILENT_DIRECTIONS:
            yield number, line[start:place].strip()
        number += 1
        start = place + 3 + (9 if direction == POSITION else 0)
        place = line.find("*", start)
    if line[start:]:
        yield number, line[start:].strip()


def _utterances(
    path: Path, recordings: dict[str, tuple[int, int]], spoken: dict[str, Line]
) -> tuple[list[Utterance], list[Skipped]]:
    """Split by scene; a text stands on the first of train, test, val that has it, and is left out of the
    others.
    """
    split = {line.scene: hash_split(f"fotaq/{line.scene}", val=VAL, test=TEST) for line in spoken.values()}
    home: dict[str, str] = {}
    for side in ("train", "test", "val"):
        for line in spoken.values():
            if split[line.scene] == side:
                home.setdefault(normalize_text(line.text), side)
    utterances, skipped = [], []
    for key, line in spoken.items():
        if home[normalize_text(line.text)] != split[line.scene]:
            skipped.append(Skipped(key, str(path), "text that also stands on another side of the split"))
            continue
        offset, size = recordings[key]
        utterances.append(
            Utterance(
                id=key,
                audio=Audio(path, offset, size),
                text=line.text,
                language="en",
                speaker=line.speaker.lower(),
                group=line.scene,
                split=split[line.scene],
            )
        )
    return utterances, skipped
