"""Notebooks run top to bottom with a few steps, and the outputs that are kept are whole and small."""

import json

import pytest

from maeclip_jax.preflight import table, topology
from tests import long, notebooks

nbformat = pytest.importorskip("nbformat", reason="notebooks need it: pip install -e '.[test]'")
for module in ("nbclient", "ipykernel"):
    pytest.importorskip(module, reason="notebooks need it: pip install -e '.[test]'")

TINY = {
    "MAECLIP_NOTEBOOK_STEPS": "2",
    "MAECLIP_NOTEBOOK_CONFIG": "experiments/mae_clip.py:runlocal",
    "JAX_NUM_CPU_DEVICES": "1",
    "JAX_NUMPY_RANK_PROMOTION": "allow",  # as in a notebook of anybody's
}

LONG = ("1_clip_or_mae_clip", "4_preflight")  # most of what they call is called by tests of the API and the pre-flight


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Where the notebooks' runs go: a later one may find those of an earlier one."""
    return str(tmp_path_factory.mktemp("notebooks"))


@pytest.mark.parametrize("name", long.marked(notebooks.names(), LONG))
def test_a_notebook_runs_and_its_kept_outputs_are_as_many(name, trained):
    path = notebooks.FOLDER / f"{name}.ipynb"
    kept, made = nbformat.read(path, 4), notebooks.execute(name, MAECLIP_NOTEBOOK_RUNS=trained, **TINY)
    assert [c.source for c in notebooks.code(kept)] == [c.source for c in notebooks.code(made)]
    assert [c.execution_count for c in notebooks.code(kept)] == list(range(1, len(notebooks.code(kept)) + 1))
    for a, b in zip(notebooks.code(kept), notebooks.code(made)):
        kinds = [{(o.output_type, *sorted(o.get("data", {}))) for o in c.outputs} for c in (a, b)]
        same = kinds[0] == kinds[1] or not topology.installed()  # without it, one cell says so
        assert same, f"{name}: run `make notebooks` again; the outputs are not those of\n{a.source}"
    assert path.stat().st_size < notebooks.LIMIT
    assert "/tmp/" not in path.read_text() and "Traceback" not in path.read_text()
    assert notebooks.pictures(kept) > 0 or name == "4_preflight"


def test_the_notebooks_are_there():
    assert len(notebooks.names()) == 4


def test_the_kept_figures_of_a_pre_flight_are_shown_without_its_compiler():
    found = json.loads((notebooks.FOLDER / "preflight.json").read_text())
    for figures in found.values():
        assert table.rows(figures)["verdict"] and "step (compiler-estimated)" in table.full([("x", figures)])
