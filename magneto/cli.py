"""The command line: Hydra composes the configuration, `magneto.engine` runs it.

Only light imports stand at the top, so that `--help` and a refused command answer at once.
"""

import io
import logging
import os
import sys
from pathlib import Path
from typing import Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, Quote, QuotedString
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from magneto import schema
from magneto.errors import UserError, nearest

log = logging.getLogger("magneto")

_PACKAGE = Path(__file__).parent
CONF = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"
"""The configuration folder: inside the package when installed from a wheel, beside it in a checkout."""

# oneDNN compiles a kernel for each shape and keeps 1024 of them. Batches of like length have hundreds of shapes, a step
# some fifty kernels each: with the default, a CPU spends a fifth of a training step on compiling them again.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "20000")  # read by torch at its first product

_TEXTS = ("prompt", "predict.query", "predict.question", "predict.stop")

_failed_jobs: list[str] = []
_sweep_runs: list[Path] = []

schema.register()


def options(group: str) -> list[str]:
    """The names that `group=` takes, from the files of the configuration folder."""
    folder = CONF / group
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def _job(cfg: DictConfig) -> None:
    from magneto import engine, pretrained

    hydra_config = HydraConfig.get()
    sweep = hydra_config.mode == RunMode.MULTIRUN
    overrides = list(hydra_config.overrides.task)
    try:
        if sweep and cfg.task is not None:
            config = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
            _sweep_runs.append(engine.run_folder(pretrained.adopt(config, overrides), overrides).path)
        if sweep and int(os.environ.get("WORLD_SIZE", 1)) == 1 and engine.launches_processes(cfg):
            raise UserError(
                "-m cannot start several processes a job: Lightning's children would repeat the whole sweep. "
                "Run the jobs one by one (without -m), or start each with torchrun or srun."
            )
        result = engine.run(cfg, overrides)
        if result.get("status") == "interrupted":
            # The user asked to stop: a sweep stops too, and the same command goes on later.
            sys.exit(130)
    except UserError as error:
        _fail(sweep, overrides, f"error: {error}", code=2)
    except Exception as error:
        if not sweep:
            raise
        log.exception("job %s failed", " ".join(overrides))
        _fail(sweep, overrides, f"{type(error).__name__}: {error}", code=1)


def _fail(sweep: bool, overrides: list[str], message: str, code: int) -> None:
    print(message, file=sys.stderr)
    if not sweep:
        sys.exit(code)
    _failed_jobs.append(" ".join(overrides))


class SweepReport(Callback):
    """Hydra callback: when a multirun ends, write the comparison of its runs and name the jobs that failed."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Write `report/` beside the runs; exit with code 1 if a job failed, after all the others ran."""
        from magneto.report import write_report
        from magneto.runs import slug

        overrides = list(config.hydra.overrides.task)
        runs = [path for path in _sweep_runs if (path / "result.json").exists()]
        if runs:
            folder = runs[0].parent / "reports" / slug(overrides)
            try:
                files = write_report(runs, folder, command=f"python run.py -m {' '.join(overrides)}")
                print(f"report: {files.markdown}\n        {files.html}")
            except UserError as error:
                _failed_jobs.append(f"report: {error}")
        if _failed_jobs:
            print("failed jobs:\n  " + "\n  ".join(_failed_jobs), file=sys.stderr)
            sys.exit(1)


def _unknown_key(arguments: list[str]) -> str | None:
    """A message about the first override whose key does not exist, naming the nearest one; None if all exist."""
    from hydra import compose, initialize_config_dir

    groups = sorted(path.name for path in CONF.iterdir() if path.is_dir())
    try:
        parsed = OverridesParser.create().parse_overrides(
            [a for a in arguments if "=" in a and not a.startswith("-")]
        )
    except HydraException:
        return None
    parsed = [
        override
        for override in parsed
        if not (override.is_add() or override.is_delete() or override.key_or_group.startswith("hydra"))
    ]
    chosen = []
    for override in parsed:
        group, value = override.key_or_group, override.value()
        if group in groups and not isinstance(value, Glob):
            values = value.list if isinstance(value, ChoiceSweep) else [value]
            for one in values:
                available = options(group)
                if one is None:
                    return f"{group}=null: leave it out, or choose one of: {', '.join(available)}."
                if str(one) not in available:
                    return (
                        f"{group}={one}: there is no conf/{group}/{one}.yaml.{nearest(one, available)} "
                        f"Choose one of: {', '.join(available)}."
                    )
            chosen.append(f"{group}={values[0]}")
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            known = _keys(OmegaConf.to_container(compose("config", chosen), resolve=False))
    except HydraException:
        return None
    for override in parsed:
        key = override.key_or_group
        if key not in groups and key not in known:
            return (
                f"{override.input_line}: there is no key {key!r}.{nearest(key, known)} "
                "See all keys with --cfg job."
            )
    return None


def _keys(node: Any, prefix: str = "") -> set[str]:
    if not isinstance(node, dict):
        return set()
    keys = set()
    for key, value in node.items():
        keys |= {f"{prefix}{key}"} | _keys(value, f"{prefix}{key}.")
    return keys


def literal(argument: str) -> str:
    """The argument, quoted where its value is a sentence, or a path or else that Hydra's grammar cannot read.

    `prompt=The [MASK] of it, isn't it?` means what it says, and so does `folder=~/my pictures (1)`. A list, a quoted string
    and `null` stay what they are, and so do paths that the grammar can read, such as the choices of a sweep.
    """
    key, equals, value = argument.partition("=")
    if not equals or key.startswith("-"):
        return argument
    if key not in _TEXTS or value.startswith(("[", "'", '"')) or value in ("", "null"):
        try:
            OverridesParser.create().parse_override(argument)
            return argument
        except HydraException:
            pass
    return f"{key}={QuotedString(value.replace('${', chr(92) + '${'), Quote.single).with_quotes()}"


def main() -> None:
    """Entry point of `run.py` and of the installed command `magneto`."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # the names of files, which are printed, need not be UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.argv[1:] = map(literal, sys.argv[1:])
    message = _unknown_key(sys.argv[1:])
    if message is not None:
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)
    try:
        _job()
    except KeyboardInterrupt:  # before a run has begun, or after its end
        sys.exit(130)
