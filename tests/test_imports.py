"""Who imports whom: arrows point down the list of the house, and heavy packages come only where they are needed."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.golden import ROOT

PACKAGE = ROOT / "maeclip_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
HEAVY = ("tensorflow", "torch", "transformers", "matplotlib", "apache_beam")

# Top to bottom. A file may import from its own part and from parts further down, never from above or from beside.
LAYERS = (
    ("bench", "library", "preflight", "startup_bench", "sweep"),
    ("main",),
    ("train",),
    ("evaluate", "model"),
    ("functions", "program", "join", "report"),
    ("interop", "record"),
    ("pod",),
    ("doctor",),
    ("checkpoint", "data", "evals", "objectives", "optim", "sharding"),
    ("log",),
    ("durations", "flops", "losses", "nn", "paths", "startup", "watchdog"),
    ("errors",),
)
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}


def part_of(name: str) -> str:
    """`maeclip_jax.data.ops` -> data."""
    return name.split(".")[1]


def imports(tree: ast.Module, *, everywhere: bool = True) -> list[str]:
    """Full names that a file imports: `maeclip_jax.data.ops.parse`. Not everywhere: only when it is itself imported."""
    nodes, found = list(tree.body), []
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        elif everywhere or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            nodes += list(ast.iter_child_nodes(node))
    return found


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


def wrong_arrows(name: str, source: str) -> list[str]:
    """Imports of the module `name` that do not point down."""
    tree = ast.parse(source)
    runnable = any(isinstance(n, ast.If) and "__main__" in ast.dump(n.test) for n in tree.body)
    own = part_of(name)
    wrong = []
    for target in imports(tree):
        if not target.startswith("maeclip_jax."):
            continue
        part = part_of(target)
        assert part in LEVEL, f"{name} imports {part!r}: give it a place in LAYERS of tests/test_imports.py"
        if part == own or LEVEL[part] > LEVEL[own]:
            continue
        if part == "main" and runnable:  # a command of its own: main.guarded prints its mistakes
            continue
        wrong.append(f"{name} imports {target}")
    return wrong


@pytest.mark.parametrize("file", [f for f in FILES if f.parent != PACKAGE or f.stem != "__init__"], ids=module_name)
def test_arrows_point_down(file):
    name = module_name(file)
    assert part_of(name) in LEVEL, f"give {part_of(name)!r} a place in LAYERS of tests/test_imports.py"
    assert wrong_arrows(name, file.read_text()) == []


def test_a_wrong_arrow_is_found():
    assert wrong_arrows("maeclip_jax.objectives.losses", "from maeclip_jax.nn import mask") != []
    assert wrong_arrows("maeclip_jax.objectives.x", "def f():\n  from maeclip_jax.data import ops") != []
    assert wrong_arrows("maeclip_jax.data.x", "import maeclip_jax.run.train") != []
    assert wrong_arrows("maeclip_jax.data.x", "from maeclip_jax import main") != []
    assert (
        wrong_arrows("maeclip_jax.data.x", "from maeclip_jax import main, errors\nif __name__ == '__main__': 0") == []
    )


@pytest.mark.parametrize("file", [*sorted((PACKAGE / "nn").glob("*.py")), PACKAGE / "losses.py"], ids=module_name)
def test_nn_and_losses_import_nothing_of_the_project(file):
    project = {n for n in imports(ast.parse(file.read_text())) if n.startswith(("maeclip_jax", "experiments"))}
    inside = "maeclip_jax.nn." if file.parent.name == "nn" else "nothing"
    assert all(n.startswith(inside) for n in project), project


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_heavy_packages_are_imported_inside_functions(file):
    roots = {n.split(".")[0] for n in imports(ast.parse(file.read_text()), everywhere=False)}
    assert not roots & set(HEAVY)
    assert "tensorflow_datasets" not in roots or "builders" in file.parts  # builders are classes of it


TRAINING = (
    "main",
    "train",
    "evaluate",
    "program",
    "checkpoint",
    "optim",
    "sharding",
    "paths",
    "log",
    "losses",
    "flops",
)


def test_training_never_imports_tensorflow_or_torch():
    for file in FILES:
        part = part_of(module_name(file)) if file.parent != PACKAGE or file.stem != "__init__" else ""
        if part in TRAINING or part in ("nn", "objectives", "evals"):
            roots = {n.split(".")[0] for n in imports(ast.parse(file.read_text()))}
            assert not roots & {"tensorflow", "torch", "transformers", "apache_beam"}, file


def test_objectives_are_told_apart_in_one_place():
    for file in FILES:
        if file.parts[-2:] != ("objectives", "__init__.py"):
            names = {ast.unparse(n) for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Compare)}
            assert not [n for n in names if "objective ==" in n or "objective in" in n], file


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


def test_importing_main_touches_no_jax_and_defines_no_flags():
    after = after_import("import maeclip_jax.main")
    assert not after["modules"] & {*HEAVY, "jax", "flax"}
    before = after_import("import absl.flags")["flags"]
    assert after["flags"] == before


def test_the_train_loop_loads_no_heavy_package():
    loaded = after_import("import maeclip_jax.run.train; from maeclip_jax.objectives import clip, mae_clip, masked")[
        "modules"
    ]
    assert "jax" in loaded and "flax" in loaded
    assert not loaded & {"tensorflow", "torch", "transformers", "matplotlib", "apache_beam"}
