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


def upsample(maps: np.ndarray, height: int, width: int) -> np.ndarray:
    """[..., h, w] -> [..., height, width] float32, bilinear, centres of pixels aligned, edges held."""
    import cv2

    flat = np.asarray(maps, np.float32).reshape(-1, *maps.shape[-2:])
    large = [cv2.resize(one, (width, height), interpolation=cv2.INTER_LINEAR) for one in flat]
    return np.stack(large).reshape(*maps.shape[:-2], height, width)


def square(values_N: np.ndarray) -> np.ndarray:
    """[..., N] values of patches, row-major -> [..., side, side]."""
    side = round(values_N.shape[-1] ** 0.5)
    return values_N.reshape(*values_N.shape[:-1], side, side)


def is_flat(values: np.ndarray) -> bool:
    """Whether the values of a map differ by rounding only: by at most a part in 100,000 of the largest magnitude."""
    low, high = float(values.min()), float(values.max())
    return high - low <= 1e-5 * max(abs(low), abs(high))


COLOURS = "inferno"  # of matplotlib: dark to bright, so that it also reads in grey


def heat(image_HxWx3: np.ndarray, map_HxW: np.ndarray, strength: float = 0.7) -> np.ndarray:
    """A map, scaled from its own least to its own greatest value, in colours over the grey picture, uint8.

    A map that is flat (`is_flat`) or not finite is dark everywhere.
    """
    import matplotlib

    low, high = float(map_HxW.min()), float(map_HxW.max())
    nothing = is_flat(map_HxW) or not np.isfinite(high - low)
    scaled = np.zeros(map_HxW.shape) if nothing else (map_HxW - low) / (high - low)
    colour = 255 * matplotlib.colormaps[COLOURS](scaled)[..., :3]
    grey = image_HxWx3.mean(-1, keepdims=True)
    return np.rint(strength * colour + (1 - strength) * grey).astype(np.uint8)


def class_colours(count: int) -> np.ndarray:
    """uint8 [count, 3]: colours far apart for neighbouring ids; id 0, often the background, is dark grey."""
    import colorsys

    out = [(48, 48, 48)]
    for i in range(1, count):
        hue, light = (i - 1) * 0.618034 % 1, (0.5, 0.68, 0.36)[i % 3]  # steps of the golden ratio never meet again
        out.append(tuple(round(255 * x) for x in colorsys.hls_to_rgb(hue, light, 0.8)))
    return np.array(out[:count], np.uint8)


def colour_mask(mask_HxW: np.ndarray, colours_Cx3: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3]; ids without a colour (to be ignored) are white."""
    padded = np.full((256, 3), 255, np.uint8)
    padded[: len(colours_Cx3)] = colours_Cx3
    return padded[mask_HxW]


def as_picture(image_HxWx3: np.ndarray):
    """A uint8 array [H, W, 3] as a PIL picture, which notebooks show."""
    from PIL import Image

    return Image.fromarray(np.asarray(image_HxWx3, np.uint8))
