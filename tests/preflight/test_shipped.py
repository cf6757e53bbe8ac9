"""The table of the shipped experiments: rows as they are done, kept, taken up again, and those of tpu/README."""

import dataclasses
import json

import pytest

from maeclip_jax.errors import UserError
from maeclip_jax.parallel import chips
from maeclip_jax.preflight import command, shipped, topology
from tests.golden import ROOT
from tests.preflight.test_preflight import FOUND, needs_libtpu, run

SOME = "^clip:scale=low"


def test_all_of_a_selection_is_a_table_and_mistakes_are_rows(monkeypatch, capsys):
    # As they are called, and as they are printed.
    for select in ("/clip.py.*low.*v4-128", "^clip:scale=low.*v4-128", "^clip:scale=low,size=B/16 on 1 x v4-128$"):
        code, text = run(monkeypatch, capsys, FOUND, "--all", f"--select={select}")
        assert code == 0 and "| clip:scale=low,size=B/16 | v5e:2x2 (4 chips) | 4 |" in text
        assert "| 1.0 | 84 to 101 | 1.7 to 2.0 | 8 | 8 to 10 | fits |" in text
        assert "Dollars: at 1.2 a chip-hour, on demand" in text
    priced = ("--all", f"--select={select}", "--price=2")
    assert "| 1.7 to 2.0 | 8 | 14 to 16 | fits |" in run(monkeypatch, capsys, FOUND, *priced)[1]
    assert json.loads(run(monkeypatch, capsys, FOUND, *priced, "--json")[1])[0]["cost"] == 16
    code, text = run(monkeypatch, capsys, FOUND | {"program": "embed"}, "--all", "--program=embed")
    assert "| - | - | - | fits |" in text  # no run, no hours

    def fails(*_):
        raise UserError("nothing fits")

    monkeypatch.setattr(command, "preflight", fails)
    assert command.main(["--all", "--select=/clip.py.*low.*v4-128"]) == 1
    assert "nothing fits |" in capsys.readouterr().out


@needs_libtpu
@pytest.mark.parametrize("names", [("mae_clip", "m3ae"), pytest.param(("clip", "mae"), marks=pytest.mark.long)])
def test_a_small_table_of_every_objective_fits(names, monkeypatch, capsys, tmp_path):
    small = tuple((f"experiments/{name}.py:runlocal", "v5e-4", 1) for name in names)
    monkeypatch.setattr(shipped, "SHIPPED", small)
    monkeypatch.setattr(command.machine, "configure_jax", lambda *_: None)  # the tests' own settings stay
    code = command.main(["--all", f"--json={tmp_path / 'table.json'}"])
    text = capsys.readouterr().out
    found = json.loads((tmp_path / "table.json").read_text())
    assert code == 0 and [row["fits"] for row in found] == [True] * 2
    assert all(row["step seconds"] > 0 and row["model FLOPs"] > 0 for row in found)
    assert text.count("| fits |") == 2 and "Compiler-estimated" in text


@pytest.fixture
def counted(monkeypatch):
    """What was compiled, by name of the slice."""
    asked = []
    monkeypatch.setattr(command, "preflight", lambda source, args, where: asked.append(where.kind) or dict(FOUND))
    monkeypatch.setattr(command.machine, "configure_jax", lambda *_: None)
    monkeypatch.setattr(topology, "installed", lambda: True)
    monkeypatch.setattr(topology, "compiler", lambda: "a compiler")
    return asked


def test_rows_that_are_kept_are_not_compiled_again(counted, monkeypatch, capsys, tmp_path):
    command_line = ["--all", f"--select={SOME}", f"--rows={tmp_path / 'rows'}"]
    assert command.main(command_line) == 0 and len(counted) == 5
    text = capsys.readouterr().out
    next((tmp_path / "rows").glob("*v5p*")).unlink()  # as after an interruption
    assert command.main(command_line) == 0 and counted[5:] == ["v5p"] and capsys.readouterr().out == text
    assert command.main([*command_line, "--price=2"]) == 0 and len(counted) == 6  # a price needs no compiler
    assert "8 to 10" in text and "14 to 16" in capsys.readouterr().out


@pytest.mark.parametrize("other", [["--config.batch_size=512"], ["--epoch_examples=5"], ["--program=embed"]])
def test_a_row_of_something_else_is_made_anew(counted, capsys, tmp_path, other):
    command_line = ["--all", "--select=^clip:scale=low.*v5p", f"--rows={tmp_path}"]
    assert command.main(command_line) == 0 and command.main([*command_line, *other]) == 0
    assert len(counted) == 2 and len(list(tmp_path.iterdir())) == 1


OTHERS = {
    "compiler": lambda patch: patch.setattr(topology, "compiler", lambda: "a newer one"),
    "revision": lambda patch: patch.setattr(shipped, "REVISION", shipped.REVISION + 1),
    "kernels": lambda patch: patch.setitem(chips.CHIPS, "v5p", dataclasses.replace(chips.CHIPS["v5p"], mlp="other")),
    "peak": lambda patch: patch.setitem(chips.CHIPS, "v5p", dataclasses.replace(chips.CHIPS["v5p"], peak=1.0)),
    "network": lambda patch: patch.setitem(chips.NETWORK, "v5p", 1.0),
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_compiler_program_or_chip_makes_rows_anew(counted, monkeypatch, capsys, tmp_path, other):
    command_line = ["--all", "--select=^clip:scale=low.*v5p", f"--rows={tmp_path}"]
    assert command.main(command_line) == 0
    OTHERS[other](monkeypatch)
    assert command.main(command_line) == 0 and len(counted) == 2
    assert command.main(command_line) == 0 and len(counted) == 2


def test_what_cannot_be_built_is_not_kept(counted, monkeypatch, capsys, tmp_path):
    def fails(*_):
        raise UserError("nothing fits")

    monkeypatch.setattr(command, "preflight", fails)
    command_line = ["--all", "--select=^clip:scale=low.*v5p", f"--rows={tmp_path}"]
    assert command.main(command_line) == 1 and not list(tmp_path.iterdir())


def test_a_spoiled_row_is_named(counted, capsys, tmp_path):
    command_line = ["--all", "--select=^clip:scale=low.*v5p", f"--rows={tmp_path}"]
    assert command.main(command_line) == 0
    (path,) = tmp_path.iterdir()
    path.write_text("{")
    assert command.main(command_line) == 1
    assert f"{path} is not a row of the pre-flight" in capsys.readouterr().out


def test_the_rows_of_tpu_readme_are_those_that_are_kept():
    """Each kept row is of the shipped table and of its programs now, and README shows it under the same header."""
    folder, shown = ROOT / "results" / "preflight", (ROOT / "tpu" / "README.md").read_text()
    rows = {row.file: row for row in (shipped.Row(*of) for of in shipped.SHIPPED)}
    kept = sorted(path.name for path in folder.glob("*"))
    assert set(kept) <= set(rows) and kept
    assert {shipped.read(folder / name)["revision"] for name in kept} == {shipped.REVISION}
    found = [(rows[name], command.with_cost(shipped.read(folder / name), None)) for name in rows if name in kept]
    table, _, note = shipped.text(found).partition("\n\n")
    assert f"\n{table}\n\n" in shown and note in " ".join(shown.split())
