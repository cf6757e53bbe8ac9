"""What a bucket's owner charges for requests: one table, with its date and its source."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Price:
    """Dollars for 1,000 operations of class A (uploads, lists) and B (downloads, metadata). Deletions are free.

    `transfer`: dollars a GiB from the bucket to machines of the same region. Storing costs besides, by the month.
    `date`: when the page had these prices.
    """

    name: str
    a: float
    b: float
    transfer: float
    date: str
    source: str

    def dollars(self, a: float, b: float, size: float = 0.0) -> float:
        """Of so many operations, and of `size` bytes that are read."""
        return (a * self.a + b * self.b) / 1000 + self.transfer * size / 2**30

    def __str__(self) -> str:
        moved = f"{self.transfer:g} a GiB" if self.transfer else "free"
        return (
            f"{self.name}: {self.a:g} dollars for 1,000 operations of class A, {self.b:g} of class B, transfer within "
            f"the region {moved} ({self.source}, {self.date})"
        )


# By the scheme of the URL.
PRICES = {
    "gs": Price(
        "Google Cloud Storage, Standard storage in one region, flat namespace",
        a=0.005,
        b=0.0004,
        transfer=0.0,
        date="2026-09-20",
        source="cloud.google.com/storage/pricing",
    ),
}
