"""What a run writes about itself: rows, TensorBoard, progress, the table of parameters, also into a remote workdir."""

import json
import re
import struct
import tempfile
import threading
import time

import jax
import numpy as np
import pytest
from etils import epath

from maeclip_jax.errors import UserError
from maeclip_jax.parallel import sharding, sleep
from maeclip_jax.parallel.terminal import Progress, Waiting, duration_text, say
from maeclip_jax.run import log
from maeclip_jax.run.clock import Clock
from maeclip_jax.run.costs import write_costs
from maeclip_jax.run.summary import parameter_table
from maeclip_jax.run.throughput import Throughput
from maeclip_jax.workdir import make_workdir, read_metrics


def events(folder) -> list[tuple[int, str, float]]:
    """(step, tag, value) of every scalar in TensorBoard's files, read record by record."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack("<Q", data[at : at + 8])
            event = Event.FromString(data[at + 12 : at + 12 + length])
            at += 12 + length + 4  # a check sum follows the length, another the record
            found += [(event.step, v.tag, v.simple_value) for v in event.summary.value if v.HasField("simple_value")]
    return found


def test_one_row_a_step_and_the_same_in_tensorboard(tmp_path):
    written = log.Log(tmp_path, 0)
    written.scalars(1, {"train/loss": 2.5})
    written.scalars(1, {"val/top1": 50.0})  # an evaluation of the same step joins its row
    written.scalars(2, {"train/loss": float("nan"), "train/skipped": 1})
    written.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(x) for x in lines] == [
        {"step": 1, "train/loss": 2.5, "val/top1": 50.0},
        {"step": 2, "train/loss": None, "train/skipped": 1},
    ]
    have = events(tmp_path / "tensorboard")
    assert have[:2] == [(1, "train/loss", 2.5), (1, "val/top1", 50.0)] and have[3] == (2, "train/skipped", 1.0)


def test_a_row_is_on_disk_as_soon_as_it_is_written(tmp_path):
    written = log.Log(tmp_path, 0)
    for step in (1, 2):
        written.scalars(step, {"train/loss": 1.0})
        assert len(read_metrics(tmp_path)) == step
    written.close()


def test_a_line_cut_short_is_left_out_and_a_restart_drops_what_it_will_write_again(tmp_path):
    rows = [{"step": s, "train/loss": float(s)} for s in range(1, 6)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows) + '{"step": 6, "train/l')
    assert read_metrics(tmp_path) == rows
    again = log.Log(tmp_path, 3)
    assert read_metrics(tmp_path) == rows[:3]
    again.scalars(4, {"train/loss": 44.0})
    again.close()
    assert read_metrics(tmp_path) == [*rows[:3], {"step": 4, "train/loss": 44.0}]
    assert not list(tmp_path.glob("*.tmp"))
    assert read_metrics(tmp_path / "elsewhere") == []


def test_a_picture_reaches_tensorboard(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    written = log.Log(tmp_path, 0)
    written.picture(3, "sheet", np.zeros((4, 6, 3), np.uint8))
    written.close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    event = Event.FromString(data[16 + length + 12 : -4])
    assert event.step == 3 and event.summary.value[0].image.width == 6


def test_a_remote_workdir_is_written_whole(remote, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    workdir = make_workdir(remote)
    assert isinstance(workdir, epath.Path) and str(workdir) == remote
    written = log.Log(workdir, 0)
    written.scalars(1, {"train/loss": 2.5})
    written.scalars(2, {"train/loss": 1.5})
    written.flush()  # before every checkpoint
    assert [r["step"] for r in read_metrics(workdir)] == [1, 2]
    written.scalars(3, {"train/loss": 0.5})
    written.close()
    assert [r["step"] for r in read_metrics(workdir)] == [1, 2, 3]
    write_costs(workdir, {"step": 3})
    assert [e[0] for e in events(workdir / "tensorboard")] == [1, 2, 3]
    assert json.loads((workdir / "costs.json").read_text()) == {"step": 3, "median": {}}
    assert not list(tmp_path.iterdir())  # what was written here first is gone


def test_a_workdir_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"workdir '.*/file/run' cannot be made: .*Not a directory"):
        make_workdir(tmp_path / "file" / "run")


def test_time_is_booked_where_it_is_spent(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(sleep, "awake", lambda: now[0])

    def spend(seconds):
        now[0] += seconds

    clock = Clock({"train": 5.0, "eval": 1.0})  # as restored
    with clock.phase("compile"):
        spend(7)
    clock.start_loop()
    spend(10)
    with clock.phase("input_wait"):
        spend(2)
    with clock.phase("eval"):
        spend(4)
    with clock.phase("checkpoint"):
        spend(3)
    assert clock.seconds["train"] == 5 + 12  # waiting for data is training, pauses are not
    clock.stop_loop()
    spend(50)
    assert clock.seconds == dict(compile=7, restore=0, train=17, input_wait=2, checkpoint=3, eval=5)


def test_chip_seconds_are_those_of_the_chips_of_every_start(monkeypatch):
    """Ten hours on eight chips and one on one are 81, not 11."""
    now = [0.0]
    monkeypatch.setattr(sleep, "awake", lambda: now[0])

    def train(clock, hours):
        clock.start_loop()
        now[0] += hours
        clock.stop_loop()
        return clock.seconds, clock.chip_seconds

    seconds, chip_seconds = train(Clock(chips=8), 10)
    assert train(Clock(seconds, chips=1, chip_seconds=chip_seconds), 1) == (seconds | {"train": 11}, 81)
    assert train(Clock(seconds, chips=2), 1)[1] == 22  # a checkpoint that does not say it


def test_throughput_mfu_and_eta():
    start = dict(compile=9.0, restore=0.0, train=100.0, input_wait=1.0, checkpoint=0.0, eval=0.0)
    progress = Throughput(10, 110, 32, 6e9, 1e9, 4, 2, start)
    row = progress.measure(20, start | dict(train=120.0, input_wait=6.0, eval=10.0))
    assert row == {
        "perf/step_seconds": 2.0,
        "perf/img_per_sec": 16.0,
        "perf/img_per_sec_per_chip": 8.0,  # of two chips
        "perf/mfu": 0.75,  # 6e9 / (2 s x 4 devices x 1e9)
        "perf/input_wait_fraction": 0.25,
        "progress/eta_seconds": 270.0,  # 90 steps to go at 3 s each, evaluations included
    }
    row = progress.measure(30, start | dict(train=125.0, input_wait=6.0, eval=10.0))
    assert row["perf/step_seconds"] == 0.5 and row["perf/input_wait_fraction"] == 0.0  # since the last call only
    row |= {"train/loss": 2.34567, "train/skipped": 2, "train/bad_records": 0}
    assert progress.line(30, row) == (
        "step 30/110  27% | eta 2m20s | loss 2.3457 | 64 img/s | mfu 300% | input wait 0% | skipped 2 steps"
    )


def test_there_is_no_mfu_where_the_peak_is_not_known():
    start = dict(compile=9.0, restore=0.0, train=100.0, input_wait=1.0, checkpoint=0.0, eval=0.0)
    progress = Throughput(10, 110, 32, 6e9, None, 4, 2, start)
    row = progress.measure(20, start | dict(train=120.0))
    assert row["perf/step_seconds"] == 2.0 and "perf/mfu" not in row
    assert "16 img/s | input wait" in progress.line(20, row | {"train/loss": 2.0})


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0s"), (59.6, "1m00s"), (75, "1m15s"), (3600, "1h00m"), (9000, "2h30m")]
)
def test_durations_for_people(seconds, text):
    assert duration_text(seconds) == text


def test_the_table_of_parameters_has_every_path_and_the_total():
    mesh = sharding.make_mesh(dict(fsdp=8))
    params = {"a": {"kernel": np.zeros((16, 8), np.float32)}, "b": np.zeros(3, np.float32)}
    specs = sharding.named(sharding.specs(params, mesh, (("a/.*", ("fsdp", None)), (".*", ()))), mesh)
    table = parameter_table(jax.tree.map(jax.device_put, params, specs))
    assert "a/kernel" in table and "16" in table and "131" in table and "fsdp" in table


def test_what_takes_long_says_how_far_it_is(capsys, monkeypatch):
    now = iter([0.0, 10.0, 20.0, 30.0, 40.0, 50.0])
    monkeypatch.setattr(sleep, "awake", lambda: next(now))
    with Progress("eval probe", "pictures", 100, every=15) as eta:
        for n in (0, 25, 0, 25, 50):  # at 10, 20, 30, 40, 50 s
            eta.update(n)
    assert capsys.readouterr().out.splitlines() == [
        "eval probe: 25 of 100 pictures  25% | eta 1m00s",
        "eval probe: 50 of 100 pictures  50% | eta 40s",
    ]


def test_what_takes_long_is_said_again_and_again_and_what_does_not_is_not(monkeypatch, capsys):
    told, again = threading.Event(), threading.Event()

    def tell(self, text, own=Waiting._tell):
        own(self, text)
        (again if told.is_set() else told).set()

    monkeypatch.setattr(Waiting, "_tell", tell)
    with Waiting("compiling the step", after=0.01, every=0.02):
        assert again.wait(600)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 2 and all(re.fullmatch(r"compiling the step: \d+m?\d*s", line) for line in lines)
    with Waiting("compiling the step", after=3600):
        pass
    assert capsys.readouterr().out == ""
    with Waiting("another process's", after=0.01, every=0.01, shown=False):
        again.clear()
        assert again.wait(600)
    assert capsys.readouterr().out == ""


def test_waiting_is_silent_while_something_else_speaks():
    waiting = Waiting("compiling", after=100)
    waiting._begun = waiting._told = time.monotonic() - 1000
    say("step 1")
    assert waiting._until(100) > 0  # it would have spoken 900 seconds ago
