"""A table of the paper as a chain of runs: `python run.py paper=table7 scale=mini`.

A file of `conf/paper/` says for each scale which steps there are (pre-train, fine-tune, ...), which rows (placements,
depths, learning rates) and which columns (metrics of a step). Every row goes through all steps; a step with `init_from`
starts from the weights of an earlier one of its row. Each run is an ordinary one, in a folder below
RUNS_DIR/paper/TABLE/SCALE: the same command again continues the chain, and a run that diverged or failed is a cell.
"""

import hashlib
import itertools
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any, get_args

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

from magneto.commands.chain_spec import Chain, Column, Harness, Job, Scale, ScaleName, jobs_of, load_chain
from magneto.config import schema
from magneto.config.groups import CONF, check_choices, options
from magneto.config.overrides import literal
from magneto.errors import ConfigError, MagnetoError, nearest
from magneto.report.chain_page import ChainTable, write_table
from magneto.training.files import write_atomically
from magneto.training.result import RunResult

log = logging.getLogger("magneto")

Value = float | str
"""A number, or the word that stands for it, such as diverged."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run of a chain ended; `folder` and `result` are None where there is none."""

    status: str
    message: str | None = None
    folder: Path | None = None
    result: RunResult | None = None


@dataclass(kw_only=True)
class ChainRun:
    """A chain on its way.

    Args:
        scale: what is run.
        folder: of all its runs and of its table.
        overrides: further ones, for every run, or of the form STEP:KEY=VALUE.
    """

    scale: Scale
    folder: Path
    overrides: Sequence[str]
    mistake: Callable[[list[str]], str | None] = lambda arguments: None
    """Says what is wrong with overrides, better than Hydra does."""
    outcomes: dict[Job, Outcome] = field(default_factory=dict)

    def jobs(self) -> Iterator[Job]:
        """Yield all runs, row by row."""
        for row in self.scale.rows:
            for step in self.scale.steps:
                yield from jobs_of(self.scale, row, step)

    def arguments(self, job: Job) -> list[str]:
        """Return the overrides of a run, without its name and the weights that it starts from."""
        step, row = self.scale.steps[job.step], self.scale.rows[job.row]
        choice = [one for _, overrides in job.choice for one in overrides.split()]
        return [
            *step.run, *row.get("all", []), *row.get(job.step, []), *choice, f"seed={job.seed}",
            f"runs_dir={self.folder}", *self._further(job.step),
        ]  # fmt: skip

    def _further(self, step: str) -> Iterator[str]:
        """Yield the user's overrides for a step: those without a step's name before a colon, and those with its own."""
        for override in self.overrides:
            name, colon, rest = override.partition(":")
            if not colon or "=" in name:
                yield override
            elif name not in self.scale.steps:
                known = ", ".join(self.scale.steps)
                raise ConfigError(f"{override}: there is no step {name!r}. Choose from {known}.")
            elif name == step:
                yield rest

    def check(self) -> None:
        """Compose a run of each row and step, and its tests.

        Raises:
            ConfigError: the first mistake; nothing is fetched before.
        """
        for row, step in itertools.product(self.scale.rows, self.scale.steps):
            arguments = self.arguments(next(jobs_of(self.scale, row, step)))
            for further in ([], *self.scale.steps[step].tests.values()):
                try:
                    if reason := self.mistake([literal(one) for one in (*arguments, *further)]):
                        raise ConfigError(reason)
                    config = schema.to_dict(composed([*arguments, *further]))
                    schema.check(config)
                    check_choices(config)
                except (HydraException, MagnetoError) as error:
                    raise ConfigError(f"step {step} of row {row}: {str(error).splitlines()[0]}") from error

    def chosen(self, row: str, step: str) -> list[Outcome]:
        """Return the outcomes of the best choice of a step's grid, one for each seed.

        That is the one with the best mean of the monitored metric on validation data, of those that finished with all
        seeds; if none did, the first one.
        """
        by_choice: dict[Any, list[Outcome]] = {}
        for job in jobs_of(self.scale, row, step):
            if job in self.outcomes:
                by_choice.setdefault(job.choice, []).append(self.outcomes[job])
        whole = {
            choice: mean(score for score in map(_score, outcomes) if score is not None)
            for choice, outcomes in by_choice.items()
            if all(_score(outcome) is not None for outcome in outcomes)
        }
        if whole:
            return by_choice[max(whole, key=lambda choice: whole[choice])]
        return next(iter(by_choice.values()), [])

    def value(self, row: str, column: Column) -> tuple[Value, list[float]]:
        """Return what a cell shows, and the values of its seeds: none where a word stands for them."""
        outcomes = self.chosen(row, column.step)
        values = []
        for outcome in outcomes:
            if outcome.status != "finished" or outcome.result is None:
                return outcome.status, []
            found = [outcome.result.metrics.get(name) for name in column.metrics]
            if any(one is None for one in found):
                return "not measured", []
            values.append(column.factor * mean(one for one in found if one is not None))
        return (mean(values), values) if values else ("not run", [])

    def run(self) -> bool:
        """Make all runs that are not there yet; return False if the user asked to stop."""
        jobs = list(self.jobs())
        for number, job in enumerate(jobs, start=1):
            print(f"run {number} of {len(jobs)}: {job.name}", flush=True)
            outcome = self._outcome(job)
            self.outcomes[job] = outcome
            if outcome.message:
                print(f"{outcome.status}: {outcome.message}", file=sys.stderr)
            if outcome.status == "interrupted":
                return False
        return True

    def _outcome(self, job: Job) -> Outcome:
        arguments, name = self.arguments(job), job.name
        source = self.scale.steps[job.step].init_from
        if source is not None:
            outcomes = self.chosen(job.row, source)
            seeds = self.scale.steps[source].seeds or self.scale.seeds
            start = outcomes[seeds.index(job.seed) if job.seed in seeds else 0]
            if start.status != "finished" or start.folder is None:
                return Outcome(status=start.status, message=f"its step {source} has not finished")
            export = start.folder / "export"
            arguments.append(f"init_from={export}")
            name += f"-{_digest(export / 'model.safetensors')}"
        outcome = trained([*arguments, f"name={name}"])
        for test, further in self.scale.steps[job.step].tests.items():
            if outcome.status == "finished":
                outcome = tested(outcome, test, [*self.arguments(job), *further])
        harness = self.scale.steps[job.step].harness
        if harness is not None and outcome.status == "finished":
            data_dir = schema.to_dict(composed(arguments))["data_dir"]
            outcome = asked(outcome, harness, self.folder / "tasks", Path(data_dir))
        return outcome


def _score(outcome: Outcome) -> float | None:
    """Return the best validation of a finished run, larger being better."""
    result = outcome.result
    if outcome.status != "finished" or result is None or result.best is None:
        return None
    return result.best if result.mode == "max" else -result.best


def _digest(file: Path) -> str:
    """Return some digits of a file's digest: a run that starts from other weights is another run."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()[:8]


def composed(arguments: Sequence[str]) -> Any:
    """Return the configuration of a run."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", [literal(argument) for argument in arguments])


def trained(arguments: Sequence[str]) -> Outcome:
    """Make a run, or find its result."""
    content, error = _attempt(arguments)
    if content is None:
        return Outcome(status="failed", message=error)
    folder = Path(content.pop("folder"))
    result = RunResult.from_dict(content)
    return Outcome(status=result.status, message=result.message, folder=folder, result=result)


def tested(outcome: Outcome, name: str, arguments: Sequence[str]) -> Outcome:
    """Test a run once more, or find the metrics of this test, and add them to its own as NAME:METRIC."""
    assert outcome.folder is not None and outcome.result is not None
    digest = hashlib.sha256(" ".join(arguments).encode()).hexdigest()[:8]
    file = outcome.folder / f"test-{name}-{digest}.json"
    if not file.exists():
        given = [*arguments, "mode=test", f"checkpoint={outcome.folder}", f"output={file}"]
        if (error := _attempt(given)[1]) is not None:
            return replace(outcome, status="failed", message=f"test {name}: {error}")
    metrics = json.loads(file.read_text(encoding="utf-8"))["metrics"]
    more = {f"{name}:{key}": value for key, value in metrics.items() if value is not None}
    return replace(outcome, result=replace(outcome.result, metrics=outcome.result.metrics | more))


def asked(outcome: Outcome, harness: Harness, folder: Path, data_dir: Path) -> Outcome:
    """Ask a model the questions of a harness, or find its answers, and add the accuracies as TASK:SHOTS."""
    assert outcome.folder is not None and outcome.result is not None
    found: dict[str, float] = {}
    for shots in harness.shots:
        digest = hashlib.sha256(" ".join([*harness.tasks, str(shots)]).encode()).hexdigest()[:8]
        file = outcome.folder / f"harness-{digest}.json"
        if not file.exists():
            try:
                from magneto.commands import (
                    lm_eval,
                    lm_tasks,
                )  # the harness is an extra, and takes long to import

                names = harness.tasks or lm_tasks.write_tasks(folder, data_dir)
                accuracies = lm_eval.accuracies(
                    outcome.folder, names, shots, None if harness.tasks else folder
                )
            except (ImportError, MagnetoError, ConnectionError) as error:
                return replace(outcome, status="failed", message=f"questions: {error}")
            write_atomically(file, json.dumps(accuracies) + "\n")
        answers = json.loads(file.read_text(encoding="utf-8"))
        found |= {f"{task}:{shots}": value for task, value in answers.items()}
    return replace(outcome, result=replace(outcome.result, metrics=outcome.result.metrics | found))


def _attempt(arguments: Sequence[str]) -> tuple[dict[str, Any] | None, str | None]:
    """Return what `run` returns, or else what went wrong: no run ends a chain."""
    from magneto.commands import run  # it imports torch

    try:
        return run.run(composed(arguments), arguments), None
    except MagnetoError as error:
        return None, str(error)
    except Exception as error:
        log.exception("%s failed", " ".join(arguments))
        return None, f"{type(error).__name__}: {error}"


def table_of(chain: Chain, chain_run: ChainRun, scale_name: str) -> ChainTable:
    """Return the table of a chain, as far as it has come."""
    scale = chain_run.scale
    cells: dict[str, list[tuple[Value, list[float]]]] = {}
    for row in scale.rows:
        cells[row] = [chain_run.value(row, column) for column in scale.columns.values()]
        if scale.mean:
            words = [value for value, _ in cells[row] if isinstance(value, str)]
            numbers = [value for value, _ in cells[row] if not isinstance(value, str)]
            cells[row].append((words[0] if words else mean(numbers), []))
    return ChainTable(
        title=f"{chain.title} ({scale_name})",
        note=scale.note,
        columns=[*scale.columns, *([scale.mean] if scale.mean else [])],
        rows=cells,
        lower=scale.lower,
        paper_columns=chain.paper.columns,
        paper_rows=chain.paper.rows,
        runs=[(job.name, one.status, one.message, one.folder) for job, one in chain_run.outcomes.items()],
    )


def main(
    arguments: Sequence[str], mistake: Callable[[list[str]], str | None] = lambda arguments: None
) -> int:
    """Run `paper=TABLE scale=SCALE ...`; return the exit code.

    `dry_run=true` prints the runs with what they cost (`chain_plan`), `device=` names the device of that estimate. All
    other arguments are overrides of every run, those of the form STEP:KEY=VALUE of the runs of a step.

    Args:
        arguments: of the command line.
        mistake: says what is wrong with the overrides of a run, or None.

    Raises:
        ConfigError: an unknown table, scale, device or override, before anything is fetched.
    """
    given, rest = dict[str, str](), []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key in ("paper", "scale", "dry_run", "runs_dir", "device"):
            given[key] = value
        else:
            rest.append(argument)
    name, scale_name = given["paper"], given.get("scale", "mini")
    for key, value, known in (
        ("paper", name, options("paper")),
        ("scale", scale_name, get_args(ScaleName)),
        ("dry_run", given.get("dry_run", "false"), ("true", "false")),
    ):
        if value not in known:
            raise ConfigError(f"{key}={value}: must be one of {', '.join(known)}.{nearest(value, known)}")
    if flags := [argument for argument in rest if "=" not in argument]:
        raise ConfigError(f"{flags[0]}: paper= takes overrides alone, of the form KEY=VALUE.")
    chain = load_chain(CONF / "paper" / f"{name}.yaml")
    if "device" in given and given.get("dry_run") != "true":
        raise ConfigError("device= names the device of an estimate: it needs dry_run=true.")
    folder = Path(given.get("runs_dir", "runs")) / "paper" / (chain.like or name) / scale_name
    chain_run = ChainRun(scale=chain.scale(scale_name), folder=folder, overrides=rest, mistake=mistake)
    chain_run.check()
    if given.get("dry_run") == "true":
        from magneto.commands.chain_plan import print_plan

        print_plan(chain_run, given.get("device", "cpu" if scale_name == "mini" else "h100"))
        return 0
    whole = chain_run.run()
    for file in write_table(folder, table_of(chain, chain_run, scale_name)):
        print(file)
    if not whole:
        print("interrupted: repeat the command to continue", file=sys.stderr)
        return 130
    return 1 if any(outcome.status == "failed" for outcome in chain_run.outcomes.values()) else 0
