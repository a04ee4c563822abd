"""Command line: Hydra composes the configuration, `magneto.commands.run` runs it.

Only light imports stand at the top, so that `--help` and a refused command answer at once.
"""

import io
import logging
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ValidationError

from magneto.commands import sweeps
from magneto.config import schema
from magneto.config.groups import CONF, check_choices
from magneto.config.overrides import literal, quoted
from magneto.config.renamed import OPTIONS, hint
from magneto.errors import ConfigError, MagnetoError, nearest

log = logging.getLogger("magneto")


# oneDNN compiles a kernel for each shape and keeps 1024 of them. Batches of similar length have hundreds of shapes, each
# with about fifty kernels: with the default, a CPU spends a fifth of a training step on compiling them again.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "20000")  # read by torch at its first product

_PRINTS = {"--help", "-h", "--hydra-help", "--cfg", "-c", "--info", "-i"}
"""Arguments of commands that print and run nothing."""


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def _job(cfg: DictConfig) -> float | None:
    hydra_config = HydraConfig.get()
    sweep = hydra_config.mode == RunMode.MULTIRUN
    overrides = sweeps.task_overrides(hydra_config)
    folder = None
    if sweep:
        print(sweeps.title(hydra_config.job.num, overrides), flush=True)
    try:
        config = schema.to_dict(cfg)
        schema.check(config)
        check_choices(config)
        if config["sweep"]["prune_rates"]:
            if not sweep:
                raise ConfigError(
                    "sweep.prune_rates=true has no effect without a sweep. Add -m, or leave it out."
                )
            if reason := sweeps.pruned(config):
                print(reason)
                sweeps.record(overrides, None, None)
                return float("nan")
        result = None if config["dry_run"] else _ended(config, overrides)
        if result is None:
            from magneto.commands import run  # late: it imports torch, which takes several seconds

            result = run.run(cfg, overrides)
        folder, status, error = result.get("folder"), result.get("status"), None
        code = 130 if status == "interrupted" else 0
    except BrokenPipeError:  # `| head` has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except MagnetoError as mistake:
        result, error, code = {}, f"error: {mistake}", 2
    except Exception as failure:
        if not sweep:
            raise
        log.exception("job %s failed", " ".join(overrides))
        result, error, code = {}, f"{type(failure).__name__}: {failure}", 1
    if error is not None:
        print(error, file=sys.stderr)
    if not sweep:
        if code:
            sys.exit(code)
        return None
    if code == 130:  # the user asked to stop: the sweep stops too, and the same command continues it
        sys.exit(code)
    sweeps.record(overrides, folder, error, result.get("seconds"))
    return sweeps.objective(result)


def _ended(config: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any] | None:
    """Print and return the result of the run if it has ended already; None if there is something to do.

    `mode=train` reports the same, but only once torch and Lightning are imported. Where more than the configuration is
    needed (the model of `init_from=` decides the run's name, one of several processes prints), it has to answer.
    """
    several = any(name in os.environ for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    if config["mode"] != "train" or config["init_from"] is not None or several:
        return None
    from magneto.commands import summary
    from magneto.training import run_folder

    result = run_folder.ended_result(config, overrides)
    if result is None:
        return None
    path = run_folder.run_folder(config, overrides).path
    print(summary.ended(result, path, full=config["summary"] == "full"))
    return {**result.to_dict(), "folder": str(path)}


class _Configuration:
    """The configuration files that Hydra finds for a command line, with those of `--config-dir` and `hydra.searchpath`.

    Args:
        arguments: those of the command line.
        config_dir: the value of `--config-dir`.
    """

    def __init__(self, arguments: Sequence[str], config_dir: str | None) -> None:
        self.overrides = OverridesParser.create().parse_overrides(list(arguments))
        folders = [f"file://{Path(config_dir).absolute()}"] if config_dir else []
        for override in self.overrides:
            if override.key_or_group == "hydra.searchpath" and isinstance(value := override.value(), list):
                folders += map(str, value)
        self.searchpath = [f"hydra.searchpath=[{','.join(map(quoted, folders))}]"] if folders else []
        self.loader = GlobalHydra.instance().config_loader()
        self.groups = set(self.names("", ObjectType.GROUP)) - {"hydra"}

    def names(self, group: str, kind: ObjectType = ObjectType.CONFIG) -> list[str]:
        """Return the options of a group, or the groups in it."""
        return self.loader.get_group_options(group, kind, "config", self.searchpath)

    def options(self, group: str) -> list[str]:
        """Return the options of a group and of the groups in it, as the command line takes them."""
        inner = [
            f"{sub}/{name}"
            for sub in self.names(group, ObjectType.GROUP)
            if sub != "_base"
            for name in self.options(f"{group}/{sub}")
        ]
        return sorted([*self.names(group), *inner])

    def mistake(self) -> str | None:
        """Return a message about the first override with an unknown choice, key or value; None if there is none."""
        chosen: list[str] = []  # one choice of each group
        values: list[Override] = []
        for override in self.overrides:
            key, value = override.key_or_group, override.value()
            if key.startswith("hydra") or override.is_delete() or isinstance(value, Glob):
                continue
            if key not in self.groups:
                values.append(override)
                continue
            choices = value.list if isinstance(value, ChoiceSweep) else [value]
            for choice in choices:
                if (message := self._unknown_choice(key, choice)) is not None:
                    return message
            chosen.append(f"{key}={choices[0]}")
        config = compose("config", [*self.searchpath, *chosen])
        known = _keys(OmegaConf.to_container(config, resolve=False))
        for override in values:
            key, adds = override.key_or_group, override.is_add() or override.is_force_add()
            if adds:
                known.add(key)
            elif key not in known:
                return f"{override.input_line}: there is no key {key!r}.{hint(key, known)} See all keys with --cfg job."
            for value in _values(override):
                try:
                    OmegaConf.update(config, key, value, force_add=adds)
                except ValidationError as error:
                    text = f"{key}={'null' if value is None else value}"
                    return _wrong_value(text, str(error).splitlines()[0])
        return None

    def _unknown_choice(self, group: str, choice: object) -> str | None:
        parent, _, name = f"{group}/{choice}".rpartition("/")
        if choice is not None and name.removesuffix(".yaml") in self.names(parent):
            return None
        if now := OPTIONS.get(f"{group}={choice}"):
            return f"{group}={choice}: it is now {now}."
        available = self.options(group)
        if choice is None:
            return f"{group}=null: leave it out, or choose from {', '.join(available)}."
        return (
            f"{group}={choice}: there is no {group}/{choice}.yaml.{nearest(choice, available)} "
            f"Choose from {', '.join(available)}."
        )


def _values(override: Override) -> list[Any]:
    """Return the value, or all that are swept over; [] where the sweeper samples them."""
    if not override.is_sweep_override():
        return [override.value()]
    if not override.is_discrete_sweep():
        return []
    key = override.get_key_element()
    texts = [f"{key}={value}" for value in override.sweep_string_iterator()]
    return [one.value() for one in OverridesParser.create().parse_overrides(texts)]


def _wrong_value(text: str, reason: str) -> str:
    if (options := re.search(r"expected one of \[(.*)\]", reason)) is not None:
        names = options[1].split(", ")
        return f"{text}: must be one of {', '.join(names)}.{nearest(text.partition('=')[2], names)}"
    return f"{text}: {reason[0].lower()}{reason[1:]}. Set it to a value of another type."


def _mistake(arguments: list[str]) -> str | None:
    """Return a message about the first error that Hydra would report less clearly; None if there is none."""
    parsed = get_args_parser().parse_args(arguments)
    others = (parsed.help, parsed.hydra_help, parsed.shell_completion, parsed.info, parsed.experimental_rerun)
    if any(others) or parsed.config_path or parsed.config_name:
        return None
    for argument in parsed.overrides:
        try:
            OverridesParser.create().parse_override(argument)
        except HydraException:
            return (
                f"{argument}: not of the form KEY=VALUE. Quote a value with spaces or braces for the shell, as "
                "in 'KEY={a: 1, b: 2}'."
            )
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return _Configuration(parsed.overrides, parsed.config_dir).mistake()
    except HydraException:
        return None


def _keys(node: Any, prefix: str = "") -> set[str]:
    if not isinstance(node, dict):
        return set()
    keys = set()
    for key, value in node.items():
        keys |= {f"{prefix}{key}"} | _keys(value, f"{prefix}{key}.")
    return keys


def _chain(arguments: list[str]) -> int:
    from magneto.commands import chain

    try:
        return chain.main(arguments, _mistake)
    except MagnetoError as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        return 2


def main() -> None:
    """Run the command line: entry point of `run.py` and of the installed command `magneto`."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # the names of files, which are printed, need not be UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.argv[1:] = map(literal, sys.argv[1:])
    if _PRINTS & {argument.partition("=")[0] for argument in sys.argv[1:]}:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` may end: Hydra would print a traceback
    chain = any(argument.startswith("paper=") for argument in sys.argv[1:])
    message = None if chain else _mistake(sys.argv[1:])
    if message is not None:
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)
    try:
        if chain:
            sys.exit(_chain(sys.argv[1:]))
        _job()
    except KeyboardInterrupt:  # outside a run, which saves its state: while importing, or in a sweep's parent
        print("interrupted: repeat the command to continue", file=sys.stderr)
        sys.exit(130)
