"""Measures the renderer, and draws a contact sheet on request.

python -m maeclip_jax.data.scenes                        # pictures per second and core, as JSON lines
python -m maeclip_jax.data.scenes --sheet scenes.png     # and a look at them
"""

import argparse
import json
import sys

from maeclip_jax.data.scenes import SPLITS, SceneSpec, bench
from maeclip_jax.errors import UserError


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m maeclip_jax.data.scenes", description=__doc__.splitlines()[0])
    parser.add_argument("--resolutions", type=int, nargs="+", default=[64, 224])
    parser.add_argument("--objects", type=int, nargs=2, default=[1, 3], metavar=("FEWEST", "MOST"))
    parser.add_argument("--seconds", type=float, default=2.0, help="per measurement")
    parser.add_argument("--sheet", metavar="PNG", help="draw a contact sheet instead, at the first resolution")
    parser.add_argument("--split", choices=SPLITS, default="train", help="of the sheet")
    options = parser.parse_args(argv)
    try:
        specs = [SceneSpec(resolution=r, objects=tuple(options.objects), heldout_pairs=4) for r in options.resolutions]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.sheet:
        import cv2

        cv2.imwrite(options.sheet, bench.sheet(specs[0], split=options.split)[..., ::-1])
        return 0
    for spec in specs:
        found = bench.rates(spec, options.seconds)
        print(json.dumps({k: round(v, 1) if isinstance(v, float) else v for k, v in found.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
