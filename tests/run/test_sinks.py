"""Where logs go is a switch: which sinks there are, what a resumed run says there, and what happens when one fails."""

import json
import struct
import time

import jax
import numpy as np
import pytest

from maeclip_jax.cli import guarded
from maeclip_jax.errors import UserError
from maeclip_jax.run import log, sinks, train
from maeclip_jax.workdir import read_metrics
from tests import runs, torture

ARG = "objective=clip,steps=4,save=2,batch=8,evals=false"
WANDB = ("jsonl", "wandb")


class Broken:
    """A sink whose network is down."""

    def __init__(self, story):
        self.calls = 0

    def scalars(self, step, values):
        raise ConnectionError("no route\nto host")

    picture = flush = scalars

    def close(self):
        raise OSError("still none")


@pytest.fixture
def offline(monkeypatch):
    """Weights & Biases as it is without a network."""
    pytest.importorskip("wandb", reason="the optional extra `wandb` is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_PROJECT", raising=False)


def run(workdir, *names, **settings) -> int:
    """Trains on one device with these sinks; the exit code."""
    config = runs.config(ARG, **{"log.sinks": names} | settings)
    return guarded(lambda: train.run(config, workdir, devices=jax.devices()[:1]))


def records(workdir) -> list:
    """What wandb wrote into the workdir, run after run. Its process may still write when finish() has returned."""
    end = time.monotonic() + 60
    while True:
        paths = sorted(workdir.glob("wandb/offline-run-*/*.wandb"), key=lambda p: p.stat().st_mtime_ns)
        found = [parsed(path) for path in paths]
        if all(any(r.HasField("exit") for r in of) for of in found) or time.monotonic() > end:
            return [r for of in found for r in of]
        time.sleep(0.1)


def parsed(path) -> list:
    """The records of a file: a log of LevelDB's form, in blocks of 32 KiB; what is half written is left out."""
    from wandb.proto import wandb_internal_pb2 as proto

    data, at, parts, found = path.read_bytes(), 7, b"", []
    while at < len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7].ljust(3, b"\0"))
        if at + 7 + length > len(data):
            break
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            found.append(proto.Record.FromString(parts))
            parts = b""
    return found


def history(workdir) -> list[dict]:
    """The rows that wandb has, without its own columns."""
    rows = [
        {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in r.history.item}
        for r in records(workdir)
        if r.HasField("history")
    ]
    return [{k: v for k, v in row.items() if not k.startswith("_")} for row in rows]


def test_wandb_has_what_the_rows_say_and_a_resumed_run_goes_on_there(offline, tmp_path):
    assert run(tmp_path, *WANDB, total="3 steps") == 0
    name = (tmp_path / "wandb_id.txt").read_text()
    assert history(tmp_path) == read_metrics(tmp_path) and len(history(tmp_path)) == 3
    assert not (tmp_path / "tensorboard").exists()
    assert run(tmp_path, *WANDB) == 0
    assert (tmp_path / "wandb_id.txt").read_text() == name
    started = [r.run for r in records(tmp_path) if r.HasField("run")]
    assert {(r.run_id, r.project, r.display_name) for r in started} == {(name, "maeclip_jax", tmp_path.name)}
    settings = {"/".join(i.nested_key) or i.key: i.value_json for i in started[0].config.update}
    assert json.loads(settings["optim"])["name"] == "adamw"
    assert history(tmp_path) == read_metrics(tmp_path) and len(history(tmp_path)) == 4


def test_steps_after_the_checkpoint_are_said_to_wandb_once(offline, tmp_path):
    """A run was killed at step 4, in an evaluation; its checkpoint is of step 2."""
    killed = log.Log(tmp_path, 0, WANDB)
    for step in (1, 2, 3, 4):
        killed.scalars(step, {"train/loss": 10.0 * step})
    killed.close()
    again = log.Log(tmp_path, 2, WANDB)
    again.scalars(2, {"val/top1": 2.0})  # what it still owed of the step it continues from
    for step in (3, 4, 5):
        again.scalars(step, {"train/loss": 10.0 * step})
        again.scalars(step, {"val/top1": 1.0})
    again.close()
    found = [(r["step"], k, v) for r in history(tmp_path) for k, v in r.items() if k != "step"]
    once = [(s, "train/loss", 10 * s) for s in (1, 2, 3, 4, 5)]
    assert sorted(found) == sorted([*once, (2, "val/top1", 2), (4, "val/top1", 1), (5, "val/top1", 1)])


def test_a_picture_reaches_wandb(offline, tmp_path):
    written = log.Log(tmp_path, 0, WANDB)
    written.picture(3, "sheet", np.full((4, 6, 3), 9, np.uint8))
    written.close()
    (row,) = history(tmp_path)
    assert row["step"] == 3 and (row["sheet/width"], row["sheet/height"]) == (6, 4)
    (file,) = tmp_path.glob("wandb/offline-run-*/files/media/images/sheet_*.png")
    from PIL import Image

    assert (np.asarray(Image.open(file).convert("RGB")) == 9).all()


def test_a_sink_that_raises_is_warned_of_once_and_the_run_goes_on(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sinks.SINKS, "broken", Broken)
    assert run(tmp_path, "jsonl", "broken", "tensorboard") == 0
    (said,) = [r.getMessage() for r in caplog.records if "sink" in r.getMessage()]
    assert said.startswith("log sink 'broken' failed: ConnectionError: no route to host; training goes on")
    assert torture.steps(tmp_path) == [2, 4] and list(runs.series(tmp_path)) == [1, 2, 3, 4]
    assert list((tmp_path / "tensorboard").iterdir())  # the one behind it was not left out


def test_a_sink_that_cannot_be_made_is_warned_of_once(tmp_path, monkeypatch, caplog):
    def refuses(story):
        raise RuntimeError("api_key not configured")

    monkeypatch.setitem(sinks.SINKS, "refuses", refuses)
    written = log.Log(tmp_path, 0, ("jsonl", "refuses"))
    written.scalars(1, {"train/loss": 1.0})
    written.close()
    (said,) = [r.getMessage() for r in caplog.records]
    assert "'refuses' failed: RuntimeError: api_key not configured" in said and len(read_metrics(tmp_path)) == 1


def test_rows_that_cannot_be_written_end_the_run(tmp_path, monkeypatch):
    def full(self, step, values):
        raise OSError("no space left on device")

    monkeypatch.setattr(sinks.Jsonl, "scalars", full)
    with pytest.raises(OSError, match="no space left"):
        run(tmp_path, "jsonl")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("jsonl", "wandbb"), r"unknown name in log.sinks: 'wandbb' .*'wandb'.*; valid: jsonl, tensorboard, wandb$"),
        (("tensorboard",), r"log.sinks=\('tensorboard',\) lacks 'jsonl', which the report and a resumed run read"),
        ((), r"log.sinks=\(\) lacks 'jsonl'"),
        (("jsonl", "wandb"), r"log.sinks names 'wandb', which is not installed: pip install 'maeclip_jax\[wandb\]'"),
    ],
)
def test_sinks_that_do_not_fit_are_one_line(names, said, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sinks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=said):
        sinks.check(names)
    assert run(tmp_path, *names) == 2 and not list(tmp_path.iterdir())
    assert capsys.readouterr().err.startswith("error: ")


def test_sinks_as_a_command_line_gives_them():
    assert sinks.check(("tensorboard,jsonl",)) == sinks.check("jsonl, tensorboard") == ("jsonl", "tensorboard")
