"""Every mistake on the command line ends in one line that names the valid choices, exit code 2, and no traceback."""

import os
import subprocess
import sys

import pytest

from maeclip_jax import main
from maeclip_jax.run import startup
from tests import runs, torture
from tests.golden import ROOT

TINY = "--config=tests/tiny.py:objective=clip,steps=1"
DEMO = "experiments/mae_clip.py"

# What is wrong -> what the line must say.
MISTAKES = {
    # Flags.
    "": "--config is missing: name an experiment file, such as --config=experiments/mae_clip.py:scale=demo",
    f"{TINY}": "--workdir is missing: name the directory of the run, such as --workdir=runs/mine",
    f"{TINY} W again": "unexpected argument 'again'; settings are written --config.name=value",
    f"{TINY} W --wrokdir=x": "unknown flag '--wrokdir' (did you mean '--workdir'?); valid: ",
    f"{TINY} W --mode=fly": "unknown --mode 'fly'; valid: train, eval",
    f"{TINY} W --platform=abacus": "unknown --platform 'abacus'; valid: cpu, tpu, gpu",
    f"{TINY} W --cpu_devices=many": "argument --cpu_devices: invalid int value: 'many'; see --help",
    f"{TINY} W --processes=2 --coordinator=localhost:1 --process=5": "--process=5 of --processes=2; valid: 0 to 1",
    "--config=experiments/nope.py W": "no experiment file 'experiments/nope.py'; here are: experiments/clip.py, ",
    # The experiment's argument.
    f"--config={DEMO}:pol=max W": "unknown experiment argument 'pol' (did you mean 'pool'?); valid: data, decode, ",
    f"--config={DEMO}:pool=banana W": "unknown pool 'banana'; valid: gap, max, cls, last, map, logsumexp(tau), topk(k)",
    "--config=experiments/mae.py:runlocal,pool=topk(0) W": "topk pooling needs a whole k in 1..",
    # Settings.
    f"{TINY} W --config.seeed=1": "unknown setting config: name 'seeed' (did you mean 'seed'?); valid: arg, ",
    f"{TINY} W --config.optim.lrr=1": "unknown setting config.optim: name 'lrr' (did you mean 'lr'?); valid: b1, b2, ",
    f"{TINY} W --config.evals.val.evry=1": "unknown setting config.evals.val: name 'evry' (did you mean 'every'?)",
    f"{TINY} W --config.optim.lr=fast": "--config.optim.lr=fast does not fit: it is ",
    f"{TINY} W --config.optim.lr.x=1": "--config.optim.lr.x: config.optim.lr is a value and has no 'x'",
    f"{TINY} W --config.batch_size=1.5": "--config.batch_size=1.5 does not fit: it is 16 (int) by default",
    f"{TINY} W --config.data.max_bad=lots": "--config.data.max_bad=lots does not fit: it is 0.1 (float) by default",
    # Words of the config.
    f"{TINY} W --config.objective=dino": "unknown objective 'dino'; valid: clip, m3ae, mae, mae_clip",
    f"{TINY} W --config.optim.name=adem": "unknown optimizer 'adem' (did you mean 'adamw'?); valid: adafactor, adamw, ",
    f"{TINY} W --config.optim.schedule=cosin": "unknown schedule 'cosin' (did you mean 'cosine'?); valid: cosine, ",
    f"{TINY} W --config.model.compute.remat=some": "unknown remat 'some'; valid: none, full, ",
    f"{TINY} W --config.model.compute.attention=magic": "unknown attention 'magic'; valid: xla, ",
    f"{TINY} W --config.model.compute.mlp=magic": "unknown mlp 'magic'; valid: auto, xla, ",
    f"{TINY} W --config.model.compute.layers=loop": "unknown layers 'loop'; valid: scan, unroll",
    f"{TINY} W --config.model.compute.dtype=float33": "unknown dtype 'float33'; valid: float32, bfloat16",
    f"{TINY} W --config.model.stats=nowhere": "unknown pixel statistics 'nowhere'; valid: ",
    f"{TINY} W --config.model.image_tower.heads=5": "width 32 does not divide into 5 heads",
    f"{TINY} W --config.tokenizer.type=wordy": "unknown tokenizer type 'wordy'; valid: bert, bytes, clip, ",
    f"{TINY} W --config.tokenizer.path=/not/here.txt": "tokenizer file '/not/here.txt' is not there; packaged are: ",
    f"{TINY} W --config.evals.val.type=lost": "unknown evaluator 'lost' (did you mean 'loss'?); valid: ",
    f"{TINY} W --config.total=soon": "total='soon' is not a duration; valid: a number and one of steps, epochs, ",
    f"{TINY} W --config.log.every=x": "log.every='x' is not a duration; valid: ",
    f"{TINY} W --config.evals.val.every=often": "evals.val.every='often' is not a duration; valid: ",
    f"{TINY},count=0 W --config.total=3epochs": "total='3epochs', but endless data has no epochs; use steps",
    f"{TINY} W --config.optim.warmup=9steps": "optim.warmup='9steps' is 9 steps, but the whole run has 1",
    f"{TINY} W --config.checkpoint.best=vall/loss": "unknown evaluation in checkpoint.best: 'vall' (did you mean ",
    # Devices.
    f"{TINY} W --config.mesh.replica=16": "needs 16 devices, but there are 8; set one axis of config.mesh to -1",
    f"{TINY} W --config.mesh.fsdp=3": "mesh replica=2 x fsdp=3 x tensor=1 needs 6 devices, but there are 8; ",
    f"{TINY} W --config.mesh.data=8": "unknown setting config.mesh: name 'data'; valid: fsdp, replica, tensor",
    f"{TINY} W --config.batch_size=12": "batch_size 12 (global) does not divide over 8 batch shards; use a ",
    # Data.
    f"--config={DEMO} W": "no data set 'scenes/demo' at /no/data/scenes/demo (/no/data holds no data set); "
    "prepare it with `python -m maeclip_jax.prepare.builders.scenes --config demo --data_dir /no/data`",
    "--config=experiments/clip.py:scale=low W": "tokenizer file 'bert_vocab.txt' is not there; packaged are: scenes",
    f"{TINY} W --config.data.source.kind=webd": "unknown source kind 'webd'; valid: noise, questions, scenes, subset",
    f'{TINY} W --config.data.ops=decode|flip|keep("image")': "unknown op 'flip'",
    f'{TINY} W --config.data.ops=decode|keep("image")': "the data's ops must keep 'text' for this objective; they ",
    f"{TINY} W --config.data.source.resolution=48": "batch 'image' is uint8 (48, 48, 3) per example, the model takes "
    "uint8 (32, 32, 3)",
    # Checkpoints.
    f"{TINY} W --config.init_from=/not/here": "no checkpoint in '/not/here'; valid: a workdir with checkpoints/",
    f"{TINY} W --config.resume=/not/here": "no checkpoint in '/not/here'; valid: a workdir with checkpoints/",
    f"{TINY} W --mode=eval": "/run'; valid: a workdir with checkpoints/<step>, or one such step",
    f"{TINY} --workdir=/dev/null/x": "workdir '/dev/null/x' cannot be made: ",
}


@pytest.fixture
def call(monkeypatch, capfd, tmp_path):
    """Runs main in this process, which may be old by now; returns (exit code, stdout, lines of stderr)."""
    monkeypatch.setattr(startup, "age", lambda: 1e6)
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("MAECLIP_DATA_DIR", "/no/data")

    def run(argv: list[str]):
        code = main.main([*argv])
        out, err = capfd.readouterr()
        return code, out, runs.without_alarms(err)

    return run


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(mistake, call, tmp_path):
    argv = [f"--workdir={tmp_path}/run" if word == "W" else word for word in mistake.split()]
    code, _, err = call(argv)
    assert code == 2
    assert len(err) == 1 and err[0].startswith("error: ")
    assert MISTAKES[mistake] in err[0]


def test_settings_with_spaces_and_the_two_forms_of_a_flag(call, tmp_path):
    code, _, err = call(["--config", TINY.partition("=")[2], "--workdir", f"{tmp_path}", "--config.total", "no steps"])
    assert code == 2 and len(err) == 1
    assert err[0].startswith("error: total='no steps' is not a duration; valid: a number and one of steps, epochs, ")


def test_an_experiment_file_that_fails_is_named(call, tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("def get_config(arg):\n    return 1 / 0\n")
    assert call([f"--config={broken}", "--workdir=x"])[2] == [
        f"error: experiment file '{broken}' failed: ZeroDivisionError: division by zero"
    ]
    broken.write_text("import nothing_like_this\n")
    assert "failed: ModuleNotFoundError: No module named 'nothing_like_this'" in call([f"--config={broken}"])[2][0]


def test_a_checkpoint_that_is_damaged(call, tmp_path):
    workdir = runs.copy(runs.whole(8, "steps=12,save=6"), tmp_path / "run")
    (workdir / "checkpoints" / "12" / "state" / "manifest.ocdbt").write_bytes(b"\x00")
    code, _, err = call([f"--config={runs.TINY}:steps=12,save=6", f"--workdir={workdir}"])
    assert code == 2 and len(err) == 1
    assert err[0].startswith(f"error: checkpoint {workdir}/checkpoints/12 cannot be read (")
    assert err[0].endswith("move it away to continue from the one before")


def test_where_it_went_wrong_on_request(call, monkeypatch):
    monkeypatch.setenv("MAECLIP_TRACEBACK", "1")
    _, _, err = call(["--config=experiments/nope.py"])
    assert err[0].startswith("Traceback") and err[-1].startswith("error: no experiment file")


STARS = "*" * 32
SLOW = f"""\
E1129 02:29:42.008701   32263 slow_operation_alarm.cc:73] Constant folding an instruction is taking > 1s:

  %reduce_window_sum.7 = f32[1500,1500]{{1,0}} reduce-window(%constant.2, %constant.3), window={{size=31x31}}

This isn't necessarily a bug; constant-folding is inherently a trade-off between compilation time and speed at runtime.

If you'd like to file a bug, run with envvar XLA_FLAGS=--xla_dump_to=/tmp/foo and attach the results.
E1129 02:31:42.008701   32263 slow_operation_alarm.cc:73] 
{STARS}
Very slow compile? If you want to file a bug, run with envvar XLA_FLAGS=--xla_dump_to=/tmp/foo and attach the results.
[Compiling module jit_update for CPU]
{STARS}
E1129 02:31:43.008701   32263 slow_operation_alarm.cc:140] The operation took 2m1.5s

{STARS}
Very slow compile? If you want to file a bug, run with envvar XLA_FLAGS=--xla_dump_to=/tmp/foo and attach the results.
{STARS}
E1129 02:31:44.008701   32263 rendezvous.cc:42] [id=3] This thread has been waiting for `x` for 20 seconds
"""  # noqa: W291
OTHER = ["error: one", "", "Traceback (most recent call last):", "E1129 02:31:44.008701   32263 client.cc:7] no memory"]


def test_what_xla_says_of_a_busy_machine_is_no_line_of_ours_and_all_else_is():
    said = "\n".join(OTHER)
    assert runs.without_alarms(SLOW) == runs.without_alarms("") == []
    assert runs.without_alarms(said) == runs.without_alarms(f"{said}\n") == OTHER
    assert runs.without_alarms(f"{SLOW}{said}\n{SLOW}") == OTHER


def test_help(call):
    code, out, err = call(["--help"])
    assert code == 0 and not err
    assert "python -m maeclip_jax.main --config=experiments/" in out and "--cpu_devices" in out


# As commands.


def command(*argv: str, **env: str):
    done = subprocess.run(
        [sys.executable, "-m", "maeclip_jax.main", *argv], cwd=ROOT, capture_output=True, text=True, timeout=600,
        env=os.environ | env,
    )  # fmt: skip
    return done.returncode, done.stdout, runs.without_alarms(done.stderr)


def test_a_typo_as_a_command():
    code, out, err = command(TINY, "--workdir=x", "--config.optim.lrr=1")
    assert code == 2 and not out
    assert len(err) == 1 and err[0].startswith("error: unknown setting config.optim: name 'lrr' (did you mean 'lr'?)")


def test_too_few_devices_as_a_command(tmp_path):
    code, _, err = command(TINY, f"--workdir={tmp_path}", "--cpu_devices=2", "--config.mesh.fsdp=4")
    assert code == 2 and len(err) == 1
    assert err[0].startswith("error: mesh replica=1 x fsdp=4 x tensor=1 needs 4 devices, but there are 2")


def test_a_clean_terminal(tmp_path):
    """A whole run, then the same command again: nothing on stderr, no warning of a library, and where it runs."""
    argv = ["--config=tests/tiny.py:objective=clip,steps=2,save=1", f"--workdir={tmp_path}", "--cpu_devices=2"]
    code, out, err = command(*argv)
    assert (code, err) == (0, [])
    lines = out.splitlines()
    assert f"2 x cpu: replica 2; 2 steps of 16 examples; {tmp_path}" in lines
    assert any(line.startswith("step 2/2 100% | eta 0s | loss ") for line in lines)
    assert torture.steps(tmp_path) == [1, 2]
    code, out, err = command(*argv)
    assert (code, err) == (0, [])
    assert out.splitlines()[-1] == f"{tmp_path}: all 2 steps are done"
