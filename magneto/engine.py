"""From a composed configuration to a finished run: `run(cfg)` is all that the command line and the tests call.

    compose -> data.prepare() -> data.spec -> task(backbone, spec, optimizer) -> Trainer.fit -> test -> export -> result.json

A run lives in its folder (magneto/runs.py). The same command resumes it, or says that it has finished.
"""

import contextlib
import json
import logging
import re
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

import lightning as L
import torch
from omegaconf import DictConfig, OmegaConf

from magneto import assembly, callbacks, checkpoint, console, pretrained, summary
from magneto.averaging import LastWeights
from magneto.data.base import UNWRITABLE, DataModule
from magneto.errors import UserError, check_types, from_mapping
from magneto.loggers import RunLogger, is_main_process
from magneto.loggers import Settings as LoggerSettings
from magneto.loggers import check as check_logger
from magneto.runs import ENDED, RESULT_SCHEMA, RunFolder, Start, git_revision, run_name, versions
from magneto.tasks.base import Diverged, PredictInput, TaskModule, save_picture, task_class

log = logging.getLogger("magneto")


def run(cfg: DictConfig, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Do what `cfg.mode` says.

    Args:
        cfg: the composed configuration (conf/config.yaml).
        overrides: the command line's overrides: they name the run.

    Returns:
        the content of result.json and `folder` for mode=train; a small record of what was done for the others.

    Raises:
        UserError: a mistake in the configuration, the data or the files, with its remedy.
    """
    config = cast(
        dict[str, Any], OmegaConf.to_container(cfg, resolve=True, enum_to_str=True, throw_on_missing=True)
    )
    mode = config["mode"]
    check_types(assembly.TrainerTypes, config["trainer"], "trainer")
    console.log_to_screen()
    summary.check(config["summary"])
    if mode in ("test", "predict", "export") and not config["checkpoint"]:
        raise UserError(
            f"mode={mode} needs checkpoint=: a run's folder, its checkpoints/best.ckpt, or an export folder."
        )
    if mode == "predict":
        return _predict(config)
    if mode == "export":
        return _export(config)
    if mode == "test" and config["task"] is None:
        config = assembly.adopt_task(config)
    assembly.check_task(config)
    config = pretrained.adopt(config, overrides)
    with callbacks.cpu_threads(config["trainer"]["threads"]):
        if mode == "prepare":
            _prepare(config)
            return {"mode": mode}
        return _test(config) if mode == "test" else _train(config, overrides)


def launches_processes(cfg: DictConfig) -> bool:
    """Whether Lightning would start further processes for this configuration by repeating the command."""
    devices, strategy = cfg.trainer.devices, str(cfg.trainer.strategy)
    several = devices not in (1, "1", [0]) and (
        torch.cuda.device_count() > 1 or (isinstance(devices, int) and devices > 1)
    )
    return several and "spawn" not in strategy and "fork" not in strategy


# ---------------------------------------------------------------------- modes


def run_folder(config: Mapping[str, Any], overrides: Sequence[str]) -> RunFolder:
    """The folder of the run that `config` describes: `runs_dir/<task>/<name>`."""
    return RunFolder(Path(config["runs_dir"]) / config["task"]["name"] / run_name(config, overrides))


def _train(config: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    check_logger(from_mapping(LoggerSettings, config["logger"], "logger"))
    folder = run_folder(config, overrides)
    main_process = is_main_process()
    start = folder.begin(config, config["resume"]) if main_process else _follow(folder, config["resume"])
    if start.result is not None:
        if main_process:
            status = f"already {start.result['status']}; use resume=never to start over"
            print(summary.summarize(start.result, folder.path, status, full=config["summary"] == "full"))
        return {**start.result, "folder": str(folder.path)}
    with console.log_file(folder.path / "log.txt"):
        log.info("run %s", folder.path)
        try:
            with callbacks.StopSignals() as signals:
                outcome = _fit_and_test(config, folder, start, signals)
        except callbacks.Interrupted:
            log.warning("interrupted before training: repeat the command to resume")
            outcome = {"status": "interrupted", "message": "stopped before training", "metrics": {}}
        except BaseException as error:
            if main_process:
                failure = {"status": "failed", "message": f"{type(error).__name__}: {error}", "metrics": {}}
                with contextlib.suppress(
                    UserError
                ):  # that it cannot be noted matters less than what happened
                    folder.write_result(_identity(config, folder, overrides) | failure)
            if isinstance(error, OSError) and error.errno in UNWRITABLE:
                raise UserError(
                    f"{error.filename or folder.path} cannot be written ({error.strerror}). The last complete checkpoint "
                    "is kept; free space and repeat the command: the run goes on from there."
                ) from error
            raise
    result = _identity(config, folder, overrides) | outcome
    if main_process:
        folder.write_result(result)
        text = summary.summarize(result, folder.path, result["status"], full=config["summary"] == "full")
        print(text)
        with contextlib.suppress(OSError), (folder.path / "log.txt").open("a", encoding="utf-8") as file:
            file.write(text + "\n")
    return {**result, "folder": str(folder.path)}


def _prepare(config: dict[str, Any]) -> tuple[DataModule, dict[str, Any]]:
    """The prepared data, and the configuration with what its task has prepared besides."""
    data = assembly.build_data(config["data"])
    data.prepare()
    options = task_class(config["task"]["_target_"]).prepare(config, data)
    return data, config | {"task": config["task"] | options}


def _fit_and_test(
    config: dict[str, Any], folder: RunFolder, start: Start, signals: callbacks.StopSignals
) -> dict[str, Any]:
    """The run itself; returns what result.json says of its outcome."""
    started = time.time()
    _reset_peak_memory()
    data, config = _prepare(config)
    L.seed_everything(config["seed"], verbose=False)
    task = assembly.build_task(config, data)
    task.samples_file = folder.samples if is_main_process() else None
    step = _resume(task, start, folder) if start.checkpoint else 0
    if not start.checkpoint:
        task.initialize()
        if config["init_from"] is not None:
            log.info("%s", pretrained.initialize_from(task, config["init_from"]))
    loggers = assembly.build_loggers(folder, config, step, task)
    try:
        trainer, monitor, saver = assembly.build_trainer(config, folder, task, loggers, signals)
        console.announce(task, trainer)
        if config["trainer"]["compile"]:
            task.compile_layers()
        status, message, fit_started, fit_seconds = "finished", None, time.time(), None
        metrics: dict[str, float] = {}
        try:
            trainer.fit(task, datamodule=data, ckpt_path=start.checkpoint, weights_only=True)
            fit_seconds = time.time() - fit_started
            metrics = _evaluate_best(folder, trainer, data, task)
        except Diverged as error:
            status, message = "diverged", str(error)
            log.warning("the run has diverged: %s", error)
        except callbacks.Interrupted:
            status, message = "interrupted", f"stopped at step {trainer.global_step}"
            log.warning(
                "interrupted at step %d: repeat the command to resume from the last checkpoint",
                trainer.global_step,
            )
        metrics = dict(task.evaluated) | metrics
        for logger in loggers:
            if isinstance(logger, RunLogger):
                logger.summarize(
                    {
                        # That of the monitored metric has its minimum or maximum too (`keep_best`).
                        **{key: value for key, value in metrics.items() if key != task.monitor},
                        f"best/{task.monitor}": saver.best,
                        "best/step": saver.best_step,
                        "status": status,
                        "minutes": (time.time() - started) / 60,
                        "parameters": task.num_parameters,
                        "peak_memory_gib": _peak_memory() / 2**30,
                    }
                )
    finally:
        assembly.close(loggers)
    throughput = monitor.throughput(trainer.world_size)
    return {
        "status": status,
        "message": message,
        "monitor": {
            "metric": task.monitor,
            "mode": task.mode,
            "best": saver.best,
            "best_step": saver.best_step,
        },
        "headline": _headline(task),
        "example_input": task.example_input,
        "metrics": metrics,
        "steps": trainer.global_step,
        "parameters": task.num_parameters,
        "time": {
            "wall_s": time.time() - started,
            "fit_s": time.time() - fit_started if fit_seconds is None else fit_seconds,
            "data_wait_fraction": throughput.pop("data_wait_fraction"),
        },
        "throughput": throughput,
        "peak_memory_bytes": _peak_memory(),
        "probe": {
            "diverged": status == "diverged",
            "first_loss": monitor.first_loss,
            "smooth_loss": monitor.smooth_loss,
        },
        "data_facts": {
            key: value
            for key, value in task.spec.items()
            if key != "features" and not key.endswith("tokenizer")
        }
        | ({"evaluation": task.evaluation_facts} if task.evaluation_facts else {}),
    }


def _headline(task: TaskModule) -> str:
    return f"test/{task.headline or task.monitor.split('/', 1)[-1]}"


def _test(config: dict[str, Any]) -> dict[str, Any]:
    task = checkpoint.load_task(config["checkpoint"])
    if task.name != config["task"]["name"]:
        raise UserError(
            f"checkpoint {config['checkpoint']} is of task {task.name!r}, the command says task={config['task']['name']}. "
            f"Say task={task.name}."
        )
    data = assembly.build_data(config["data"])
    data.prepare_for(task.spec if task.uses_labels else {**task.spec, "labels": []})
    with console.quiet_libraries():
        trainer = L.Trainer(
            **assembly.trainer_arguments(config), logger=False, enable_checkpointing=False,
            callbacks=[callbacks.ConfigureRun(), *assembly.progress_bar(config)],
        )  # fmt: skip
        trainer.test(task, datamodule=data, verbose=False)
    if is_main_process():
        print(f"{config['checkpoint']} on {config['data']['name']}:")
        print(summary.metric_lines(task.evaluated, headline=_headline(task)))
    return {"mode": "test", "metrics": task.evaluated}


def _predict(config: dict[str, Any]) -> dict[str, Any]:
    inputs = _inputs(config)
    options = {key: value for key, value in config["predict"].items() if value is not None}
    output = Path(config["output"]) if config["output"] else None
    results: list[dict[str, Any]] = []
    with (
        _growing(output, results) as file,
        callbacks.cpu_threads(config["trainer"]["threads"]),
        torch.inference_mode(),
    ):
        task = checkpoint.load_task(config["checkpoint"])
        on_gpu = torch.cuda.is_available() and config["trainer"]["accelerator"] in ("auto", "gpu")
        task.to("cuda" if on_gpu else "cpu")
        for result in task.predict(inputs, options):
            if "piece" in result:
                print(result["piece"], end="", flush=True)
                continue
            print(result["text"], flush=True)
            result = {key: value for key, value in result.items() if key != "text"}
            if output is not None and file is not None:
                result = save_picture(result, output.parent, f"{output.stem}-{len(results):03d}")
                file.write(json.dumps(result, ensure_ascii=False) + "\n")
                file.flush()
            results.append(result)
    return {"mode": "predict", "results": results}


@contextlib.contextmanager
def _growing(output: Path | None, results: Sequence[Any]) -> Iterator[IO[str] | None]:
    """The file `OUTPUT.part`, which becomes OUTPUT at the end; where that is not reached, it keeps what it holds.

    Args:
        output: None: there is no file.
        results: what has been written so far.

    Raises:
        UserError: OUTPUT or the part of an earlier attempt is there already, or it cannot be written; with the name of
            the part where a mistake ends the work halfway.
    """
    if output is None:
        yield None
        return
    part = output.with_name(f"{output.name}.part")
    for path in (output, part):
        if path.exists():
            raise UserError(f"output={output}: {path} exists already. Remove it or choose another file.")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        file = part.open("x", encoding="utf-8", errors="backslashreplace")  # of names of files
    except OSError as error:
        raise UserError(
            f"output={output}: cannot be written ({error}). Choose another file or mend the permissions."
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
        if isinstance(error, UserError):
            raise UserError(f"{error} {kept}") from error
        log.warning("prediction broke off. %s", kept)
        raise


def _inputs(config: Mapping[str, Any]) -> PredictInput:
    path, prompt = config["input"], config["prompt"]
    if (path is None) == (prompt is None):
        raise UserError(
            "mode=predict needs input= (a file or a folder; - is the standard input) or prompt= (the text itself), and "
            f"not both. {'Neither was' if path is None else 'Both were'} given."
        )
    return PredictInput(
        path=path,
        prompts=None if prompt is None else tuple(map(str, prompt if isinstance(prompt, list) else [prompt])),
    )


def _export(config: dict[str, Any]) -> dict[str, Any]:
    source = Path(config["checkpoint"])
    own = source.parent.parent if source.is_file() else source  # the run's folder
    target = Path(config["output"]) if config["output"] else own / "export"
    if target.exists():
        raise UserError(
            f"{target}: exists already. Say with output= in which new folder the export is to be."
        )
    checkpoint.export(checkpoint.load_task(source), target)
    print(f"exported to {target}")
    return {"mode": "export", "folder": str(target)}


# ---------------------------------------------------------------------- resuming and results


def _follow(folder: RunFolder, resume: str) -> Start:
    """The decision of the main process, as a further process of the same run sees it."""
    if resume == "never":
        return Start()
    if resume not in ("auto", "must"):
        return Start(checkpoint=Path(resume))
    if folder.read_result_status() in ENDED:
        return Start(result=folder.read_result())
    return Start(checkpoint=folder.last if folder.last.exists() else None)


def _resume(task: TaskModule, start: Start, folder: RunFolder) -> int:
    """Check the checkpoint that the run goes on from; forget samples after it. Returns its step."""
    assert start.checkpoint is not None
    content = checkpoint.read_checkpoint(start.checkpoint)
    stored = content["hyper_parameters"]
    if stored["task"] != task.hparams["task"]:
        raise UserError(
            f"checkpoint {start.checkpoint} is of another task ({stored['task']}), not {task.hparams['task']}."
        )
    # Where the same files came from may differ, what was made of them may not.
    told = ("corpus", "corpora")
    spec = task.hparams["spec"]
    both = spec.keys() & stored["spec"].keys()  # a newer version may have added one
    changed = sorted(key for key in both.difference(told) if stored["spec"][key] != spec[key])
    if changed:
        raise UserError(
            f"checkpoint {start.checkpoint} was trained on other data than what is prepared now: {', '.join(changed)} "
            "differ. Bring the data back, start anew with resume=never, or take the weights alone with init_from=."
        )
    shapes = {name: tuple(value.shape) for name, value in content["state_dict"].items()}
    own = {name: tuple(value.shape) for name, value in task.state_dict().items()}
    if shapes != own:
        differing = sorted(name for name in shapes.keys() | own.keys() if shapes.get(name) != own.get(name))
        raise UserError(
            f"checkpoint {start.checkpoint} does not fit this model, {len(differing)} tensors differ, such as "
            f"{differing[0]} ({shapes.get(differing[0])} there, {own.get(differing[0])} here)."
        )
    step = int(content["global_step"])
    if step >= stored["total_steps"] and start.checkpoint.resolve().parent != folder.checkpoints.resolve():
        raise UserError(
            f"resume={start.checkpoint}: that run has made all of its {step} steps, and its learning rate has come to its "
            "end. Take its weights with init_from=, or make the whole run anew with more steps."
        )
    if folder.samples.exists() and task.samples_file is not None:
        lines = folder.samples.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        folder.samples.write_text("".join(kept), encoding="utf-8")
    log.info("resuming from %s, step %d", start.checkpoint, step)
    return step


def _evaluate_best(
    folder: RunFolder, trainer: L.Trainer, data: DataModule, task: TaskModule
) -> dict[str, float]:
    """Test metrics of the best checkpoint, or of the average that the run keeps; it is exported too."""
    best = checkpoint.load_task(folder.best if folder.best.exists() else folder.last)
    best.samples_file = task.samples_file
    kept = next((one for one in trainer.callbacks if isinstance(one, LastWeights)), None)  # type: ignore[attr-defined]
    if kept is not None:
        kept.load_average(best)
    trainer.test(best, datamodule=data, verbose=False)
    task.evaluation_facts |= best.evaluation_facts
    if trainer.is_global_zero:
        if kept is not None:
            kept.save_average(best)
        checkpoint.export(best, folder.path / "export")
    return best.evaluated


def _identity(config: Mapping[str, Any], folder: RunFolder, overrides: Sequence[str]) -> dict[str, Any]:
    return {
        "schema": RESULT_SCHEMA,
        "task": config["task"]["name"],
        "name": folder.path.name,
        "backbone": config["backbone"]["placement"],
        "size": config["size_name"],
        "data": config["data"]["name"],
        "seed": config["seed"],
        "overrides": list(overrides),
        "git": git_revision(),
        "versions": versions(),
        "config": dict(config),
    }


def _reset_peak_memory() -> None:
    """Begin to measure anew, so that the runs of a sweep, which share a process, each tell their own."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):  # Linux only; elsewhere the process's maximum is told
        Path("/proc/self/clear_refs").write_text("5")


def _peak_memory() -> int:
    """Bytes: the GPU's, or the largest resident size of this process, since `_reset_peak_memory` where there is /proc."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated())
    with contextlib.suppress(OSError):
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
