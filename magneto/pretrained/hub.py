"""Read models in the format of the Hugging Face hub: the base of the importers, one file a family.

Each has `import_weights(source: str) -> Imported`. `source` is a folder or a name on the hub, and
`magneto.pretrained.init_from` chooses the importer by the `model_type` of its config.json. BEiT-3 is in no such format:
its importer reads a file, and is named by `beit3:FILE`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from magneto.errors import ConfigError

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


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


def fetch(source: str, extra: Sequence[str] = ()) -> Path:
    """Return the folder that holds a Hugging Face model: `source` itself, or a download of the model of that name.

    Args:
        source: a folder, or a name such as `bert-base-uncased`.
        extra: further files to download.

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
    files = ["config.json", "tokenizer.json", *extra]
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
    """Raise ConfigError unless a model is the variant that an importer can express.

    Args:
        config: of the model.
        expected: keys and the only value that we can import; a missing key counts as that value.
        source: for the message.

    Raises:
        ConfigError: a key has another value.
    """
    for key, value in expected.items():
        if config.get(key, value) != value:
            raise ConfigError(
                f"{source}: {key}={config[key]!r} cannot be imported, only {key}={value!r} can."
            )
