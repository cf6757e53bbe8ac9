"""The loop's guards: steps that are not finite, records that cannot be used, requests to stop; and what a run costs."""

import io
import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from maeclip_jax.cli import guarded
from maeclip_jax.data import pipeline, tokenizer
from maeclip_jax.errors import UserError
from maeclip_jax.objectives.clip import Clip
from maeclip_jax.run import checkpoint, flops, optim, summary, train
from maeclip_jax.run.step import build
from maeclip_jax.workdir import read_metrics
from tests import runs, torture

ARG = "objective=clip,batch=8,steps=10,save=1,evals=false"


class Records:
    """A source of our own: 40 pictures of one colour as PNG; some all white, some cut short."""

    name = "records"

    def __init__(self, white=(), broken=()):
        def png(i):
            buffer = io.BytesIO()
            Image.new("RGB", (32, 32), (255,) * 3 if i in white else (5 * i, 100, 255 - 5 * i)).save(buffer, "PNG")
            return buffer.getvalue()[:40] if i in broken else buffer.getvalue()

        self._records = [dict(key=f"r{i}", image=png(i), texts=[f"a {i} cube"]) for i in range(40)]

    def __len__(self):
        return len(self._records)

    def __getitem__(self, i):
        return self._records[i]


class Poisoned(Clip):
    """CLIP whose loss (or gradient alone) is not finite for a batch with an all-white picture."""

    where = "loss"

    def __call__(self, batch, *, train):
        loss, metrics = super().__call__(batch, train=train)
        white = jnp.any(jnp.all(batch["image"] == 255, axis=(1, 2, 3)))
        if self.where == "loss":
            return loss + jnp.where(white, jnp.inf, 0.0), metrics
        root = jnp.sqrt(jnp.where(white, 0.0 * self.log_scale, 1.0))  # at 0 its gradient is infinite
        return loss + root - jax.lax.stop_gradient(root), metrics


def of(records: Records, **settings):
    """A config that trains on `records` and keeps every step."""
    config = runs.config(ARG, **{"checkpoint.keep_last": 10} | settings)
    with config.ignore_type():
        config.data.source = records
    return config


def run(workdir, records, **settings) -> int:
    """Trains on one device, every step saved and kept; the exit code."""
    config = of(records, **settings)
    return guarded(lambda: train.run(config, workdir, devices=jax.devices()[:1]))


def order(steps: int = 10) -> list[list[int]]:
    """The records of every step: an order that knows nothing of what is in them."""
    config = of(Records())
    with pipeline.train(config.data, batch_size=8, seed=0, tokenizer=tokenizer.of(config)) as batches:
        return [[int(k[1:]) for k in next(batches)["_key"]] for _ in range(steps)]


def weights(workdir, step: int) -> dict[str, bytes]:
    """Parameters and optimizer of a checkpoint."""
    state = checkpoint.read_numpy(workdir / "checkpoints" / str(step) / "state")
    return {k: v.tobytes() for k, v in state.items() if k.startswith(("params/", "opt_state/"))}


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(where, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("maeclip_jax.objectives.clip.Clip", type("Clip", (Poisoned,), {"where": where}))
    poisoned = [n + 1 for n, records in enumerate(order()) if 3 in records]
    assert len(poisoned) == 2  # ten batches of 8 are two epochs
    assert run(tmp_path, Records(white=[3])) == 0
    for step in range(2, 11):
        now, before = weights(tmp_path, step), weights(tmp_path, step - 1)
        same = [k for k in now if now[k] == before[k]]
        assert len(same) == len(now) if step in poisoned else len(same) < len(now) / 4
    assert runs.series(tmp_path, "train/skipped") == {s: sum(p <= s for p in poisoned) for s in range(1, 11)}
    assert runs.series(tmp_path, "train/skipped_in_row") == {s: int(s in poisoned) for s in range(1, 11)}
    for name, part in (("train/loss", "loss"), ("train/grad_norm", "gradient")):  # the other one may well be finite
        null = [s for s, v in runs.series(tmp_path, name).items() if v is None]
        assert null == (poisoned if where == part else [])
    warned = [r.getMessage() for r in caplog.records if "is not finite; update skipped" in r.getMessage()]
    assert [w.partition(":")[0] for w in warned] == [f"step {s}" for s in poisoned]
    assert all("its examples: r" in w for w in warned)


def test_several_in_a_row_stop_the_run_and_leave_the_last_good_state(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("maeclip_jax.objectives.clip.Clip", Poisoned)
    # One record each of steps 3, 4 and 5: the first epoch, so that none of them comes earlier.
    white = [records[0] for records in order()[2:5]]
    assert run(tmp_path, Records(white=white), max_skipped_in_row=3) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert "3 steps in a row had a non-finite loss or gradient, the last is step 5 with examples r" in line
    assert f"r{white[-1]}, " in line and "parameters are those of the last finite step" in line
    assert torture.steps(tmp_path) == [1, 2, 3, 4]
    assert weights(tmp_path, 4) == weights(tmp_path, 2) != weights(tmp_path, 1)


def test_bad_records_are_replaced_and_counted_as_many_as_there_are(tmp_path, caplog):
    """Two epochs see four misses each."""
    broken = {5, 11, 12, 30}
    assert run(tmp_path, Records(broken=broken), **{"data.max_bad": 0.2}) == 0
    truth = np.cumsum([sum(i in broken for i in records) for records in order()])
    assert truth[-1] == 8
    assert [*runs.series(tmp_path, "train/bad_records").values()] == list(truth)
    trained = [int(k[1:]) for step in torture.examples(tmp_path) for k in step]
    wanted = [i for step in order() for i in step]
    assert [t for t, w in zip(trained, wanted) if w not in broken] == [w for w in wanted if w not in broken]
    assert not broken & set(trained)
    named = " ".join(r.getMessage() for r in caplog.records)
    assert all(f": r{i}: corrupt: " in named for i in broken), named


def test_too_many_bad_records_stop_the_run_with_the_counts(tmp_path, capsys):
    assert run(tmp_path, Records(broken=[5, 11, 12, 30]), **{"data.max_bad": 0.05}) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert "records (" in line and "cannot be used, more than max_bad=0.05 allows (corrupt " in line


def interrupt(monkeypatch, number, *, at: str, times: int = 1):
    """Sends this process a signal when the run says a line that starts with `at`."""
    say = train.say

    def said(text):
        say(text)
        if text.startswith(at):
            for _ in range(times):
                signal.raise_signal(number)

    monkeypatch.setattr(train, "say", said)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_saves_the_step_it_is_in(number, tmp_path, monkeypatch, capfd):
    before = signal.getsignal(number)
    interrupt(monkeypatch, number, at="step 4/")
    assert run(tmp_path, Records(), **{"checkpoint.every": "10 steps"}) == 0
    (step,) = torture.steps(tmp_path)
    assert step in (4, 5)
    out = capfd.readouterr()
    assert "stopping after this step" in out.err and f"step {step} is saved; the same command continues" in out.out
    assert signal.getsignal(number) is before  # whoever runs it in a notebook has his Ctrl-C back


def test_a_second_ctrl_c_means_it(tmp_path, monkeypatch, capfd):
    before = signal.getsignal(signal.SIGINT)
    interrupt(monkeypatch, signal.SIGINT, at="step 4/", times=2)
    assert run(tmp_path, Records(), **{"checkpoint.every": "10 steps"}) == 130
    assert runs.without_alarms(capfd.readouterr().err)[-1].startswith("interrupted; the same command continues")
    assert not torture.steps(tmp_path) and signal.getsignal(signal.SIGINT) is before


def test_what_a_run_says_and_costs(tmp_path, capsys):
    assert run(tmp_path, Records()) == 0
    out = capsys.readouterr().out
    assert out.count(flops.FORMULA) == 1
    assert "step 10/10 100% | eta 0s | loss " in out and "image/trunk/blocks" in out
    costs = json.loads((tmp_path / "costs.json").read_text())
    assert costs["step"] == 10 and costs["examples_seen"] == 80 and costs["devices"] == 1
    assert costs["seconds"]["train"] > 0 and costs["seconds"]["compile"] > 0 and costs["versions"]["jax"]
    # Forward FLOPs of matrix products, three times: at least 6 a parameter a token, which is all but attention.
    assert costs["flops_per_step"] > 6 * 8 * 16 * 2 * 12 * 32**2
    rows = read_metrics(tmp_path)
    assert [r["step"] for r in rows] == list(range(1, 11))
    assert [r["progress/examples_seen"] for r in rows] == [8 * s for s in range(1, 11)]
    for row in rows:
        assert row["perf/mfu"] > 0 and 0 <= row["perf/input_wait_fraction"] <= 1
        np.testing.assert_allclose(row["perf/img_per_sec"] * row["perf/step_seconds"], 8, rtol=1e-6)
    assert rows[4]["train/learning_rate"] > rows[-1]["train/learning_rate"] > 0
    assert rows[0]["train/logit_scale"] == pytest.approx(1 / 0.07, rel=1e-3)


def test_a_source_that_is_an_object_is_the_same_again(tmp_path):
    assert run(tmp_path, Records(), total="1 steps") == run(tmp_path, Records(), total="2 steps") == 0
    assert torture.steps(tmp_path) == [1, 2]


def test_rows_are_logged_when_they_are_due(tmp_path):
    assert run(tmp_path, Records(), **{"log.every": "4 steps"}) == 0
    assert list(runs.series(tmp_path)) == [1, 4, 8, 10]  # the first and the last always


def test_a_batch_of_one_caption_over_and_over_is_said_once(tmp_path, caplog):
    said = "all 8 captions of the batch are equal, so the contrast has nothing to tell apart"
    workdir = runs.run(tmp_path, ARG.replace("steps=10,save=1", "steps=3,save=3"), devices=1, **{
        "data.source": dict(kind="noise", resolution=32, vocabulary=1, count=24),
    })  # fmt: skip
    warned = [r.getMessage() for r in caplog.records if said in r.getMessage()]
    assert len(warned) == 1 and warned[0].startswith(f"step 1: {said} (its examples: noise/")
    assert runs.series(workdir, "train/duplicates") == dict.fromkeys((1, 2, 3), pytest.approx(100 * 7 / 8))


def test_settings_without_effect_are_said(tmp_path, caplog):
    """They were accepted without a word."""
    idle = {
        "optim.muon": ((".*/kernel", (-2, -1)),), "optim.schedule": "constant", "optim.end_lr": 0.1,
        "model.image_tower.drop_path": 0.1, "model.image_tower.depth": 1, "model.text_tower.drop_path": 0.1,
    }  # fmt: skip
    want = [
        "optim.muon has no effect, for optim.name is 'adamw'",
        "optim.end_lr=0.1 has no effect: the constant schedule has no optim.cooldown",
        "model.image_tower.drop_path=0.1 has no effect: the first block drops nothing, and the tower has no other",
    ]
    runs.run(tmp_path, "objective=clip,steps=2,save=2,evals=false", devices=1, **idle)
    assert [r.getMessage() for r in caplog.records if "has no effect" in r.getMessage()] == want
    used = runs.config("objective=clip", **idle | {"optim.name": "muon", "model.image_tower.depth": 2})
    for changes in ({"optim.cooldown": "50%"}, {"optim.schedule": "rsqrt"}, {"optim.end_lr": 0.0}):
        config = used.copy_and_resolve_references()
        config.update_from_flattened_dict(changes)
        rate = optim.schedule(config.optim, batch_size=8, total=10, epoch=None)
        assert summary.without_effect(config, rate, 10) == []


@pytest.mark.parametrize("objective", ["clip", "mae_clip", "slip", "silc"])
def test_a_contrast_needs_others_to_compare_with(objective):
    config = runs.config(ARG.replace("clip", objective), batch_size=1)
    with pytest.raises(UserError, match=f"^batch_size 1: {objective} compares each pair with the others"):
        build(config, epoch=None, devices=jax.devices()[:1])
    assert build(runs.config("objective=mae", batch_size=1), epoch=None, devices=jax.devices()[:1]).batch_size == 1
