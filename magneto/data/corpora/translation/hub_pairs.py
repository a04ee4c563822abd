"""Parallel data sets of the Hugging Face hub (OPUS-100, WMT), or local files of the same form (see docs/data.md).

A row holds `translation`, a mapping from language to text.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from magneto.data.corpora.base import SPLITS, Skipped
from magneto.data.corpora.text.hub import FILE_BUILDERS, MissingSplit, file_fingerprint, hub_rows, plain
from magneto.data.corpora.translation.base import Pair, TranslationCorpus, parse_directions
from magneto.errors import ConfigError


class HubPairsReader:
    """Pairs of a data set, in the splits that it states.

    name, revision, data_files, streaming: see `hub_rows`. directions: such as [en-fr, fr-en]. configs: direction -> the
    data set's configuration, for those that are not called by the two languages in alphabetical order. splits: ours ->
    the data set's; with `train` alone, the others are held out from it by a hash of the row's number in thousands;
    `test` alone is for the evaluation of a trained model. A
    direction may lack the others (of OPUS-100 some are published to train on only): that is listed as skipped.
    limit: rows of each split and direction at most.
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
        self.splits = dict(splits or {"train": "train", "val": "validation", "test": "test"})
        if set(self.splits) not in ({"train"}, {"test"}, set(SPLITS)):
            raise ConfigError(
                f"data: splits of {name} names {', '.join(self.splits)}; name train, val and test, or train alone, or for "
                "mode=test test alone."
            )
        local = name in FILE_BUILDERS
        if local and not data_files:
            raise ConfigError(f"data: name={name} reads local files: name them with data_files.")
        if unknown := sorted(set(configs or {}) - {"-".join(direction) for direction in self.directions}):
            raise ConfigError(f"data: configs names {', '.join(unknown)}, which is none of the directions.")
        self.configs = {
            direction: None
            if local
            else (configs or {}).get("-".join(direction), "-".join(sorted(direction)))
            for direction in self.directions
        }
        self.arguments: dict[str, Any] = {
            "name": name,
            "revision": revision,
            "data_files": plain(data_files),
            "streaming": streaming,
            "limit": limit,
        }

    def fingerprint(self) -> dict[str, Any]:
        """All settings; of local files also sizes and times."""
        settings = {key: value for key, value in self.arguments.items() if key != "streaming"}
        settings["data_files"] = file_fingerprint(self.arguments["data_files"])
        configs = {"-".join(direction): config for direction, config in self.configs.items()}
        return {"corpus": "hub_pairs", "recipe": 1, **settings, "configs": configs, "splits": self.splits}

    def load(self, data_dir: Path) -> TranslationCorpus:
        """All rows, read one by one; those without a text in both languages are skipped."""
        skipped: list[Skipped] = []
        origin = {key: self.arguments[key] for key in ("name", "revision") if self.arguments[key]}
        return TranslationCorpus(self._pairs(skipped), skipped, origin)

    def _pairs(self, skipped: list[Skipped]) -> Iterator[Pair]:
        lacking: dict[str, list[MissingSplit]] = {side: [] for side in self.splits}
        for source, target in self.directions:
            for side, split in self.splits.items():
                try:
                    yield from self._split(source, target, side, skipped)
                except MissingSplit as error:
                    lacking[side].append(error)
                    # One that no direction has is misnamed.
                    if side == "train" or len(lacking[side]) == len(self.directions):
                        raise
                    skipped.append(
                        Skipped(f"{source}-{target}:{split}", split, f"no {split} split in the direction")
                    )

    def _split(self, source: str, target: str, side: str, skipped: list[Skipped]) -> Iterator[Pair]:
        split, config = self.splits[side], self.configs[source, target]
        usable, found = False, ""
        for number, row in enumerate(hub_rows(split=split, config=config, **self.arguments)):
            name = f"{source}-{target}:{split}:{number}"
            translation = row.get("translation")
            languages = translation if isinstance(translation, Mapping) else {}
            sides = languages.get(source), languages.get(target)
            usable |= {source, target} <= set(languages)
            if not all(isinstance(text, str) for text in sides):
                found = found or (f"the languages {', '.join(languages)}" if languages else ", ".join(row))
                skipped.append(Skipped(name, split, "a language is missing in the row"))
                continue
            yield Pair(
                id=name,
                source=str(sides[0]),
                target=str(sides[1]),
                source_language=source,
                target_language=target,
                group=f"{split}:{number // 1000}",
                split=None if set(self.splits) == {"train"} else side,
            )
        if found and not usable:
            raise ConfigError(
                f"data: {self.arguments['name']} has no pairs {source}-{target}: a row is to hold `translation: "
                f"{{{source}: ..., {target}: ...}}`; the first has {found}. Check the directions and configs."
            )
