"""LibriSpeech (Panayotov et al. 2015): about 1000 hours of read English, by torchaudio's own dataset class.

torchaudio knows the checksums and unpacks; the download is ours, since torchaudio's does not resume. Its reading of
audio is not used either (it needs FFmpeg): the files are read with soundfile like all others.
"""

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from magneto.data.corpora.archives import Unavailable, download
from magneto.data.corpora.base import Skipped, listed
from magneto.data.corpora.speech.base import SpeechCorpus, Utterance
from magneto.data.io.audio import Audio
from magneto.errors import ConfigError, DataError

MEGABYTES = {
    "train-clean-100": 6_300,
    "train-clean-360": 23_000,
    "train-other-500": 30_000,
}  # others: about 330
UTTERANCES = {
    "train-clean-100": 28_539, "train-clean-360": 104_014, "train-other-500": 148_688, "dev-clean": 2_703,
    "dev-other": 2_864, "test-clean": 2_620, "test-other": 2_939,
}  # fmt: skip
ARCHIVE_ROOT = "LibriSpeech"
ADDRESS = "https://www.openslr.org/resources/12/"


class LibriSpeechReader:
    """LibriSpeech with its own split.

    Args:
        train: names of subsets, as published (train-clean-100, train-other-500, ...).
        val: likewise.
        test: likewise.
        folder: the folder of the folder `LibriSpeech`, which is downloaded if it is missing; None: the data folder.
    """

    def __init__(
        self,
        train: Sequence[str] = ("train-clean-100",),
        val: Sequence[str] = ("dev-clean",),
        test: Sequence[str] = ("test-clean",),
        folder: str | None = None,
    ) -> None:
        self.subsets = {"train": tuple(train), "val": tuple(val), "test": tuple(test)}
        chosen = self._chosen()
        for subset in chosen:
            if subset not in UTTERANCES:
                raise ConfigError(
                    f"data: LibriSpeech has no subset {subset!r}; it has {', '.join(UTTERANCES)}."
                )
            if chosen.count(subset) > 1:
                raise ConfigError(f"data: LibriSpeech's {subset} is named for two splits. Name it once.")
        self.folder = folder

    def fingerprint(self) -> dict[str, Any]:
        """See `Reader`; of a subset in `folder` that is incomplete, its files: more may arrive."""
        fingerprint: dict[str, Any] = {"corpus": "LibriSpeech", "recipe": 1, "subsets": self._subsets()}
        if self.folder is not None:
            fingerprint["folder"] = str(Path(self.folder).expanduser().resolve())
            # One that is missing will be downloaded, and is complete then.
            for subset in self._chosen():
                folder = self._root() / ARCHIVE_ROOT / subset
                files = sorted(folder.glob("[!.]*/[!.]*/[!.]*"))
                if files and sum(file.suffix == ".flac" for file in files) != UTTERANCES[subset]:
                    listed = "".join(f"{file.relative_to(folder)}\0{file.stat().st_size}\0" for file in files)
                    fingerprint[subset] = hashlib.sha256(listed.encode()).hexdigest()
        return fingerprint

    def missing_bytes(self, data_dir: Path) -> int:
        """Return about the number of bytes that `load` and the preparation will write below `data_dir`.

        Those of the missing recordings, and of the archive while it is unpacked; later log-mel features of all, which
        at 80 channels of 2 bytes are about as large as FLAC (58 and 63 MB an hour).
        """
        sizes = {subset: MEGABYTES.get(subset, 330) * 10**6 for subset in self._chosen()}
        root = self._root(data_dir)
        missing = [size for subset, size in sizes.items() if not (root / ARCHIVE_ROOT / subset).is_dir()]
        if self.folder is not None:  # it may be on another disk
            missing = []
        return sum(missing) + max(sum(sizes.values()), *missing, 0)

    def _chosen(self) -> list[str]:
        return [subset for subsets in self.subsets.values() for subset in subsets]

    def _root(self, data_dir: Path = Path()) -> Path:
        """Return the folder that has, or will have, `LibriSpeech`."""
        root = data_dir / "raw" if self.folder is None else Path(self.folder).expanduser()
        return root.parent if root.name == ARCHIVE_ROOT else root

    def load(self, data_dir: Path) -> SpeechCorpus:
        """Return all utterances of the chosen subsets, after downloading those that are missing."""
        return SpeechCorpus(*listed(self._utterances(self._root(data_dir))), {"subsets": self._subsets()})

    def _utterances(self, root: Path) -> Iterator[Utterance | Skipped]:
        for split, subsets in self.subsets.items():
            for subset in subsets:
                _fetch(root, subset)
                yield from _read(root / ARCHIVE_ROOT / subset, split)

    def _subsets(self) -> dict[str, list[str]]:
        return {split: list(subsets) for split, subsets in self.subsets.items()}


def _fetch(root: Path, subset: str) -> None:
    final = root / ARCHIVE_ROOT / subset
    if final.is_dir():
        return
    from torchaudio.datasets import librispeech  # imported here: it takes seconds

    checksums = {address.rsplit("/", 1)[1]: checksum for address, checksum in librispeech._CHECKSUMS.items()}
    name = f"{subset}.tar.gz"
    work = root / f".{subset}.partial"  # kept when interrupted: the next run continues with it
    work.mkdir(parents=True, exist_ok=True)
    final.parent.mkdir(exist_ok=True)
    with FileLock(work.with_suffix(".lock")):
        if final.is_dir():
            return
        try:
            download(ADDRESS + name, work / name, checksums[name], MEGABYTES.get(subset, 330))
        except Unavailable as reason:
            raise DataError(
                f"LibriSpeech {subset} could not be downloaded ({reason}). With a network try again (it "
                f"continues where it stopped); or unpack {name} from https://www.openslr.org/12 in {root}; or set "
                "data.corpora.librispeech.folder=... to the folder that has it."
            ) from reason
        # torchaudio takes an existing folder for a complete one: unpack aside, then rename.
        shutil.rmtree(work / ARCHIVE_ROOT, ignore_errors=True)
        librispeech.LIBRISPEECH(work, url=subset, download=True)
        (work / ARCHIVE_ROOT / subset).rename(final)
        shutil.rmtree(work)


def _read(folder: Path, split: str) -> Iterator[Utterance | Skipped]:
    # macOS puts a hidden file `._NAME` beside each that it copies to other disks.
    transcripts = sorted(folder.glob("[!.]*/[!.]*/[!.]*.trans.txt"))
    if not transcripts:
        raise DataError(
            f"{folder} has no transcripts (SPEAKER/CHAPTER/*.trans.txt): remove it, so that it is fetched again."
        )
    for transcript in transcripts:
        speaker = transcript.parent.parent.name
        try:
            lines = transcript.read_text(encoding="utf-8").split("\n")
        except UnicodeDecodeError as error:
            raise DataError(f"{transcript} is damaged: it is not UTF-8. Unpack the archive again.") from error
        for line in filter(None, lines):
            name, _, text = line.partition(" ")
            audio = transcript.parent / f"{name}.flac"
            if not audio.is_file():
                yield Skipped(name, str(audio), "missing file")
                continue
            yield Utterance(
                id=name,
                audio=Audio(audio),
                text=text,
                language="en",
                speaker=speaker,
                group=speaker,
                split=split,
            )
