"""How fast scenes are drawn, in pictures per second and core; and what they look like.

python -m maeclip_jax.bench scenes                       # measures
python -m maeclip_jax.bench scenes --sheet scenes.png    # draws a contact sheet instead
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from maeclip_jax import cli
from maeclip_jax.bench.figures import add_json, write
from maeclip_jax.errors import choose, storage
from maeclip_jax.scenes import SPLITS, SceneSpec
from maeclip_jax.scenes.sheet import sheet
from maeclip_jax.scenes.stream import sample, scene


def rates(spec: SceneSpec, seconds: float = 2.0) -> dict:
    """Pictures per second on one core with captions (`sample`) and with everything (`scene`), after `warm_seconds` in
    which the first 1500 scenes filled the cache of stamps. Time of the process, so other processes do not count."""
    start = time.process_time()
    for index in range(1500):
        sample(spec, 0, index)
    found = {"resolution": spec.resolution, "objects": list(spec.objects), "warm_seconds": time.process_time() - start}
    for draw in (sample, scene):
        n, start = 0, time.process_time()
        while (spent := time.process_time() - start) < seconds:
            draw(spec, 1, n)
            n += 1
        found[f"{draw.__name__}_per_second"] = n / spent
    return found


def run(argv: Sequence[str]) -> None:
    """The command line."""
    parser = cli.Parser("maeclip_jax.bench scenes", __doc__)
    parser.add_argument("--resolutions", type=int, nargs="+", default=[64, 224], help="sides of the pictures")
    parser.add_argument("--objects", type=int, nargs=2, default=[1, 3], metavar=("FEWEST", "MOST"))
    parser.add_argument("--seconds", type=float, default=2.0, help="per measurement (%(default)s)")
    parser.add_argument("--sheet", default="", metavar="PNG", help="draw a contact sheet, at the first resolution")
    parser.add_argument("--split", default="train", help=f"of the sheet: {', '.join(SPLITS)} (%(default)s)")
    add_json(parser)
    args = parser.parse_args(argv)
    choose("--split", args.split, dict.fromkeys(SPLITS))
    specs = [SceneSpec(resolution=r, objects=tuple(args.objects), heldout_pairs=4) for r in args.resolutions]
    if args.sheet:
        from PIL import Image

        with storage.writing(args.sheet):
            Image.fromarray(sheet(specs[0], split=args.split)).save(args.sheet)
        return
    figures = []
    for spec in specs:
        found = rates(spec, args.seconds)
        figures.append(found)
        print(", ".join(f"{k} {v:.1f}" if isinstance(v, float) else f"{k} {v}" for k, v in found.items()))
    write("scenes", figures, args.json)
