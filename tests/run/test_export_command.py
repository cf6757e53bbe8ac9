"""A run as a folder of another library, by command: its newest checkpoint or an older one, and what its card says."""

import numpy as np
import pytest

import maeclip_jax as mc
from maeclip_jax import cli, interop
from maeclip_jax.params import flatten
from maeclip_jax.run import export
from maeclip_jax.workdir import read_results
from tests import runs

ARG = "objective=siglip,steps=4,save=2"


def said(capsys, *flags):
    """(exit code, lines on stdout, lines on stderr)."""
    capsys.readouterr()  # of the training
    code = cli.guarded(lambda: export.run([str(f) for f in flags]))
    out = capsys.readouterr()
    return code, out.out.splitlines(), out.err.splitlines()


def test_a_run_becomes_a_folder_that_gives_its_numbers(tmp_path, capsys):
    workdir, out = runs.whole(1, ARG), tmp_path / "out"
    code, lines, _ = said(capsys, "--workdir", workdir, "--format", "hf-siglip", "--out", out)
    assert code == 0 and lines[-1] == f"written: {out}" and lines[0].startswith("hf-siglip ")
    ours, theirs = mc.load(workdir), mc.load(f"hf-siglip:{out}")
    before, after = flatten(ours.params), flatten(theirs.params)
    assert all(np.array_equal(before[k], after[k]) for k in before.keys() | after.keys())
    pictures = np.random.default_rng(0).integers(0, 256, (2, 40, 50, 3), np.uint8)
    texts = ["a red circle", "two blue squares"]
    np.testing.assert_array_equal(ours.similarity(pictures, texts), theirs.similarity(pictures, texts))
    card = (out / "README.md").read_text()
    newest = read_results(workdir)[0][-1]
    assert newest["step"] == 4 and newest["metrics"]
    for line in (f"# {workdir.name}", "- Data: scenes", "- Steps: 4 (4 steps were planned)", "- Batch size: 16"):
        assert line in card
    for name, value in newest["metrics"].items():
        assert f"| {name} | {value:.4g} | {newest['about'][name]['unit']} |" in card


def test_an_older_checkpoint_and_a_folder_that_is_there(tmp_path, capsys):
    workdir, out = runs.whole(1, ARG), tmp_path / "out"
    older = min((p for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
    flags = ("--format", "hf-vision", "--out", out)
    assert said(capsys, "--workdir", older, *flags)[0] == 0
    assert f"- Steps: {older.name} (" in (out / "README.md").read_text()
    code, _, errors = said(capsys, "--workdir", workdir, *flags)
    assert code == 2 and len(errors) == 1 and "--overwrite on the command line" in errors[0]
    assert said(capsys, "--workdir", workdir, *flags, "--overwrite")[0] == 0
    assert "- Steps: 4 (" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    "flags, message",
    [
        (
            ("--format", "hf-klip"),
            "unknown kind of weights to write 'hf-klip' (did you mean 'hf-clip'?); valid: hf-clip",
        ),
        (
            ("--format", "hf-clip"),
            "hf-clip cannot express this model; it can if it is trained with --config.model.image",
        ),
        (("--format", "hf-siglip", "--config.tokenizer.path=no.txt"), "tokenizer file 'no.txt' is not there"),
        (
            ("--format", "hf-siglip", "--config=experiments/clip.py"),
            "--config is the run's own here; valid: --workdir, ",
        ),
        (("--format", "hf-siglip", "--over"), "unknown flag '--over'"),
        (("--format", "hf-siglip", "--workdir", "nowhere"), "no checkpoint in 'nowhere'; valid: a workdir with "),
        (("--format", "hf-siglip", "--workdir", "experiments/clip.py:runlocal"), "no checkpoint in 'experiments/"),
    ],
)
def test_a_mistake_is_one_line(flags, message, tmp_path, capsys, monkeypatch):
    from tests.golden import ROOT

    monkeypatch.chdir(ROOT)
    given = ("--workdir", runs.whole(1, ARG), "--out", tmp_path / "out", *flags)
    code, _, errors = said(capsys, *given)
    assert code == 2 and len(errors) == 1 and message in errors[0]
    assert not (tmp_path / "out").exists()


def test_the_formats_are_those_of_the_help(capsys):
    code, lines, _ = said(capsys, "--help")
    assert code == 0 and all(kind in "\n".join(lines) for kind in interop.WRITTEN)
