"""The tasks of `gpu.py`: corpora that are made up on the spot, toy models on them, and models of a real size."""

import json
from collections.abc import Callable
from pathlib import Path

from magneto.commands.build import prepared_data
from tests.toys.babble import toy_text, write_babble
from tests.toys.captions import caption_settings, write_squares
from tests.toys.images import image_settings, write_patterns
from tests.toys.runs import SHORT, SMALL, folders
from tests.toys.tones import toy_speech, write_manifest_of_tones
from tests.toys.translation import toy_translation, write_translation

TASKS = ("causal_lm", "mlm", "mt", "beit", "asr", "vl")


def _shape(layers: int, width: int, *more: str) -> list[str]:
    return [
        f"backbone.num_layers={layers}", f"backbone.d_model={width}", f"backbone.num_heads={width // 64}",
        f"backbone.ffn_dim={4 * width}", *more,
    ]  # fmt: skip


_IMAGES = ["data.image_size=224", "data.patch_size=16", "data.batch_size=64"]
REAL: dict[str, list[str]] = {
    # GPT-3 medium, the paper's 24 layers: conf/experiment/causal_lm/gpt_medium_24l.yaml
    "causal_lm": [*_shape(24, 1024), "data.block_size=2048", "data.batch_size=8"],
    # BERT base
    "mlm": [*_shape(12, 768), "data.block_size=512", "data.batch_size=32"],
    # a small Transformer of "Attention is all you need"
    "mt": [*_shape(6, 512, "backbone.decoder_layers=6"), "data.batch_tokens=8192"],
    # BEiT base
    "beit": [*_shape(12, 768), *_IMAGES, "task.random_codes=8192"],
    "asr": [*_shape(12, 512), "data.batch_frames=24000"],
    # BEiT-3 base
    "vl": [*_shape(12, 768), *_IMAGES],
    # ViT-B/16
    "image_classification": [*_shape(12, 768), *_IMAGES],
}
"""Overrides that make a toy a model of the size that a GPU is bought for."""
EQUAL = {
    "causal_lm": ["backbone.position=learned"],
    "mlm": ["backbone.position=learned"],
    "beit": ["task.target=random_projection"],  # no tokenizer is trained first
    "asr": ["task.intermediate_losses=0"],
    "vl": ["backbone.drop_path=0"],
    "image_classification": ["backbone.drop_path=0", "task.label_smoothing=0"],
}
"""Overrides that leave out what a peer does not do."""
VOCABULARY = {"causal_lm": 50_304, "mlm": 30_592, "vl": 30_592}
"""Tokens that a real model knows, whatever a made-up corpus has."""


def toy_settings(task: str, folder: Path, large: bool = False) -> list[str]:
    """Return overrides of the real configuration for a toy run of `task`; its corpus is written below `folder`.

    Args:
        task: one of TASKS, or image_classification.
        folder: for corpora, prepared data and runs.
        large: with enough examples, and long ones, for a batch of the models of REAL.
    """
    size = "large" if large else "small"

    def once(kind: str, write: Callable[[Path], object]) -> Path:
        path = folder / f"{kind}-{size}"
        if not path.exists():
            path.mkdir(parents=True)
            write(path)
        return path

    data = folder / "data"
    placed = [*folders(data, folder), *SMALL, *SHORT]
    if task in ("causal_lm", "mlm"):
        text = once("text", lambda path: write_babble(path, (1000, 2000) if large else (40, 100)))
        tokenizer = [] if task == "causal_lm" else ["data.tokenizer={kind: bpe, vocab_size: 60}"]
        return [f"task={task}", "optimizer=adamw", *toy_text(text, data, folder), *tokenizer]
    if task == "mt":
        lines = once("lines", lambda path: write_translation(path, sentences=4 if large else 1))
        return ["optimizer=adamw", *toy_translation(lines, data, folder / "runs"), "task.beam=2"]
    if task == "asr":
        tones = once("tones", lambda path: write_manifest_of_tones(path, (60, 90) if large else (5, 11)))
        return toy_speech(tones / "tones.jsonl", data, folder)
    if task == "vl":
        return ["task=vl", *caption_settings(once("squares", write_squares)), *placed]
    images = once("patterns", write_patterns)
    return [f"task={task}", *image_settings(images), *placed]


def speed_settings(task: str, folder: Path, small: bool) -> list[str]:
    """Return overrides for the model whose training step is timed, of a real size unless `small`."""
    settings = [*toy_settings(task, folder, large=not small), *([] if small else REAL[task])]
    settings += [*EQUAL.get(task, ()), "data.num_workers=0", f"name=speed-{task}"]
    if task in VOCABULARY:
        file = folder / f"tokenizer-{task}.json"
        if not file.exists():
            narrow = prepared_data(settings).info.tokenizer  # type: ignore[attr-defined]
            file.write_text(_widened(narrow, 512 if small else VOCABULARY[task]), encoding="utf-8")
        settings.append(f"data.tokenizer.file={file}")
    return settings


def _widened(tokenizer: str, size: int) -> str:
    """Return a tokenizer.json with `size` tokens, of which the new ones occur in no text."""
    content = json.loads(tokenizer)
    vocabulary = content["model"]["vocab"]
    vocabulary |= {f"unused {index}": index for index in range(max(vocabulary.values()) + 1, size)}
    return json.dumps(content)
