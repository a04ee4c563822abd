"""The contract of a task: a stem, a backbone, a head, a loss, and what it measures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import nn

from magneto.config.validate import from_mapping
from magneto.data.module import DataModule
from magneto.errors import ConfigError
from magneto.inference.inputs import PredictInput
from magneto.nn.config import BackboneConfig
from magneto.nn.init import Linear
from magneto.nn.transformer import Stack
from magneto.training.module import TrainingModule


@dataclass(frozen=True, kw_only=True)
class NoPredictOptions:
    """The options of a task that has none."""


class Task(TrainingModule):
    """Base class of the tasks: everything but the model, its loss and its measures.

    A task implements `build`, `step` and `flops`, and overrides what else it needs. Its hooks, in the order in which they
    are called:

    ==================  ============================  ===================================  ==============
    hook                called                        returns                              default
    ==================  ============================  ===================================  ==============
    prepare (class)     once the data is prepared     options to add to config["task"]     {}
    shape_from (class)  before the model is built     backbone fields from the data        {}
    build               by the constructor            None; makes modules and self.scores  required
    initialize          a fresh run, before training  None; reads given weights            nothing
    step                every batch                   StepOutput                           required
    throughput_counts   every batch of training       examples, tokens or audio_seconds    examples
    flops               every batch of training       FLOPs of its forward and backward    required
                                                      pass, padding included
    evaluate            evaluation, after step        what samples needs                   None
    samples             evaluation, after evaluate    examples to look at, each with id    []
    overview            end of an evaluation          examples of the whole evaluation     []
    after_evaluation    its metrics are logged        None; writes files of its own        nothing
    recording           for loggers that play sound   the audio file of a sample           None
    tokenizer_json      export                        content of tokenizer.json            info.tokenizer
    predictions         mode=predict and predict()    results, as they come                ConfigError
    ==================  ============================  ===================================  ==============

    Args:
        backbone: fields of `BackboneConfig`.
        info: the info of the prepared data (vocabulary, feature width), as plain values.
        optimizer: fields of `OptimizerConfig`.
        scheduler: fields of `SchedulerConfig`.
        total_steps: optimizer steps of the whole run: the length of the schedule.
        num_samples: how many examples to show at each evaluation.
        options: fields of the task's own `Options`.

    Raises:
        ConfigError: an unknown or impossible value in any of them, naming the key and the remedy.
    """

    name: ClassVar[str]
    Options: ClassVar[type]
    """Dataclass of the keys under `task`."""
    Data: ClassVar[type[DataModule]]
    """The kind of data that it learns from."""
    PredictOptions: ClassVar[type] = NoPredictOptions
    """Dataclass of the keys under `predict`."""
    requires: ClassVar[Mapping[str, str]] = {}
    """Fields of the backbone that must have these values."""
    reads: ClassVar[Literal["text", "file"]] = "text"
    """What a string means to `predict()`: the text itself, or the path of an image or a recording."""
    primary_metric: ClassVar[str | None] = None
    """The metric that runs are compared by, without its split, where it is not the monitored one."""
    example_input: str | None = None
    """Arguments of `mode=predict`, for the command that is printed at the end of a run; None: it is not offered."""
    uses_labels: ClassVar[bool] = True
    """Whether the classes of the data, if it has any, are learnt: other data must have the same ones then."""

    def __init__(
        self,
        *,
        backbone: Mapping[str, Any],
        info: Mapping[str, Any],
        optimizer: Mapping[str, Any],
        scheduler: Mapping[str, Any],
        total_steps: int,
        num_samples: int = 8,
        **options: Any,
    ) -> None:
        super().__init__(
            optimizer=optimizer, scheduler=scheduler, total_steps=total_steps, num_samples=num_samples
        )
        backbone = {**backbone, **self.shape_from(backbone, info)}
        self.config = BackboneConfig.from_dict(backbone)
        self.info: Any = self.Data.Info.from_dict(info)
        self.options: Any = from_mapping(self.Options, options, "task")
        self.save_hyperparameters(
            {
                "task": f"{type(self).__module__}.{type(self).__qualname__}",
                "backbone": backbone,
                "info": dict(info),
                "optimizer": dict(optimizer),
                "scheduler": dict(scheduler),
                "total_steps": total_steps,
                "num_samples": num_samples,
                **options,
            },
            logger=False,  # loggers get the run's configuration; a tokenizer of megabytes is nothing to look at
        )
        for key, value in self.requires.items():
            if (given := getattr(self.config, key)) != value:
                raise ConfigError(
                    f"backbone.{key}={given}: task={self.name} needs {key}={value}. Set backbone.{key} to {value}."
                )
        self.build()
        self.register_scores()

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: str | Path, map_location: Any = None) -> Self:  # type: ignore[override]
        """Return the task with its weights; `magneto.tasks.registry.load_task` does the same for any task.

        Args:
            checkpoint_path: a run's folder, a checkpoint or an export folder.
            map_location: the device to put it on; None: the CPU.

        Raises:
            ConfigError: there is no such model, it is damaged, or it is of another task.
        """
        from magneto.tasks.registry import load_task

        task = load_task(checkpoint_path)
        if not isinstance(task, cls):
            raise ConfigError(
                f"{checkpoint_path} is of task={task.name}, not of {cls.__name__}. Use {type(task).__name__}, or "
                "magneto.tasks.registry.load_task for any task."
            )
        return task if map_location is None else task.to(map_location)

    # ------------------------------------------------------------------ what a task implements

    def build(self) -> None:
        """Make stem, stack and head, and put the metrics of the evaluation into `self.scores`."""
        raise NotImplementedError

    @classmethod
    def shape_from(cls, backbone: Mapping[str, Any], info: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of the backbone that follow from the data, such as the patches on a side of an image."""
        return {}

    @classmethod
    def accumulates(cls, options: Any) -> bool:
        """Return whether the losses of parts of a batch add up to that of the whole; not where its examples are compared."""
        return True

    @classmethod
    def prepare(cls, config: Mapping[str, Any], data: DataModule) -> dict[str, Any]:
        """Return options that need work beyond the data's own, such as a model whose outputs are this task's targets.

        Called by every process once the data is prepared. Use `prepare_once` for what takes long.

        Args:
            config: the whole resolved configuration.
            data: of this task, prepared.

        Returns:
            What to put into `config["task"]`, plain values.
        """
        return {}

    def initialize(self) -> None:
        """Read given weights, before the training of a fresh run; a resumed one finds them in its checkpoint."""

    def tokenizer_json(self) -> str | None:
        """Return the tokenizer as a `tokenizer.json`, for the export; None where the task has none."""
        tokenizer = getattr(self.info, "tokenizer", None)
        return tokenizer if isinstance(tokenizer, str) else None

    def predictions(self, inputs: PredictInput, options: Any) -> Iterator[dict[str, Any]]:
        """Apply the model to what a user gives: plain results.

        A result with `text` is printed as a line, and its other keys are kept for `output=`. One that has `piece` alone
        is printed at once and without a line break, for what comes bit by bit; a result follows whose `text` begins with
        these pieces. A line that the model cannot take gets an empty answer, see `PredictInput.unanswered`.

        Args:
            inputs: what to apply it to.
            options: an instance of `PredictOptions`.
        """
        raise ConfigError(f"task {self.name}: mode=predict is not offered.")

    # ------------------------------------------------------------------ use

    def predict_stream(self, inputs: PredictInput, options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the results of `predictions` as they come, as `mode=predict` prints them.

        Args:
            inputs: what to apply the model to.
            options: what the user set in the group `predict`.

        Raises:
            ConfigError: an option that the task does not have, or an impossible value.
        """
        if options and not fields(self.PredictOptions):
            raise ConfigError(f"predict.{next(iter(options))}: task={self.name} has no such option.")
        yield from self.predictions(inputs, from_mapping(self.PredictOptions, options, "predict"))

    @torch.inference_mode()
    def predict(self, inputs: Any, **options: Any) -> dict[str, Any] | list[dict[str, Any]]:
        """Apply the model to `inputs`.

        Args:
            inputs: a text, or a `Path` of a file with a text a line, for tasks that read texts; for others an image or a
                recording: the path of a file or a folder, a PIL image, an array (`uint8` pixels (H, W) or (H, W, 3), or
                a waveform (samples,) at the sample rate of the model). Or a list of them.
            options: what `predict.*` takes on the command line.

        Returns:
            A dict for a single input that has a single result; a list of dicts for a list, a folder or a file of texts.

        Raises:
            MagnetoError: an option that the task does not have, or an input that cannot be read.
        """
        given = PredictInput.of(inputs, texts=self.reads == "text")
        training = self.training
        try:
            results = [
                {key: value for key, value in result.items() if key != "text"}
                for result in self.eval().predict_stream(given, options)
                if "piece" not in result
            ]
        finally:
            self.train(training)
        return results[0] if given.single and len(results) == 1 else results

    # ------------------------------------------------------------------ the model

    def named_layers(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the layers of the backbone, as the stability probe names them: `layer_00`, or `encoder/layer_00`."""
        for path, stack in self._stacks():
            side = next((part for part in path.split(".") if part in ("encoder", "decoder")), None)
            prefix = f"{side}/" if side else ""
            yield from ((f"{prefix}layer_{index:02d}", layer) for index, layer in enumerate(stack.layers))

    def _stacks(self) -> list[tuple[str, Stack]]:
        """Return the stacks of the backbone by their paths, without those of a model that only gives targets."""
        return [
            (path, module)
            for path, module in self.named_modules()
            if isinstance(module, Stack) and not path.startswith("target.")
        ]

    def layer_modules(self) -> list[nn.Module]:
        """Return what makes the input of the layers (stem, absolute positions), and the layers, for `optimizer.layer_decay`.

        Relative positions belong to no layer; they have the head's learning rate, as in BEiT's fine-tuning.

        Raises:
            ConfigError: the task has more than one stack, so that its layers have no single order.
        """
        stacks = self._stacks()
        if len(stacks) != 1:
            raise ConfigError(
                f"optimizer.layer_decay={self.optimizer_config.layer_decay}: task={self.name} has {len(stacks)} stacks, "
                "whose layers have no single order. Set it to null."
            )
        stack = stacks[0][1]
        stem = [module for name, module in self.named_children() if name == "stem"]
        below = [module for module in (*stem, stack.position, stack.input_norm) if module is not None]
        return [nn.ModuleList(below), *stack.layers]

    def compile_layers(self, mode: bool | str = True) -> None:
        """Compile each layer in place: parameter names stay as they are, and equal layers share one compilation.

        Args:
            mode: of `torch.compile`; True is its default.
        """
        # A multiway layer has a graph for each kind of input and of length; beyond the limit it would run uncompiled.
        torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
        for _, layer in self.named_layers():
            layer.compile(mode=None if mode is True else mode)

    @property
    def num_parameters(self) -> int:
        """Trainable parameters."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    @property
    def output_gain(self) -> float | None:
        """Xavier gain of the first feed-forward's output weights, as the placement has it; None without a feed-forward."""
        return next((m.gain for m in self.modules() if isinstance(m, Linear) and m.roles == ("fc2",)), None)

    def require_positions(self, length: int, setting: str, remedy: str, table: bool = False) -> None:
        """Check that the positions of the backbone reach the longest sequence of the data.

        Args:
            length: tokens of the longest sequence, special tokens and padding included.
            setting: what in the data's configuration decides it, with its value.
            remedy: what to set it to.
            table: whether the stem has learned positions of its own, `max_positions` of them.

        Raises:
            ConfigError: they do not.
        """
        reach = self.config.max_positions
        limited = table or self.config.position in ("learned", "sinusoidal", "rotary")
        if limited and length > reach:
            raise ConfigError(
                f"{setting} is more than backbone.max_positions={reach} (position={self.config.position}): {remedy}, or "
                "raise backbone.max_positions, unless it comes with init_from."
            )
