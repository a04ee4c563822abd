"""Check plain values against the types of a dataclass or a constructor."""

import dataclasses
import inspect
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

from magneto.config.renamed import hint
from magneto.errors import ConfigError, MagnetoError, nearest

T = TypeVar("T")


def from_mapping(cls: type[T], values: Mapping[str, Any], where: str, require: Sequence[str] = ()) -> T:
    """Build the dataclass `cls` from plain values, strictly.

    Args:
        cls: a dataclass.
        values: its fields by name; that of a field which is a dataclass itself, or a dict of them, may be a mapping, too.
        where: the configuration key that holds `values`, for the messages.
        require: fields that must be given although they have a default.

    Raises:
        ConfigError: a key that is no field (the nearest one is named, or all), a missing one, a value of another type than
            the field's, or one that `cls` refuses.
    """
    assert dataclasses.is_dataclass(cls)
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}={values}: must hold keys and values, {where}={{...}}.")
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    check_keys(values, fields, where)
    for name, field in fields.items():
        without_default = field.default is field.default_factory is dataclasses.MISSING
        if name not in values and (without_default or name in require):
            raise ConfigError(f"{where}.{name}: this key is missing. Set {where}.{name} to a value.")
    hints = get_type_hints(cls)
    built = dict(values)
    for name, value in values.items():
        parts = [one for one in (hints[name], *get_args(hints[name])) if dataclasses.is_dataclass(one)]
        if parts and isinstance(value, Mapping):
            part, place = cast(type[Any], parts[0]), f"{where}.{name}"
            built[name] = (
                {key: from_mapping(part, one, f"{place}.{key}") for key, one in value.items()}
                if get_origin(hints[name]) is dict
                else from_mapping(part, value, place)
            )
    check_types(cls, built, where)
    try:
        return cls(**built)
    except MagnetoError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from error


def check_keys(given: Iterable[str], known: Collection[str], where: str) -> None:
    """Raise `ConfigError` for a key under `where` that is not `known`; it names the nearest one, or all."""
    for key in given:
        if key not in known:
            near = hint(f"{where}.{key}", (f"{where}.{name}" for name in known))
            every = f" Choose from {', '.join(sorted(known))}."
            raise ConfigError(f"{where}.{key}: there is no such key.{near or every}")


def check_types(owner: Callable[..., Any], values: Mapping[str, Any], where: str = "") -> None:
    """Raise `ConfigError`, naming the key, for a value that is not of the type or in the range that `owner` declares.

    Args:
        owner: a class or a function: the annotations of its parameters are what is declared.
        values: arguments by name; those without annotation are skipped.
        where: the configuration key that holds `values`, for the messages.
    """
    # Imported late: it takes a tenth of a second, which --help and a mistyped key need not wait for.
    from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError

    parameters = inspect.signature(owner, eval_str=True).parameters
    for key in values.keys() & parameters.keys():
        if parameters[key].annotation is parameters[key].empty:
            continue
        try:  # as JSON, which has lists only: a tuple may be given as one
            TypeAdapter(parameters[key].annotation).validate_json(json.dumps(values[key]), strict=True)
        except (PydanticSchemaGenerationError, TypeError):  # a class, or an object, that is no plain value
            continue
        except ValidationError as error:
            errors = error.errors()
            if errors[0]["type"] != "json_invalid":  # a text that is no UTF-8: its owner can say what for
                name = f"{where}.{key}" if where else key
                raise ConfigError(f"{name}={values[key]}: {_reason(values[key], errors)}") from error


def _reason(value: Any, errors: Sequence[Mapping[str, Any]]) -> str:
    if len(errors) == 1 and errors[0]["type"] in ("literal_error", "enum"):
        choices = re.findall(r"'([^']*)'", errors[0]["ctx"]["expected"])
        return f"must be one of {', '.join(choices)}.{nearest(value, choices)}"
    messages = ["too few values" if item["type"] == "missing" else item["msg"] for item in errors]
    reasons = " or ".join(dict.fromkeys(messages)).replace("array", "list")
    reasons = reasons.replace(" or Input should be", " or")
    return f"{reasons[0].lower()}{reasons[1:]}."
