"""Values of a wrong type are told by their key."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, Gt, Lt

from magneto.config.validate import check_types, from_mapping
from magneto.errors import MagnetoError


@dataclass(frozen=True)
class Options:
    """Of each kind that options have."""

    count: int = 1
    share: float = 0.5
    on: bool = False
    layers: Sequence[int] | None = None
    more: Mapping[str, Any] | None = None
    betas: tuple[float, float] = (0.9, 0.98)
    kind: Literal["big", "small"] | None = None
    rate: Annotated[float, Gt(0)] = 1.0
    length: Annotated[int, Ge(0)] | Annotated[float, Ge(0), Lt(1)] = 0


def test_values_of_the_right_type_are_kept() -> None:
    for values in (
        {"share": 1},
        {"layers": (1,)},
        {"layers": None, "more": {"a": 1}, "on": True},
        {"betas": [0.9, 1]},
    ):
        made = from_mapping(Options, values, "task")
        assert all(getattr(made, name) is value for name, value in values.items())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 2.5}, "task.count=2.5: input should be a valid integer"),
        ({"count": True}, "task.count=True: input should be a valid integer"),
        ({"share": "much"}, "task.share=much: input should be a valid number"),
        ({"on": 1}, "task.on=1: input should be a valid boolean"),
        ({"layers": 1}, "task.layers=1: input should be"),
        ({"layers": [1, "two"]}, "task.layers=.*: input should be a valid integer"),
        ({"more": 0.4}, "task.more=0.4: input should be"),
        ({"betas": [0.9]}, r"task.betas=\[0.9\]: too few values"),
        ({"kind": "smal"}, "task.kind=smal: must be one of big, small. Did you mean 'small'?"),
        ({"rate": 0}, "task.rate=0: input should be greater than 0"),
        ({"length": 1.5}, "task.length=1.5: input should be a valid integer or less than 1"),
        ({"cuont": 1}, "Did you mean 'task.count'"),
        (0.5, "task=0.5: must hold keys and values"),
        (None, "task=None: must hold keys and values"),
    ],
)
def test_values_of_a_wrong_type_are_refused(values: Any, message: str) -> None:
    with pytest.raises(MagnetoError, match=message):
        from_mapping(Options, values, "task")


def test_no_annotation_is_no_check() -> None:
    check_types(lambda count: count, {"count": "many"}, "task")
