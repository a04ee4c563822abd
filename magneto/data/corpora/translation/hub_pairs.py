"""Parallel data sets of the Hugging Face hub (OPUS-100, WMT), or local files of the same form (see docs/data.md).

A row holds `translation`, a mapping from language to text.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from magneto.data.corpora.base import Skipped
from magneto.data.corpora.hub import FILE_BUILDERS, HubData, MissingSplit
from magneto.data.corpora.translation.base import Pair, TranslationCorpus, parse_directions
from magneto.errors import ConfigError

BLOCK = 1000  # neighbouring rows that have one split, where the data set states none


class HubPairsReader:
    """Pairs of a data set, in the splits that it states.

    With `train` alone in `splits`, the others are held out from it by a hash of blocks of rows; `test` alone is for the
    evaluation of a trained model. A direction may have no other split than train (as some of OPUS-100): its missing
    splits are listed as skipped.

    Args:
        name: see `HubData`, as for splits, revision, data_files, streaming and limit (here of each direction).
        directions: such as [en-fr, fr-en].
        configs: direction -> the data set's configuration, for those that are not called by the two languages in
            alphabetical order.
        splits: ours -> the data set's.
        revision: of the data set.
        data_files: local files.
        streaming: keep nothing on disk.
        limit: rows of each split and direction, at most.
    """

    def __init__(
        self,
        name: str,
        directions: Sequence[str],
        *,
        configs: Mapping[str, str] | None = None,
        splits: Mapping[str, str] | None = None,
        revision: str | None = None,
        data_files: Any = None,
        streaming: bool = False,
        limit: int | None = None,
    ) -> None:
        self.directions = parse_directions(directions)
        self.data = HubData(
            name, splits, revision=revision, data_files=data_files, streaming=streaming, limit=limit
        )
        configs = dict(configs or {})
        if unknown := sorted(configs.keys() - {"-".join(direction) for direction in self.directions}):
            raise ConfigError(f"data: configs names {', '.join(unknown)}, which is none of the directions.")
        local = name in FILE_BUILDERS
        self.configs = {
            pair: None if local else configs.get("-".join(pair), "-".join(sorted(pair)))
            for pair in self.directions
        }

    def fingerprint(self) -> dict[str, Any]:
        """See `Reader`; of local files also sizes and times."""
        configs = {"-".join(direction): config for direction, config in self.configs.items()}
        return {"corpus": "hub_pairs", "recipe": 1, **self.data.fingerprint(), "configs": configs}

    def load(self, data_dir: Path) -> TranslationCorpus:
        """Return all rows, read one by one; those without a text in both languages are skipped."""
        skipped: list[Skipped] = []
        return TranslationCorpus(self._pairs(skipped), skipped, self.data.origin())

    def _pairs(self, skipped: list[Skipped]) -> Iterator[Pair]:
        lacking = dict.fromkeys(self.data.splits, 0)
        for source, target in self.directions:
            for side, split in self.data.splits.items():
                try:
                    yield from self._split(source, target, side, skipped)
                except MissingSplit:
                    lacking[side] += 1
                    # A split that no direction has is misnamed.
                    if side == "train" or lacking[side] == len(self.directions):
                        raise
                    reason = f"no {split} split in the direction"
                    skipped.append(Skipped(f"{source}-{target}:{split}", split, reason))

    def _split(self, source: str, target: str, side: str, skipped: list[Skipped]) -> Iterator[Pair]:
        split = self.data.splits[side]
        usable, first = False, ""
        for number, row in enumerate(self.data.rows(side, self.configs[source, target])):
            name = f"{source}-{target}:{split}:{number}"
            translation = row.get("translation")
            languages = translation if isinstance(translation, Mapping) else {}
            texts = languages.get(source), languages.get(target)
            usable |= {source, target} <= set(languages)
            if not all(isinstance(text, str) for text in texts):
                first = first or (f"the languages {', '.join(languages)}" if languages else ", ".join(row))
                skipped.append(Skipped(name, split, "a language is missing in the row"))
                continue
            yield Pair(
                id=name,
                source=str(texts[0]),
                target=str(texts[1]),
                source_language=source,
                target_language=target,
                group=f"{split}:{number // BLOCK}",
                split=self.data.stated(side),
            )
        if first and not usable:
            raise ConfigError(
                f"data: {self.data.name} has no pairs {source}-{target}: a row is to hold `translation: "
                f"{{{source}: ..., {target}: ...}}`; the first has {first}. Check the directions and configs."
            )
