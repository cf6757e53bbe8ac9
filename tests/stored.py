"""The runs of tests/tiny.py on a prepared data set, `scenes/mu`, in $MAECLIP_DATA_DIR: a folder or gs://.

--config=tests/stored.py:objective=clip,steps=12
"""

from __future__ import annotations

from experiments.argument import parse_arg
from tests import tiny


def get_config(arg=None):
    arg = parse_arg(arg, objective="clip", steps=12, count=40, batch=16, save=6, evals=False)
    settings = {name: getattr(arg, name) for name in ("objective", "steps", "batch", "save", "evals")}
    config = tiny.get_config(",".join(f"{name}={value}" for name, value in settings.items()))
    config.data.source = dict(kind="tfds", name="scenes/mu", split=f"train[:{arg.count}]")
    with config.unlocked():
        config.data.order = "blocks"  # in a folder as in a bucket
    for entry in config.evals.values():
        entry.data.source = dict(kind="tfds", name="scenes/mu", split="val[:20]")
    return config
