"""Info of prepared data that a model needs to know: plain values, kept in its checkpoint."""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Self

from magneto.errors import DataError


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """Base of the info of one kind of data.

    Attributes:
        key: hash of all that the prepared folder depends on.
    """

    key: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, fit for a checkpoint's hyper-parameters."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the info that `to_dict` described; keys of other kinds of data are left out.

        Raises:
            DataError: a fact without a default is missing.
        """
        own = {field.name: values[field.name] for field in fields(cls) if field.name in values}
        for field in fields(cls):
            if field.name not in own and field.default is field.default_factory is MISSING:
                raise DataError(f"the info of the data has no {field.name!r}, which {cls.__name__} needs.")
        return cls(**own)
