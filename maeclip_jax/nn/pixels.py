"""Pixels to patches and back, and their normalisation: pure functions on arrays, on the device."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

# name -> (mean, std) of RGB in [0, 1]. ImageNet: torchvision's constants, used by MAE. clip: openai/CLIP.
# cc12m: young-geng/m3ae_public. half: maps to [-1, 1] (big_vision's value_range(-1, 1)).
STATS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "cc12m": ((0.5762, 0.5503, 0.5213), (0.3207, 0.3169, 0.3307)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


def _stats(name: str) -> tuple[np.ndarray, np.ndarray]:
    if name not in STATS:
        raise ValueError(f"unknown pixel statistics {name!r}; valid: {', '.join(sorted(STATS))}")
    mean, std = STATS[name]
    return np.asarray(mean, np.float32), np.asarray(std, np.float32)


def normalise(image_BxHxWx3: jax.Array, stats: str, *, whole: bool = True) -> jax.Array:
    """uint8 pictures -> float32, (x / 255 - mean) / std. Not `whole`: those made on the device, float in 0..255."""
    if whole and image_BxHxWx3.dtype != jnp.uint8:
        raise ValueError(f"pictures travel as uint8 and are normalised here, got {image_BxHxWx3.dtype}")
    mean, std = _stats(stats)
    scale, shift = 1 / (255 * std), -mean / std
    return image_BxHxWx3.astype(jnp.float32) * scale.reshape(1, 1, 1, 3) + shift.reshape(1, 1, 1, 3)


def denormalise(x_BxHxWx3: jax.Array, stats: str) -> jax.Array:
    """The inverse of `normalise`: float32 in 0..255, clipped to that range."""
    mean, std = _stats(stats)
    return jnp.clip((x_BxHxWx3 * std.reshape(1, 1, 1, 3) + mean.reshape(1, 1, 1, 3)) * 255, 0, 255)


def patchify(image_BxHxWxC: jax.Array, patch: int) -> jax.Array:
    """[B, H, W, C] -> [B, (H/p)(W/p), p*p*C], patches in row-major order, pixels (row, column, channel)."""
    b, h, w, c = image_BxHxWxC.shape
    if h % patch or w % patch:
        raise ValueError(f"a {h}x{w} picture does not divide into {patch}x{patch} patches")
    x = image_BxHxWxC.reshape(b, h // patch, patch, w // patch, patch, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, (h // patch) * (w // patch), patch * patch * c)


def unpatchify(patches_BxNxP: jax.Array, patch: int, height: int, width: int) -> jax.Array:
    """The inverse of `patchify` -> [B, height, width, C]."""
    b, _, p = patches_BxNxP.shape
    x = patches_BxNxP.reshape(b, height // patch, width // patch, patch, patch, p // patch**2)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, height, width, p // patch**2)
