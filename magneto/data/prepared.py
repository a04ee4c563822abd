"""How a corpus becomes a prepared folder, info and batches: once, for all kinds of data.

    settings --fingerprint--> data_dir/prepared/<kind>-<corpora>-<hash>/
        train/, val/, test/, dataset_dict.json     a typed Arrow table for each split: `datasets.load_from_disk(folder)`
        info.json                                  what a model must know: the fields of the kind's `Info`
        prepare_report.json                        settings, rows of each split, what was skipped: counted, and listed
        complete.json                              the sizes of all files (cache.py)
    tables --memory-mapped--> examples --sampler--> batches

A kind of data is a `PreparedDataModule`, in four files:

* `config.py`: its settings, with types, ranges and defaults;
* `module.py`: `settings()`, those by which the folder is made, and what else follows from the settings;
* `build.py`: `build(target)` reads the corpora, notes what cannot be used by `target.skip`, writes rows by
  `with target.tables(schema) as tables: tables.write(split, columns)`, and returns the fields
  of `Info` that `info_of_settings()` does not give. Rows keep the order in which the corpora give them. Where a number
  of the example over all splits is the seed of its masks or crops, or is shown to people, it is a column `row`;
* `dataset.py`: the `Info`, and the examples of a split, which `open(split)` makes of `self.table(split)`: a
  `PreparedDataset` with `example(epoch, position)` and the lengths that the sampler counts, of which `collate` makes
  batches; or a `BatchDataset` with `batch(epoch, positions)`, which takes whole batches from the table at once.

A module does not change after construction. To evaluate the model of a checkpoint, `for_model(info)` returns a new one,
with the settings that `adapted(model)` gives it. The folder of the data's own settings is used if it has been prepared
and the fields of the info that `reads` names are the model's; otherwise one is prepared with those of the model
(`self.given`), which needs a test split only.
"""

import copy
import json
import logging
import shutil
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import pyarrow as pa

from magneto.config.validate import from_mapping
from magneto.data.cache import is_complete, prepare_once, short_hash
from magneto.data.config import DataConfig
from magneto.data.corpora.base import SPLITS
from magneto.data.info import DatasetInfo
from magneto.data.messages import counts, skipped
from magneto.data.module import DataModule
from magneto.data.parts import WorkerKilled
from magneto.data.skips import Skips
from magneto.data.table import SplitTable, TableWriter, join_tables
from magneto.errors import ConfigError, DataError

log = logging.getLogger(__name__)

InfoT = TypeVar("InfoT", bound=DatasetInfo)
ConfigT = TypeVar("ConfigT", bound=DataConfig)


class Preparation(Skips):
    """A folder that is being prepared.

    Attributes:
        path: where it is written.
        config: the data's settings.
        given: info of a checkpoint's model, as which the data is to be prepared; None: what a model needs is trained.
        corpora: the readers by name.
        data_dir: where they keep what they fetch.
        key: hash of all that the folder depends on.
        noun: what its examples are called, such as "document".
        splits: those that must not be empty.
        origins: by the name of a corpus, what was read: version, digest, where it came from.
        report: further values for prepare_report.json that no model needs.
        rows: rows of each split, once the tables have been written.
    """

    def __init__(self, path: Path, data: "PreparedDataModule[Any, Any]") -> None:
        super().__init__()
        self.path, self.config, self.given = path, data.config, data.given
        self.corpora, self.data_dir, self.key = data.corpora, data.data_dir, data.key
        self.noun, self.splits = data.noun, data.splits
        self.origins: dict[str, dict[str, Any]] = {}
        self.report: dict[str, Any] = {}
        self.rows: dict[str, int] = {}
        self._parts = data.folder.with_name(f".{data.folder.name}.parts")

    def load(self) -> Iterator[tuple[str, Any]]:
        """Yield the corpora by name; each, once its examples have been read, adds its origin and what it skipped."""
        for name, reader in self.corpora.items():
            corpus = reader.load(self.data_dir)
            yield name, corpus
            self.note(name, corpus)

    def note(self, name: str, corpus: Any) -> None:
        """Add the origin of a corpus, and what it skipped."""
        self.origins[name] = corpus.origin
        self.skip_of(name, corpus)

    def tables(self, schema: pa.Schema) -> TableWriter:
        """Return the writer of the tables, all of which have this schema."""
        tables = TableWriter(self.path, schema, self.key)
        self.rows = tables.rows
        return tables

    def parts(self, plan: Any) -> Path:
        """Return the folder in which parts are kept until the preparation has ended, also if it is killed.

        Args:
            plan: plain values that decide what the parts are; those of another plan are removed.
        """
        folder = self._parts / short_hash(plan)
        for other in self._parts.glob("*"):
            if other != folder:
                shutil.rmtree(other)
        self._parts.mkdir(exist_ok=True)
        return folder

    def join(self, parts: Sequence[Path], rows: Mapping[str, int]) -> None:
        """Make the tables of those of all parts. rows: of each split, in all."""
        join_tables(parts, self.path, self.key)
        self.rows = dict(rows)

    def close(self) -> None:
        """Remove the parts."""
        shutil.rmtree(self._parts, ignore_errors=True)

    def require(self, found: Mapping[str, int], remedy: str | Callable[[], str]) -> None:
        """Raise `DataError`, with the reasons of what was skipped, if a split that must not be empty is.

        Args:
            found: examples of each split.
            remedy: what can be done about it.
        """
        empty = [split for split in self.splits if not found[split]]
        if not empty:
            return
        splits = f"{' and '.join(empty)} {'split' if len(empty) == 1 else 'splits'}"
        total = sum(found.values())
        if total and total == found["test"]:
            remedy = "A test set alone is for the evaluation of a trained model: mode=test checkpoint=RUN."
        why = "none was skipped"
        if self.skipped:
            reasons = "; ".join(f"{count} {reason}" for reason, count in self.skipped.most_common(5))
            why = f"skipped: {reasons}; the first: {self.listed[0].file or self.listed[0].id}"
        raise DataError(
            f"No usable {self.noun} is left for the {splits} ({total} are in the others; {why}). "
            f"{remedy if isinstance(remedy, str) else remedy()}"
        )


class PreparedDataModule(DataModule, Generic[InfoT, ConfigT]):
    """Base of the kinds of data: see the module's docstring.

    Args:
        corpora: name -> reader of the corpus.
        settings: fields of `Config`; those that are dataclasses may be given as dicts.
    """

    Info: ClassVar[type[Any]]
    Config: ClassVar[type[Any]]
    """Class of the settings."""
    kind: ClassVar[str]
    """What folders and messages call this kind of data."""
    noun: ClassVar[str] = "example"
    FORMAT: ClassVar[int]
    """Of the prepared folder: raise it when the code makes other files from the same settings."""
    streams: ClassVar[bool] = False
    """Whether `data.streaming=true` is offered."""
    reads: ClassVar[tuple[str, ...]] = ("tokenizer",)
    """Facts of a model by which its data must be prepared."""

    def __init__(self, corpora: Mapping[str, Any], **settings: Any) -> None:
        config: ConfigT = from_mapping(self.Config, settings, "data")
        super().__init__(
            data_dir=config.data_dir,
            num_workers=config.num_workers,
            seed=config.seed,
            global_batch=config.global_batch,
        )
        if config.streaming and not self.streams:
            raise ConfigError(
                "data.streaming=true is offered for text (task=causal_lm, task=mlm), images with captions (task=vl) and "
                f"speech (task=asr), not for {self.kind} data. Set it to false."
            )
        if not corpora:
            raise ConfigError("data.corpora is empty: name at least one corpus.")
        for name, reader in corpora.items():
            if config.streaming and not hasattr(reader, "shards"):
                raise ConfigError(
                    f"data.streaming=true: data.corpora.{name} is not read in shards. Set it to false, or use "
                    "data=text_files, text of the hub, data=webdataset_captions, or data=webdataset_speech."
                )
        self.config = config
        self.corpora: dict[str, Any] = dict(corpora)
        self.model: InfoT | None = None
        """The info of the checkpoint's model that is evaluated."""
        self.given: InfoT | None = None
        """The same, where the data must be prepared again as the model reads it."""

    # ------------------------------------------------------------------ what a kind of data says

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return the settings that decide the contents of the folder, beside the corpora: plain values."""

    @abstractmethod
    def build(self, target: Preparation) -> dict[str, Any]:
        """Write the tables; return the fields of the info that describe the corpus.

        Raises:
            DataError: the corpus cannot be used.
        """

    @abstractmethod
    def open(self, split: str) -> Any:
        """Return the examples of a split."""

    def info_of_settings(self) -> dict[str, Any]:
        """Return the fields of `Info` that follow from settings on which the folder does not depend."""
        return {}

    def details(self) -> str:
        """Return what is said of the prepared data after the counts, such as ", 3.20 h"."""
        return ""

    def warnings(self, report: Mapping[str, Any]) -> Iterator[str]:
        """Yield what a user should know of the prepared data. report: prepare_report.json."""
        return iter(())

    def check(self) -> None:
        """Raise `MagnetoError` if the prepared data does not fit the settings, or the model that is evaluated."""

    def adapted(self, model: InfoT) -> Self:
        """Return a copy with the settings that the model of a checkpoint needs."""
        return self.copy()

    def with_config(self, **settings: Any) -> Self:
        """Return a copy with other settings, of which nothing has been read."""
        other = self.copy()
        other.config = replace(self.config, **settings)
        return other

    # ------------------------------------------------------------------ preparing

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that must not be empty."""
        return SPLITS if self.model is None else ("test",)

    @cached_property
    def of_corpora(self) -> Any:
        """What decides the examples of the corpora; to list their files may take seconds."""
        # A shard may be fetched again while a run waits: of a streamed corpus its name counts alone.
        given = {"contents": False} if self.config.streaming else {}
        return {name: reader.fingerprint(**given) for name, reader in self.corpora.items()}

    def fingerprint(self) -> dict[str, Any]:
        """Return all that the prepared folder depends on."""
        values = {"format": self.FORMAT, "corpora": self.of_corpora, **self.settings()}
        if self.given is not None:
            values["tokenizer"] = {"given": short_hash([getattr(self.given, name) for name in self.reads])}
        return values

    @cached_property
    def key(self) -> str:
        """The hash of the fingerprint."""
        return short_hash(self.fingerprint())

    @property
    def folder(self) -> Path:
        """The prepared folder; its name carries a hash of all that its contents depend on."""
        return self.data_dir / "prepared" / f"{self.kind}-{'-'.join(self.corpora)}-{self.key}"

    def prepare(self) -> None:
        """Fetch the corpora and build the folder, unless that is done. Logs what it holds and what was skipped."""
        if prepare_once(self.folder, self._build):
            log.info("prepared %s", self.folder)
        where = self.folder / "prepare_report.json"
        report = json.loads(where.read_text(encoding="utf-8"))
        log.info("%s: %s%s", self.kind, counts(report["used"], f"{self.noun}s"), self.details())
        if report["skipped_by_reason"]:
            log.warning("%s: %s", self.kind, skipped(report["skipped_by_reason"], where))
        for warning in self.warnings(report):
            log.warning("%s: %s", self.kind, warning)
        self.check()

    def _build(self, folder: Path) -> None:
        target = Preparation(folder, self)
        try:
            self._fill(folder, target)
        except DataError as error:
            if not isinstance(error, WorkerKilled):  # no further attempt would use the parts
                target.close()
            raise
        target.close()

    def _fill(self, folder: Path, target: Preparation) -> None:
        values = {**self.build(target), "key": self.key}
        target.require(target.rows, "Check data.corpora and the files that it names.")
        self.Info.from_dict(
            values | self.info_of_settings()
        )  # a fact may be missing: before the folder is there
        report = {
            "used": target.rows,
            **target.report,
            "settings": self.fingerprint(),
            "skipped_by_reason": dict(target.skipped.most_common()),
            "skipped": [asdict(item) for item in target.listed],
        }
        for name, content in (("info.json", values), ("prepare_report.json", report)):
            text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
            # A file's name need not be UTF-8; what is not is escaped.
            (folder / name).write_text(text, encoding="utf-8", errors="backslashreplace")

    # ------------------------------------------------------------------ reading

    @cached_property
    def info(self) -> InfoT:
        """Info of the prepared data.

        Raises:
            DataError: `prepare` has not been run.
        """
        file = self.folder / "info.json"
        if not file.is_file():
            raise DataError(
                f"The {self.kind} data is not prepared ({self.folder} is not there): run with mode=prepare first."
            )
        values = json.loads(file.read_text(encoding="utf-8"))
        info: InfoT = self.Info.from_dict(values | self.info_of_settings())
        return info

    def table(self, split: str) -> SplitTable:
        """Return the table of a split."""
        return SplitTable(self.folder, split)

    def for_model(self, info: Mapping[str, Any]) -> Self:
        """Return this data, prepared as the model of a checkpoint with this info reads it.

        Raises:
            MagnetoError: it does not fit that model.
        """
        model = self.Info.from_dict(info)
        data = self.adapted(model)
        data.model = model
        if data.reads and not (is_complete(data.folder) and data.serves(model)):
            data = data.copy()
            data.given = model
        data.prepare()
        return data

    def serves(self, model: InfoT) -> bool:
        """Return whether the prepared folder is as the model reads it."""
        return all(getattr(self.info, name) == getattr(model, name) for name in self.reads)

    def copy(self) -> Self:
        """Return a copy that has read nothing yet."""
        other = copy.copy(self)
        for owner in type(self).__mro__:
            for name, value in vars(owner).items():
                if isinstance(value, cached_property):
                    other.__dict__.pop(name, None)
        return other

    @cached_property
    def train_set(self) -> Any:  # type: ignore[override]
        """The examples to train on."""
        return self.open("train")

    @cached_property
    def val_set(self) -> Any:  # type: ignore[override]
        """The examples by which the checkpoint is chosen."""
        return self.open("val")

    @cached_property
    def test_set(self) -> Any:  # type: ignore[override]
        """The examples of the final evaluation."""
        return self.open("test")

    def setup(self, stage: str | None = None) -> None:
        """Open the splits."""
        _ = self.train_set, self.val_set, self.test_set

    def collate(self, dataset: Any) -> Callable[[Any], dict[str, Any]]:
        """Return what makes a batch of examples; a `BatchDataset` gives whole batches."""
        return dict
