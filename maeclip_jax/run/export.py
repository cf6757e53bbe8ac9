"""A run as a folder that `transformers` or open_clip loads.

    python -m maeclip_jax.run.export --workdir runs/siglip --format hf-siglip --out models/siglip
    python -m maeclip_jax.run.export --workdir runs/clip/checkpoints/8000 --format open_clip --out models/clip

Formats: hf-clip, hf-siglip and open_clip write pictures and texts, hf-vit-mae an MAE, hf-vision any image tower alone.
The folder holds weights, tokenizer, image processor, and a model card with the run's data, steps and evaluations. A
model that a format cannot express is refused, with the settings that it would need. Of a run that keeps an average of
its parameters, that is written; --params=raw writes those of the last step. --config.NAME=VALUE changes a
setting of the run, such as --config.tokenizer.path where its file has moved.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from maeclip_jax import cli, interop
from maeclip_jax.errors import UserError
from maeclip_jax.run import checkpoint
from maeclip_jax.run.setup import restored
from maeclip_jax.workdir import read_results


def write(
    workdir: str | os.PathLike,
    kind: str,
    out: str | os.PathLike,
    *,
    overwrite: bool = False,
    settings: Mapping[str, Any] | None = None,
    params: str = checkpoint.AUTO,
):
    """Writes the newest checkpoint of a run, or the checkpoint that `workdir` names, as `kind`; -> the report.

    `settings`: leaves of its config to change. `params`: see `checkpoint.read_parameters`. UserError as of
    `checkpoint.locate`, `config.load` and `interop.save`.
    """
    folder = checkpoint.locate(workdir)
    config, _, made, found = restored(folder, settings, which=params)
    card = about(config, folder.parent.parent, int(folder.name))
    if found == checkpoint.EMA:
        card["averaged"] = config.optim.get("ema")
    return interop.save(kind, config, made, out, overwrite=overwrite, about=card)


def about(config, workdir: epath.Path, step: int) -> dict[str, Any]:
    """What the model card says of a run at a step: see `interop.card.text`."""
    source = config.data.source
    of = {one["step"]: one for one in read_results(workdir)[0]}.get(step, {})
    evals = {
        name: of.get("about", {}).get(name, {}) | {"value": value} for name, value in of.get("metrics", {}).items()
    }
    data = " ".join(str(source[k]) for k in ("kind", "name", "split") if source.get(k))
    return dict(
        name=workdir.name, step=step, data=data, evals=evals, total=config.total,
        batch_size=config.batch_size, seed=config.seed,
    )  # fmt: skip


def run(argv: Sequence[str]) -> None:
    """The command line: writes the folder and prints what became of the parameters."""
    source, suite, settings, rest = cli.split_config(argv)
    if source or suite:
        raise UserError("--config is the run's own here; valid: --workdir, and --config.NAME=VALUE to change a setting")
    parser = cli.Parser("maeclip_jax.run.export", __doc__)
    parser.add_argument("--workdir", required=True, help="folder of a run, or one checkpoint in it")
    parser.add_argument("--format", required=True, help=f"one of {', '.join(interop.WRITTEN)}")
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to write")
    parser.add_argument("--overwrite", action="store_true", help="write over what is in --out")
    parser.add_argument(
        "--params", default=checkpoint.AUTO, help="ema: the running average of the parameters; raw: those of the last "
        "step; auto: the average, if the run keeps one"
    )  # fmt: skip
    args = parser.parse_args(rest)
    cli.start_logging()
    kept = dict(overwrite=args.overwrite, settings=settings, params=args.params)
    print(write(args.workdir, args.format, args.out, **kept))
    print(f"written: {args.out}")


if __name__ == "__main__":
    sys.exit(cli.guarded(lambda: run(sys.argv[1:])))
