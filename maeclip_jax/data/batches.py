"""Batches of one host as they leave the pipeline, and the count of records that could not be used."""

from __future__ import annotations

import logging
import weakref
from collections import Counter

from maeclip_jax.data.ahead import Reading
from maeclip_jax.data.rows import join
from maeclip_jax.errors import UserError

_ENOUGH = 1000  # records after which a share of bad ones means something

log = logging.getLogger(__name__)


class Batches:
    """Iterator of batches of one host; `close()` (or `with`) stops its threads and processes.

    spec: name -> (shape, dtype) of one row. seen, bad, kinds: records of this host's rows, how many of them could not
    be used, and by kind. The first 20 bad records are logged by name, then every 1000th.
    On a single host it raises UserError when the share goes above `max_bad`; several hosts must agree on that, so there
    the loop calls `check_bad` on global sums. how: in words, how blocks are read and what memory that takes; "" if
    records are read one by one.
    """

    def __init__(
        self,
        iterator,
        spec: dict,
        *,
        max_bad: float,
        whole: int | None,
        alone: bool,
        reading: Reading | None = None,
        how: str = "",
    ):
        self.how = how
        self._live = (
            [iterator, reading] if reading else [iterator]
        )  # closed from the end: threads wait for what is read
        # Needed even without close(): grain's iterators must be deleted before the interpreter unloads its modules.
        self._finish = weakref.finalize(self, _end, self._live)
        self.spec, self.max_bad, self.whole, self._alone = spec, max_bad, whole, alone
        self.seen, self.bad, self.kinds = 0, 0, Counter()

    def __iter__(self):
        return self

    def __next__(self) -> dict:
        if not self._live:
            raise StopIteration
        try:
            batch, tried, bad = join(next(self._live[0]))
            self._count(tried, bad)
        except BaseException:
            self.close()
            raise
        return batch

    def _count(self, tried: int, bad: list) -> None:
        self.seen += tried
        for key, kind, detail in bad:
            self.bad += 1
            self.kinds[kind] += 1
            if self.bad <= 20 or self.bad % 1000 == 0:
                log.warning("bad record %d: %s: %s: %s", self.bad, key, kind, detail)
        if self._alone:
            check_bad(self.seen, self.bad, self.max_bad, whole=self.whole, kinds=self.kinds)

    def close(self) -> None:
        self._finish()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def _end(live: list) -> None:
    while live:
        live.pop().close()


def check_bad(
    seen: int, bad: int, max_bad: float, *, whole: int | None = None, kinds: dict[str, int] | None = None
) -> None:
    """Raises UserError when more than `max_bad` of the `seen` records (those replaced included) could not be used.

    Judges after 1000 records, or after `whole` (the length of the data set) where that is less.
    """
    enough = _ENOUGH if whole is None else min(_ENOUGH, whole)
    if seen >= enough and bad > max_bad * seen:
        counts = ", ".join(f"{kind} {count}" for kind, count in sorted((kinds or {}).items()))
        raise UserError(
            f"{bad} of {seen} records ({100 * bad / seen:.1f} %) cannot be used, more than max_bad={max_bad:g} allows"
            + (f" ({counts})" if counts else "")
            + "; the log names them"
        )
