"""W&B without a network and without an account: what lies in its own file afterwards."""

import json
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile
from wandb.proto.wandb_internal_pb2 import Record

from magneto.config.parts import LoggerConfig
from magneto.errors import MagnetoError
from magneto.training import loggers


def records(file: Path) -> Iterator[Record]:
    """The records of a `.wandb` file: LevelDB's log format (32 KiB blocks) behind a header of 7 bytes."""
    data, start, whole = file.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while start + 7 <= len(data):
        if 32768 - start % 32768 < 7:  # a header does not fit into the rest of the block
            start += 32768 - start % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[start : start + 7])
        whole += data[start + 7 : start + 7 + length]
        start += 7 + length
        if kind in (1, 4):  # a full record, or the last part of one
            yield Record.FromString(whole)
            whole = b""


def history(file: Path) -> list[dict[str, object]]:
    """The logged rows, one dict a `log` call."""
    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records(file)
        if record.HasField("history")
    ]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No key, no account, and every connection to another machine is an error."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: object) -> None:
        remote = self.family in (socket.AF_INET, socket.AF_INET6)
        if remote and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a connection to {address} was tried")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_a_resumed_run_is_one_run_for_wandb(run, offline, kill_after_save) -> None:
    with kill_after_save():
        run("logger.wandb=offline", "name=one")
    folder = Path(run("logger.wandb=offline", "name=one")["folder"])
    files = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2
    assert {file.stem for file in files} == {f"run-{(folder / 'wandb_id').read_text()}"}


def records_of(result: dict[str, Any]) -> list[Record]:
    """The records of the run's only `.wandb` file."""
    (file,) = Path(result["folder"]).glob("wandb/offline-run-*/*.wandb")
    return list(records(file))


def started(sent: list[Record]) -> Any:
    """What W&B was told at the start: name, project, group..."""
    return next(record.run for record in sent if record.HasField("run"))


def summary_of(sent: list[Record]) -> dict[str, Any]:
    """The summary as set by the run itself."""
    values: dict[str, Any] = {}
    for record in sent:
        for item in record.summary.update:
            values[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
    return values


def test_a_run_in_wandb(run, offline, tmp_path, monkeypatch) -> None:
    """Group, summary, log and configuration of a run, and nothing outside its folder, though HOME cannot be written."""
    home = tmp_path / "home"
    home.write_text("a file: nothing can be written below it")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    result = run("logger.wandb=auto", "seed=3")  # offline, as there is no key
    sent = records_of(result)
    told = started(sent)
    assert told.run_id == (Path(result["folder"]) / "wandb_id").read_text()
    assert (told.project, told.display_name) == ("magneto", Path(result["folder"]).name)
    assert told.run_group == f"asr/{Path(result['folder']).name.replace('-seed3', '')}"
    config = {item.key: json.loads(item.value_json) for item in told.config.update}
    assert config["seed"] == 3 and config["data"]["batch_frames"] == 1500
    assert "init_from" not in config and "predict" in config and config["predict"] == {}
    (metric,) = (r.metric for r in sent if r.HasField("metric") and r.metric.name == "val/cer")
    assert metric.summary.min and metric.summary.last and metric.step_metric == "trainer/global_step"
    summary = summary_of(sent)
    assert summary["status"] == "finished" and summary["parameters"] == result["parameters"]
    assert summary["best/val/cer"] == result["monitor"]["best"]
    assert summary["best/step"] == result["monitor"]["best_step"]
    assert 0 < summary["minutes"] <= result["time"]["wall_s"] / 60 and summary["peak_memory_gib"] > 0.01
    log = "".join(record.output_logger.line for record in sent if record.HasField("output_logger"))
    assert "parameters" in log
    assert "WANDB_DATA_DIR" not in os.environ
    (file,) = Path(result["folder"]).glob("wandb/offline-run-*/*.wandb")
    rows = history(file)
    logged = {row["trainer/global_step"]: row["val/loss"] for row in rows if "val/loss" in row}
    assert sorted(logged) == [8, 16, 20] and logged[20] == pytest.approx(result["metrics"]["val/loss"])
    assert any("test/cer" in row for row in rows) and any("val/samples" in key for row in rows for key in row)
    heard = [row for row in rows if "val/samples_audio/count" in row]
    assert [row["trainer/global_step"] for row in heard] == [8, 16, 20]
    assert heard[0]["val/samples_audio/count"] == 8
    assert "hypothesis: " in heard[0]["val/samples_audio/captions"][0]
    sounds = sorted((Path(result["folder"]) / "samples").glob("*.ogg"))
    row = next(json.loads(line) for line in (Path(result["folder"]) / "samples.jsonl").open())
    assert row["split"] == "val" and f"{row['id']}.ogg" in [sound.name for sound in sounds]
    assert "audio" not in row and 0.5 < soundfile.info(sounds[0]).duration < 3
    assert any((Path(result["folder"]) / "wandb" / "artifacts" / "staging").iterdir()), "the tables"


def test_environment_decides_defaults(run, offline, monkeypatch) -> None:
    """W&B's own variables fill what the configuration leaves open, and only that."""
    for name, value in {"PROJECT": "p", "NAME": "n", "TAGS": "a,b", "RUN_GROUP": "g", "ENTITY": "e"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    told = started(records_of(run("logger.wandb=offline")))
    assert (told.project, told.display_name, list(told.tags)) == ("p", "n", ["a", "b"])
    assert (told.run_group, told.entity) == ("g", "e")
    chosen = loggers.from_environment(LoggerConfig(project="own", tags=["c"], group="h", entity="f"))
    assert chosen == LoggerConfig(project="own", tags=["c"], group="h", entity="f")


@pytest.mark.parametrize(
    ("variables", "mode"),
    [
        ({}, "offline"),
        ({"WANDB_API_KEY": "a" * 40}, "online"),
        ({"WANDB_MODE": "dryrun"}, "offline"),
        ({"WANDB_DISABLED": "true", "WANDB_API_KEY": "a" * 40}, "disabled"),
        ({"WANDB_DISABLED": "false"}, "offline"),
        ({"WANDB_DISABLED": "true", "WANDB_MODE": "offline"}, "offline"),
    ],
)
def test_wandb_mode_auto(offline, monkeypatch, variables, mode) -> None:
    """The environment and the key decide where the configuration says auto."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert loggers.wandb_mode(LoggerConfig()) == mode


@pytest.mark.parametrize(
    ("settings", "variables", "message"),
    [
        ({"project": "a/b#c"}, {}, r"logger\.project=a/b#c: .*cannot contain"),
        ({"tags": ["x" * 65]}, {}, r"logger\.tags=.*65 characters"),
        ({}, {"WANDB_BASE_URL": "nonsense"}, "WANDB_BASE_URL of the environment: .*valid URL"),
        ({}, {"WANDB_RESUME": "sometimes"}, "WANDB_RESUME of the environment: .*'allow'"),
        ({}, {"WANDB_PROJECT": "a%b"}, "WANDB_PROJECT of the environment: .*cannot contain"),
        ({}, {"WANDB_MODE": "sometimes"}, "WANDB_MODE=sometimes"),
        ({"wandb": "online"}, {}, "there is no API key"),
    ],
)
def test_wrong_wandb_settings(offline, monkeypatch, settings, variables, message) -> None:
    """What W&B would refuse at the start is known before, by its key."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(MagnetoError, match=message) as caught:
        loggers.check(LoggerConfig(**settings))
    assert "\n" not in str(caught.value)
    loggers.check(LoggerConfig(wandb="disabled"))


def test_wrong_settings_come_before_data(run, offline, tmp_path) -> None:
    """They leave no run folder and no prepared data."""
    with pytest.raises(MagnetoError, match=r"logger\.project"):
        run("logger.wandb=offline", "logger.project=a/b", f"data_dir={tmp_path / 'data'}")
    assert not (tmp_path / "runs").exists() and not (tmp_path / "data").exists()


def test_no_server_goes_offline(run, offline, monkeypatch, caplog) -> None:
    """A key but no server: the run is logged offline, under its id, and finishes."""
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # the port that discards: nobody answers
    monkeypatch.setattr(loggers, "CONNECT_S", 2.0)
    result = run("logger.wandb=auto")
    assert result["status"] == "finished"
    assert [r.message for r in caplog.records if "this run is logged offline" in r.message]
    sent = records_of(result)
    assert started(sent).run_id == (Path(result["folder"]) / "wandb_id").read_text()
    assert summary_of(sent)["status"] == "finished"


@pytest.mark.parametrize("content", ["", "bad/id#x", "\x00\x00"])
def test_damaged_id_is_replaced(tmp_path, content) -> None:
    """What a full disk or a killed machine leaves is no id."""
    file = tmp_path / "wandb_id"
    file.write_text(content)
    new = loggers._run_id(file)
    assert len(new) == 8 and file.read_text() == new == loggers._run_id(file)


def test_failing_wandb_does_not_end_run(run, offline, monkeypatch, caplog) -> None:
    """The first failure while logging is reported, the later ones are not, and the run finishes."""

    def fail(*args: object, **kwargs: object) -> None:
        raise BrokenPipeError("the service is gone")

    monkeypatch.setattr("wandb.sdk.wandb_run.Run.log", fail)
    result = run("logger.wandb=offline")
    assert result["status"] == "finished" and result["metrics"]
    (message,) = [r.message for r in caplog.records if "W&B failed" in r.message]
    assert "BrokenPipeError: the service is gone" in message
