"""A codebook of images: what BEiT predicts of hidden patches.

    images --encoder--> a vector for each patch --nearest of the codebook--> code --decoder--> images,
                                                                              or what a teacher says of each patch

An autoencoder of pixels (VQ-VAE, arXiv 1711.00937), or with `task.teacher` VQ-KD (BEiT v2, arXiv 2208.06366): the codes
then stand for what a trained model sees in a patch.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchmetrics import MeanMetric, Metric

from magneto.data.image.dataset import ImageInfo
from magneto.data.module import DataModule
from magneto.errors import ConfigError
from magneto.inference.images import tokenize_images
from magneto.inference.inputs import PredictInput
from magneto.nn.vision.vector_quantizer import perplexity, usage
from magneto.nn.vision.visual_tokenizer import VisualTokenizer, VisualTokenizerConfig
from magneto.tasks.images import ImageTask, require_patches
from magneto.training.module import Batch, StepOutput
from magneto.training.samples import Sample
from magneto.training.sharding import gathered
from magneto.visualize.image_grid import side_by_side, tile


@dataclass(frozen=True, kw_only=True)
class VisualTokenizerOptions:
    """Options under `task`, see `conf/task/visual_tokenizer.yaml`; see `VisualTokenizerConfig` for the sizes."""

    codes: int = 512
    code_width: int = 16
    width: int = 64
    blocks: int = 2
    decay: float = 0.99
    normalize: bool = True
    revive_below: float = 0.05
    commitment: Annotated[float, Ge(0)] = 0.25
    """Weight of the encoder's distance to its codes."""
    teacher: str | None = None
    """VQ-KD: name of a timm model whose features are learnt, one vector for each patch; the backbone is the encoder then."""
    teacher_file: str | None = None
    """Its weights; None: timm downloads them."""
    teacher_width: int | None = None
    """Of its features; found by `prepare`."""
    decoder_layers: int = 1

    def __post_init__(self) -> None:
        if self.teacher is None and (self.teacher_file is not None or self.teacher_width is not None):
            raise ConfigError(
                "task.teacher_file and task.teacher_width need task.teacher, the name of a timm model."
            )


class CodeScores(Metric):
    """Perplexity of the codes of a whole evaluation, and the share of the codebook that occurs."""

    counts: Tensor

    def __init__(self, codes: int) -> None:
        super().__init__()
        self.codes = codes
        self.add_state("counts", torch.zeros(codes), dist_reduce_fx="sum")

    def update(self, codes: Tensor) -> None:
        """Count codes of any shape, int64."""
        self.counts += torch.bincount(codes.flatten(), minlength=self.codes)

    def compute(self) -> dict[str, Tensor]:
        """`perplexity` and `usage`."""
        return {"perplexity": perplexity(self.counts), "usage": usage(self.counts)}


class VisualTokenization(ImageTask):
    """Reconstruction and commitment. Batches are those of `magneto.data.image.module`."""

    name = "visual_tokenizer"
    example_input = "input=image.png"
    monitor = "val/loss"
    Options = VisualTokenizerOptions
    uses_labels = False
    options: VisualTokenizerOptions

    @classmethod
    def accumulates(cls, options: VisualTokenizerOptions) -> bool:
        """Not the codebook, which moves with each batch."""
        return False

    @classmethod
    def prepare(cls, config: Mapping[str, Any], data: DataModule) -> dict[str, Any]:
        """Return the width of the teacher's features."""
        task = config["task"]
        if task.get("teacher") is None:
            return {}
        return {"teacher_width": int(_teacher(task["teacher"], task.get("teacher_file")).num_features)}

    def build(self) -> None:
        require_patches(self.name, self.info)
        options = self.options
        self.tokenizer = VisualTokenizer(
            VisualTokenizerConfig(
                image_size=self.info.image_size, patch_size=self.info.patch_size, channels=self.info.channels,
                codes=options.codes, code_width=options.code_width, width=options.width, blocks=options.blocks,
                decay=options.decay, normalize=options.normalize, revive_below=options.revive_below,
                teacher_width=options.teacher_width, decoder_layers=options.decoder_layers,
                backbone=None if options.teacher is None else self.config,
            )
        )  # fmt: skip
        self.scores["reconstruction"] = MeanMetric()
        self.scores["codes"] = CodeScores(options.codes)
        # A given model, and no part of this one: neither trained nor saved with it.
        self._given: list[nn.Module] = []
        self._flops: float | None = None

    def _target(self, images: Tensor) -> Tensor:
        """Return what is to be predicted of (B, C, S, S): themselves, or the teacher's (B, N, teacher_width)."""
        if self.options.teacher is None:
            return images
        if not self._given:
            self._given.append(_teacher(self.options.teacher, self.options.teacher_file).to(images.device))
        teacher: Any = self._given[0]
        with torch.no_grad():
            seen = teacher.forward_features(_for_teacher(teacher, images, self.info))
        features = _of_patches(teacher, seen)
        patches = self.tokenizer.config.grid**2
        if features.shape[1] != patches:
            raise ConfigError(
                f"task.teacher={self.options.teacher}: sees {features.shape[1]} patches in an image, and data.patch_size="
                f"{self.info.patch_size} makes {patches} of it. Choose a teacher with as many, or another patch_size."
            )
        return features

    def step(self, batch: Batch) -> StepOutput:
        """Loss summed over the images."""
        images = batch["image"]
        output, quantized = self.tokenizer(images)
        reconstruction = self.tokenizer.reconstruction_loss(output, self._target(images))
        weight = torch.full((), float(len(images)), device=images.device)
        loss = reconstruction + self.options.commitment * quantized.commitment_loss
        return StepOutput(
            loss * weight,
            weight,
            outputs=(output.detach(), quantized.codes, reconstruction.detach()),
            logs={
                "reconstruction": reconstruction.detach() * weight,
                "perplexity": quantized.perplexity * weight,
                "usage": quantized.usage * weight,
            },
        )

    def evaluate(self, batch: Batch, output: StepOutput) -> None:
        _, codes, reconstruction = output.outputs
        self.scores["reconstruction"].update(reconstruction, output.weight)
        self.scores["codes"].update(codes)

    def samples(self, batch: Batch, output: StepOutput, evaluated: None) -> list[Sample]:
        """Return each batch's first images beside what their codes make of them; of VQ-KD the codes alone."""
        first = slice(self.num_samples)
        decoded, codes = (part[first] for part in output.outputs[:2])
        panels = self.panels(batch["image"][first], decoded, codes)
        return [
            {"id": f"{int(id):08d}", "kind": "reconstruction", "image": panel}
            for id, panel in zip(batch["id"][first], panels, strict=True)
        ]

    def panels(self, images: Tensor, decoded: Tensor, codes: Tensor) -> Iterator[np.ndarray]:
        """Yield (H, W, 3) uint8 of each image: itself, the reconstruction where there is one, the codes as colours."""
        shown = [images] if self.options.teacher else [images, decoded]
        pixels = [self.info.pixels(part).cpu() for part in shown]
        grid, patch = self.tokenizer.config.grid, self.tokenizer.config.patch_size
        colours = np.random.default_rng(0).integers(0, 256, (self.options.codes, 3), np.uint8)
        for row in zip(*pixels, codes.cpu(), strict=True):
            painted = colours[row[-1].view(grid, grid).numpy()].repeat(patch, axis=0).repeat(patch, axis=1)
            yield side_by_side([*map(tile, row[:-1]), tile(painted.transpose(2, 0, 1))])

    def throughput_counts(self, batch: Batch) -> dict[str, float]:
        """Images alone: a tokenizer of convolutions reads no tokens."""
        return {"examples": float(len(batch["id"]))}

    def flops(self, batch: Batch) -> float:
        """Encoder and decoder, forward and backward, counted on one image."""
        if self._flops is None:
            image = batch["image"][:1].to(self.device)
            with gathered(self), torch.no_grad(), FlopCounterMode(display=False) as counter:
                self.tokenizer.decoder(self.tokenizer.encode(image))
            self._flops = 3.0 * counter.get_total_flops()
        return self._flops * len(batch["id"])

    def predictions(self, inputs: PredictInput, options: Any) -> Iterator[dict[str, Any]]:
        return tokenize_images(self, inputs)


def _teacher(name: str, file: str | None) -> Any:
    """Return a timm model in evaluation mode, without gradients.

    Raises:
        ConfigError: timm is missing, or knows no such model, or its weights are not available.
    """
    try:
        import timm
    except ImportError as error:
        raise ConfigError("task.teacher needs timm: pip install timm.") from error
    # As timm loads what it downloads: a classifier in the file is left out.
    source = {"file": file, "custom_load": Path(file).suffix in (".npz", ".npy")} if file else None
    models: list[Any] = []
    try:
        for seed in (0, 1) if file else (0,):
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)  # of the CPU alone
                models.append(
                    timm.create_model(name, pretrained=True, num_classes=0, pretrained_cfg_overlay=source)
                )
    except Exception as error:  # of several kinds: unknown name, no network, a file that does not fit
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"task.teacher={name}: cannot be made ({reason}). Name a model of timm and, without a network, its weights "
            "in task.teacher_file."
        ) from error
    # timm ignores what the file lacks: that stays random, and so differs from seed to seed.
    pairs = zip(models[0].named_parameters(), models[-1].parameters(), strict=True)
    if random := [key for (key, one), other in pairs if not torch.equal(one, other)]:
        raise ConfigError(
            f"task.teacher_file={file}: lacks {len(random)} tensors of task.teacher={name}, such as {random[0]}. Give "
            "the weights of that model."
        )
    return models[0].eval().requires_grad_(False)


def _of_patches(teacher: Any, features: Any) -> Tensor:
    """Reorder what `forward_features` returns: (B, prefix + N, C), (B, C, H, W) or (B, H, W, C) -> (B, N, C).

    Raises:
        ConfigError: it gives something else.
    """
    if not isinstance(features, Tensor) or features.ndim not in (3, 4):
        name = teacher.pretrained_cfg.get("architecture")
        raise ConfigError(
            f"task.teacher={name}: its features do not stand for patches. Choose another model."
        )
    if features.ndim == 4:
        channels_last = getattr(teacher, "output_fmt", "NCHW") == "NHWC"
        return features.flatten(1, 2) if channels_last else features.flatten(2).mT
    return features[:, getattr(teacher, "num_prefix_tokens", 0) :]


def _for_teacher(teacher: Any, images: Tensor, info: ImageInfo) -> Tensor:
    """Images normalised as we do, (B, C, S, S) -> (B, 3, T, T) as the teacher was trained on."""
    config = teacher.pretrained_cfg
    mean, std = (torch.tensor(config[key], device=images.device).view(1, 3, 1, 1) for key in ("mean", "std"))
    ours = [torch.tensor(values, device=images.device).view(1, -1, 1, 1) for values in (info.mean, info.std)]
    pixels = (images * ours[1] + ours[0]).expand(-1, 3, -1, -1)
    size = config["input_size"][-2:]
    if pixels.shape[2:] != tuple(size):
        pixels = nn.functional.interpolate(pixels, size=size, mode="bicubic", antialias=True).clamp(0, 1)
    return (pixels - mean) / std
