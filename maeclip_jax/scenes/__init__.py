"""Procedurally drawn image-text pairs with ground truth for everything: the embedded data set."""

from maeclip_jax.scenes.stream import SceneStream, sample, scene
from maeclip_jax.scenes.world import SPLITS, SceneSpec, combinations

__all__ = ["SPLITS", "SceneSpec", "SceneStream", "combinations", "sample", "scene"]
