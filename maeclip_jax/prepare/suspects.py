"""Kept pictures that one may not want: white ones, white bars, the same bytes twice, the pictures of an evaluation set.

They are counted in the account, and `suspects.jsonl` names each.
"""

from __future__ import annotations

import numpy as np

FILE = "suspects.jsonl"
SAME, NEAR = "same_bytes", "near_duplicate"
KINDS = {
    "white": "all white, as 16-bit pictures are that were clipped",
    "white_bars": "a square with white bars, as img2dataset's --resize_mode border makes them; --resize_mode "
    "keep_ratio makes none",
    SAME: "the bytes of an earlier picture; --same_bytes=drop leaves them out",
    NEAR: "looks like a picture of --not_in; --near_duplicates=drop leaves them out",
}
ON_REQUEST = (SAME, NEAR)  # dropped where that was asked for, hence not bad
_WHITE = 250  # of 255


def look(pixels_HxWx3: np.ndarray) -> str:
    """The kind of a picture by its pixels, which may be of a reduced scale: "white", "white_bars" or ""."""
    corners = pixels_HxWx3[0, 0], pixels_HxWx3[0, -1], pixels_HxWx3[-1, 0], pixels_HxWx3[-1, -1]
    if min(corner[0] for corner in corners) < _WHITE:  # nearly all pictures end here
        return ""
    if pixels_HxWx3.mean() > _WHITE:
        return "white"
    height, width, _ = pixels_HxWx3.shape
    rows = min(pixels_HxWx3[0].mean(), pixels_HxWx3[-1].mean()) > _WHITE
    columns = min(pixels_HxWx3[:, 0].mean(), pixels_HxWx3[:, -1].mean()) > _WHITE
    # White on all four sides is a thing on a white ground.
    return "white_bars" if height == width and rows != columns else ""
