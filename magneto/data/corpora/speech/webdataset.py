"""Recordings in WebDataset's tar shards: members KEY.wav (flac, ogg, mp3 ...) with KEY.txt or KEY.json (docs/data.md).

KEY.txt is the transcript; KEY.json has it under a key, and may have `lang`, `speaker` and `duration` in seconds, as NeMo's
manifests do. Nothing is unpacked: a recording is a slice of its shard.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Gt, Lt

from magneto.data.corpora.base import Skipped, hash_split, listed
from magneto.data.corpora.speech.base import SpeechCorpus, Utterance
from magneto.data.corpora.tar_shards import TarShard, TarShards
from magneto.data.io.audio import AUDIO_SUFFIXES, Audio
from magneto.data.io.tar import Members, Slice
from magneto.data.io.text import BadText, decode_text
from magneto.data.transforms.text import normalize_text

ADVICE = "Check data.corpora.webdataset.shards, or raise its val_fraction and test_fraction."


class WebDatasetSpeechReader:
    """Tar files (not compressed) on a local or mounted disk.

    Args:
        shards: see `TarShards`.
        text: key of the transcript in KEY.json, where there is no KEY.txt.
        language: of the recordings without `lang`.
        val_fraction: share that a hash of the transcript gives to val, where the shards' splits are not stated.
        test_fraction: to test.
    """

    def __init__(
        self,
        shards: str | Sequence[str] | Mapping[str, str | Sequence[str]] | None = None,
        text: str = "text",
        language: str = "und",
        val_fraction: Annotated[float, Gt(0), Lt(0.5)] = 0.05,
        test_fraction: Annotated[float, Gt(0), Lt(0.5)] = 0.05,
    ) -> None:
        self.tars = TarShards(shards)
        self.text, self.language = text, language
        self.fractions = (val_fraction, test_fraction)

    def fingerprint(self, contents: bool = True) -> dict[str, Any]:
        """See `Reader`; of the shards names, and with contents sizes and times."""
        settings = [self.text, self.language, *self.fractions]
        files = self.tars.fingerprint(contents)
        return {"corpus": "webdataset_speech", "recipe": 1, "shards": files, "settings": settings}

    def shards(self) -> list[TarShard[Utterance]]:
        """Return the files, to be streamed. Raises `ConfigError` where there is none."""
        return [TarShard(split, path, self._sample) for split, path in self.tars.files()]

    def load(self, data_dir: Path) -> SpeechCorpus:
        """Return the recordings of all shards, by their headers."""
        shards = self.shards()
        examples, skipped = listed(one for shard in shards for one in shard.all())
        return SpeechCorpus(examples, skipped, {"shards": len(shards)}, ADVICE)

    def _sample(
        self, shard: TarShard[Utterance], key: str, members: Members
    ) -> Iterator[Utterance | Skipped]:
        """Yield the recording of a sample."""
        own = shard.id(key)
        audio = next((data for end, data in members.items() if f".{end}".endswith(AUDIO_SUFFIXES)), None)
        try:
            if not isinstance(audio, Slice):
                raise BadText("sample without a recording")
            values = self._values(members)
        except BadText as bad:
            yield Skipped(own, shard.name, str(bad))
            return
        val, test = self.fractions
        text, duration = str(values[self.text]), values.get("duration")
        yield Utterance(
            id=own,
            audio=Audio(audio.path, audio.start, audio.size),
            text=text,
            language=str(values.get("lang") or self.language),
            speaker=str(values.get("speaker") or ""),
            group=own,
            split=shard.split or hash_split(normalize_text(text) or own, val=val, test=test),
            duration=float(duration) if isinstance(duration, int | float) else None,
        )

    def _values(self, members: Members) -> dict[str, Any]:
        """Return what is said of a recording, with its transcript. Raises `BadText` with the reason why it is not used."""
        texts = {kind: data for kind, data in members.items() if isinstance(data, bytes)}
        try:
            values = json.loads(decode_text(texts.get("json", b"{}")))
            text = decode_text(texts["txt"]).strip() if "txt" in texts else None
        except ValueError as error:  # BadText too
            raise BadText("damaged .json or .txt") from error
        if not isinstance(values, dict):
            raise BadText("damaged .json or .txt")
        if text is not None:
            values[self.text] = text
        if not isinstance(values.get(self.text), str | int):
            raise BadText(f"no text: neither KEY.txt nor {self.text!r} in KEY.json")
        return values
