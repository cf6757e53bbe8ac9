"""Streams: what a batch gives to the towers of a config, and which of a tower's settings belong to what."""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from maeclip_jax.nn import pixels
from maeclip_jax.nn.pool import Tokens, parse, pooled
from maeclip_jax.nn.tower import grid_side
from maeclip_jax.nn.transformer import draw_paths

# Settings of a tower that are its embedding's, and those of what is done with its tokens.
EMBEDDING = ("size", "patch", "position", "patch_bias", "vocab", "length", "std", "padding")


HEAD = ("pool", "projection", "map")


def patches(batch: Mapping[str, jax.Array], image: Mapping, stats: str, *, whole: bool = True) -> jax.Array:
    """The normalised patches [B, N, P] of a batch's pictures; ValueError if they do not have the tower's size.

    `whole`: see `pixels.normalise`.
    """
    height, width = batch["image"].shape[1:3]
    if (height, width) != (image["size"], image["size"]):
        raise ValueError(f"pictures are {height}x{width}, the image tower takes {image['size']}x{image['size']}")
    return pixels.patchify(pixels.normalise(batch["image"], stats, whole=whole), image["patch"])


def stream_inputs(
    batch: Mapping[str, jax.Array], image: Mapping, stats: str, streams: tuple[str, ...] = ("image", "text")
) -> dict[str, jax.Array]:
    """What towers take of a batch: patches [B, N, P] and ids [B, T], of those `streams` that are in it."""
    inputs = {}
    if "image" in batch:
        inputs["image"] = patches(batch, image, stats)
    if "text" in batch and "text" in streams:
        inputs["text"] = batch["text"]
    return inputs


def token_counts(
    batch: Mapping[str, jax.Array], image: Mapping, streams: tuple[str, ...] = ("image", "text")
) -> dict[str, int]:
    """Tokens of each of `stream_inputs`."""
    sizes = {"image": grid_side(image) ** 2, "text": batch["text"].shape[1] if "text" in batch else 0}
    return {s: sizes[s] for s in streams if s in batch}


def paths(module: nn.Module, batch: Mapping[str, jax.Array], passes: Mapping[str, Mapping]) -> dict:
    """{"paths": {pass: noise [B, depth, 2]}} of the `passes` (name -> a config's tower) that drop paths; {} if none do.

    Drawn from `module`'s stream "dropout". Every pass through a tower draws its own.
    """
    if not any(tower.get("drop_path") for tower in passes.values()):
        return {}
    rng, rows = module.make_rng("dropout"), next(iter(batch.values())).shape[0]
    noise = {
        name: draw_paths(jax.random.fold_in(rng, i), rows, tower["depth"])
        for i, (name, tower) in enumerate(passes.items())
        if tower.get("drop_path")
    }
    return {"paths": noise}


def path_noise(drawn: Mapping, name: str) -> jax.Array | None:
    """By what the pass `name` drops paths; None: it drops none."""
    return drawn.get("paths", {}).get(name)


def split_tower(tower: Mapping) -> tuple[dict, dict, dict]:
    """A config's tower as what belongs to (its embedding, its encoder, the head on top of it)."""

    def of(names: tuple[str, ...]) -> dict:
        return {k: v for k, v in tower.items() if k in names}

    return of(EMBEDDING), {k: v for k, v in tower.items() if k not in (*EMBEDDING, *HEAD)}, of(HEAD)


def check_class_token(tower: Mapping) -> None:
    """ValueError if a picture's pooling takes a class token that its tower does not have."""
    if parse(tower["pool"])[0] == "cls" and not tower.get("cls"):
        raise ValueError("image_tower.pool is cls but image_tower.cls is False: there is no class token to take")


def check_pooled(tower: Mapping, count: int, why: str) -> None:
    """ValueError if a tower pools more tokens than the `count` that a pass in training has; `why`, for the message."""
    word = tower["pool"]
    if parse(word)[0] == "topk":
        try:
            jax.eval_shape(lambda x: pooled(Tokens(x), word), jax.ShapeDtypeStruct((1, count, 1), jnp.float32))
        except ValueError as e:
            raise ValueError(f"{e}; {why}") from None


def check_smoothing(smoothing: float, loss: str) -> None:
    """ValueError for a label smoothing that cannot be, or of a loss without a softmax."""
    if not 0 <= smoothing < 1:
        raise ValueError(f"label_smoothing must lie in [0, 1), got {smoothing}")
    if smoothing and loss != "softmax":
        raise ValueError(f"label_smoothing is of loss='softmax', not of {loss!r}; valid with it: 0.0")


def example(image: Mapping | None, text: Mapping | None) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of one example's picture and text, from the towers that take them."""
    shapes = {}
    if image is not None:
        shapes["image"] = jax.ShapeDtypeStruct((image["size"], image["size"], 3), jnp.uint8)
    if text is not None:
        shapes["text"] = jax.ShapeDtypeStruct((text["length"],), jnp.int32)
    return shapes
