"""What importing the package costs, and that the rules about who imports whom can fail."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.golden import ROOT

HEAVY = ("tensorflow", "torch", "transformers", "matplotlib", "apache_beam")


def lint(folder: Path) -> subprocess.CompletedProcess:
    """lint-imports on the package in `folder`."""
    command = [Path(sys.executable).parent / "lint-imports", "--config", ROOT / ".importlinter", "--no-cache"]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)


def test_arrows_point_down():
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "file, line",
    [
        ("nn/mask.py", "from maeclip_jax import errors"),
        ("objectives/losses.py", "from maeclip_jax.nn import mask"),
        ("data/order.py", "def late():\n    import maeclip_jax.run.train"),
        ("prepare/crawl.py", "from maeclip_jax.prepare.builders import manual"),
        ("prepare/formats/table.py", "from maeclip_jax.prepare import crawl"),
        ("prepare/formats/units.py", "def late():\n    from maeclip_jax.prepare.formats import table"),
        ("new_module.py", ""),
    ],
)
def test_a_wrong_arrow_is_found(file, line, tmp_path):
    shutil.copytree(ROOT / "maeclip_jax", tmp_path / "maeclip_jax", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "maeclip_jax" / file).open("a") as f:
        f.write(f"\n{line}\n")
    assert lint(tmp_path).returncode == 1


def after_import(statement: str) -> dict:
    """What a fresh Python has loaded after a statement: modules, and the absl flags defined."""
    code = (
        f"{statement}\nimport json, sys\n"
        "flags = sorted(sys.modules['absl.flags'].FLAGS) if 'absl.flags' in sys.modules else []\n"
        "print(json.dumps([sorted({m.split('.')[0] for m in sys.modules}), flags]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    modules, flags = json.loads(done.stdout)
    return dict(modules=set(modules), flags=set(flags))


def test_importing_the_package_is_light():
    loaded = after_import("import maeclip_jax")["modules"]
    assert not loaded & {*HEAVY, "jax", "flax", "numpy", "ml_collections", "tensorflow_datasets"}


def test_importing_the_command_touches_no_jax_and_defines_no_flags():
    after = after_import("import maeclip_jax.main, maeclip_jax.sweep, maeclip_jax.prepare.command")
    assert not after["modules"] & {*HEAVY, "jax", "flax", "tensorflow_datasets"}
    assert after["flags"] == after_import("import absl.flags")["flags"]


def test_training_and_evaluation_load_no_heavy_package():
    loaded = after_import(
        "import maeclip_jax.run.train, maeclip_jax.run.model, maeclip_jax.evals as e, maeclip_jax.objectives as o;"
        "e.table(); o.table()"
    )["modules"]
    assert "jax" in loaded and "flax" in loaded
    assert not loaded & set(HEAVY)


def test_objectives_are_told_apart_in_one_place():
    for file in (ROOT / "maeclip_jax").rglob("*.py"):
        if file.parts[-2:] != ("objectives", "__init__.py"):
            assert not [n for n in ("objective ==", "objective in (") if n in file.read_text()], file
