"""The embedded data set as files: a TFDS builder that draws `scenes` into ArrayRecord, without TensorFlow.

    python -m maeclip_jax.prepare.builders.scenes --config demo --data_dir data

    src = tfds.builder_from_directory("data/scenes/demo/3.0.0").as_data_source("train")

Splits: `train` and `val` from one distribution; `test` with captions that distinguish all its pictures; `classify` with
one object a picture and every class equally often; `heldout` (one object, labelled) and `heldout_multi` (several
objects) with the (colour, shape) pairs that never occur in training.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import shutil
import sys
import time
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from maeclip_jax import cli
from maeclip_jax.errors import UserError, choose, storage, unknown
from maeclip_jax.prepare import tfds_shards
from maeclip_jax.prepare.builders import manual
from maeclip_jax.scenes import world
from maeclip_jax.scenes.pool import Job, draw
from maeclip_jax.scenes.world import SPLITS, SceneSpec

# Of the data: raise it when a config draws other bits. Half of the objects of demo 1.0.0 were striped (`textures=2`);
# before demo 3.0.0 and 2.0.0 of the others, questions of train and val named held-out pairs, all with the answer "no".
VERSION, VERSIONS = "2.0.0", {"demo": "3.0.0"}
ABANDONED_AFTER = 600  # seconds without a write after which an unfinished build is taken for dead


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a builder config holds: the knobs of the scenes, and how many pictures each split has."""

    spec: SceneSpec
    train: int
    val: int
    test: int
    classify: int
    heldout: int
    heldout_multi: int
    seed: int = 0
    # PNG keeps the bits. JPEG (quality 95, full chroma; off by 1.4 grey levels on average at 224 pixels) is half the
    # size, is decoded in half the time and encoded seven times as fast.
    encoding: str = "png"

    def __post_init__(self):
        if self.encoding not in ("png", "jpeg"):
            raise unknown("encoding", self.encoding, ("png", "jpeg"))
        for split in SPLITS:
            if getattr(self, split) < 0:
                raise UserError(f"scenes: {split}={getattr(self, split)} pictures; valid: 0 or more")

    @property
    def sizes(self) -> dict[str, int]:
        """Pictures per split, in the order in which they are built; empty splits are left out."""
        empty = ("heldout", "heldout_multi") if not self.spec.heldout_pairs else ()
        return {s: getattr(self, s) for s in SPLITS if getattr(self, s) and s not in empty}


RECIPES = {
    # Learnt in minutes on a laptop: large objects without stripes, few of them, 64 classes of which 4 are held out.
    "demo": Recipe(
        SceneSpec(resolution=64, objects=(1, 2), textures=1, heldout_pairs=4),
        train=20_000, val=1000, test=1000, classify=1280, heldout=256, heldout_multi=512,
    ),
    # For tests.
    "mu": Recipe(
        SceneSpec(resolution=32, objects=(1, 3), shapes=4, colours=4, textures=2, heldout_pairs=2),
        train=256, val=64, test=64, classify=64, heldout=16, heldout_multi=16,
    ),
    # Every concept, at the resolution of the large models.
    "full": Recipe(
        SceneSpec(resolution=224, objects=(1, 5), shapes=16, colours=12, textures=6, heldout_pairs=16),
        train=100_000, val=5000, test=5000, classify=9600, heldout=1600, heldout_multi=1600, encoding="jpeg",
    ),
}  # fmt: skip


@dataclasses.dataclass(kw_only=True)
class ScenesConfig(tfds.core.BuilderConfig):
    recipe: Recipe | None = None


class Scenes(tfds.core.GeneratorBasedBuilder):
    """Drawn image-text pairs with ground truth for classification, retrieval, VQA, segmentation and grounding."""

    VERSION = tfds.core.Version(VERSION)
    BUILDER_CONFIGS = [
        ScenesConfig(name=name, recipe=recipe, version=VERSIONS.get(name)) for name, recipe in RECIPES.items()
    ]
    workers: int | None = None  # processes that draw; None: one a core
    bar = None  # a tqdm bar to be moved along

    def _info(self) -> tfds.core.DatasetInfo:
        spec, features = self.builder_config.recipe.spec, tfds.features
        side = spec.resolution
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__.splitlines()[0],
            metadata=tfds.core.MetadataDict(recipe=dataclasses.asdict(self.builder_config.recipe)),
            features=features.FeaturesDict(
                {
                    "key": features.Text(),
                    "image": features.Image(shape=(side, side, 3), encoding_format=self.builder_config.recipe.encoding),
                    "texts": features.Sequence(features.Text()),
                    "noisy": features.Sequence(np.bool_),
                    "label": features.ClassLabel(names=spec.classes),  # -1 where there are several objects
                    "mask": features.LabeledImage(labels=6, shape=(side, side, 1), encoding_format="png"),
                    "objects": features.Sequence(
                        {
                            "shape": features.ClassLabel(names=world.SHAPES[: spec.shapes]),
                            "colour": features.ClassLabel(names=world.COLOUR_NAMES[: spec.colours]),
                            "size": features.ClassLabel(names=world.SIZES),
                            "texture": features.ClassLabel(names=world.TEXTURES[: spec.textures]),
                            "box": features.BBoxFeature(),  # top, left, bottom, right as shares of the side
                            "center": features.Tensor(shape=(2,), dtype=np.int32),  # x, y in pixels
                        }
                    ),
                    "questions": features.Sequence(
                        {"question": features.Text(), "answer": features.Text(), "kind": features.Text()}
                    ),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        recipe = self.builder_config.recipe
        wanted = {split: indices(recipe, split) for split in recipe.sizes}  # all, before anything is drawn: may refuse
        return {split: self._generate_examples(split, numbers) for split, numbers in wanted.items()}

    def _generate_examples(self, split: str, numbers: list[int]) -> Iterator[tuple[str, dict]]:
        recipe = self.builder_config.recipe
        side = recipe.spec.resolution
        job = Job(recipe.spec, recipe.seed, split, numbers, recipe.encoding)
        for record in draw(job, self.workers):
            record["mask"] = record.pop("masks")
            for thing in record["objects"]:
                thing["box"] = tfds.features.BBox(*(edge / side for edge in thing["box"]))
            if self.bar is not None:
                self.bar.update()
            yield record["key"], record


def indices(recipe: Recipe, split: str) -> list[int]:
    """Which scenes make up a split. In `val`, `test` and `heldout_multi` no two pictures hold the same objects (shape,
    colour, size and texture), so the captions, which name them all there, tell the pictures apart.

    Raises UserError where there are not enough different scenes.
    """
    size = recipe.sizes[split]
    if split in ("train", "classify", "heldout"):
        return list(range(size))
    seen, kept = set(), []
    for index in itertools.count():
        things = world.layout(recipe.spec, world.tapes(recipe.seed, split, index)[0], split, index)
        contents = tuple(sorted(t.label for t in things))
        if contents not in seen:
            seen.add(contents)
            kept.append(index)
        if len(kept) == size:
            return kept
        if index > 1000 + 20 * size:
            raise UserError(
                f"scenes: {split}={size} pictures that captions can tell apart cannot be had of these knobs; "
                f"valid: up to about {len(kept)}, or more objects, shapes, colours or textures"
            )


def build(
    name: str = "demo", data_dir: str = "data", *, workers: int | None = None, progress: bool = False, **overrides
) -> epath.Path:
    """Prepares a config and returns the directory that `tfds.builder_from_directory` reads.

    What is prepared already is left alone; what was interrupted is built again. `overrides` are knobs of SceneSpec
    or fields of Recipe (`train=500, diversity=0.5, seed=1`); their hash becomes part of the directory's name.
    Raises UserError for an unknown config or override.
    """
    recipe = choose("config of scenes", name, RECIPES)
    if overrides:
        recipe, changed = _override(recipe, overrides)
        name = f"{name}-{changed}" if changed else name
    config = name if name in RECIPES else ScenesConfig(name=name, recipe=recipe)
    builder = Scenes(data_dir=data_dir, config=config, file_format="array_record")
    target = epath.Path(builder.data_dir)
    if target.exists():  # TFDS writes elsewhere and renames, so what exists is whole
        return target
    _clear_abandoned(target)
    builder.workers = workers
    total = sum(recipe.sizes.values())
    with storage.writing(target):
        try:
            with manual.shown(builder, f"scenes/{name}", progress, total):
                builder.download_and_prepare(download_config=tfds_shards.DownloadConfig())
        except OSError:
            if not target.exists():  # else another process was faster
                raise
    return target


def _override(recipe: Recipe, overrides: dict) -> tuple[Recipe, str]:
    """The changed recipe, and a short hash of what differs ("" if nothing does)."""
    knobs = [f.name for f in dataclasses.fields(SceneSpec)]
    fields = [f.name for f in dataclasses.fields(Recipe) if f.name != "spec"]
    for key in overrides:
        if key not in knobs + fields:
            raise unknown("override of scenes", key, knobs + fields)
    of_spec = {k: v for k, v in overrides.items() if k in knobs}
    of_recipe = {k: v for k, v in overrides.items() if k not in knobs}
    changed = dataclasses.replace(recipe, spec=dataclasses.replace(recipe.spec, **of_spec), **of_recipe)
    if changed == recipe:
        return recipe, ""
    text = json.dumps(dataclasses.asdict(changed), sort_keys=True)
    return changed, hashlib.sha256(text.encode()).hexdigest()[:8]


def _clear_abandoned(target: epath.Path):
    """Removes what builds that were killed have left beside `target`."""
    if not target.parent.exists():
        return
    for path in target.parent.glob(f"incomplete.*_{target.name}"):
        stamps = [p.stat().mtime for p in (path, *path.glob("*"))]
        if time.time() - max(stamps) > ABANDONED_AFTER:
            shutil.rmtree(path, ignore_errors=True)


def run(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = cli.Parser("maeclip_jax.prepare.builders.scenes", __doc__)
    parser.add_argument("--config", default="demo", help=f"one of {', '.join(RECIPES)} (%(default)s)")
    parser.add_argument("--data_dir", default="data", help="where data sets live (%(default)s)")
    parser.add_argument("--workers", type=int, help="processes that draw (default: one a core)")
    options = parser.parse_args(argv)
    start = time.time()
    path = build(options.config, options.data_dir, workers=options.workers, progress=True)
    print(f"{path}: ready after {time.time() - start:.1f} s")


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done, 2 for what the user can put right."""
    return cli.guarded(lambda: run(argv))


if __name__ == "__main__":
    sys.exit(main())
