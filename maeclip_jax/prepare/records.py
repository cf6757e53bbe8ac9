"""The records of a source, whatever its format.

`read(reading, unit)` yields every record of a unit in the order of the source, whatever its state: a record that
cannot be read comes out with `error` set, so that `read` yields as many outputs as the source has records.
"""

from __future__ import annotations

from collections.abc import Iterator

from maeclip_jax.prepare import formats
from maeclip_jax.prepare.formats.raw import Raw
from maeclip_jax.prepare.formats.units import Reading, Unit


def read(reading: Reading, unit: Unit) -> Iterator[Raw]:
    """All records of a unit, in order."""
    return formats.FORMATS[reading.format].read(reading, unit)
