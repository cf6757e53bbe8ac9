"""Reading ahead: every record once, in time, in bounded memory; waits are said, stalled reads are raced."""

import logging
import pickle
import threading
import time

import pytest

from maeclip_jax.data import ahead, blocks
from maeclip_jax.errors import BadRecord


class Source:
    """Records are their numbers; every read is noted."""

    def __init__(self, n=1000, delay=0.0):
        self.n, self.delay, self.reads = n, delay, []

    def read(self, begin, end):
        self.reads.append((begin, end))
        time.sleep(self.delay)
        return [b"%d" % i for i in range(begin, end)]

    def parts(self, begin, end):
        return [("gs://name/file-0", begin, end)]


def reader(source, order, threads=4, **how):
    reading = ahead.Reading(threads)
    return reading, reading.of(source, order, **{"ahead": 2, **how})


def test_every_record_comes_once_and_is_read_once():
    source, order = Source(), blocks.Blocks(1000, 0, size=16, window=4, lanes=4)
    reading, read = reader(source, order, starts=dict.fromkeys(range(4), 0))
    held = []
    for position in range(250):
        for lane in range(4):
            index = order(position, lane)
            assert read.take(index, position, lane) == b"%d" % index
        held.append(sum(r is not None for span in list(read._spans.values()) for r in span.records))
    reading.close()
    epoch = source.reads
    assert len(epoch) - len(set(epoch)) <= 4 * (4 + 2)  # of the next epoch some are read ahead
    assert max(held) <= 4 * (4 + 2 + 1) * 16
    assert len(epoch) <= 1000 / 16 + 4 * 2 + 4 * (4 + 2)


def test_what_is_needed_first_is_read_first():
    source, order = Source(delay=0.01), blocks.Blocks(1000, 0, size=8, window=4, lanes=4)
    reading, read = reader(source, order, threads=1, ahead=0, starts=dict.fromkeys(range(4), 40))
    needed = {}  # span -> the position at which it is first needed
    for position, lane in ((p, lane) for p in range(40, 60) for lane in range(4)):
        window = order.window(position, lane)
        needed.setdefault(window.spans[window.span_N[position - window.start]], position)
    for position in range(40, 44):
        for lane in range(4):
            read.take(order(position, lane), position, lane)
    reading.close()
    asked = [needed[span] for span in source.reads[1:12]]  # the first is begun before the others are known
    assert asked == sorted(asked)
    rest = {span for lane in range(4) for span in order.window(40, lane).spans} - set(needed)
    assert not rest & set(source.reads)  # rows before the start are not read


def test_a_record_that_is_not_here_any_more_is_read_alone():
    source, order = Source(), blocks.InOrder(100, batch_size=10, offset=0, rows=10, size=10)
    reading, read = reader(source, order)
    assert [read.take(3, 3, 0), read.take(3, 3, 0)] == [b"3", b"3"] and (3, 4) in source.reads
    reading.close()


def test_errors_arrive_where_the_record_is_taken():
    class Broken(Source):
        def read(self, begin, end):
            raise OSError("the file is gone")

    reading, read = reader(Broken(), blocks.InOrder(100, batch_size=10, offset=0, rows=10, size=10))
    with pytest.raises(OSError, match="the file is gone"):
        read.take(0, 0, 0)
    reading.close()


def test_a_stalled_read_is_said_and_raced(monkeypatch, caplog):
    monkeypatch.setattr(ahead, "SAY", 0.05)
    monkeypatch.setattr(ahead, "RACE", 0.2)
    never = threading.Event()

    class Stalled(Source):
        def read(self, begin, end):
            first = (begin, end) not in self.reads
            self.reads.append((begin, end))
            if first:
                never.wait(600)
            return [b"%d" % i for i in range(begin, end)]

    reading, read = reader(Stalled(), blocks.InOrder(20, batch_size=10, offset=0, rows=10, size=10), threads=2)
    with caplog.at_level(logging.WARNING):
        assert read.take(4, 4, 0) == b"4"
    assert "waiting for records 0 to 10 of gs://name/file-0: " in caplog.text
    never.set()
    reading.close()


def test_one_raced_read_that_answers_frees_all_that_wait_as_long(monkeypatch):
    """After an outage reads pause for minutes: one by one, each would hold up a step for as long as a race takes."""
    monkeypatch.setattr(ahead, "RACE", 0.3)
    never, raced = threading.Event(), []

    class Stalled(Source):
        def read(self, begin, end):
            first = (begin, end) not in self.reads
            self.reads.append((begin, end))
            if first:
                never.wait(600)
            return [b"%d" % i for i in range(begin, end)]

    source = Stalled()
    reading, read = reader(source, blocks.Blocks(1000, 0, size=8, window=4, lanes=1), threads=8)
    race = reading.race
    monkeypatch.setattr(reading, "race", lambda job: (raced.append(threading.current_thread().name), race(job)))
    order = read.order
    for position in range(32):
        assert read.take(order(position), position, 0) == b"%d" % order(position)
    assert len(raced) >= 4 and raced.count(threading.main_thread().name) == 1  # the rest was freed by that one
    never.set()
    reading.close()


def test_closing_ends_every_wait():
    source, order = Source(delay=0.5), blocks.InOrder(100, batch_size=10, offset=0, rows=10, size=10)
    reading, read = reader(source, order, threads=1)
    found = []

    def wait():
        try:
            read.take(0, 0, 0)
        except RuntimeError as e:
            found.append(str(e))

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.1)
    reading.close()
    thread.join(600)
    assert found == ["reading has ended"]
    with pytest.raises(RuntimeError, match="reading has ended"):
        read.take(50, 50, 0)


def test_it_travels_to_other_processes():
    source, order = Source(), blocks.Blocks(100, 0, size=8, window=2, lanes=2)
    reading, read = reader(source, order)
    read.take(order(0, 0), 0, 0)
    again = pickle.loads(pickle.dumps(read))
    assert again.take(order(1, 1), 1, 1) == b"%d" % order(1, 1)
    again.reading.close()
    reading.close()


def test_a_scan_reads_neighbours_together_and_leaves_out_what_cannot_be_used():
    class Remote(Source):
        remote = True

        def __len__(self):
            return self.n

        def record(self, data, index):
            if index == 70:
                raise BadRecord("empty", "made so")
            return {"key": data.decode(), "index": index}

    source = Remote(200)
    found = list(ahead.scan(source, skip=(BadRecord,)))
    assert [r["index"] for r in found] == [i for i in range(200) if i != 70]
    assert sorted(source.reads) == [(0, 64), (64, 128), (128, 192), (192, 200)]
    assert [r["key"] for r in ahead.scan(source, [5, 6, 7, 90, 3])] == ["5", "6", "7", "90", "3"]
    assert set(source.reads[4:]) == {(5, 8), (90, 91), (3, 4)}
    with pytest.raises(BadRecord):
        list(ahead.scan(source))
    assert list(ahead.scan([1, 2, 3])) == [1, 2, 3]
