"""Parallel data sets of the Hugging Face hub (OPUS-100, WMT), or local files of the same form (see docs/data.md).

A row holds `translation`, a mapping from language to text.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magneto.data.corpora.base import Skipped, lazy
from magneto.data.corpora.hub import FILE_BUILDERS, HubData, MissingSplit
from magneto.data.corpora.translation.base import Pair, TranslationCorpus, parse_directions
from magneto.errors import ConfigError

BLOCK = 1000  # neighbouring rows that have one split, where the data set states none


@dataclass(kw_only=True)
class HubPairsReader(HubData):
    """Pairs of a data set. Held-out pairs go by a hash of blocks of rows.

    A direction may have no other split than train (as some of OPUS-100): its missing splits are listed as skipped.

    Args:
        directions: such as [en-fr, fr-en].
        configs: direction -> the data set's configuration, for those that are not called by the two languages in
            alphabetical order.
        others: see `HubData`; `limit` is of each direction.
    """

    directions: Sequence[str]
    configs: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        pairs, configs = parse_directions(self.directions), dict(self.configs or {})
        if unknown := sorted(configs.keys() - {"-".join(pair) for pair in pairs}):
            raise ConfigError(f"data: configs names {', '.join(unknown)}, which is none of the directions.")
        local = self.name in FILE_BUILDERS
        self.config_of = {
            pair: None if local else configs.get("-".join(pair), "-".join(sorted(pair))) for pair in pairs
        }

    def fingerprint(self) -> dict[str, Any]:
        """See `Reader`; of local files also sizes and times."""
        configs = {"-".join(direction): config for direction, config in self.config_of.items()}
        return {"corpus": "hub_pairs", "recipe": 1, **super().fingerprint(), "configs": configs}

    def load(self, data_dir: Path) -> TranslationCorpus:
        """Return all rows, read one by one; those without a text in both languages are skipped."""
        return TranslationCorpus(*lazy(self._pairs), self.origin())

    def _pairs(self) -> Iterator[Pair | Skipped]:
        lacking = dict.fromkeys(self.sides, 0)
        for source, target in self.config_of:
            for side, split in self.sides.items():
                try:
                    yield from self._split(source, target, side)
                except MissingSplit:
                    lacking[side] += 1
                    # A split that no direction has is misnamed.
                    if side == "train" or lacking[side] == len(self.config_of):
                        raise
                    reason = f"no {split} split in the direction"
                    yield Skipped(f"{source}-{target}:{split}", split, reason)

    def _split(self, source: str, target: str, side: str) -> Iterator[Pair | Skipped]:
        split = self.sides[side]
        usable, first = False, ""
        for number, row in enumerate(self.rows(side, self.config_of[source, target])):
            name = f"{source}-{target}:{split}:{number}"
            translation = row.get("translation")
            languages = translation if isinstance(translation, Mapping) else {}
            texts = languages.get(source), languages.get(target)
            usable |= {source, target} <= set(languages)
            if not all(isinstance(text, str) for text in texts):
                first = first or (f"the languages {', '.join(languages)}" if languages else ", ".join(row))
                yield Skipped(name, split, "a language is missing in the row")
                continue
            yield Pair(
                id=name,
                source=str(texts[0]),
                target=str(texts[1]),
                source_language=source,
                target_language=target,
                group=f"{split}:{number // BLOCK}",
                split=self.stated(side),
            )
        if first and not usable:
            raise ConfigError(
                f"data: {self.name} has no pairs {source}-{target}: a row is to hold `translation: "
                f"{{{source}: ..., {target}: ...}}`; the first has {first}. Check the directions and configs."
            )
