"""Reading ahead: the records of a source in a known order, fetched in ranges by threads before they are asked for."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from maeclip_jax import remote
from maeclip_jax.data.blocks import Window

SAY, RACE = 15.0, 30.0  # seconds after which a wait is said, and a read is raced by a second one
_EVERY = 60.0
THREAD = "reading ahead"  # the name of its threads, which a read that hangs may outlive everything else in

log = logging.getLogger(__name__)


def readable(source: Any) -> bool:
    """Whether neighbours can be read together: `data.source` says how."""
    return hasattr(source, "read") and hasattr(source, "record")


def scan(
    source: Any, indices: Iterable[int] | None = None, *, skip: tuple[type[Exception], ...] = (), reads: int = 32
) -> Iterator[dict]:
    """The records of `source` at `indices` (default: all) in turn; of a bucket read ahead, neighbours together.

    skip: errors for which a record is left out (a range of them, if it cannot be read); others are raised.
    """
    indices = range(len(source)) if indices is None else indices
    if not (getattr(source, "remote", False) and readable(source)):
        for i in indices:
            with contextlib.suppress(*skip):
                record = source[i]
                yield record
        return
    pool, waiting, wanted = ThreadPoolExecutor(reads, "scanning"), deque(), _runs(indices)
    try:
        for begin, end in itertools.islice(wanted, 2 * reads):
            waiting.append((begin, pool.submit(source.read, begin, end)))
        while waiting:
            first, read = waiting.popleft()
            for begin, end in itertools.islice(wanted, 1):
                waiting.append((begin, pool.submit(source.read, begin, end)))
            found: list[bytes] = []
            with contextlib.suppress(*skip):
                found = read.result()
            for i, data in enumerate(found, first):
                with contextlib.suppress(*skip):
                    record = source.record(data, i)
                    yield record
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _runs(indices: Iterable[int], most: int = 64) -> Iterator[tuple[int, int]]:
    """(begin, end) of the runs of neighbours in `indices`, at most so long."""
    begin = end = None
    for i in indices:
        if begin is None or i != end or end - begin == most:
            if begin is not None:
                yield begin, end
            begin = end = int(i)
        end += 1
    if begin is not None:
        yield begin, end


class _Span:
    """A range that is read once; its records leave one by one, as they are taken."""

    def __init__(self, begin: int, end: int):
        self.begin, self.end = begin, end
        self.asked, self.raced = time.monotonic(), False
        self.ready = threading.Event()
        self.records: list[bytes | None] = []
        self.error: BaseException | None = None

    def put(self, records: list[bytes] | None, error: BaseException | None = None) -> None:
        """The first answer counts, of reads that race."""
        if not self.ready.is_set():
            self.records, self.error = list(records or ()), error
            self.ready.set()


class _Lane:
    """What has been asked for of one lane: the window that its rows are in, and those after it (`later`, partly)."""

    def __init__(self):
        self.current: Window | None = None
        self.later: deque[list] = deque()  # [window, spans asked for]
        self.kept: deque[tuple[int, tuple]] = deque()  # (end of the window, key) of spans, the oldest first


class ReadAhead:
    """`take(index, position, lane)`: the bytes of record `index`, which stands there in `order`, usually already here.

    source: has `read(begin, end)`. order: has `window(position, lane)`, see `data.blocks`. ahead: spans that a lane
    asks for before their window begins, beyond its pace. starts: {lane: position} of the rows that will be taken first,
    which are asked for at once. pace: rows of a batch for one of this source, so that sources that share `reading` are
    read in the order in which they are needed.

    Memory: the spans of one window and `ahead` more for each lane, of which each record goes when it is taken.
    """

    def __init__(self, source: Any, order: Any, *, ahead: int, reading: Reading, starts=(), pace: float = 1.0):
        self.source, self.order, self.ahead, self.reading, self.pace = source, order, ahead, reading, pace
        self.starts = dict(starts)
        self._reset()

    def _reset(self) -> None:
        self._lanes: dict[int, _Lane] = {}
        self._spans: dict[tuple[int, int, int], _Span] = {}  # (lane, start of the window, first record)
        self._lock, self._begun, self._closed = threading.Lock(), False, False

    def __getstate__(self) -> dict:  # worker processes have threads of their own
        keys = ("source", "order", "ahead", "reading", "pace", "starts")
        return {k: self.__dict__[k] for k in keys}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._reset()

    def take(self, index: int, position: int, lane: int) -> bytes:
        """Raises what the source raises. A record that is not here (taken before, or another's) is read alone."""
        with self._lock:
            if self._closed:
                raise _ended()
            if not self._begun:
                self._begun = True
                for other, start in self.starts.items():
                    self._advance(other, start)
            window = self._advance(lane, position)
            begin, _ = window.spans[window.span_N[position - window.start]]
            key = (lane, window.start, begin)
            span = self._spans.get(key)
        if span is not None:
            self._wait(span)
            with self._lock:
                data, span.records[index - begin] = span.records[index - begin], None
                if not any(span.records):
                    self._spans.pop(key, None)
            if data is not None:
                return data
        return self.source.read(index, index + 1)[0]

    def close(self) -> None:
        """Ends all waiting."""
        with self._lock:
            self._closed = True
            spans, self._spans = list(self._spans.values()), {}
        for span in spans:
            span.put(None, _ended())

    def _advance(self, lane: int, position: int) -> Window:
        """Asks for what is needed soon after `position`, and lets go of what is long past. The window of `position`."""
        window = self.order.window(position, lane)
        state = self._lanes.setdefault(lane, _Lane())
        if state.current is None or window.start > state.current.start:
            while state.later and state.later[0][0].start < window.start:
                state.later.popleft()
            asked = state.later.popleft()[1] if state.later and state.later[0][0].start == window.start else 0
            which = [(window.needs[i], i) for i in range(asked, len(window.spans))]
            if state.current is None:  # a run that goes on in the middle of a window has had some of its rows
                spans, first = np.unique(window.span_N[position - window.start :], return_index=True)
                which = [(position + row, i) for row, i in zip(first.tolist(), spans.tolist())]
            self._ask(state, lane, window, which)
            past = state.current.start if state.current else window.start  # threads may still be in the last one
            while state.kept and state.kept[0][0] <= past:
                self._spans.pop(state.kept.popleft()[1], None)
            state.current = window
        if window.start == state.current.start:
            done = (position - window.start + 1) / max(1, len(window.records_N))
            want = int(done * len(window.spans)) + self.ahead - sum(asked for _, asked in state.later)
            while want > 0:
                if not state.later or state.later[-1][1] == len(state.later[-1][0].spans):
                    last = state.later[-1][0] if state.later else window
                    state.later.append([self.order.window(last.end, lane), 0])
                following, asked = state.later[-1]
                if not len(following.records_N):  # past the end
                    break
                more = min(want, len(following.spans) - asked)
                which = [(following.needs[i], i) for i in range(asked, asked + more)]
                self._ask(state, lane, following, which)
                state.later[-1][1], want = asked + more, want - more
        return window

    def _ask(self, state: _Lane, lane: int, window: Window, which: Iterable[tuple[int, int]]) -> None:
        for need, i in which:
            begin, end = window.spans[i]
            key = (lane, window.start, begin)
            if begin < end and key not in self._spans:
                span = self._spans[key] = _Span(begin, end)
                state.kept.append((window.end, key))
                self.reading.put(need * self.pace, lambda span=span: self._read(span))

    def _read(self, span: _Span) -> None:
        try:
            span.put(self.source.read(span.begin, span.end))
        except BaseException as e:  # raised where the record is taken
            span.put(None, e)

    def _read_again(self, span: _Span) -> None:
        """Reads what another thread is still reading. If the storage answers, all that waits for as long is raced, too.

        After an outage the reads of before it pause for minutes before they try again.
        """
        self._read(span)
        if span.error is not None:
            return
        with self._lock:
            old = (s for s in self._spans.values() if not (s.ready.is_set() or s.raced) and _is_old(s))
            late = list(itertools.islice(old, self.reading.threads))
            for other in late:
                other.raced = True
        for other in late:
            self.reading.race(lambda other=other: self._read_again(other))

    def _wait(self, span: _Span) -> None:
        if not span.ready.is_set():
            begun, say, race = time.monotonic(), SAY, RACE
            while not span.ready.wait(max(0.01, min(say, race) - (time.monotonic() - begun))):
                waited = time.monotonic() - begun
                if waited >= say:
                    say += _EVERY
                    remote.tell()
                    log.warning("waiting for %s: %d s", self._name(span), waited)
                if waited >= race:
                    race += _EVERY
                    self.reading.race(lambda: self._read_again(span))
        if span.error is not None:
            raise span.error

    def _name(self, span: _Span) -> str:
        parts = getattr(self.source, "parts", None)
        if parts is None:
            return f"records {span.begin} to {span.end}"
        return " and ".join(f"records {a} to {b} of {path}" for path, a, b in parts(span.begin, span.end))


def _is_old(span: _Span) -> bool:
    return time.monotonic() - span.asked > RACE


def _ended() -> RuntimeError:
    return RuntimeError("reading has ended")


class Reading:
    """Threads that read, for one pass over one or several sources, what is needed first, first. `close` ends them."""

    def __init__(self, threads: int):
        self.threads = threads
        self._reset()

    def of(self, source: Any, order: Any, **how) -> ReadAhead:
        """A `ReadAhead` whose reads are done here."""
        made = ReadAhead(source, order, reading=self, **how)
        self._readers.append(made)
        return made

    def _reset(self) -> None:
        self._readers: list[ReadAhead] = []
        self._heap: list = []
        self._count = itertools.count()
        self._idle, self._closed = threading.Condition(), False
        self._running: list[threading.Thread] = []
        self._waiting = 0

    def __getstate__(self) -> dict:
        return {"threads": self.threads}

    def __setstate__(self, state: dict) -> None:
        self.threads = state["threads"]
        self._reset()

    def put(self, need: float, job) -> None:
        """`job` is done before those of a larger `need`."""
        with self._idle:
            if self._closed:
                return
            heapq.heappush(self._heap, (need, next(self._count), job))
            if len(self._heap) > self._waiting and len(self._running) < self.threads:
                self._start(self._work)
            self._idle.notify()

    def race(self, job) -> None:
        """`job` at once, by a thread of its own: all others may stand still."""
        with self._idle:
            if not self._closed:
                self._start(job)

    def close(self, timeout: float = 5.0) -> None:
        """Whoever waits for a record gets an error. Waits at most `timeout` seconds for reads that are under way."""
        with self._idle:
            self._closed, self._heap = True, []
            self._idle.notify_all()
        for reader in self._readers:
            reader.close()
        end = time.monotonic() + timeout
        for thread in self._running:
            thread.join(max(0.0, end - time.monotonic()))

    def _start(self, run) -> None:
        thread = threading.Thread(target=run, daemon=True, name=THREAD)
        self._running.append(thread)
        thread.start()

    def _work(self) -> None:
        while True:
            with self._idle:
                self._waiting += 1
                while not self._heap and not self._closed:
                    self._idle.wait()
                self._waiting -= 1
                if self._closed:
                    return
                _, _, job = heapq.heappop(self._heap)
            job()
