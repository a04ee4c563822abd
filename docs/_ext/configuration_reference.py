"""Write the reference of all configuration keys from the files of `conf/` and the dataclasses that they fill.

A key's meaning is the comment beside it, or the docstring of the field that it sets. The page is made at each build, in
`docs/reference/configuration.md`, and is not kept in the repository.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer

from magneto.config.groups import CONF, options
from magneto.config.parts import (
    EXTRA_TRAINER_KEYS,
    CallbacksConfig,
    LoggerConfig,
    OptimizerConfig,
    SchedulerConfig,
    TrainerConfig,
)
from magneto.nn.config import BackboneConfig
from magneto.tasks.registry import task_class

PAGE = Path(__file__).parents[1] / "reference" / "configuration.md"
FIELDS = {
    "backbone": BackboneConfig,
    "optimizer": OptimizerConfig,
    "scheduler": SchedulerConfig,
    "trainer": TrainerConfig,
    "callbacks": CallbacksConfig,
    "logger": LoggerConfig,
}
"""Groups whose keys are the fields of a dataclass."""
GROUPS = (
    "task",
    "backbone",
    "size",
    "data",
    "optimizer",
    "scheduler",
    "trainer",
    "callbacks",
    "logger",
    "predict",
    "debug",
)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension."""
    app.connect("builder-inited", lambda _: PAGE.write_text(page(), encoding="utf-8"))
    return {"parallel_read_safe": True}


def page() -> str:
    """Return the whole page."""
    parts = [
        "# Configuration",
        "Every key of a run with its default, as `python run.py task=asr --cfg job` prints it. `GROUP=OPTION` on the "
        "command line chooses a file of `conf/GROUP/`, `KEY=VALUE` sets one value. A key with a `+` is not in the printed "
        "configuration; it is added with the `+`.",
        "## Top level",
        _table(_keys(CONF / "config.yaml"), skip=("hydra", "backbone", "predict")),
    ]
    for group in GROUPS:
        parts.append(f"## {group}")
        parts += _fields(FIELDS[group], group) if group in FIELDS else []
        if group == "data":
            parts += [part for name in _bases() for part in _data_base(name)]
        for option in options(group):
            file = CONF / group / f"{option}.yaml"
            if not file.is_file():  # the defaults of the dataclass
                continue
            parts += [f"### {group}={option}", _heading(file)]
            prefix = "" if "# @package _global_" in file.read_text(encoding="utf-8") else f"{group}."
            known = _option_docs(file) if group == "task" else {}
            parts.append(_table(_keys(file, prefix), known=known))
    parts += ["## experiment", _experiments()]
    return "\n\n".join(filter(None, parts)) + "\n"


def _bases() -> list[str]:
    return sorted(path.stem for path in (CONF / "data" / "_base").glob("*.yaml"))


def _data_base(name: str) -> Iterator[str]:
    file = CONF / "data" / "_base" / f"{name}.yaml"
    yield f"### data/_base/{name}"
    yield _heading(file)
    yield _table(_keys(file, "data."))


def _experiments() -> str:
    rows = ["| option | what it is |", "|:--|:--|"]
    rows += [
        f"| `experiment={name}` | {_heading(CONF / 'experiment' / f'{name}.yaml')} |"
        for name in options("experiment")
    ]
    return "\n".join(rows)


def _heading(file: Path) -> str:
    """Return the first sentence of the comment at the top of a configuration file."""
    comments = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            comments.append(line.lstrip("# ").strip())
    text = " ".join(comments)
    return _escaped(re.split(r"(?<=[^.]\.) ", text)[0])  # an ellipsis ends no sentence


def _keys(file: Path, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield (key, default, comment) of each value of a YAML file, nested keys joined by dots."""
    text = file.read_text(encoding="utf-8")
    if (root := yaml.compose(text)) is not None:
        yield from _walk(root, text.splitlines(), prefix)


def _walk(node: yaml.MappingNode, lines: list[str], prefix: str) -> Iterator[tuple[str, str, str]]:
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        line = value.start_mark.line
        if isinstance(value, yaml.MappingNode) and value.value and not value.flow_style:
            yield from _walk(value, lines, f"{name}.")
        else:
            text = "\n".join(lines)[value.start_mark.index : value.end_mark.index].strip() or "null"
            if isinstance(value, yaml.SequenceNode) and not value.flow_style:  # a list over several lines
                text = f"[{', '.join(str(item.value) for item in value.value)}]"
            last = line if isinstance(value, yaml.ScalarNode) else min(value.end_mark.line, len(lines) - 1)
            yield name, text, _comment(lines, last, key.start_mark.column)


def _comment(lines: list[str], line: int, column: int) -> str:
    """Return the comment at the end of a line and its continuation on the lines below."""
    _, found, comment = lines[line].partition(" #")
    parts = [comment.strip()] if found else []
    for below in lines[line + 1 :] if found else []:
        if not below.lstrip().startswith("#") or len(below) - len(below.lstrip()) <= column:
            break
        parts.append(below.strip().lstrip("#").strip())
    return " ".join(parts)


def _option_docs(file: Path) -> Mapping[str, str]:
    """Return the docstrings of the options of a task, by key."""
    target = (yaml.safe_load(file.read_text(encoding="utf-8")).get("task") or {}).get("_target_")
    return (
        {f"task.{name}": text for name, text in _docs(task_class(target).Options).items()} if target else {}
    )


def _docs(owner: type) -> dict[str, str]:
    """Return the docstring below each field of a dataclass, of its bases too."""
    found: dict[str, str] = {}
    for cls in reversed(owner.__mro__[:-1]):
        documented = ModuleAnalyzer.for_module(cls.__module__).find_attr_docs()
        found |= {
            name: " ".join(text).strip()
            for (where, name), text in documented.items()
            if where == cls.__qualname__
        }
    return found


def _fields(owner: type, where: str) -> list[str]:
    docs = _docs(owner)
    rows = [
        (f"{_plus(where, field.name)}{where}.{field.name}", _default(field), docs.get(field.name, ""))
        for field in dataclasses.fields(owner)
    ]
    return [_table(rows)]


def _plus(where: str, name: str) -> str:
    """Return the + that a key needs on the command line if no composed configuration has it."""
    return "+" if where == "trainer" and name in EXTRA_TRAINER_KEYS else ""


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return str(field.default_factory())
    if field.default is dataclasses.MISSING:
        return "required"
    return (
        "null"
        if field.default is None
        else str(field.default).lower()
        if isinstance(field.default, bool)
        else str(field.default)
    )


def _table(rows: Any, skip: tuple[str, ...] = (), known: Mapping[str, str] | None = None) -> str:
    lines = [
        f"| `{key}` | {f'`{_escaped(default)}`' if default else ''} | {_escaped(comment or (known or {}).get(key, ''))} |"
        for key, default, comment in rows
        if key.split(".")[0] not in skip and not key.endswith(("_target_", "defaults"))
    ]
    return "\n".join(["| key | default | meaning |", "|:--|:--|:--|", *lines]) if lines else ""


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;").replace("*", "\\*")
