"""W&B without a network and without an account: what lies in its own file afterwards."""

import json
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from wandb.proto.wandb_internal_pb2 import Record

from magneto.errors import UserError


def records(file: Path) -> Iterator[Record]:
    """The records of a `.wandb` file: LevelDB's log format (32 KiB blocks) behind a header of 7 bytes."""
    data, place, whole = file.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:  # a header does not fit into the rest of the block
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a full record, or the last part of one
            record = Record()
            record.ParseFromString(whole)
            yield record
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
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in (
            "127.0.0.1",
            "::1",
            "localhost",
        ):
            raise AssertionError(f"a connection to {address} was tried")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.slow
def test_without_a_key_the_run_is_offline_and_holds_the_metrics(run, offline) -> None:
    started = time.monotonic()
    result = run("logger.wandb=auto")
    assert time.monotonic() - started < 120
    folder = Path(result["folder"])
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    rows = history(file)
    logged = {row["trainer/global_step"]: row["val/loss"] for row in rows if "val/loss" in row}
    assert sorted(logged) == [8, 16, 20]
    assert logged[20] == pytest.approx(result["metrics"]["val/loss"])
    assert any("test/cer" in row for row in rows)
    assert any("val/samples" in key for row in rows for key in row), "the table of samples"
    (started_run,) = {record.run.run_id for record in records(file) if record.HasField("run")}
    assert started_run == (folder / "wandb_id").read_text()


@pytest.mark.slow
def test_online_without_a_key_asks_no_question(run, offline) -> None:
    with pytest.raises(UserError, match=r"logger\.wandb=online: there is no API key"):
        run("logger.wandb=online")


def test_a_resumed_run_is_one_run_for_wandb(run, offline, kill_after_save) -> None:
    with kill_after_save():
        run("logger.wandb=offline", "name=one")
    folder = Path(run("logger.wandb=offline", "name=one")["folder"])
    files = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2
    assert {file.stem for file in files} == {f"run-{(folder / 'wandb_id').read_text()}"}
