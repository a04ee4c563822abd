"""Read models in the format of the Hugging Face hub: the base of the importers, one file a family.

Each has `import_weights(source: str) -> Imported`. `source` is a folder or a name on the hub, and
`magneto.pretrained.init_from` chooses the importer by the `model_type` of its config.json. BEiT-3 is in no such format:
its importer reads a file, and is named by `beit3:FILE`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from magneto.errors import ConfigError

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
ACTIVATIONS = {
    "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu",
}  # fmt: skip


@dataclass(frozen=True)
class Imported:
    """Weights of another library's model, as a task of ours has them.

    Attributes:
        backbone: every field of `BackboneConfig` that decides what the weights mean: placement, architecture, sizes,
            activation, norm_eps, position, max_positions, input_norm; `embedding_scale` is False for models that do
            not multiply their embeddings by sqrt(d_model) (all of these).
        state_dict: tensors under our names: `stem...`, `backbone...`, `head...`.
        tokenizer_json: content of the tokenizer.json that belongs to the weights; None where there is none.
        images: `mean` and `std` of each channel, in units of full brightness, that its images are normalised with; empty
            where it reads none.
    """

    backbone: dict[str, Any]
    state_dict: dict[str, Tensor]
    tokenizer_json: str | None
    images: Mapping[str, list[float]] = field(default_factory=dict)


class Weights:
    """Foreign tensors on their way to our names: taken one by one, so that what is missing or unknown is named.

    Args:
        tensors: by their names.
        source: where they are from, for messages.
        family: what they are to be, for messages.

    Attributes:
        left: those that were not taken yet.
        state: those under our names.
    """

    def __init__(self, tensors: Mapping[str, Tensor], source: Path, family: str) -> None:
        self.left, self.source, self.family = dict(tensors), source, family
        self.state: dict[str, Tensor] = {}

    def take(self, name: str) -> Tensor:
        """Return a tensor, in fp32. Raises `ConfigError` if there is none."""
        if name not in self.left:
            raise ConfigError(f"{self.source}: the weights lack {name}: not a whole {self.family}.")
        return self.left.pop(name).float()

    def move(self, table: Mapping[str, str | Sequence[str]], transposed: bool = False) -> None:
        """Move weight and bias of each layer, our name -> theirs; those of several are put one above the other."""
        for ours, theirs in table.items():
            names = [theirs] if isinstance(theirs, str) else theirs
            for kind in ("weight", "bias"):
                tensor = torch.cat([self.take(f"{name}.{kind}") for name in names])
                self.state[f"{ours}.{kind}"] = (
                    tensor.mT.contiguous() if transposed and tensor.ndim == 2 else tensor
                )

    def require_empty(self, unknown: Callable[[str], bool] = bool) -> None:
        """Raise `ConfigError` if a tensor is left that is `unknown`; all are without it."""
        if names := sorted(filter(unknown, self.left)):
            raise ConfigError(
                f"{self.source}: weights that no {self.family} has: {', '.join(names[:5])} ({len(names)} in all)."
            )


def activation(config: Mapping[str, Any], key: str, default: str, folder: Path) -> str:
    """Return our name of the activation that a config.json holds under `key`. Raises `ConfigError` for one we lack."""
    name = config.get(key, default)
    if name not in ACTIVATIONS:
        raise ConfigError(f"{folder}: {key}={name!r} is not known; known are {', '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[name]


def fetch(source: str) -> Path:
    """Return the folder that holds a Hugging Face model: `source` itself, or a download of the model of that name.

    Args:
        source: a folder, or a name such as `bert-base-uncased`.

    Raises:
        ConfigError: it is no folder, and the hub cannot be reached or does not know the name.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise ConfigError(
            f"hf:{source}: there is no such folder, and downloading needs huggingface_hub "
            "(pip install huggingface_hub)."
        ) from error
    files = ["config.json", "tokenizer.json"]
    best, other = WEIGHT_FILES
    try:
        folder = Path(snapshot_download(source, allow_patterns=[*files, best]))
        if not (folder / best).is_file():  # only then: a repository often holds the same weights in both
            folder = Path(snapshot_download(source, allow_patterns=[*files, other]))
        return folder
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"hf:{source}: there is no such folder, and it cannot be downloaded ({reason}). "
            "Check the name and the network, or set init_from to hf:FOLDER with config.json and model.safetensors."
        ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """Return the config.json of a Hugging Face model.

    Raises:
        ConfigError: it is missing or damaged.
    """
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{folder}: not a Hugging Face model, config.json cannot be read.") from error
    except ValueError as error:
        raise ConfigError(f"{file}: damaged ({error}).") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{file}: damaged (not an object).")
    return config


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of a Hugging Face model, under its own names, in fp32.

    Raises:
        ConfigError: there are none, or they are damaged.
    """
    for name in WEIGHT_FILES:
        file = folder / name
        if not file.is_file():
            continue
        try:
            weights = (
                load_file(file)
                if file.suffix == ".safetensors"
                else torch.load(file, map_location="cpu", weights_only=True)
            )
        except (SafetensorError, Exception) as error:  # torch raises many types for a damaged file
            raise ConfigError(f"{file}: damaged or not a weights file ({error}).") from error
        return {key: value.float() for key, value in weights.items()}
    raise ConfigError(f"{folder}: no weights; looked for {' and '.join(WEIGHT_FILES)}.")


def read_tokenizer(folder: Path) -> str | None:
    """Return the tokenizer.json of a Hugging Face model, if it has one."""
    file = folder / "tokenizer.json"
    return file.read_text(encoding="utf-8") if file.is_file() else None


def require(config: Mapping[str, Any], expected: Mapping[str, Any], source: str) -> None:
    """Raise `ConfigError` unless each key of `expected` is missing from a model's config or has the value that we import."""
    for key, value in expected.items():
        if config.get(key, value) != value:
            raise ConfigError(
                f"{source}: {key}={config[key]!r} cannot be imported, only {key}={value!r} can."
            )
