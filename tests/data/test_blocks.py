"""Block order: every epoch is a permutation, lanes know no hosts, and a request reads neighbours."""

import itertools
import pickle
from collections import Counter

import numpy as np
import pytest

from maeclip_jax.data import blocks, pipeline
from maeclip_jax.errors import UserError
from tests.data.test_pipeline import Records, data, take


@pytest.mark.parametrize("lanes", [1, 2, 8, 64])
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 1000, 4097])
def test_every_epoch_is_a_permutation(length, lanes):
    for size, window in ((1, 1), (3, 4), (64, 1), (64, 4)):
        order = blocks.Blocks(length, 7, "x", size=size, window=window, lanes=lanes)
        epochs = [[], [], []]
        for lane, position in itertools.product(range(lanes), range(-(-3 * length // lanes) + 1)):
            found = order.window(position, lane)
            assert found.start <= position < found.end
            record, span = order(position, lane), found.spans[found.span_N[position - found.start]]
            assert span[0] <= record < span[1] and span[1] - span[0] <= order.size
            epoch = ((position + 1) * lanes - lane - 1) // length
            if epoch < 3:
                epochs[epoch].append(record)
        assert [sorted(e) for e in epochs] == 3 * [list(range(length))]
        if length > 1000:
            assert epochs[0] != epochs[1]


def test_lanes_keep_step_with_the_epochs():
    # After E whole epochs (whole batches), every record has come E times: no lane runs ahead of another.
    order = blocks.Blocks(96, 1, size=4, window=2, lanes=8)
    for epochs in (1, 2, 5):
        seen = Counter(order(p, lane) for lane in range(8) for p in range(96 * epochs // 8))
        assert set(seen.values()) == {epochs} and len(seen) == 96


def test_any_position_is_found_at_once_and_travels_to_other_processes():
    order = blocks.Blocks(10**9, 3, size=64, window=16, lanes=64)
    again = pickle.loads(pickle.dumps(order))
    assert [again(10**12 + p, 5) for p in range(3)] == [order(10**12 + p, 5) for p in range(3)]
    found = order.window(10**7, 5)
    assert len(found.records_N) == 16 * 64 and len(found.spans) == 16
    assert {end - begin for begin, end in found.spans} == {64}
    needed = [int(np.argmax(found.span_N == i)) for i in range(16)]
    assert needed == sorted(needed)  # spans are read in the order of their first row


def test_blocks_are_permuted_over_the_whole_data_set():
    order = blocks.Blocks(10**6, 0, size=64, window=16, lanes=1)
    starts = np.array([begin for w in range(40) for begin, _ in order.window(w * 1024).spans]) / 10**6
    assert abs(starts.mean() - 0.5) < 0.05 and starts.std() == pytest.approx(12**-0.5, rel=0.1)
    assert abs(np.corrcoef(starts[:-1], starts[1:])[0, 1]) < 0.15


@pytest.mark.parametrize("length", [4096, 4097, 5000, 6143])
def test_blocks_of_huge_data_sets_are_permuted_region_by_region(monkeypatch, length):
    for name, value in (("FLAT", 100), ("REGION", 16), ("POOL", 4)):
        monkeypatch.setattr(blocks, name, value)
    order = blocks.Blocks(length, 1, size=4, window=2, lanes=4)
    for epoch in range(2):
        lanes = [[], [], [], []]
        for lane, position in itertools.product(range(4), range(2 * length // 4 + 2)):
            if ((position + 1) * 4 - lane - 1) // length == epoch:
                lanes[lane].append(order(position, lane))
        assert sorted(itertools.chain(*lanes)) == list(range(length))
        for records in lanes:  # few regions of 64 records at a time, and those from everywhere
            near = [{r // 64 for r in records[i : i + 64]} for i in range(0, len(records), 64)]
            assert max(map(len, near)) <= 2 * (4 + 1) and len(set.union(*near)) >= len(records) // 64
        assert abs(np.mean(lanes[0]) / length - 0.5) < 0.2


def test_small_data_sets_have_smaller_blocks():
    assert blocks.Blocks(10**6, 0, size=64, window=16, lanes=64).size == 64
    assert blocks.Blocks(4096, 0, size=64, window=16, lanes=64).size == 16
    assert blocks.Blocks(10, 0, size=64, window=16, lanes=64).size == 1


def keys(batches):
    return [batch["_key"].tolist() for batch in batches]


HOW = {"order": "blocks", "blocks": {"size": 4, "window": 2, "lanes": 8}}


def test_the_same_examples_on_any_number_of_hosts_and_from_any_step_on():
    config = data(1000, **HOW)
    whole = take(config, 12, batch_size=16)
    for hosts in (2, 4, 8, 16):
        again = take(config, 12, batch_size=16, hosts=hosts)
        assert keys(again) == keys(whole)
        np.testing.assert_array_equal(again[3]["draw"], whole[3]["draw"])
    assert keys(take(config, 4, batch_size=16, hosts=2, start=8 * 16)) == keys(whole[8:])


def test_another_batch_size_goes_on_where_the_last_one_ended():
    config = data(960, **HOW)
    first = take(config, 20, batch_size=32)
    then = take(config, 20, batch_size=16, start=640)
    assert sorted(k for b in first + then for k in b["_key"]) == sorted(f"k{i}" for i in range(960))


def test_mixes_bad_records_and_endless_sources_keep_their_rules():
    parts = {name: {"source": Records(n, first=first)} for name, n, first in (("a", 300, 0), ("b", 100, 1000))}
    mix = (("a", 3, parts["a"]), ("b", 1, parts["b"]))
    config = {"mix": mix, "ops": data()["ops"], "num_threads": 2, **HOW}
    batches = take(config, 512, batch_size=16)
    numbers = np.concatenate([b["number"] for b in batches])
    assert Counter(numbers < 1000) == {True: 6144, False: 2048}
    assert {c for n, c in Counter(numbers.tolist()).items() if n < 1000} <= {20, 21}
    assert keys(take(config, 2, batch_size=16, start=160, hosts=4)) == keys(batches[10:12])
    bad = take(data(source=Records(100, bad={7, 8})), 6, batch_size=16)
    assert not {"k7", "k8"} & {k for b in bad for k in b["_key"]}
    endless = take(data(source=Records(0, endless=True), **HOW), 3, batch_size=16)
    assert sorted(k for b in endless for k in b["_key"]) == sorted(f"k{i}" for i in range(48))


@pytest.mark.parametrize(
    "config, said",
    [
        ({"order": "shards"}, "unknown order of data: 'shards'; valid: auto, records, blocks"),
        ({"blocks": {"sise": 3}}, "unknown key of data.blocks: 'sise' (did you mean 'size'?)"),
        ({"blocks": {"size": 0}}, "data.blocks.size is 0; valid: whole numbers from 1 on"),
        ({"blocks": {"window": "large"}}, "data.blocks.window is 'large'; valid: whole numbers from 1 on"),
        ({"blocks": {"lanes": 5}}, "data.blocks.lanes=5 does not divide the batch of 12; valid: its divisors, for"),
    ],
)
def test_what_cannot_be_is_said(config, said):
    with pytest.raises(UserError, match=said.replace("(", r"\(").replace("?", r"\?").replace(")", r"\)")):
        take(data(**config), 1)


def test_a_start_between_lanes_is_refused():
    with pytest.raises(UserError, match="a multiple of the 8 lanes, not 12"):
        pipeline.train(data(100, **HOW), batch_size=16, seed=0, start_example=12)


@pytest.mark.parametrize(
    "rows, offset, batch, size", [(32, 32, 96, 64), (96, 0, 96, 64), (8, 0, 8, 64), (256, 0, 256, 64)]
)
def test_evaluation_reads_spans_of_its_own_rows_in_order(rows, offset, batch, size):
    order, length = blocks.InOrder(1000, batch_size=batch, offset=offset, rows=rows, size=size), 1000
    steps = -(-length // batch)
    own = [s * batch + offset + r for s in range(steps) for r in range(rows)]
    spans = []
    for position, record in enumerate(own):
        found = order.window(position)
        assert order(position) == record and found.start <= position
        if record < length:
            assert found.records_N[position - found.start] == record
            spans += [s for s in found.spans if s not in spans]
    assert sorted(i for begin, end in spans for i in range(begin, end)) == [i for i in own if i < length]
    assert max(end - begin for begin, end in spans) == min(size, rows if rows < batch else size)
