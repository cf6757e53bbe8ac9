"""Bands of estimates: published, and of runs that were made; what a sweep chooses by them."""

import json

import pytest

from maeclip_jax.config import to_steps
from maeclip_jax.errors import UserError
from maeclip_jax.parallel import chips
from maeclip_jax.preflight import bands, calibration, command, topology
from tests import runs
from tests.preflight.test_preflight import CONFIG, FOUND


def test_every_chip_has_a_band_with_its_source(tmp_path):
    for chip in chips.CHIPS:
        found = bands.band(chip, str(tmp_path / "none"))
        assert 0.5 < found.low <= found.high < 2 and found.source
    assert "nothing published of this chip" in bands.band("v4", "").source


def test_a_run_on_cpu_is_calibrated_and_later_estimates_name_it(tmp_path, capsys):
    workdir, kept = runs.whole(1), tmp_path / "kept.jsonl"
    flags = (f"--calibrate={workdir}", f"--calibrations={kept}", f"--json={tmp_path / 'line.json'}")
    assert command.main([*flags]) == 0
    said = capsys.readouterr().out
    line = json.loads((tmp_path / "line.json").read_text())
    costs = json.loads((workdir / "costs.json").read_text())
    peak = float(costs["peak_flops_per_device"].split(",")[0])
    assert line["chip"] == costs["device_kind"] and line["devices"] == costs["slices"] == 1
    assert line["estimated seconds"] == pytest.approx(costs["flops_per_step"] / peak)
    assert 0 < line["measured seconds"] <= costs["median"]["perf/step_seconds"]
    assert f"ratio      {line['measured over estimated']:.3f}; kept in {kept}" in said and calibration.ROOFLINE in said
    command.main([*flags])  # the same run again takes its place
    assert len(kept.read_text().splitlines()) == 1
    found = bands.band(line["chip"], str(kept))
    assert found.low == found.high == pytest.approx(line["measured over estimated"], rel=0.5)
    assert str(workdir) in found.source and "calibrated: 1 runs" in found.source


def noted(workdir, kind: str, devices: int, **more) -> str:
    """A workdir with the costs and a row of a run whose step took 0.202 s."""
    costs = {
        "device_kind": kind, "devices": devices, "flops_per_step": 1e12,
        "peak_flops_per_device": "1.153e15, data sheet",
        "median": {"perf/step_seconds": 0.202, "perf/input_wait_fraction": 0.0},
    }  # fmt: skip
    (workdir / "costs.json").write_text(json.dumps(costs | more))
    (workdir / "metrics.jsonl").write_text('{"step": 9, "perf/step_seconds": 0.202}\n')
    return str(workdir)


def test_a_run_on_a_tpu_is_compared_with_what_was_compiled_for_its_slice(tmp_path):
    workdir = noted(tmp_path, "TPU7x", 8, slices=1)
    asked = []
    kept = str(tmp_path / "kept.jsonl")
    line = calibration.calibrate(workdir, lambda where: asked.append(where) or FOUND, "", 1, kept)
    assert asked == [topology.parse("tpu7x:2x2x1")]  # two devices a chip
    assert line["measured over estimated"] == pytest.approx(0.202 / 0.101) and line["parts"] == {"mlp": 0.05}
    assert bands.band("tpu7x", kept) == bands.Band(2.0, 2.0, bands.band("tpu7x", kept).source)
    with pytest.raises(UserError, match="is not the 8 devices in 1 slices of"):
        calibration.calibrate(workdir, lambda where: FOUND, "tpu7x:4x4x4", 1, kept)


def test_a_run_on_several_slices_is_compared_with_as_many(tmp_path):
    asked, kept = [], str(tmp_path / "kept.jsonl")

    def calibrate(name: str, count: int, **more):
        workdir = noted(tmp_path, "TPU v5 lite", 128, **more)
        calibration.calibrate(workdir, lambda where: asked.append(where) or FOUND, name, count, kept)

    calibrate("", 1, slices=2)
    calibrate("v5e-64", 1, slices=2)
    calibrate("v5e-64", 2)  # of before it was noted
    assert asked == [topology.parse("v5e-64", 2)] * 3
    with pytest.raises(UserError, match="did not note how many slices it had; valid: with --topology, and --num_sl"):
        calibrate("", 1)
    with pytest.raises(UserError, match="--num_slices=4 is not the 128 devices in 2 slices"):
        calibrate("v5e-64", 4, slices=2)


def test_a_run_on_a_device_whose_peak_is_not_known_has_no_ratio(tmp_path):
    workdir = noted(tmp_path, "NVIDIA L4", 1, peak_flops_per_device="unknown, no data sheet")
    with pytest.raises(UserError, match=r"the peak of NVIDIA L4 is not known; valid: .* A100, H100 PCIe, .*H200$"):
        calibration.calibrate(workdir, lambda where: FOUND, "", 1, str(tmp_path / "kept.jsonl"))


@pytest.mark.parametrize("line", ["{", "{}", '{"chip": "v5e", "measured over estimated": -1, "run": "a", "date": "b"}'])
def test_a_file_of_calibrations_that_is_none(tmp_path, line):
    (tmp_path / "kept.jsonl").write_text(f"{line}\n")
    with pytest.raises(UserError, match=r"line 1 is not a calibration; valid: lines that preflight --calibrate"):
        bands.band("v5e", str(tmp_path / "kept.jsonl"))


def test_a_sweep_names_the_cheapest_and_the_fastest(monkeypatch, capsys):
    asked = []

    def estimated(source, args, where, text=""):
        batch = int(args.settings.get("batch_size", 16))
        asked.append((where.name, dict(args.settings)))
        if batch == 64 * where.chips:
            return FOUND | {"fits": False, "compiler says": "", "slice": str(where)}
        hours = 32 * 2**0.5 / where.chips**0.5 / where.chip.peak * 197e12
        ends = {"hours low": hours, "hours high": 2 * hours, "chip-hours": hours * where.chips}
        return FOUND | ends | {"slice": str(where), "chips": where.chips, "chip": where.kind}

    monkeypatch.setattr(command, "preflight", estimated)
    flags = (f"--config={CONFIG}", "--sweep", "--slices=v5e-4,v5e-16,v6e-16", "--batches=4,64", "--meshes=1,4x2")
    # v5e-4: at most 45.3 h and 217 dollars; v5e-16: 22.6 h, 434; v6e-16: 4.9 h, 210.
    assert command.main([*flags, "--hours=24", "--dollars=220"]) == 0
    text = capsys.readouterr().out
    assert len(asked) == 12 and asked[0][0] == "v5e:2x2"
    assert asked[1][1] == {
        "mesh.fsdp": "4", "mesh.tensor": "2", "mesh.replica": "-1", "batch_size": "16", "total": "64 examples",
    }  # fmt: skip
    assert "cheapest that finishes within 24 hours: v6e:4x4" in text and "fastest within 220 dollars: v6e:4x4" in text
    assert text.count("DOES NOT FIT") == 6
    assert command.main([*flags, "--hours=1"]) == 1
    text = capsys.readouterr().out
    assert "cheapest that finishes within 1 hours: none of those that were tried" in text and "fastest: v6e" in text


@pytest.mark.parametrize("total, steps", [("1000 steps", 1000), ("20k steps", 20_000), ("1.6e3 step", 1600)])
def test_with_other_batches_a_run_sees_as_many_examples(total, steps, monkeypatch):
    seen = []

    def estimated(source, args, where, text=""):
        batch = int(args.settings["batch_size"])
        seen.append(batch * to_steps(args.settings["total"], "total", batch_size=batch))
        return FOUND

    monkeypatch.setattr(command, "preflight", estimated)
    flags = (f"--config={CONFIG}", f"--config.total={total}", "--sweep", "--slices=v5e-4,v5e-16", "--batches=4,8")
    assert command.main([*flags]) == 0
    assert seen == [16 * steps] * 4  # its own batch is of 16


@pytest.mark.parametrize(
    "slices, flags, code, said",
    [
        (
            "tpu7x-8",
            ["--hours=24"],
            0,
            "cheapest that finishes within 24 hours: not known, as the price of tpu7x is not",
        ),
        ("tpu7x-8", ["--hours=1"], 1, "cheapest that finishes within 1 hours: none of those that were tried"),
        ("tpu7x-8", ["--dollars=9"], 1, "fastest within 9 dollars: not known, as the price of tpu7x is not"),
        (
            "tpu7x-8",
            ["--dollars=9", "--price=0"],
            0,
            "cheapest: tpu7x:2x2x1 (4 chips, 8 cores) : 1.70 to 2.02 hours, 0.00",
        ),
        ("tpu7x-8,v5e-4", ["--hours=24"], 0, "in no choice by dollars, for want of a price: tpu7x"),
    ],
)
def test_a_chip_without_a_price_is_said_and_one_for_nothing_is_chosen(slices, flags, code, said, monkeypatch, capsys):
    def estimated(source, args, where, text=""):
        return FOUND | {"slice": str(where), "chip": where.kind}

    monkeypatch.setattr(command, "preflight", estimated)
    assert command.main([f"--config={CONFIG}", "--sweep", f"--slices={slices}", *flags]) == code
    assert said in capsys.readouterr().out
