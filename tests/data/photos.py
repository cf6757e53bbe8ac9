"""Real photographs, if they are there (MAECLIP_SHARED_DATA, or ../shared/data)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

DATA = Path(os.environ.get("MAECLIP_SHARED_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))


def photos(count: int = 24) -> list[Path]:
    """`count` files of all kinds of sizes, spread over what is there; grey ones and objects among them."""
    found = sorted((DATA / "photos" / "images").glob("*.jpg"))
    objects = [p for name in ("car_side", "grand_piano") for p in sorted((DATA / "classify" / name).glob("*.jpg"))]
    if not found or not objects:
        pytest.skip(f"no photographs in {DATA}; set MAECLIP_SHARED_DATA")
    return [*found[:: len(found) // count][:count], *objects[:: len(objects) // 6][:6]]
