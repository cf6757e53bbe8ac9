"""Pre-flights of tiny experiments by the real TPU compiler: figures that fit together, and remedies that help."""

import dataclasses
import functools
import json
import subprocess
import sys
import types

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from experiments import clip
from maeclip_jax.parallel import sharding
from maeclip_jax.preflight import command, compilation, estimate, hlo, kernels, remedy, table, topology
from tests import runs
from tests.objectives import models

CONFIG = "experiments/clip.py:runlocal"
needs_libtpu = pytest.mark.skipif(not topology.installed(), reason=f"libtpu is not installed: {topology.INSTALL}")


def flown(name: str = "v5e-4", kind: str = "train", **settings) -> dict:
    config = clip.get_config("runlocal")
    config.update_from_flattened_dict(settings)
    return estimate.estimate(config, topology.parse(name), epoch=1000, kind=kind)


@pytest.fixture(scope="module")
def scanned() -> dict:
    if not topology.installed():
        pytest.skip(f"libtpu is not installed: {topology.INSTALL}")
    return flown()


def test_figures_fit_together(scanned):
    assert scanned["fits"] and scanned["remedy"] == {}
    assert scanned["chips"] == scanned["devices"] == 4 and scanned["batch per chip"] == 4
    assert 0 < scanned["parameters GiB"] < scanned["optimizer GiB"] < scanned["peak HBM GiB"] < 15.75
    assert scanned["optimizer GiB"] == pytest.approx(2 * scanned["parameters GiB"], rel=1e-3)
    assert scanned["images/s"] == pytest.approx(16 / scanned["step seconds"])
    assert scanned["MFU"] == pytest.approx(scanned["model FLOPs"] / scanned["step seconds"] / 4 / 197e12)
    assert scanned["chip-hours"] == pytest.approx(4 * scanned["steps"] * scanned["step seconds"] / 3600)
    # Gradients of all parameters (67,201 float32) meet once.
    assert scanned["collectives"]["all-reduce"] == pytest.approx(4 * scanned["parameters"], rel=0.05)
    assert len(scanned["top"]) == 10 and sum(t["share"] for t in scanned["top"]) < 1


@needs_libtpu
def test_programs_of_a_slice_are_not_kept_in_the_cache_which_cannot_give_them_back(tmp_path, recwarn):
    """jax 0.10.2 keeps them, and warns at the second pre-flight that it cannot read them."""
    settings = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in settings}
    try:
        for name, value in zip(settings, (str(tmp_path), 0.0), strict=True):
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        for _ in range(2):
            flown("v5e-1")
        assert not [p for p in tmp_path.iterdir() if p.name.startswith("jit_update")]
        assert not [w for w in recwarn if "compilation cache" in str(w.message)]
        jax.jit(lambda x: x * 3)(1.0)  # what runs here is kept as before
        assert [p for p in tmp_path.iterdir() if p.name.startswith("jit__lambda")]
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def test_flops_in_the_program_are_the_model_s_scanned_or_not(scanned):
    unrolled = flown(**{"model.compute.layers": "unroll"})
    assert unrolled["model FLOPs"] == scanned["model FLOPs"]
    for found in (scanned, unrolled):  # pictures need no gradient, so a little less
        assert 0.95 < found["counted FLOPs"] / found["model FLOPs"] <= 1
    assert scanned["counted FLOPs"] == pytest.approx(unrolled["counted FLOPs"], rel=0.01)


@needs_libtpu
def test_a_kernel_has_the_time_of_its_schedule(scanned):
    found = flown(**{"model.compute.attention": "fused", "model.compute.layers": "unroll"})
    assert {k["kernel"] for k in found["kernels"]} == {f"attention_{w}_2x16_1_steps" for w in ("forward", "backward")}
    assert {k["how"] for k in found["kernels"]} == {kernels.SCHEDULE} and not found["custom calls without an estimate"]
    assert sum(k["calls"] for k in found["kernels"]) == 8  # two towers of two layers, there and back
    assert 1e-6 < sum(k["seconds"] for k in found["kernels"]) < found["step seconds"]
    assert found["model FLOPs"] == scanned["model FLOPs"]


@needs_libtpu
@pytest.mark.parametrize(
    "chip, words",
    [("v6e", ("fused_layer", "fused")), pytest.param("v5e", ("fused_layer", "xla"), marks=pytest.mark.long)],
)
def test_a_preflight_says_what_a_chip_makes_of_fused_and_auto(chip, words):
    found = flown(f"{chip}-1", **{"model.compute.attention": "fused", "model.compute.mlp": "auto"})
    assert (found["compute"]["attention"], found["compute"]["mlp"]) == words


@needs_libtpu
def test_two_cores_of_a_chip_share_a_kernel_s_steps():
    kernel = hlo.Kernel("attention_forward_2x16_8_steps", ("bf16[128,16,96]",), 0, 0)  # 16 samples a step
    one, two = (kernels.schedule(kernel, name) for name in ("v5e:2x2", "v4:2x2x1"))
    assert one % 8 == 0 and two % 4 == 0
    assert 0.3 < two / one < 0.8  # their instructions differ somewhat, too


@needs_libtpu
def test_the_fused_mlp_has_the_time_of_its_schedule():
    where = topology.parse("v6e-4")
    tokens, norm, matrix = ("bf16[4,20,128]",), ("f32[1,128]",) * 2, "bf16[128,512]"
    weights = *norm, matrix, "bf16[1,512]", matrix
    forward = hlo.Kernel("mlp_forward_gelu_tanh_1x1_steps", (*tokens, *weights, "bf16[1,128]"), 1.0, 1.0)
    backward = hlo.Kernel("mlp_backward_gelu_tanh_1x1_steps", (*tokens, *tokens, *weights), 1.0, 1.0)
    (one, how), (two, _) = (kernels.of_call(kernel, where) for kernel in (forward, backward))
    assert how == kernels.SCHEDULE
    assert 2 * 2 * 80 * 128 * 512 / 918e12 < one < two < 50 * one  # not faster than its products


@needs_libtpu
def test_the_fused_attention_layer_has_the_time_of_its_schedule():
    """A quarter of the samples takes as long as a step, and what is written at the end counts once."""
    where, seconds = topology.parse("v6e-4"), {}
    for samples, steps in ((24, 1), (96, 4)):
        tokens, norm, into, out = f"bf16[{samples},20,128]", ("f32[1,128]",) * 2, "bf16[128,384]", "bf16[128,128]"
        hidden, name = f"f32[{samples},1,20]", f"2x64_causal_{steps}_steps"
        given = tokens, hidden, *norm, into, "bf16[1,384]", out, "bf16[1,128]"
        saved = f"bf16[{samples},20,384]", tokens, f"f32[{samples},20,2]"
        forward = hlo.Kernel(f"attention_layer_forward_{name}", given, 1.0, 1.0)
        backward = hlo.Kernel(
            f"attention_layer_backward_{name}", (tokens, tokens, hidden, *saved, *norm, into, out), 1.0, 1.0
        )
        found = [kernels.of_call(kernel, where) for kernel in (forward, backward)]
        assert {how for _, how in found} == {kernels.SCHEDULE}
        seconds[samples] = [s for s, _ in found]
        assert 2 * samples * 20 * 4 * 128 * 128 / 918e12 < found[0][0] < found[1][0] < 50 * found[0][0]
    for one, four in zip(*seconds.values()):
        assert 3 < four / one < 4.1


def test_branches_of_a_kernel_count_in_the_steps_that_take_them():
    schedule = """
     0x2 LB: > { a }
    0x10   : > { %1 = sbr.rel (%p1) target = $region9 }  // of the pipeline: the window before the kernel
    0x40 PF: > { b } /* Start/End empty region 9 */
    0x50   : > { %2 = sbr.rel (%p2) target = $region60 }
    0x60   : > { %3 = sbr.rel (!%p3) target = $region70 }
    0xa0 PF: > { c } /* Start/End empty region 70 :: Start region 71 */
   0x200   : > { %4 = sbr.rel (%p4) target = $region80 }
   0x20a PF: > { d } /* Start/End empty region 80 */
   0x300   : > { %5 = sbr.rel (%p5) target = $region81 }
   0x380 PF: > { e } /* Start/End empty region 81 */
   0x3a0   : > { %6 = sbr.rel (%p6) target = $region82 }
   0x400 PF: > { f } /* Start/End empty region 82 :: Start/End empty region 60 */
"""
    # The short one is not worth a place; the last one ends where the kernel does.
    assert kernels.branches(schedule) == [0x40, 0x80, 0x60]


def test_a_kernel_that_nobody_knows_has_its_roofline():
    where = topology.parse("v5e-4")
    known = {hlo.Kernel("mine", (), 197e12, 1.0): 2, hlo.Kernel("wide", (), 1.0, 819e9): 1}
    assert [(k["kernel"], k["seconds"]) for k in kernels.priced(known, where)] == [("mine", 2.0), ("wide", 1.0)]
    assert {k["how"] for k in kernels.priced(known, where)} == {kernels.ROOFLINE}


@needs_libtpu
@pytest.mark.parametrize("offload", ["1", "0"])
def test_collectives_of_v6e_go_on_while_its_cores_work(monkeypatch, offload):
    monkeypatch.setenv(sharding.OFFLOAD, offload)
    found = flown("v6e-4", **{"mesh.replica": 1, "mesh.fsdp": 4, "model.compute.layers": "unroll"})
    gathers = found["network"]["kinds"]["all-gather"]
    assert gathers["asynchronous"] == (gathers["calls"] if offload == "1" else 0) and gathers["calls"] > 20
    # Each sharded weight is gathered once, in the bfloat16 that products of the default precision take; the table of
    # words in float32.
    assert 2 * found["parameters"] < gathers["bytes"] < 2.4 * found["parameters"]
    assert found["fits"] and (sharding.OFFLOADING.items() <= found["compiler options"].items()) == (offload == "1")


@needs_libtpu
def test_remat_is_seen_as_flops_beyond_the_model_s():
    found = flown(**{"model.compute.remat": "full"})
    assert found["counted FLOPs"] > 1.15 * found["model FLOPs"]


@needs_libtpu
@pytest.mark.parametrize("kind, share", [("evaluate", 1 / 3), ("embed", 1 / 3)])
def test_programs_of_evaluations(scanned, kind, share):
    found = flown(kind=kind)
    assert found["fits"] and found["optimizer GiB"] == 0
    assert found["model FLOPs"] == pytest.approx(share * scanned["model FLOPs"], rel=0.01)
    assert "whole run (compiler-estimated)" not in table.rows(found)


@needs_libtpu
def test_what_does_not_fit_names_numbers_and_a_remedy_that_helps():
    large = {"model.text_tower.vocab": 40_000_000}
    found = flown(**large)
    assert not found["fits"] and found["peak HBM GiB"] > found["HBM GiB"]
    said = table.verdict(found)
    assert said.startswith("DOES NOT FIT; try --config.") and f"of {found['HBM GiB']}" in table.full([("x", found)])
    assert found["remedy"]["mesh.fsdp"] == 4 and flown(**(large | found["remedy"]))["fits"]


def test_a_step_without_room_is_cut_into_the_fewest_parts_that_fit(monkeypatch):
    """By a compiler that says 1 GiB and 64 more, divided by the parts; the real one takes minutes."""

    @dataclasses.dataclass
    class Built:
        objective: object
        batch_size: int = 32
        mesh: object = sharding.make_mesh({"replica": 1}, jax.devices()[:1])

        def in_parts(self, parts):
            tried.append(parts)
            sizes = dict.fromkeys(("argument", "output", "alias", "generated_code"), 0) | {"temp": 2**36 // parts}
            memory = types.SimpleNamespace(**{f"{k}_size_in_bytes": x for k, x in sizes.items()})
            memory.argument_size_in_bytes = 2**30
            return types.SimpleNamespace(lower=lambda: types.SimpleNamespace(memory_analysis=lambda: memory))

    tried, changed = [], []
    monkeypatch.setattr(remedy.programs, "train", lambda built: (None, ()))
    monkeypatch.setattr(remedy, "compiled_with_text", lambda lowered: (lowered, ""))
    monkeypatch.setattr(remedy, "build", lambda config, **_: changed.append(config.mesh.fsdp) or in_two)
    in_two = Built(models.build("clip"))
    fewest = functools.partial(remedy.fewest_parts, clip.get_config("runlocal"))
    assert fewest(in_two, 1000, [], {}, 2, 9.5) == 8 and tried == [2, 8]  # 4 parts would take 17 GiB at least
    assert fewest(in_two, 1000, [], {}, 2, 2.0) is None
    assert fewest(in_two, 1000, [], {"mesh.fsdp": 4}, 16, 9.5) == 16 and changed == [4]
    assert fewest(Built(types.SimpleNamespace()), 1000, [], {}, 2, 9.5) is None  # no objective of parts


@needs_libtpu
def test_an_embedding_without_room_is_not_advised_what_is_of_training():
    assert "model.compute.remat" not in flown("v5e-1", "embed", batch_size=2**20)["remedy"]  # there is no backward pass


def test_parameters_without_room_are_sharded():
    config = clip.get_config("runlocal")

    class Program:
        class mesh:
            shape = {"replica": 16, "fsdp": 1, "tensor": 1}

        batch_size = 1024
        microbatches = 1

    found = {
        "program": "train",
        "HBM GiB": 16.0,
        "parameters GiB": 8.0,
        "optimizer GiB": 16.0,
        "average GiB": 0.0,
        "teacher GiB": 0.0,
        "peak HBM GiB": 30.0,
    }
    assert remedy.overrides(config, Program, found, None) == {"mesh.replica": -1, "mesh.fsdp": 8}
    for size in (20.0, 300.0):  # on sixteen chips, 2.5 and 37.5 GiB each with the optimizer
        more = found | {"parameters GiB": size, "optimizer GiB": size, "peak HBM GiB": 3 * size, "fits": False}
        changes = remedy.overrides(config, Program, more, lambda *_: 2)
        assert bool(changes) == (size == 20.0)
    assert table.verdict(more | {"remedy": changes}) == "DOES NOT FIT; take a larger slice"
    found |= {"parameters GiB": 1.0, "optimizer GiB": 2.0, "peak HBM GiB": 103.0}
    asked = []

    def parts(changes, least, room, found=8):
        asked.append((changes, least, round(room, 2)))
        return found

    assert remedy.overrides(config, Program, found, parts) == {"microbatches": "8"}
    assert asked == [({}, 9, 14.4)]  # 100 GiB of activations into the 11.4 that the state leaves
    otherwise = {"model.compute.remat": "full", "batch_size": 128}
    assert remedy.overrides(config, Program, found, None) == otherwise
    assert remedy.overrides(config, Program, found, lambda *_: None) == otherwise
    assert remedy.overrides(config, Program, found | {"program": "embed"}, parts) == {"batch_size": 64}


def test_needs_are_read_from_the_compiler_s_messages():
    said = "the total memory required for HLO temporaries (384.00G) exceeds available HBM (15.75G)"
    assert compilation.needed_gib(said) == 384
    assert compilation.needed_gib("Used 512.00M of 15.75G hbm") == 0.5
    assert compilation.needed_gib("no room") is None


def run(monkeypatch, capsys, found: dict, *flags: str) -> tuple[int, str]:
    """(exit code, stdout) of the command, with the compilation replaced by its result."""
    monkeypatch.setattr(
        command, "preflight", lambda source, args, where, text="": found | {"epoch": "1,000 examples (test)"}
    )
    return command.main([*flags]), capsys.readouterr().out


FOUND = {
    "slice": "v5e:2x2 (4 chips)", "chips": 4, "devices": 4, "device kind": "TPU v5 lite", "program": "train",
    "mesh": "replica=4 fsdp=1 tensor=1", "batch": 16, "batch per chip": 4.0, "steps": 100, "epoch": "",
    "compute": {"layers": "scan", "remat": "none"}, "parameters": 10, "parameters GiB": 1.0,
    "optimizer GiB": 2.0, "average GiB": 0.0, "teacher GiB": 0.0,
    "chip": "v5e", "HBM GiB": 16.0, "peak HBM GiB": 8.0, "compile seconds": 3.0, "fits": True, "remedy": {},
    "model FLOPs": 1e12, "counted FLOPs": 1.3e12, "step seconds": 0.1, "MFU": 0.5, "images/s": 160.0,
    "hours": 2.0, "chip-hours": 8.0,
    "collectives": {"all-reduce": 2**20}, "loops of unknown length": 1,
    "band": {"low": 0.83, "high": 1.0, "source": "test"}, "step seconds low": 0.0838,
    "step seconds high": 0.101,
    "hours low": 1.7, "hours high": 2.02, "compiler": "libtpu 0", "compiler options": {"x": 1},
    "network": {
        "exposed seconds": 0.001, "hidden seconds": 0.002,
        "kinds": {"all-reduce": {"calls": 3, "asynchronous": 2, "bytes": 2**20, "seconds": 0.003}},
    },
    "kernels": [{"kernel": "attention_forward", "calls": 12, "seconds": 0.002, "how": kernels.SCHEDULE}],
    "custom calls without an estimate": {"tpu_custom_call": 24},
    "operations without an estimate": {"scatter": 2, "gather": 1},
    "top": [{"module": "mlp", "share": 0.5, "seconds": 0.05}],
}  # fmt: skip


def test_the_table_says_it_all(monkeypatch, capsys):
    code, text = run(monkeypatch, capsys, FOUND, f"--config={CONFIG}", "--topology=v5e-4", "--price=2")
    assert code == 0
    for piece in (
        "8.00 GiB of 16.00 (50%)", "130.0% of the model's", "100.0 ms", "50.0%", "160 (40 a chip)", "8.0 chip-hours",
        "16.00 dollars at 2 a chip-hour, --price", "83.8 to 101.0 ms", "1.70 to 2.02 h, 13.60 to 16.16 dollars",
        "1.00 ms at the data sheet's speed, 2.00 ms hidden; asynchronous: 2 of 3 all-reduce",
        "all-reduce 1.0 MiB", "24 x tpu_custom_call", "1 x gather, 2 x scatter", "1, counted as one turn", "50.0%  mlp",
        "compiler-estimated", "1,000 examples (test)",
    ):  # fmt: skip
        assert piece in text


def test_json_compare_and_exit_codes(monkeypatch, capsys, tmp_path):
    flags = (f"--config={CONFIG}", "--topology=v5e-4")
    code, text = run(monkeypatch, capsys, FOUND, *flags, "--json")
    assert code == 0 and json.loads(text)["MFU"] == 0.5
    bad = FOUND | {"fits": False, "remedy": {"batch_size": 8}, "compiler says": "no room"}
    code, text = run(monkeypatch, capsys, bad, *flags, f"--json={tmp_path / 'f.json'}", "--compare=other.py")
    assert code == 1 and text.count("DOES NOT FIT; try --config.batch_size=8") == 2
    assert all(f"epoch of {name}: 1,000 examples" in text for name in (CONFIG, "other.py"))
    assert [f["config"] for f in json.loads((tmp_path / "f.json").read_text())] == [CONFIG, "other.py"]


def test_what_was_compiled_is_printed_even_if_it_cannot_be_written(monkeypatch, capsys):
    monkeypatch.setattr(command, "preflight", lambda *_: FOUND)
    monkeypatch.setattr(command.json, "dump", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        command.main([f"--config={CONFIG}", "--topology=v5e-4", "--json=/dev/null"])
    assert "100.0 ms" in capsys.readouterr().out


def test_two_programs_leave_two_texts(monkeypatch, capsys):
    texts = []
    monkeypatch.setattr(command, "preflight", lambda source, args, where, text: texts.append(text) or FOUND)
    flags = (f"--config={CONFIG}", "--topology=v5e-4", "--compare=other.py", "--text=program.txt")
    assert command.main([*flags]) == 0 and texts == ["program.txt", "program.txt.2"]


def test_the_formula_is_that_of_the_program(monkeypatch, capsys):
    flags = (f"--config={CONFIG}", "--topology=v5e-4")
    assert "MFU = 3 x forward matmul FLOPs" in run(monkeypatch, capsys, FOUND, *flags)[1]
    text = run(monkeypatch, capsys, FOUND | {"program": "embed"}, *flags, "--program=embed")[1]
    assert "MFU = forward matmul FLOPs" in text and "remat" not in text.split("MFU = ")[1].split("/")[0]


def test_epochs_need_no_data():
    config = clip.get_config("scale=low")
    assert command.epoch_of(config, 0) == (11_300_000, "known of cc12m")
    assert (
        command.epoch_of(config, command.parser().parse_args(["--epoch_examples=5e6"]).epoch_examples)[0] == 5_000_000
    )
    assert "assumed" in command.epoch_of(clip.get_config("scale=photos"), 0)[1]


HERE = (f"--config={CONFIG}", "--topology=v5e-4")


@pytest.mark.parametrize(
    "flags, text",
    [
        (["--topology=v5e-4"], "--config is missing"),
        ([f"--config={CONFIG}"], "--topology is missing; valid: v4-128"),
        ([f"--config={CONFIG}", "--topology=v5e-3"], "a power of two"),
        ([f"--config={CONFIG}", "--topology", "--json"], "argument --topology: expected one argument"),
        ([*HERE, "--num_slices=two"], "argument --num_slices: 'two'; valid: a whole number, 1 or more"),
        *(([*HERE, f"--num_slices={n}"], "a whole number, 1 or more") for n in ("nan", "inf", "2.7", "0", "-1")),
        *(([*HERE, f"--epoch_examples={n}"], "a whole number, 1 or more") for n in ("nan", "0", "-5", "")),
        *(
            ([*HERE, f"--price={n}"], f"argument --price: '{n}'; valid: a number, 0 or more")
            for n in ("-1", "nan", "inf")
        ),
        ([*HERE, "--program=embed", "--price=1"], "--program=train, not embed"),
        ([*HERE, "--select=x"], "--select goes with --all only"),
        ([*HERE, "--hours=3"], "--hours goes with --sweep only"),
        ([*HERE, "--sweep"], "--topology does not go with --sweep; valid: --slices"),
        ([HERE[0], "--sweep", "--computes=rolled+none"], "unknown 'rolled+none'; valid: unroll+none, unroll+full"),
        ([HERE[0], "--sweep", "--meshes=8x"], "'8x' is neither fsdp nor fsdp x tensor; valid: 1,8,8x2"),
        ([HERE[0], "--sweep", "--batches=many"], "'many' is not a number of pictures a chip"),
        ([HERE[0], "--sweep", "--slices=v5e-3"], "a power of two"),
        (["--calibrate=/no/such/run"], "cannot read '/no/such/run/costs.json'"),
        ([*HERE, "--num_slice=2"], "unknown flag '--num_slice' (did you mean '--num_slices'?); valid: --all"),
        ([*HERE, "--cash=x"], "--cache"),
        ([*HERE, "--json=/no/such/folder/x.json"], "--json=/no/such/folder/x.json cannot be written"),
        ([*HERE, "--text=/"], "--text=/ cannot be written"),
        (["--all=no"], "argument --all: ignored explicit argument 'no'"),
        ([*HERE, "--rows=x"], "--rows goes with --all only"),
        (["--all", f"--rows={__file__}"], "is not a folder; valid: one in which rows are kept"),
        (["--all", "--select=nothing"], "unknown --select 'nothing'"),
        (["--all", "--select=*"], "--select='*' is not a regular expression: nothing to repeat"),
        *(
            (["--all", f"--{name}=2"], f"--{name} does not go with --all")
            for name in ("config", "topology", "num_slices", "compare", "text")
        ),
    ],
)
def test_mistakes_are_one_line(monkeypatch, capsys, flags, text):
    monkeypatch.setattr(command, "preflight", None)  # nothing is compiled before they are found
    assert command.main([*flags]) == 2
    said = capsys.readouterr().err
    assert text in said and len(said.strip().splitlines()) == 1


def test_a_mistake_in_the_command_s_own_process():
    flags = (f"--config={CONFIG}", "--topology=v5e-4", "--program=tran")
    done = subprocess.run(
        [sys.executable, "-m", "maeclip_jax.preflight", *flags], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "valid: contrast, embed, evaluate, train" in done.stderr
    assert len(runs.without_alarms(done.stderr)) == 1
