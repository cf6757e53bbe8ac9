"""A scene as a record, and the endless stream of them."""

from __future__ import annotations

from maeclip_jax.errors import UserError
from maeclip_jax.scenes import caption, question, render, world
from maeclip_jax.scenes.world import SceneSpec


def sample(spec: SceneSpec, seed: int, index: int, split: str = "train") -> dict:
    """What training needs of a scene: `key` str, `image` uint8 [H, W, 3], `texts` and `noisy`, one a caption.

    The same bits as the same entries of `scene`. Raises UserError for an unknown split, a split that the spec leaves
    empty, or a seed out of range.
    """
    lots, paint, says, _ = world.tapes(seed, split, index)
    things = world.layout(spec, lots, split, index)
    texts, noisy = caption.captions(spec, things, says, split)
    picture = render.image(spec, things, paint)
    return {"key": f"{split}-{seed}-{index}", "image": picture, "texts": texts, "noisy": noisy}


def scene(spec: SceneSpec, seed: int, index: int, split: str = "train") -> dict:
    """Everything that is true of a scene: `sample` and

    label: class number of the only object, -1 where there are more (see SceneSpec.classes).
    objects: list of dicts of `shape`, `colour`, `size`, `texture` (names), `center` (x, y) and `box`
      (top, left, bottom, right) of the visible part, in pixels, bottom and right excluded.
    masks: uint8 [H, W], 0 background, i + 1 where object i shows.
    questions: list of dicts of `question`, `answer`, `kind`.
    """
    lots, paint, says, asks = world.tapes(seed, split, index)
    things = world.layout(spec, lots, split, index)
    texts, noisy = caption.captions(spec, things, says, split)
    masks = render.masks(spec, things)
    objects = [
        {
            "shape": world.SHAPES[t.shape],
            "colour": world.COLOUR_NAMES[t.colour],
            "size": world.SIZES[t.size],
            "texture": world.TEXTURES[t.texture],
            "center": (t.x, t.y),
            "box": render.box(masks, i),
        }
        for i, t in enumerate(things)
    ]
    return {
        "key": f"{split}-{seed}-{index}",
        "image": render.image(spec, things, paint),
        "texts": texts,
        "noisy": noisy,
        "label": things[0].colour * spec.shapes + things[0].shape if len(things) == 1 else -1,
        "objects": objects,
        "masks": masks,
        "questions": question.questions(spec, things, asks, split),
    }


class SceneStream:
    """Scenes without end, drawn when they are asked for: record i is a pure function of (spec, seed, split, i).

    Pickles in a few bytes and may be read from many threads. More than one core needs more than one process:
    drawing is many short numpy calls, which hold the interpreter lock.
    """

    def __init__(self, spec: SceneSpec, seed: int = 0, split: str = "train"):
        world.layout(spec, world.tapes(seed, split, 0)[0], split)  # refuses now what a worker would refuse later
        self.spec, self.seed, self.split = spec, seed, split

    def __len__(self) -> int:
        return 2**40

    def __getitem__(self, index: int) -> dict:
        """The record of `sample`; UserError outside 0 .. len - 1."""
        return sample(self.spec, self.seed, self._checked(index), self.split)

    def scene(self, index: int) -> dict:
        """The record of `scene`, which holds that of `sample`; UserError outside 0 .. len - 1."""
        return scene(self.spec, self.seed, self._checked(index), self.split)

    def _checked(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise UserError(f"scenes: index {index}; valid: 0 to {len(self) - 1}")
        return int(index)

    def __repr__(self) -> str:
        return f"SceneStream({self.spec}, seed={self.seed}, split={self.split!r})"
