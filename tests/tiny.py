"""An experiment of the tests: an experiment file's `runlocal` on a finite set of drawn scenes, its examples traced.

--config=tests/tiny.py:objective=clip,steps=12,count=40
"""

from __future__ import annotations

import importlib

from experiments.argument import parse_arg


def get_config(arg=None):
    arg = parse_arg(arg, objective="mae_clip", steps=12, count=40, batch=16, save=3, evals=True, examples=True, rest="")
    config = importlib.import_module(f"experiments.{arg.objective}").get_config(
        ",".join(filter(None, ("runlocal", arg.rest)))
    )
    config.batch_size = arg.batch
    config.total = f"{arg.steps} steps"
    if arg.count:
        config.data.source.count = arg.count  # finite: epochs end in the middle of a batch
    config.checkpoint.update(every=f"{arg.save} steps", keep_last=2)
    config.log.update(every="1 steps", examples=arg.examples)
    every = dict(val="4 steps", retrieval="6 steps", reconstruction="6 steps")
    config.evals = {k: v for k, v in config.evals.items() if k in every} if arg.evals else {}
    for name, entry in config.evals.items():
        entry.every = every[name]
        entry.data.source.count = 20
        entry.batch_size = 8
    return config
