"""From a composed configuration to a finished run: `run(cfg)` is all that the command line and the tests call.

    compose -> data.prepare() -> data.spec -> task(backbone, spec, optimizer) -> Trainer.fit -> test -> export -> result.json

A run lives in its folder (magneto/training/run_folder.py). The same command resumes it, or says that it has finished.
"""

import contextlib
import ctypes
import errno
import gc
import json
import logging
import os
import re
import resource
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import lightning as L
import torch
from omegaconf import DictConfig

from magneto.commands import build, console, preflight, summary
from magneto.config import schema
from magneto.data.module import UNWRITABLE, DataModule, fingerprint
from magneto.errors import UserError
from magneto.pretrained import init_from
from magneto.tasks.base import Diverged, PredictInput, TaskModule, save_picture, task_class
from magneto.training import checkpoint_io, checkpointing
from magneto.training.averaging import LastWeights
from magneto.training.loggers import RunLogger, is_main_process
from magneto.training.run_folder import (
    ENDED,
    RESULT_SCHEMA,
    RunFolder,
    Start,
    compared,
    finite,
    git_revision,
    run_folder,
    slug,
    versions,
    write_atomically,
)

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
    config = schema.to_dict(cfg)
    mode = config["mode"]
    console.log_to_screen()
    with console.quiet_libraries():
        preflight.check(config)
    if mode == "predict":
        return _predict(config)
    if mode == "export":
        return _export(config)
    if mode == "test" and config["task"] is None:
        config = build.adopt_task(config)
    build.check_task(config)
    config = init_from.adopt(config, overrides)
    with checkpointing.cpu_threads(config["trainer"]["threads"]):
        if mode == "prepare":
            _prepare(config)
            return {"mode": mode}
        return _test(config) if mode == "test" else _train(config, overrides)


# ---------------------------------------------------------------------- modes


def _train(config: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    folder = run_folder(config, overrides)
    start = folder.look(config, config["resume"]) if is_main_process() else _follow(folder, config["resume"])
    if start.result is not None:
        return _already_ended(folder, start.result, config)
    identity = _identity(config, folder, overrides)
    _reset_peak_memory()
    usage = checkpointing.Usage(_peak_memory)
    with contextlib.ExitStack() as held, checkpointing.StopSignals() as signals:
        keep_log = held.enter_context(console.log_file())
        opened = False
        try:
            # A mistake in the configuration or the data, which is found here, leaves no run behind.
            data, config = _prepare(config)
            L.seed_everything(config["seed"], verbose=False)
            task = build.build_task(config, data)
            if is_main_process():
                held.enter_context(folder.lock())
                start = folder.begin(identity["config"], config["resume"])
                if start.result is not None:
                    return _already_ended(folder, start.result, config)
                opened = True
                keep_log(folder.path / "log.txt")
            else:
                start = _follow(folder, config["resume"])
            log.info("run %s", folder.path)
            outcome = _fit_and_test(config, folder, start, signals, data, task, usage)
            peak = usage.peak_memory
            del (
                data,
                task,
                usage,
            )  # each of them holds the weights (Lightning gives callbacks the task's `log`)
        except checkpointing.Interrupted:
            log.warning("interrupted before training: repeat the command to resume")
            outcome = {"status": "interrupted", "message": "stopped before training", "metrics": {}}
            peak = _peak_memory()
        except BaseException as error:
            if opened:
                failure = {"status": "failed", "message": f"{type(error).__name__}: {error}", "metrics": {}}
                with contextlib.suppress(
                    UserError
                ):  # that it cannot be noted matters less than what happened
                    folder.write_result(identity | failure)
            told = _told(error, folder)
            if told is None:
                raise
            raise told from error
        signals.defer()  # what is done is written down
        result = identity | outcome | _memory(peak)
        if opened:
            folder.write_result(result)
            text = summary.summarize(result, folder.path, result["status"], full=config["summary"] == "full")
            print(text)
            with contextlib.suppress(OSError), (folder.path / "log.txt").open("a", encoding="utf-8") as file:
                file.write(text + "\n")
        if result["status"] == "interrupted" and signals.requeue:
            _requeue()
    return {**result, "folder": str(folder.path)}


def _already_ended(folder: RunFolder, result: dict[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    if is_main_process():
        status = f"already {result['status']}; use resume=never to start over"
        print(summary.summarize(result, folder.path, status, full=config["summary"] == "full"))
    return {**result, "folder": str(folder.path)}


def _told(error: BaseException, folder: RunFolder) -> UserError | None:
    """Return the message for an error whose cause lies outside the program; None for any other error."""
    if isinstance(error, OSError):
        file, own = error.filename, folder.path.absolute()
        inside = isinstance(file, str) and Path(file).absolute().is_relative_to(own)
        if inside or error.errno in UNWRITABLE:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            return UserError(
                f"{file or own} cannot be written ({error.strerror}). The last complete checkpoint is kept; "
                f"{'free space' if full else 'mend its permissions or remove it'} and repeat the command: the run goes on "
                "from there."
            )
    lost = isinstance(error, torch.distributed.DistError) or (
        isinstance(error, RuntimeError) and "gloo" in str(error)
    )
    if lost:
        return UserError(
            f"Another process of this run has ended ({checkpoint_io.first_line(error)}): its own output says why. The last "
            "complete checkpoint is kept; repeat the command: the run goes on from there."
        )
    return None


def _requeue() -> None:
    """Ask SLURM to run this job again, as SIGUSR1 announced its end; the same command then goes on."""
    job = os.environ.get("SLURM_ARRAY_JOB_ID") or os.environ.get("SLURM_JOB_ID")
    if job is None or not is_main_process():
        return
    if os.environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{job}_{os.environ.get('SLURM_ARRAY_TASK_ID')}"
    try:
        done = subprocess.run(
            ["scontrol", "requeue", job], capture_output=True, text=True, timeout=60, check=False
        )
        reason = done.stderr.strip() if done.returncode else None
    except (OSError, subprocess.SubprocessError) as error:
        reason = str(error)
    if reason is None:
        log.info("job %s is queued again", job)
    else:
        log.warning("job %s cannot be queued again (%s): repeat the command to go on", job, reason)


def _prepare(config: dict[str, Any]) -> tuple[DataModule, dict[str, Any]]:
    """The prepared data, and the configuration with what its task has prepared besides."""
    data = build.build_data(config["data"])
    data.prepare()
    options = task_class(config["task"]["_target_"]).prepare(config, data)
    return data, config | {"task": config["task"] | options}


def _fit_and_test(
    config: dict[str, Any],
    folder: RunFolder,
    start: Start,
    signals: checkpointing.StopSignals,
    data: DataModule,
    task: TaskModule,
    usage: checkpointing.Usage,
) -> dict[str, Any]:
    """The run itself; returns what result.json says of its outcome."""
    task.samples_file = folder.samples if is_main_process() else None
    content = _read_start(task, start, folder) if start.checkpoint else None
    step = content["global_step"] if content else 0
    agreed = checkpointing.SameStart(
        {"folder": folder.path.name, "step": step, "configuration": fingerprint(compared(config))}
    )
    trainer, monitor, saver = build.build_trainer(config, folder, task, [], signals, [agreed, usage])
    if content:
        _check_progress(content, start, trainer)
        folder.rewind_samples(step)
        log.info("resuming from %s, step %d", start.checkpoint, step)
    else:
        task.initialize()
        if config["init_from"] is not None:
            log.info("%s", init_from.initialize_from(task, config["init_from"]))
    del content
    loggers = build.build_loggers(folder, config, step, task)
    try:
        trainer.loggers = loggers
        console.announce(task, trainer)
        if config["trainer"]["compile"]:
            task.compile_layers()
        status, message = "finished", None
        metrics: dict[str, float] = {}
        try:
            try:
                with build.lightning_errors():
                    trainer.fit(task, datamodule=data, ckpt_path=start.checkpoint, weights_only=True)
            except Exception as error:
                if isinstance(error, UserError) or not _while_restoring(error):
                    raise
                raise UserError(
                    f"checkpoint {start.checkpoint}: the run cannot go on from it ({checkpoint_io.first_line(error)}). "
                    f"{checkpoint_io.REMEDY}"
                ) from error
            metrics = _evaluate_best(folder, trainer, data, task)
        except Diverged as error:
            status, message = "diverged", str(error)
            log.warning("the run has diverged: %s", error)
        except (checkpointing.Interrupted, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not signals.received:
                raise  # else it is what the end of another process looks like
            status, message = "interrupted", f"stopped at step {trainer.global_step}"
            log.warning(
                "interrupted at step %d: repeat the command to resume from the last checkpoint",
                trainer.global_step,
            )
        metrics = dict(task.evaluated) | metrics
        spent = usage.state_dict()
        for logger in loggers:
            if isinstance(logger, RunLogger):
                logger.summarize(
                    # The monitored metric has its minimum or maximum in the summary too (`keep_best`).
                    {key: value for key, value in metrics.items() if key != task.monitor}
                    | {f"best/{task.monitor}": saver.best, "best/step": saver.best_step, "status": status}
                    | {"minutes": spent["wall_s"] / 60, "parameters": task.num_parameters}
                    | {"peak_memory_gib": spent["peak_memory_bytes"] / 2**30}
                )
    finally:
        build.close(loggers)
    throughput, spent = monitor.throughput(trainer.world_size), usage.state_dict()
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
        "world_size": trainer.world_size,
        "time": {
            "wall_s": spent["wall_s"],
            "fit_s": spent["fit_s"],
            "data_wait_fraction": throughput.pop("data_wait_fraction"),
        },
        "throughput": throughput,
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
    target = _test_file(config)
    task = checkpoint_io.load_task(config["checkpoint"])
    if task.name != config["task"]["name"]:
        raise UserError(
            f"checkpoint {config['checkpoint']} is of task {task.name!r}, the command says task={config['task']['name']}. "
            f"Say task={task.name}."
        )
    data = build.build_data(config["data"])
    data.prepare_for(task.spec if task.uses_labels else {**task.spec, "labels": []})
    with console.quiet_libraries():
        trainer = build.build_tester(config, target.parent)
        with build.lightning_errors():
            trainer.test(task, datamodule=data, verbose=False)
    record = {
        "mode": "test",
        "task": task.name,
        "checkpoint": config["checkpoint"],
        "data": config["data"]["name"],
        "metrics": task.evaluated,
        "evaluation": task.evaluation_facts,
        "git": git_revision(),
        "versions": versions(),
        "config": {"data": config["data"]},
    }
    if trainer.is_global_zero:
        print(f"{config['checkpoint']} on {config['data']['name']}:")
        print(summary.metric_lines(task.evaluated, headline=_headline(task)))
        try:
            write_atomically(target, json.dumps(finite(record), indent=2, ensure_ascii=False) + "\n")
            log.info("written to %s", target)
        except UserError as error:
            if config["output"]:
                raise
            log.warning("%s Or name a file with output=.", error)
    return {**record, "file": str(target)}


def _test_file(config: Mapping[str, Any]) -> Path:
    """Where mode=test writes its metrics: `output=`, or `test-<data>.json` in the run's or the export's folder."""
    if config["output"]:
        target = Path(config["output"])
        if target.exists():
            raise UserError(f"output={target}: exists already. Remove it or choose another file.")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"output={target}: cannot be written ({error}). Choose another file.") from error
        return target
    source = Path(config["checkpoint"])
    own = source.parent if source.is_file() else source
    if own.name in ("checkpoints", "export") and (own.parent / "config.yaml").is_file():
        own = own.parent
    return own / f"test-{slug([config['data']['name']])}.json"


def _predict(config: dict[str, Any]) -> dict[str, Any]:
    inputs = _inputs(config)
    options = {key: value for key, value in config["predict"].items() if value is not None}
    output = Path(config["output"]) if config["output"] else None
    results: list[dict[str, Any]] = []
    with (
        _growing(output, results) as file,
        checkpointing.cpu_threads(config["trainer"]["threads"]),
        torch.inference_mode(),
    ):
        task = checkpoint_io.load_task(config["checkpoint"])
        on_gpu = torch.cuda.is_available() and config["trainer"]["accelerator"] in ("auto", "gpu")
        task.to("cuda" if on_gpu else "cpu")
        pieces = shown = ""
        for result in task.predict(inputs, options):
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
    checkpoint_io.export(checkpoint_io.load_task(source), target)
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


def _read_start(task: TaskModule, start: Start, folder: RunFolder) -> dict[str, Any]:
    """The content of the checkpoint that the run goes on from, which fits the task and its data."""
    assert start.checkpoint is not None
    content = checkpoint_io.read_checkpoint(start.checkpoint)
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
    shapes = {name: tuple(getattr(value, "shape", ())) for name, value in content["state_dict"].items()}
    own = {name: tuple(value.shape) for name, value in task.state_dict().items()}
    if shapes != own:
        differing = sorted(name for name in shapes.keys() | own.keys() if shapes.get(name) != own.get(name))
        raise UserError(
            f"checkpoint {start.checkpoint} does not fit this model, {len(differing)} tensors differ, such as "
            f"{differing[0]} ({shapes.get(differing[0])} there, {own.get(differing[0])} here). Use the settings that it was "
            "trained with, or take its weights alone with init_from=."
        )
    step = content["global_step"]
    elsewhere = start.checkpoint.resolve().parent != folder.checkpoints.resolve()
    if step >= stored["total_steps"] and elsewhere:
        raise UserError(
            f"resume={start.checkpoint}: that run has made all of its {step} steps, and its learning rate has come to its "
            "end. Take its weights with init_from=, or make the whole run anew with more steps."
        )
    if step > task.total_steps or (step == task.total_steps and elsewhere):
        raise UserError(
            f"resume={start.checkpoint}: it stands at step {step}, and trainer.max_steps={task.total_steps} leaves nothing "
            "to do. Set trainer.max_steps to a larger number."
        )
    return content


def _check_progress(content: Mapping[str, Any], start: Start, trainer: L.Trainer) -> None:
    """Refuse a checkpoint of a run whose batches were made or counted otherwise: it would go on at another place."""
    anew = "start anew with resume=never, or take the weights alone with init_from=."
    try:
        batches = content["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["processed"]
        processes = content["callbacks"].get("ConfigureRun", {}).get("world_size", trainer.world_size)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"checkpoint {start.checkpoint}: the run cannot go on from it ({checkpoint_io.first_line(error)}). "
            f"{checkpoint_io.REMEDY}"
        ) from error
    if processes != trainer.world_size:
        raise UserError(
            f"checkpoint {start.checkpoint} was trained by {processes} processes; {trainer.world_size} would have other "
            f"batches. Set trainer.devices and trainer.num_nodes so that there are {processes}, {anew}"
        )
    step, accumulate = content["global_step"], trainer.accumulate_grad_batches
    if batches != step * accumulate:
        raise UserError(
            f"checkpoint {start.checkpoint} stands at step {step} after {batches} batches, and "
            f"trainer.accumulate_grad_batches={accumulate} makes {step * accumulate} of it. Set "
            f"trainer.accumulate_grad_batches={batches / max(step, 1):g}, {anew}"
        )


def _while_restoring(error: BaseException) -> bool:
    """Whether an exception comes out of Lightning's reading of a checkpoint."""
    return any(
        Path(frame.f_code.co_filename).name == "checkpoint_connector.py"
        and frame.f_code.co_name.startswith(("restore", "resume"))
        for frame, _ in traceback.walk_tb(error.__traceback__)
    )


def _evaluate_best(
    folder: RunFolder, trainer: L.Trainer, data: DataModule, task: TaskModule
) -> dict[str, float]:
    """Test metrics of the best checkpoint, or of the average that the run keeps; it is exported too."""
    best = checkpoint_io.load_task(folder.best if folder.best.exists() else folder.last)
    best.samples_file = task.samples_file
    kept = next((one for one in trainer.callbacks if isinstance(one, LastWeights)), None)  # type: ignore[attr-defined]
    if kept is not None:
        kept.load_average(best)
    trainer.test(best, datamodule=data, verbose=False)
    task.evaluation_facts |= best.evaluation_facts
    if trainer.is_global_zero:
        if kept is not None:
            kept.save_average(best)
        checkpoint_io.export(best, folder.path / "export")
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
    _release_memory()
    with contextlib.suppress(OSError):  # Linux only; elsewhere the process's maximum is told
        Path("/proc/self/clear_refs").write_text("5")


def _peak_memory() -> int:
    """Bytes: the GPU's, or the largest resident size of this process, since `_reset_peak_memory` where there is /proc."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated())
    with contextlib.suppress(OSError):
        return _resident("VmHWM")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _memory(peak: int) -> dict[str, int | None]:
    """What a run needed at most, in bytes, once all that it allocated is out of scope.

    `peak_memory_bytes` is the GPU's. A run on the CPU has `run_peak_memory_bytes`: the largest resident size of its process
    less what the process keeps when the run is over. What a sweep's first job loads for all of them (libraries, compiled
    kernels) is in both, so the order of the jobs does not count. None where it is not known (without /proc).
    """
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return {"peak_memory_bytes": peak, "run_peak_memory_bytes": None}
    needed = None
    with contextlib.suppress(OSError):
        _release_memory()
        needed = max(0, peak - _resident("VmRSS"))
    return {"peak_memory_bytes": None, "run_peak_memory_bytes": needed}


def _resident(name: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]


def _release_memory() -> None:
    """Give back to the system what is free: glibc keeps most of it for later."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
