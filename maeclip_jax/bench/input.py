"""How fast pictures become training rows: pictures per second per core, side by side with two other ways.

    python -m maeclip_jax.bench input --images DIR [--json=FILE]

Every way gets the same JPEG bytes from memory and makes uint8 [224,224,3], a random crop of 50 to 100 % of the area:

- ours          decode|random_resized_crop(224,area=(0.5,1)) with antialias "fast", "area" and "exact"
- pillow        whole decode, crop, antialiased bicubic: what open_clip and torchvision do
- tf.data       fused decode_and_crop, bilinear without antialiasing, in batches of 64: what big_vision does
                (where tensorflow is installed)

All run in one process on one core, in turns of one pass each, so that other load meets all of them alike; a pass
is measured in CPU seconds of the process, and the best pass of each counts.

The lead shrinks as files grow: a 160 kB photo spends most of its time in JPEG's entropy decoding, which cannot be
skipped. Storing pictures at a shorter side of 256 helps every way, and ours most.
"""

from __future__ import annotations

import io
import os
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from maeclip_jax import cli
from maeclip_jax.bench.figures import add_json, processor, write
from maeclip_jax.errors import UserError

SIZE, AREA, RATIO, BATCH = 224, (0.5, 1.0), (3 / 4, 4 / 3), 64
TARGETS = {"pillow": 2.5, "tf.data": 1.1}  # ours (fast) is to be at least so many times faster


def ours(jpegs: list[bytes], antialias: str) -> Callable[[], None]:
    """One pass by the ops of this package."""
    from maeclip_jax.data.ops import parse

    ops = parse(f'decode|random_resized_crop({SIZE},area={AREA},antialias="{antialias}")|keep("image")')

    def run():
        rng = np.random.default_rng(0)
        for data in jpegs:
            ops({"image": data}, rng)

    return run


def pillow(jpegs: list[bytes]) -> Callable[[], None]:
    """One pass of open_clip's training transform: torchvision's RandomResizedCrop with bicubic, on Pillow."""
    from PIL import Image

    from maeclip_jax.data.image_ops import sample_box

    def run():
        rng = np.random.default_rng(0)
        for data in jpegs:
            image = Image.open(io.BytesIO(data)).convert("RGB")
            top, left, height, width = sample_box(rng, image.height, image.width, AREA, RATIO)
            part = image.crop((left, top, left + width, top + height))
            np.asarray(part.resize((SIZE, SIZE), Image.Resampling.BICUBIC))

    return run


def tf_data(jpegs: list[bytes]) -> Callable[[], None]:
    """One pass by tf.data, its graph built beforehand. Raises ImportError where tensorflow is not installed."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf

    def example(data):
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.io.extract_jpeg_shape(data),
            tf.zeros([0, 0, 4], tf.float32),
            area_range=AREA,
            aspect_ratio_range=RATIO,
            min_object_covered=0,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.stack([begin[0], begin[1], size[0], size[1]])
        pixels = tf.image.decode_and_crop_jpeg(data, window, channels=3)
        return tf.cast(tf.image.resize(pixels, [SIZE, SIZE]), tf.uint8)

    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    rows = tf.data.Dataset.from_tensor_slices(jpegs).map(example, num_parallel_calls=1).batch(BATCH)
    rows = rows.with_options(options)

    def run():
        for _ in rows.as_numpy_iterator():
            pass

    return run


def measure(jpegs: list[bytes], repeats: int = 5) -> dict:
    """`images_per_second_per_core` of every way, or why not; `ratios` of ours (fast) to the others."""
    with _one_core():  # before a library starts its threads, which stay where they were born
        ways = {f"ours {a}": ours(jpegs, a) for a in ("fast", "area", "exact")}
        ways["pillow"] = pillow(jpegs)
        missing = {}
        try:
            ways["tf.data"] = tf_data(jpegs)
        except ImportError:
            missing["tf.data"] = "tensorflow is not installed: skipped"
        best = dict.fromkeys(ways, float("inf"))
        for turn in range(repeats + 1):
            for name, run in ways.items():
                start = time.process_time()
                run()
                if turn:  # the first pass imports, traces and fills caches
                    best[name] = min(best[name], time.process_time() - start)
    speed = {name: len(jpegs) / seconds for name, seconds in best.items()}
    ratios = {name: speed["ours fast"] / speed[name] for name in TARGETS if name in speed}
    return {"images_per_second_per_core": {**speed, **missing}, "ratios": ratios}


class _one_core:
    """This process on one of its cores, where the system can do that (Linux)."""

    def __enter__(self):
        self.before = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
        if self.before:
            os.sched_setaffinity(0, {max(self.before)})

    def __exit__(self, *_):
        if self.before:
            os.sched_setaffinity(0, self.before)


def read_jpegs(directory: str, count: int, min_side: int) -> list[bytes]:
    """The bytes of up to `count` sound JPEG files under `directory`, drawn with a fixed seed."""
    from maeclip_jax.data.decode import probe
    from maeclip_jax.errors import BadRecord

    root = Path(directory)
    if not root.is_dir():
        raise UserError(f"--images {directory!r} is not a folder; give one with JPEG files in it")
    paths = sorted(p for p in root.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
    random.Random(0).shuffle(paths)
    jpegs = []
    for path in paths:
        data = path.read_bytes()
        try:
            probe(data, min_side=min_side).read()
        except BadRecord:
            continue
        if data[:2] == b"\xff\xd8":
            jpegs.append(data)
        if len(jpegs) == count:
            break
    if not jpegs:
        raise UserError(f"no sound JPEG with a shorter side of {min_side} or more under {directory!r}")
    return jpegs


def run(argv: Sequence[str]) -> None:
    """The command line."""
    parser = cli.Parser("maeclip_jax.bench input", __doc__)
    parser.add_argument("--images", required=True, help="folder with JPEG files")
    parser.add_argument("--count", type=int, default=200, help="how many of them (%(default)s)")
    parser.add_argument("--min_side", type=int, default=SIZE, help="leave smaller ones out (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="passes, of which the best counts (%(default)s)")
    add_json(parser)
    args = parser.parse_args(argv)
    jpegs = read_jpegs(args.images, args.count, args.min_side)
    kilobytes = sum(map(len, jpegs)) / len(jpegs) / 1000
    result = {"pictures": len(jpegs), "mean_kilobytes": round(kilobytes, 1)} | measure(jpegs, args.repeats)
    print(f"{len(jpegs)} JPEG files of {kilobytes:.0f} kB on average, one core of {processor()}")
    for name, speed in result["images_per_second_per_core"].items():
        print(f"  {name:<12} " + (speed if isinstance(speed, str) else f"{speed:7.0f} pictures/s/core"))
    for name, ratio in result["ratios"].items():
        print(f"ours fast / {name}: {ratio:.2f} (target {TARGETS[name]})")
    write("input", result, args.json)
