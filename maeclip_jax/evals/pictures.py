"""Small pictures for reports: thumbnails and contact sheets, uint8 arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def thumbnail(image_HxWx3: np.ndarray, size: int) -> np.ndarray:
    """[size, size, 3]: the picture fitted in and centred on white; enlarged only by whole factors."""
    from PIL import Image

    height, width = image_HxWx3.shape[:2]
    scale = size / max(height, width)
    scale = int(scale) if scale >= 1 else scale
    new = max(1, round(width * scale)), max(1, round(height * scale))
    how = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BICUBIC
    small = np.asarray(Image.fromarray(image_HxWx3).resize(new, how))
    out = np.full((size, size, 3), 255, np.uint8)
    top, left = (size - new[1]) // 2, (size - new[0]) // 2
    out[top : top + new[1], left : left + new[0]] = small
    return out


def sheet(tiles: Sequence[np.ndarray], columns: int, gap: int = 0) -> np.ndarray:
    """Tiles [H, W, 3] of one size in row-major order on white, `columns` a row, `gap` pixels between them."""
    height, width = tiles[0].shape[:2]
    rows = -(-len(tiles) // columns)
    out = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for n, tile in enumerate(tiles):
        y, x = n // columns * (height + gap), n % columns * (width + gap)
        out[y : y + height, x : x + width] = tile
    return out


def pixels_of_patches(mask_BxN: np.ndarray, height: int, width: int) -> np.ndarray:
    """A value per patch -> [B, H, W], the same for every pixel of a patch; patches are square, row-major."""
    b, n = mask_BxN.shape
    patch = round((height * width / n) ** 0.5)
    if patch < 1 or height % patch or width % patch or (height // patch) * (width // patch) != n:
        raise ValueError(f"{n} patches do not tile a {height}x{width} picture with squares")
    grid = mask_BxN.reshape(b, height // patch, width // patch)
    return grid.repeat(patch, axis=1).repeat(patch, axis=2)
