"""Golden files: what an experiment resolves to, as a diff that a reviewer can read.

    python -m tests.golden          (make golden) rewrites tests/golden/<experiment>-<arg>.json; review the diff

and docs/recipes.md, which experiments/recipes.py makes of the recipes.

Each holds the resolved config, one line a leaf, and every parameter with its shape, its spec on a mesh of 256 chips
and whether it decays. Nothing is compiled and no device is used: shapes come from jax.eval_shape.
"""

from __future__ import annotations

import difflib
import importlib
import json
import os
from pathlib import Path

from experiments import recipes

FOLDER = Path(__file__).parent / "golden"
ROOT = FOLDER.parent.parent
RECIPES = ROOT / "docs" / "recipes.md"
EXPERIMENTS = tuple(sorted(p.stem for p in (ROOT / "experiments").glob("*.py") if "def get_config(" in p.read_text()))
ARGS = {
    "demo": "scale=demo",
    "photos": "scale=photos",
    "low-B16": "scale=low,size=B/16",
    "high-H14": "scale=high,size=H/14",
}
CASES = tuple((experiment, arg) for experiment in EXPERIMENTS for arg in ARGS)
CHIPS = 256


def path(experiment: str, arg: str) -> Path:
    return FOLDER / f"{experiment}-{arg}.json"


def golden(experiment: str, arg: str) -> dict:
    """What belongs into the file of a case."""
    from maeclip_jax.config import leaves
    from maeclip_jax.params import flatten
    from maeclip_jax.run import optim

    config = importlib.import_module(f"experiments.{experiment}").get_config(ARGS[arg])
    params = parameters(config)
    mesh, specs = split(params, config)
    decays = flatten(optim.decay_mask(config.optim, params))
    lines = {}
    for name, x in flatten(params).items():
        shape = "x".join(map(str, x.shape)) or "scalar"
        axes = ", ".join(axis or "-" for axis in specs[name]) or "whole"
        lines[name] = f"{shape} {x.dtype} | {axes} | {'decays' if decays[name] else 'no decay'}"
    return {
        "argument": ARGS[arg],
        "config": dict(sorted(leaves(config))),
        "mesh": mesh,
        "parameter count": sum(x.size for x in flatten(params).values()),
        "parameters": lines,
    }


def parameters(config) -> dict:
    """The parameters of a config's objective, as shapes."""
    import jax
    import jax.numpy as jnp

    from maeclip_jax import objectives

    objective = objectives.make(config.objective, config.model)

    def init(rng):
        batch = {k: jnp.ones((2, *x.shape), x.dtype) for k, x in objective.inputs().items()}
        return objective.init({"params": rng, "mask": rng}, batch, train=True)["params"]

    return jax.eval_shape(init, jax.random.key(0))


def split(params, config) -> tuple[dict, dict]:
    """The widest split of parameters over 256 chips that divides them, and {path: spec} on it."""
    import jax

    from maeclip_jax.errors import UserError
    from maeclip_jax.parallel import sharding
    from maeclip_jax.params import path_name

    for fsdp in (256, 128, 64, 32, 16, 8, 4, 2):
        sizes = (CHIPS // fsdp, fsdp, 1)
        mesh = jax.sharding.AbstractMesh(sizes, sharding.AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3)
        try:
            found = sharding.specs(params, mesh, config.sharding_rules or sharding.RULES)
        except UserError:
            continue
        flat = jax.tree_util.tree_flatten_with_path(found, is_leaf=lambda x: isinstance(x, jax.P))[0]
        return dict(zip(sharding.AXES, sizes)), {path_name(p): tuple(spec) for p, spec in flat}
    raise AssertionError("no mesh of 256 chips divides these parameters")


def text(content: dict) -> str:
    """JSON with one line a leaf."""

    def line(value) -> str:
        if not isinstance(value, dict) or not value:
            return json.dumps(value)
        return "{\n" + ",\n".join(f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items()) + "\n  }"

    return "{\n" + ",\n".join(f"  {json.dumps(k)}: {line(v)}" for k, v in content.items()) + "\n}\n"


def difference(experiment: str, arg: str) -> str:
    """How the file of a case differs from what it should hold now; empty if it does not."""
    file = path(experiment, arg)
    was = file.read_text(encoding="utf-8") if file.exists() else ""
    now = text(golden(experiment, arg))
    lines = difflib.unified_diff(was.splitlines(), now.splitlines(), f"{file.name} as it was", "now", lineterm="", n=0)
    return "\n".join(lines)


def main() -> None:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    FOLDER.mkdir(exist_ok=True)
    for stale in set(FOLDER.glob("*.json")) - {path(*case) for case in CASES}:
        stale.unlink()
        print(f"removed {stale.name}")
    for case in CASES:
        changed = difference(*case)
        if changed:
            path(*case).write_text(text(golden(*case)), encoding="utf-8")
            print(f"wrote {path(*case).name}: {sum(1 for n in changed.splitlines() if n[0] in '+-') - 2} lines differ")
    if RECIPES.read_text(encoding="utf-8") != recipes.page():
        RECIPES.write_text(recipes.page(), encoding="utf-8")
        print(f"wrote {RECIPES.relative_to(ROOT)}")
    print(f"{len(CASES)} golden files in {FOLDER.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
