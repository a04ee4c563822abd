"""Find the classes of some data among those of a model, by their names."""

import unicodedata
from collections.abc import Sequence

from magneto.errors import DataError


def label_indices(labels: Sequence[str], known: Sequence[str]) -> list[int]:
    """Return the index of each label in `known`, which has them all."""
    index = {_composed(label): number for number, label in enumerate(known)}
    return [index[_composed(label)] for label in labels]


def require_known_labels(labels: Sequence[str], known: Sequence[str]) -> None:
    """Raise `DataError` if data has classes that its model, if that has any, does not know."""
    composed = set(map(_composed, known))
    unknown = [label for label in labels if _composed(label) not in composed]
    if known and unknown:
        raise DataError(
            f"This data has classes that the checkpoint's model does not know: {', '.join(unknown[:5])}"
            f"{', ...' if len(unknown) > 5 else ''}; the model has {', '.join(known[:5])}"
            f"{', ...' if len(known) > 5 else ''}. Choose data with its classes, or give its names to the "
            "folders (data.corpora...names)."
        )


def _composed(label: str) -> str:
    """Return a label as it is compared: accents may be written apart, as macOS does."""
    return unicodedata.normalize("NFC", label)
