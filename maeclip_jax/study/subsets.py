"""Makes subsets of a prepared data set, nested by size and of a chosen diversity, and says what they hold.

    python -m maeclip_jax.study.subsets make --name=cc12m --size=1.4M --seed=0 --out=subsets/cc12m-1.4M-0.json
    python -m maeclip_jax.study.subsets cluster --name=cc12m --model=runs/clip --clusters=256 --out=subsets/cc12m.npz
    python -m maeclip_jax.study.subsets make --name=cc12m --size=100k --clusters=subsets/cc12m.npz --diversity=0.25
        --out=subsets/cc12m-100k-quarter-0.json
    python -m maeclip_jax.study.subsets describe subsets/cc12m-1.4M-0.json --against=coco_captions:val

A subset is a small file (see maeclip_jax.data.subset) that a run reads as
`--config=experiments/clip.py:scale=low,data=subsets/cc12m-1.4M-0.json`: the records stay where they are. Sizes of one
seed are nested. --diversity is the share of the clusters that a subset may draw from: the first of a permutation of
them, so that small shares are parts of larger ones. --draw=balanced takes equally many records of each cluster as far
as they go, natural (the default) as many as there are. --unit=64 draws records in blocks of 64 neighbours, which
data in a bucket need to be read fast. Embeddings of --model go to disk beside --out, or come from --embeddings.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maeclip_jax import cli
from maeclip_jax.data import source, subset
from maeclip_jax.data.order import permuted, stable_hash
from maeclip_jax.errors import UserError, choose, unknown
from maeclip_jax.study import clusters, diversity

DRAWS = ("natural", "balanced")


def make(
    parent: dict,
    size: int,
    *,
    seed: int = 0,
    unit: int = 1,
    share: float = 1.0,
    clusters_N: np.ndarray | None = None,
    draw: str = "natural",
) -> dict[str, Any]:
    """The content of a subset's file. parent: config of its source; clusters_N: the cluster of each of its records.

    share: of the clusters that may be drawn from. UserError for a size above the parent's, or a diversity that cannot
    be reached.
    """
    if draw not in DRAWS:
        raise unknown("--draw", draw, DRAWS)
    made = source.make({k: v for k, v in parent.items() if v is not None})
    count = len(made)
    if unit < 1 or size < 1:
        raise UserError(f"--size={size} and --unit={unit}; valid: 1 or more")
    if clusters_N is None and (share != 1 or draw != "natural"):
        raise UserError("--diversity and --draw go by clusters; valid with them: --clusters=FILE, of `subsets cluster`")
    if size > count - count % unit:
        more = f" in whole units of {unit}" if unit > 1 else ""
        raise UserError(f"--size={size:,} is above the {count - count % unit:,} records of {made.name}{more}")
    indices, choice = None, {"diversity": 1.0}
    if clusters_N is not None:
        if unit > 1:
            raise UserError("--unit is of draws without --clusters: a cluster's records are not neighbours")
        indices, choice = _by_clusters(clusters_N, count, size, seed, share, draw, made.name)
    named = {k: v for k, v in parent.items() if k != "dir" and v is not None}
    return {
        "format": subset.FORMAT, "parent": {"source": named, "account": subset.account(made)}, "size": size,
        "seed": seed, "unit": unit, "choice": choice,
        "indices": None if indices is None else subset.packed(indices),
    }  # fmt: skip


def _by_clusters(clusters_N: np.ndarray, count: int, size: int, seed: int, share: float, draw: str, name: str):
    """(indices in rising order, what was chosen)."""
    if len(clusters_N) != count:
        raise UserError(f"the clusters are of {len(clusters_N):,} records and {name} has {count:,}; cluster it again")
    kinds = np.unique(clusters_N)
    wanted = round(share * len(kinds))
    if not 0 < share <= 1 or wanted < 1:
        raise UserError(f"--diversity={share:g} of {len(kinds)} clusters; valid: {1 / len(kinds):.3g} to 1")
    order = [permuted(i, len(kinds), stable_hash("clusters", seed)) for i in range(len(kinds))]
    chosen = kinds[order[:wanted]]
    rank = np.argsort(np.random.Philox(key=stable_hash("subset", seed)).random_raw(count), kind="stable")
    places = np.empty(count, np.int64)
    places[rank] = np.arange(count)  # place in the draw of each record
    held = np.flatnonzero(np.isin(clusters_N, chosen))
    if size > len(held):
        least = next(k for k in range(1, len(kinds) + 1) if np.isin(clusters_N, kinds[order[:k]]).sum() >= size)
        raise UserError(
            f"--diversity={share:g} leaves {len(held):,} records of {name}, of which --size={size:,} cannot be had; "
            f"valid: a size of at most that, or a diversity of at least {least / len(kinds):.3g}"
        )
    held = held[np.argsort(places[held], kind="stable")]
    if draw == "balanced":  # the first of each cluster, then the second of each, ...
        of = clusters_N[held]
        by = np.argsort(of, kind="stable")
        starts = np.concatenate([[0], np.flatnonzero(np.diff(of[by])) + 1])
        turn = np.empty(len(held), np.int64)
        turn[by] = np.arange(len(held)) - np.repeat(starts, np.diff([*starts, len(held)]))
        held = held[np.argsort(turn, kind="stable")]
    return np.sort(held[:size]), {"diversity": share, "clusters": wanted, "of clusters": len(kinds), "draw": draw}


def number(text: str) -> int:
    """`4000`, `4k`, `1.4M`, `1B` as a whole number; argparse's error for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kMB]?)", text.strip())
    value = float(found[1]) * {"": 1, "k": 1e3, "M": 1e6, "B": 1e9}[found[2]] if found else 0.5
    if value != round(value):
        raise argparse.ArgumentTypeError(f"{text!r}; valid: a whole number such as 4000, 4k or 1.4M")
    return round(value)


def _parent(args: argparse.Namespace) -> dict:
    if not args.name:
        raise UserError("--name is missing: the data set, such as --name=scenes/demo")
    return dict(kind="tfds", name=args.name, split=args.split, dir=args.dir or None)


def _make(args: argparse.Namespace) -> None:
    held = None
    if args.clusters:
        held = read_clusters(args.clusters)
    about = make(_parent(args), args.size, seed=args.seed, unit=args.unit, share=args.diversity, clusters_N=held,
                 draw=args.draw)  # fmt: skip
    if not args.out.endswith(".json"):
        raise UserError(f"--out={args.out}; valid: a file that ends in .json")
    _write(args.out, json.dumps(about, indent=1))
    print(f"{args.out}: {args.size:,} of {about['parent']['account']['records']:,} records, {about['choice']}")


def _cluster(args: argparse.Namespace) -> None:
    made = source.make({k: v for k, v in _parent(args).items() if v is not None})
    if not args.out.endswith(".npz"):
        raise UserError(f"--out={args.out}; valid: a file that ends in .npz")
    file = args.embeddings
    if not file:
        if not args.model:
            raise UserError("name --model=RUN, whose embeddings are clustered, or --embeddings=FILE.npy of your own")
        from maeclip_jax import api

        file = clusters.embed(api.load(args.model), made, args.out.removesuffix(".npz"), stream=args.stream)
    if len(clusters.opened(file)) != len(made):
        raise UserError(f"{file} has {len(clusters.opened(file)):,} rows and {made.name} {len(made):,} records")
    found = clusters.kmeans(file, args.clusters_number, seed=args.seed)
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(args.out, clusters=found)
    bits = diversity.entropy(np.bincount(found).tolist())
    print(f"{args.out}: {len(found):,} records in {len(np.unique(found))} clusters, entropy {bits:.3f} bits")


def _describe(args: argparse.Namespace) -> None:
    made = subset.SubsetSource(args.subset, args.dir or None)
    held = None
    if args.clusters:
        held = read_clusters(args.clusters)[[made.index(i) for i in range(len(made))]]
    others = {}
    for word in args.against:
        name, _, split = word.partition(":")
        others[word] = source.make(dict(kind="tfds", name=name, split=split or "test", dir=args.dir or None))
    found = {"subset": str(args.subset), "parent": made.parent.name} | made.about["choice"]
    found |= diversity.measure(made, most=args.most, clusters_N=held)
    if others:
        found["same records in"] = diversity.overlap(made, others, most=args.most)
    print(json.dumps(found, indent=1))


def read_clusters(path: str) -> np.ndarray:
    """int32 [N] of a file of `cluster`. UserError if it is not one."""
    try:
        return np.load(path)["clusters"]
    except (OSError, ValueError, KeyError) as e:
        raise UserError(f"cannot read the clusters {path!r}: {e}; `subsets cluster` makes the file") from e


def _write(path: str, text: str) -> None:
    from etils import epath

    from maeclip_jax.workdir import write_text

    write_text(epath.Path(path), text)


COMMANDS = {"make": _make, "cluster": _cluster, "describe": _describe}


def run(argv: Sequence[str]) -> None:
    """The command line."""
    parser = cli.Parser("maeclip_jax.study.subsets", __doc__)
    add = parser.add_argument
    add("command", help=f"one of {', '.join(COMMANDS)}")
    add("subset", nargs="?", default="", help="of describe: a subset's file")
    add("--name", default="", help="the parent: a prepared data set, such as scenes/demo")
    add("--split", default="train", help="of the parent (%(default)s)")
    add("--dir", default="", help="folder of data sets (default: $MAECLIP_DATA_DIR, $TFDS_DATA_DIR or data)")
    add("--size", type=number, default=0, help="records, such as 4k or 1.4M")
    add("--seed", type=int, default=0, help="of the draw; of k-means (%(default)s)")
    add("--unit", type=int, default=1, help="neighbours that are drawn together (%(default)s)")
    add("--diversity", type=float, default=1.0, help="share of the clusters (%(default)s)")
    add("--draw", default="natural", help=f"from the clusters: {' or '.join(DRAWS)} (%(default)s)")
    add("--clusters", default="", help="of make and describe: file of `cluster`; of cluster: how many")
    add("--model", default="", help="of cluster: a run (or what maeclip_jax.load takes) that embeds the records")
    add("--stream", default="image", help="of cluster: image or text (%(default)s)")
    add("--embeddings", default="", metavar="FILE.npy", help="of cluster: [N, D] in the order of the records")
    add("--against", action="append", default=[], metavar="NAME:SPLIT", help="of describe: an evaluation set")
    add("--most", type=number, default=None, help="of describe: read no more records than these")
    add("--out", default="", help="the file that is written")
    args = parser.parse_args(argv)
    command = choose("command", args.command, COMMANDS)
    if args.command == "cluster":
        if not args.clusters.isdigit():
            raise UserError(f"--clusters={args.clusters!r}; valid: how many clusters, such as --clusters=256")
        args.clusters_number = int(args.clusters)
    command(args)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 2 for what the user can put right."""
    return cli.guarded(lambda: run(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
