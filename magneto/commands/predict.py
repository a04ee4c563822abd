"""`mode=predict`: apply a trained model to what a user gives."""

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch

from magneto.commands.resolve import ResolvedRun
from magneto.errors import ConfigError, MagnetoError
from magneto.inference.inputs import PredictInput
from magneto.tasks import registry
from magneto.training import devices
from magneto.training.samples import save_images

log = logging.getLogger("magneto")


def predict(run: ResolvedRun) -> dict[str, Any]:
    """Print what the model of `checkpoint` makes of `input` or `prompt`, and write it to `output`.

    Returns:
        `results`: one object for each input.
    """
    config = run.config
    inputs = _inputs(config)
    options = {key: value for key, value in config["predict"].items() if value is not None}
    output = Path(config["output"]) if config["output"] else None
    results: list[dict[str, Any]] = []
    settings = run.parts.trainer
    on_gpu = torch.cuda.is_available() and settings.accelerator in ("auto", "gpu")
    device = "cuda" if on_gpu else "cpu"
    with (
        _growing(output, results) as file,
        devices.compute_settings(settings.threads, settings.matmul_precision),
        devices.prediction_autocast(settings.precision, device),
        torch.inference_mode(),
    ):
        task = registry.load_task(config["checkpoint"]).to(device)
        pieces = shown = ""
        for result in task.predict_stream(inputs, options):
            if "piece" in result:
                # Line breaks wait for what follows them: a text that ends with many leaves no empty screen.
                pieces += result["piece"]
                ready = pieces.rstrip("\n")
                print(ready[len(shown) :], end="", flush=True)
                shown = ready
                continue
            print(result["text"].rstrip("\n").removeprefix(shown), flush=True)
            pieces = shown = ""
            result = {key: value for key, value in result.items() if key != "text"}
            if output is not None and file is not None:
                result = save_images(result, output.parent, f"{output.stem}-{len(results):03d}")
                file.write(json.dumps(result, ensure_ascii=False) + "\n")
                file.flush()
            results.append(result)
    return {"mode": "predict", "results": results}


@contextlib.contextmanager
def _growing(output: Path | None, results: Sequence[Any]) -> Iterator[IO[str] | None]:
    """Open the file `OUTPUT.part`, which becomes OUTPUT at the end; after an error it keeps what it holds.

    Args:
        output: None: there is no file.
        results: what has been written so far.

    Raises:
        ConfigError: OUTPUT or the part of an earlier attempt is there already, or it cannot be written; with the name of
            the part where a mistake ends the work halfway.
    """
    if output is None:
        yield None
        return
    part = output.with_name(f"{output.name}.part")
    for path in (output, part):
        if path.exists():
            raise ConfigError(f"output={output}: {path} exists already. Remove it or choose another file.")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        file = part.open("x", encoding="utf-8", errors="backslashreplace")  # of names of files
    except OSError as error:
        raise ConfigError(
            f"output={output}: cannot be written ({error}). Choose another file or change the permissions."
        ) from error
    try:
        with file:
            yield file
        part.replace(output)
    except BaseException as error:
        if not results:
            part.unlink()
            raise
        kept = f"The results before it ({len(results)}) are kept in {part}."
        if isinstance(error, MagnetoError):
            raise ConfigError(f"{error} {kept}") from error
        log.warning("prediction ended early. %s", kept)
        raise


def _inputs(config: Mapping[str, Any]) -> PredictInput:
    path, prompt = config["input"], config["prompt"]
    if (path is None) == (prompt is None):
        raise ConfigError(
            "mode=predict needs input= (a file or a folder; - is the standard input) or prompt= (the text itself), and "
            f"not both. {'Neither was' if path is None else 'Both were'} given."
        )
    return PredictInput(
        path=path,
        prompts=None if prompt is None else tuple(map(str, prompt if isinstance(prompt, list) else [prompt])),
    )
