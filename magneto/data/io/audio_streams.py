"""Recordings in MP3, Ogg and FLAC files: joined ones are separated, a wrong length of an MP3 is corrected.

libsndfile trusts the beginning of a file: of joined files it reads the first, and of an MP3 of variable bit rate whose
header (Xing) is missing or states no length only a part. Ordinary files are returned unchanged.
"""

import functools
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

FLAC_START = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")  # with the head of STREAMINFO, its first block
OGG_HEADER, OGG_FIRST_PAGE = 27, 2

# ISO/IEC 11172-3 and 13818-3 (MPEG-2.5: an extension), layer III.
MPEG_1, MPEG_2, MPEG_25, LAYER_3, MONO = 3, 2, 0, 1, 3
RATES = {MPEG_1: (44_100, 48_000, 32_000), MPEG_2: (22_050, 24_000, 16_000), MPEG_25: (11_025, 12_000, 8_000)}
KBITS_1 = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
KBITS_2 = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
SYNC = re.compile(rb"\xff[\xe2-\xff]|ID3")
CHAIN = 3  # consecutive frames that are not found by chance
XING_COUNT = 1  # flag: the number of frames follows
HEADER_BIT_RATE = 9  # index: its frame has room for a Xing header at every sample rate


def is_stream(start: bytes) -> bool:
    """Return whether a file with these first four bytes may need `split_streams`."""
    return start.startswith((b"OggS", b"fLaC", b"ID3")) or SYNC.match(start) is not None


def split_streams(data: bytes) -> list[bytes]:
    """Return the files in `data` that libsndfile reads completely: `[data]` for an ordinary one."""
    if data.startswith(b"OggS"):
        return _split(data, _ogg_starts(data))
    if data.startswith(b"fLaC"):
        return _split(data, [match.start() for match in FLAC_START.finditer(data)])
    return _mp3(data)


def _split(data: bytes, starts: list[int]) -> list[bytes]:
    if len(starts) < 2:
        return [data]
    return [data[start:stop] for start, stop in zip(starts, [*starts[1:], len(data)], strict=True)]


def _ogg_starts(data: bytes) -> list[int]:
    """Return where the links of a chained Ogg file begin (RFC 3533): first pages after other pages."""
    starts, offset, in_head = [], 0, False
    while (offset := data.find(b"OggS", offset)) >= 0 and offset + OGG_HEADER <= len(data):
        first = bool(data[offset + 5] & OGG_FIRST_PAGE)
        if first and not in_head:
            starts.append(offset)
        in_head = first
        body = offset + OGG_HEADER + data[offset + 26]
        offset = body + sum(data[offset + OGG_HEADER : body])
    return starts


# ------------------------------------------------------------------------------------------------------------ MP3


@dataclass(frozen=True, slots=True)
class Kind:
    """The header of an MP3 frame."""

    size: int  # bytes of the frame
    stream: tuple[int, int, bool]  # version, sample rate, mono: the same in all of a recording
    bit_rate: int  # index
    side: int  # bytes between the header and the sound, or the Xing header


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame of an MP3 file. tag: Xing, Info or VBRI if it has no sound but a header of the whole file."""

    start: int
    kind: Kind
    tag: bytes = b""


def _mp3(data: bytes) -> list[bytes]:
    parts: list[list[Frame]] = []
    for frame in _frames(data):
        if not parts or frame.tag or frame.kind.stream != parts[-1][0].kind.stream:
            parts.append([])
        parts[-1].append(frame)
    parts = [part for part in parts if not part[-1].tag]
    if not parts or (len(parts) == 1 and _length_is_right(data, parts[0])):
        return [data]
    stops = [part[0].start for part in parts[1:]] + [len(data)]
    return [_recording(data, part, stop) for part, stop in zip(parts, stops, strict=True)]


def _recording(data: bytes, part: list[Frame], stop: int) -> bytes:
    if _length_is_right(data, part):
        return data[part[0].start : stop]
    sound = part[1:] if part[0].tag else part
    first = sound[0]
    # A frame without sound of the same stream (no checksum, no padding) that states the number of frames.
    _, second, third, fourth = data[first.start : first.start + 4]
    head = bytes([0xFF, second | 1, HEADER_BIT_RATE << 4 | third & 0x0C, fourth])
    kind = _kind(head)
    assert kind is not None
    xing = head + bytes(kind.side) + b"Xing" + struct.pack(">II", XING_COUNT, len(sound))
    return xing.ljust(kind.size, b"\0") + data[first.start : stop]


def _length_is_right(data: bytes, part: list[Frame]) -> bool:
    """Return whether libsndfile finds the length: by a Xing header, or since the bit rate is constant."""
    first = part[0]
    if first.tag in (b"Xing", b"Info"):
        offset = first.start + 4 + first.kind.side + 4
        flags, count = (int.from_bytes(data[at : at + 4]) for at in (offset, offset + 4))
        return bool(flags & XING_COUNT) and count >= len(part) - 2  # some do not count the last
    return not first.tag and all(frame.kind.bit_rate == first.kind.bit_rate for frame in part)


def _frames(data: bytes) -> Iterator[Frame]:
    """Yield all complete frames; bytes between them (ID3 tags, damage) are skipped."""
    offset, stream = 0, None  # stream: of the frame that ends here
    while offset + 4 <= len(data):
        if data.startswith(b"ID3", offset) and offset + 10 <= len(data):
            size = functools.reduce(lambda size, byte: size << 7 | byte, data[offset + 6 : offset + 10], 0)
            offset, stream = offset + 10 + size, None
            continue
        kind = _kind(data[offset : offset + 4])
        if kind is not None and (kind.stream == stream or _is_chain(data, offset)):
            if offset + kind.size > len(data):
                return
            yield Frame(offset, kind, _tag(data, offset, kind))
            offset, stream = offset + kind.size, kind.stream
        else:
            following = SYNC.search(data, offset + 1)
            if following is None:
                return
            offset, stream = following.start(), None


def _is_chain(data: bytes, offset: int) -> bool:
    streams = set()
    for _ in range(CHAIN):
        kind = _kind(data[offset : offset + 4])
        if kind is None:
            return False
        streams.add(kind.stream)
        offset += kind.size
    return len(streams) == 1


def _tag(data: bytes, offset: int, kind: Kind) -> bytes:
    start = offset + 4 + kind.side
    tag = data[start : start + 4]
    if tag in (b"Xing", b"Info"):
        return tag if not any(data[offset + 4 : start]) else b""
    return b"VBRI" if data[offset + 36 : offset + 40] == b"VBRI" else b""


@functools.lru_cache(maxsize=4096)
def _kind(head: bytes) -> Kind | None:
    """What the four bytes of a frame's header say; None: they are none, or not of layer III."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, head[1] >> 1 & 3
    bit_rate, rate, padding = head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
    if version not in RATES or layer != LAYER_3 or bit_rate in (0, 15) or rate == 3:
        return None
    mono = head[3] >> 6 == MONO
    hertz = RATES[version][rate]
    kbits = (KBITS_1 if version == MPEG_1 else KBITS_2)[bit_rate - 1]
    size = (144 if version == MPEG_1 else 72) * kbits * 1000 // hertz + padding
    side = (17 if mono else 32) if version == MPEG_1 else (9 if mono else 17)
    return Kind(size, (version, hertz, mono), bit_rate, side)
