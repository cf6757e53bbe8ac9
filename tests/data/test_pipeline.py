"""Properties of the input pipeline, on sources held in memory: no files, no decoding."""

import logging
import os
import resource
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from maeclip_jax.data import order, pipeline, tokenizer
from maeclip_jax.data.batches import check_bad
from maeclip_jax.errors import BadRecord, UserError


class Records:
    """n records with a number each; those in `bad` cannot be used."""

    name, classes, endless = "records", None, False

    def __init__(self, n, bad=(), first=0, endless=False):
        self.n, self.bad, self.first, self.endless = n, frozenset(bad), first, endless

    def __len__(self):
        return 2**62 if self.endless else self.n

    def __getitem__(self, i):
        assert 0 <= i < len(self)
        if i in self.bad:
            raise BadRecord("truncated" if i % 2 else "empty", f"record {i} is made bad")
        return {"key": f"k{self.first + i}", "number": self.first + i}


def draw(record, rng):
    """An augmentation that shows its random stream."""
    image = np.full((2, 2, 3), record["number"] % 251, np.uint8)
    return {"image": image, "number": record["number"], "draw": rng.random()}


def data(n=37, **kwargs):
    source = kwargs.pop("source", None) or Records(n)
    return {"source": source, "ops": draw, "num_threads": 2, **kwargs}


def take(config, steps, batch_size=12, hosts=1, start=0, seed=7):
    """Global batches of `steps` steps, put together from `hosts` hosts."""
    streams = [
        pipeline.train(
            config, batch_size=batch_size, seed=seed, start_example=start, process_index=h, process_count=hosts
        )
        for h in range(hosts)
    ]
    batches = []
    for _ in range(steps):
        rows = [next(s) for s in streams]
        batches.append({k: np.concatenate([r[k] for r in rows]) for k in rows[0] if k != "_bad_names"})
    for s in streams:
        s.close()
    return batches


def flat(batches, name="_key"):
    return np.concatenate([b[name] for b in batches]).tolist()


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_batch_contract():
    with pipeline.train(data(), batch_size=8, seed=0, start_example=0) as batches:
        assert batches.spec == {"image": ((2, 2, 3), np.uint8), "number": ((), np.int32), "draw": ((), np.float32)}
        batch = next(batches)
    assert batch["image"].shape == (8, 2, 2, 3) and batch["image"].dtype == np.uint8
    assert batch["image"].flags["C_CONTIGUOUS"] and batch["number"].dtype == np.int32
    assert batch["_key"].dtype == object and batch["_key"][0] == f"k{batch['number'][0]}"
    assert batch["_bad"].dtype == np.int32 and not batch["_bad"].any() and batch["_bad_names"] == []
    assert "_valid" not in batch


@pytest.mark.parametrize("hosts", [2, 4, 12])
def test_hosts_do_not_change_the_global_batches(hosts):
    bad = data(source=Records(37, bad=(3, 4, 20)), max_bad=1)
    for one, many in zip(take(bad, 9), take(bad, 9, hosts=hosts)):
        same(one, many)


def test_threads_and_processes_do_not_change_the_batches():
    plain = take(data(num_threads=1, prefetch=1), 6)
    for a, b in zip(plain, take(data(num_threads=8), 6)):
        same(a, b)
    for a, b in zip(plain, take(data(num_workers=2), 6)):
        same(a, b)


@pytest.mark.parametrize("start, batch_size", [(12, 12), (36, 12), (1, 12), (50, 5), (17, 64)])
def test_start_anywhere_with_any_batch_size(start, batch_size):
    whole = {k: flat(take(data(), 12), k) for k in ("_key", "draw")}
    again = take(data(), 1, batch_size=batch_size, start=start)
    for name, values in whole.items():
        assert flat(again, name) == values[start : start + batch_size]


def test_start_is_immediate_at_a_far_position():
    far = take(data(1000), 1, start=10**13)  # counting up to there would take years
    assert len(set(flat(far))) == 12


def test_every_record_once_an_epoch_and_epochs_differ():
    keys, draws = (flat(take(data(), 37), k) for k in ("_key", "draw"))  # 37 * 12 examples: 12 epochs of 37
    epochs = [tuple(keys[e * 37 : (e + 1) * 37]) for e in range(12)]
    assert all(set(e) == {f"k{i}" for i in range(37)} for e in epochs)
    assert len(set(epochs)) == 12
    assert len(set(draws)) == len(draws)  # no two examples share a random stream


def test_seed_and_offset_change_the_order_but_neighbouring_seeds_share_no_epoch():
    epochs = Counter(
        tuple(flat(take(data(seed_offset=offset), 1, batch_size=37, seed=seed, start=37 * e)))
        for seed, offset in [(0, 0), (1, 0), (2, 0), (0, 1)]
        for e in range(3)
    )
    assert max(epochs.values()) == 1
    assert flat(take(data(), 3)) == flat(take(data(), 3))


# Written out, and computed point by point; where the last index is an even power of two, grain's own shuffle is none.
@pytest.mark.parametrize("n", [1, 2, 4096, (1 << 16) + 1, (1 << 16) + 5])
def test_each_epoch_is_a_permutation_of_its_own(n):
    epochs = order.Epochs(n, 3)
    first, second = (np.array([epochs(e * n + i) for i in range(n)]) for e in range(2))
    assert sorted(first) == sorted(second) == list(range(n))
    assert n < 3 or abs(np.corrcoef(first, second)[0, 1]) < 5 / np.sqrt(n)


@pytest.mark.parametrize("bits", range(16, 32))
def test_the_last_index_has_a_place_of_its_own(bits):
    """Of 2^bits + 1 records and others near; all other lengths go as grain's shuffle says."""
    from grain.experimental import index_shuffle

    for n in ((1 << bits) + 1, (1 << bits) + 2, 3 << (bits - 1)):
        for key in (0, 5 << 32, (1 << 64) - 1):
            ends = [order.permuted(i, n, key) for i in (0, 1, n - 2, n - 1)]
            assert len(set(ends)) == 4 and min(ends) >= 0 and max(ends) < n
            if n != (1 << bits) + 1 or bits % 2:
                assert ends[-1] == index_shuffle(n - 1, max_index=n - 1, seed=key >> 32, rounds=16)


@pytest.mark.parametrize("n", [20_000, 10**6, 11_300_000, 1_400_000_000])
def test_order_is_as_good_as_random(n):
    """Examples that follow each other come from anywhere: no correlation at any lag, batches spread evenly."""
    m = 12_800
    epochs = order.Epochs(n, 5)
    got = np.array([epochs(i) for i in range(m)], float)
    for lag in (1, 2, 3, 4, 8, 16, 64, 256):
        assert abs(np.corrcoef(got[:-lag], got[lag:])[0, 1]) < 4.5 / np.sqrt(m - lag), lag
    assert abs(np.corrcoef(got, np.arange(m))[0, 1]) < 4.5 / np.sqrt(m)
    counts = np.array([np.histogram(batch, bins=16, range=(0, n))[0] for batch in got.reshape(-1, 256)])
    freedom = 15 * len(counts)
    assert abs(((counts - 16) ** 2 / 16).sum() - freedom) < 4.5 * np.sqrt(2 * freedom)  # chi-squared


@pytest.mark.parametrize("n", [1, 2, 37, 1 << 16, 10**9])
def test_the_work_for_a_position_does_not_grow_with_the_length(n, monkeypatch):
    """A short permutation is written out once an epoch; of a long one, only the points asked for are computed."""
    from grain import experimental

    points, shuffle, short = [], experimental.index_shuffle, n <= 1 << 16
    monkeypatch.setattr(experimental, "index_shuffle", lambda *a, **k: points.append(a) or shuffle(*a, **k))
    epochs, before = order.Epochs(n, "work"), order._written_out.cache_info().misses
    for i in range(100):
        epochs(i)
    assert len(points) == (0 if short else 100)
    assert order._written_out.cache_info().misses - before == (-(-100 // n) if short else 0)


def test_endless_source_comes_in_its_own_order():
    keys = flat(take(data(source=Records(0, endless=True)), 2, start=5))
    assert keys == [f"k{i}" for i in range(5, 29)]


def test_data_set_smaller_than_a_batch_repeats():
    (batch,) = take(data(3), 1, batch_size=12)
    assert Counter(batch["_key"].tolist()) == {"k0": 4, "k1": 4, "k2": 4}


# --- bad records


def test_bad_records_are_replaced_by_good_ones_and_counted_in_their_own_turn():
    bad = {5, 6, 36}
    good = take(data(), 37)
    with pipeline.train(data(source=Records(37, bad), max_bad=1), batch_size=12, seed=7) as stream:
        batches = [next(stream) for _ in range(37)]
    numbers, got = flat(good, "number"), flat(batches, "number")
    assert [g for n, g in zip(numbers, got) if n not in bad] == [n for n in numbers if n not in bad]
    replaced = [g for n, g in zip(numbers, got) if n in bad]
    assert not bad & set(replaced) and len(set(replaced)) > 12  # 36 draws of 34 records
    assert flat(batches, "_bad") == [int(n in bad) for n in numbers]
    assert (stream.seen, stream.bad, stream.kinds) == (37 * 12, 36, {"truncated": 12, "empty": 24})
    names = [n for b in batches for n in b["_bad_names"]]
    assert Counter(names) == {
        f"records/{i}: {'truncated' if i % 2 else 'empty'}: record {i} is made bad": 12 for i in bad
    }


@pytest.mark.parametrize("how", [{}, {"order": "blocks", "blocks": {"size": 8, "window": 8, "lanes": 2}}])
def test_bad_neighbours_neither_end_the_run_nor_fall_to_the_record_behind_them(how):
    """40 of 1,000 in a row, over 10 epochs: each is counted once an epoch, and 400 rows are shared out."""
    bad = range(500, 540)
    with pipeline.train(data(source=Records(1000, bad), **how), batch_size=100, seed=0) as stream:
        seen = Counter(k for _ in range(100) for k in next(stream)["_key"])
    assert (stream.seen, stream.bad) == (10_000, 400)
    assert len(seen) == 960 and min(seen.values()) >= 10 and max(seen.values()) <= 20


def test_replacement_has_a_random_stream_of_its_own():
    """What a failed op drew before it failed cannot shift the draws of its replacement."""

    def fails_late(draws):
        def ops(record, rng):
            if record["number"] == 4:
                rng.random(draws)
                raise BadRecord("late", "after drawing")
            return draw(record, rng)

        return ops

    a, b = (take({**data(), "ops": fails_late(n)}, 4) for n in (1, 5))
    assert flat(a, "draw") == flat(b, "draw")


def test_too_many_bad_records_stop_the_run():
    with (
        pytest.raises(UserError, match=r"^5 of 20 records \(25.0 %\) cannot be used, more than max_bad=0.1 allows \(e"),
        pipeline.train(data(source=Records(20, range(0, 20, 4))), batch_size=10, seed=0) as stream,
    ):
        for _ in range(10):
            next(stream)
    with pytest.raises(StopIteration):
        next(stream)


def test_share_is_judged_only_after_enough_records():
    check_bad(999, 500, 0.1)
    with pytest.raises(UserError, match=r"^101 of 1000 records \(10.1 %\) cannot be used.*max_bad=0.1 .*empty 1, tru"):
        check_bad(1000, 101, 0.1, kinds={"truncated": 100, "empty": 1})
    check_bad(1000, 100, 0.1)
    with pytest.raises(UserError, match="5 of 20"):
        check_bad(20, 5, 0.1, whole=20)


def test_several_hosts_leave_the_verdict_to_the_loop():
    config = data(source=Records(20, range(0, 20, 4)))
    batches = take(config, 20, hosts=2)
    assert sum(flat(batches, "_bad")) == 12 * 5  # of 12 epochs


def test_data_of_which_all_is_bad_ends_with_a_message():
    said = r"^32 records of records, tried one after another, cannot be used \(empty \d+, truncated \d+\); the last: "
    with pytest.raises(UserError, match=said):
        pipeline.train(data(source=Records(100, range(100))), batch_size=4, seed=0)
    with pytest.raises(UserError, match=said):
        pipeline.evaluate(data(source=Records(100, range(100))), batch_size=4)


def test_bad_records_are_named_in_the_log_but_not_all_of_them(caplog):
    config = data(source=Records(40, range(0, 40, 2)), max_bad=1)
    with caplog.at_level(logging.WARNING), pipeline.train(config, batch_size=40, seed=0) as stream:
        for _ in range(60):
            next(stream)
    assert stream.bad == 60 * 20
    assert len(caplog.records) == 21 and "bad record 1000:" in caplog.text
    assert "records/" in caplog.records[0].getMessage() and "is made bad" in caplog.records[0].getMessage()


def test_failure_in_an_op_names_the_record():
    def broken(record, rng):
        if record["number"] == 30:
            raise KeyError("caption")
        return draw(record, rng)

    with pytest.raises(KeyError) as e:
        take({**data(), "ops": broken}, 8)
    assert "k30" in e.value.__notes__[0]


# --- mixing


def mixed(weights=(0.75, 0.25), **kwargs):
    sizes, firsts = (100, 30, 17), (0, 1000, 2000)
    parts = [
        (name, w, {"source": Records(n, first=f)})
        for name, w, n, f in zip(("web", "coco", "own"), weights, sizes, firsts)
    ]
    return {"mix": tuple(parts), "ops": draw, "num_threads": 2, **kwargs}


def test_mix_has_exact_shares_and_an_epoch_order_for_each():
    numbers = flat(take(mixed(), 16, batch_size=256), "number")  # four windows of 1024
    for window in np.array(numbers).reshape(4, 1024):
        assert (window < 1000).sum() == 768
    for first, n in ((0, 100), (1000, 30)):
        own = [x for x in numbers if first <= x < first + 1000]
        epochs = [tuple(own[i : i + n]) for i in range(0, len(own) - n + 1, n)]
        assert all(set(e) == set(range(first, first + n)) for e in epochs) and len(set(epochs)) == len(epochs)


def test_mix_does_not_depend_on_hosts_or_start():
    one = take(mixed(), 8, batch_size=16)
    for a, b in zip(one, take(mixed(), 8, batch_size=16, hosts=4)):
        same(a, b)
    assert flat(take(mixed(), 1, batch_size=40, start=23), "draw") == flat(one, "draw")[23:63]


def test_mix_loads_hosts_evenly():
    batches = take(mixed(), 64, batch_size=64)
    web = np.array([[n < 1000 for n in b["number"]] for b in batches]).reshape(64, 4, 16)
    shares = web.mean((0, 2))
    assert np.abs(shares - 0.75).max() < 0.05, shares  # 1024 rows a host: 3.7 standard errors


@pytest.mark.parametrize("weights, window", [((0.7, 0.2, 0.1), 1030), ((1, 1, 1), 1026), ((0.1234, 0.8766), 5000)])
def test_mix_shares_are_exact_over_a_window(weights, window):
    mix = order.Mix(weights, 3)
    assert mix.window == window
    seen = [mix(n) for n in range(2 * window)]
    assert len(set(seen)) == 2 * window
    for c, w in enumerate(weights):
        positions = [p for component, p in seen if component == c]
        assert len(positions) == round(2 * window * w / sum(weights)) and sorted(positions) == list(
            range(len(positions))
        )


def test_mix_rounds_what_has_no_small_denominator():
    counts = np.array(order.Mix((11.3e6, 1.4e9, 3.0), 0).counts)
    np.testing.assert_allclose(counts / counts.sum(), [11.3 / 1411.3, 1400 / 1411.3, 1e-4], atol=1.5e-4)
    assert counts.min() >= 1 and order.Mix((2**0.5, 1.0), 0).window < 20_000


def test_mix_of_different_rows_is_refused():
    def other(record, rng):
        return {"image": np.zeros((2, 2, 3), np.uint8), "label": 3}

    config = mixed()
    config["mix"] = (config["mix"][0], ("coco", 1, {"source": Records(5), "ops": other}))
    with pytest.raises(UserError) as e:
        pipeline.train(config, batch_size=4, seed=0)
    assert "'web' has draw float32[], image uint8[2, 2, 3], number int32[]" in str(e.value)
    assert "'coco' has image uint8[2, 2, 3], label int32[]" in str(e.value)


# --- evaluation


@pytest.mark.parametrize("hosts", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [6, 12, 54])
@pytest.mark.parametrize("n", [1, 6, 11, 53, 54])
def test_evaluation_covers_each_record_once(n, batch_size, hosts):
    streams = [
        list(pipeline.evaluate(data(n), batch_size=batch_size, process_index=h, process_count=hosts))
        for h in range(hosts)
    ]
    assert {len(s) for s in streams} == {-(-n // batch_size)}
    keys = []
    for rows in zip(*streams):
        assert {len(b["_valid"]) for b in rows} == {batch_size // hosts}
        for b in rows:
            assert not b["image"][~b["_valid"]].any() and b["image"].dtype == np.uint8
            keys += b["_key"][b["_valid"]].tolist()
    assert keys == [f"k{i}" for i in range(n)]


def test_evaluation_leaves_bad_records_out():
    stream = pipeline.evaluate(data(source=Records(11, (0, 4)), max_bad=0.5), batch_size=4)
    batches = list(stream)
    mask, numbers = (np.concatenate([b[k] for b in batches]) for k in ("_valid", "number"))
    assert numbers[mask].tolist() == [1, 2, 3, 5, 6, 7, 8, 9, 10]
    assert flat(batches, "_bad") == [1, 0, 0, 0, 1] + [0] * 7
    assert (stream.seen, stream.bad, stream.kinds) == (11, 2, {"empty": 2})
    assert batches[0]["_bad_names"] == ["records/0: empty: record 0 is made bad"]
    with pytest.raises(UserError, match=r"2 of 11 records"):
        list(pipeline.evaluate(data(source=Records(11, (0, 4))), batch_size=4))


def test_evaluation_begins_with_as_many_bad_records_as_there_are():
    with pipeline.evaluate(data(source=Records(500, range(40))), batch_size=100) as stream:
        assert [int(b["_valid"].sum()) for b in stream] == [60, 100, 100, 100, 100]
    (batch,) = pipeline.evaluate(data(source=Records(20, range(19)), max_bad=1), batch_size=20)
    assert batch["_key"][batch["_valid"]].tolist() == ["k19"]


def test_evaluation_is_repeatable_and_keeps_strings():
    def ops(record, rng):
        return {**draw(record, rng), "answer": f"it is {record['number']}"}

    a, b = (list(pipeline.evaluate({**data(5), "ops": ops}, batch_size=4)) for _ in range(2))
    for x, y in zip(a, b):
        same(x, y)
    assert a[1]["answer"].tolist() == ["it is 4", "", "", ""]


def test_op_strings_give_batches():
    class Pictures(Records):
        def __getitem__(self, i):
            texts = [f"caption {k} of {i}" for k in range(1 + i % 3)]
            return {"key": f"k{i}", "image": np.full((20, 30, 3), i, np.uint8), "texts": texts}

    words = tokenizer.make({"type": "bytes"})
    ops = 'random_resized_crop(8,area=(0.5,1))|tokenize(16)|keep("image","text")'
    with pipeline.train({"source": Pictures(9), "ops": ops}, batch_size=9, seed=0, tokenizer=words) as stream:
        epochs = [next(stream) for _ in range(6)]
    assert all(e["image"].shape == (9, 8, 8, 3) and e["text"].dtype == np.int32 for e in epochs)
    drawn = {(k, words.decode(t)) for e in epochs for k, t in zip(e["_key"], e["text"])}
    assert len(drawn) > 13  # of 18 captions: another one of each picture in another epoch

    ops = 'resize(8)|captions(3)|tokenize(16)|keep("image","text")'
    batches = list(pipeline.evaluate({"source": Pictures(5), "ops": ops}, batch_size=4, tokenizer=words))
    assert batches[1]["text"].shape == (4, 3, 16) and batches[1]["_valid"].tolist() == [True, False, False, False]
    assert batches[0]["_captions"].tolist() == [1, 2, 3, 1]
    with pytest.raises(UserError, match="there is no tokenizer"):
        pipeline.evaluate({"source": Pictures(5), "ops": ops}, batch_size=4)


# --- what a user can get wrong


@pytest.mark.parametrize(
    "change, message",
    [
        ({"sauce": 1}, "unknown key of a data config: 'sauce' (did you mean 'source'?); valid: source, ops, mix"),
        ({"source": None}, "has a source or a mix, one of the two"),
        ({"mix": (("a", 1, {}),)}, "has a source or a mix, one of the two"),
        ({"ops": None}, "a data config needs ops, for instance decode|"),
        (
            {"source": {"kind": "tfrecord"}},
            "unknown source kind 'tfrecord'; valid: noise, questions, scenes, subset, tfds",
        ),
        ({"source": {"kind": "noise", "size": 3}}, "unknown argument of source 'noise': 'size'"),
        ({"source": Records(0)}, "holds no records"),
        ({"source": 3}, "a source is a dict with a kind (noise, questions, scenes, subset, tfds), not 3"),
    ],
)
def test_wrong_configs(change, message):
    with pytest.raises(UserError) as e:
        pipeline.train({**data(), **change}, batch_size=4, seed=0)
    assert message in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize(
    "mix, message",
    [
        ((("a", 0, {"source": Records(3)}),), "weight of mix component 'a' is 0; valid: any number above 0"),
        ((("a", "1", {"source": Records(3)}),), "weight of mix component 'a' is '1'"),
        ((("a", 1, {"source": Records(3)}),) * 2, "several components named 'a'"),
        ((("a", 1, {"sources": Records(3)}),), "unknown key of mix component 'a': 'sources'"),
        ((("a", 1, {}),), "mix component 'a' has no source"),
        ((("a", {"source": Records(3)}),), "an entry of mix is (name, weight, dict(source=, ops=))"),
    ],
)
def test_wrong_mixes(mix, message):
    with pytest.raises(UserError) as e:
        pipeline.train({"mix": mix, "ops": draw}, batch_size=4, seed=0)
    assert message in str(e.value)


def test_wrong_batch_size():
    with pytest.raises(UserError, match=r"batch size 6 cannot be divided over 4 processes; valid: multiples of 4"):
        pipeline.train(data(), batch_size=6, seed=0, process_count=4)
    with pytest.raises(UserError, match="batch size 0 cannot be divided"):
        pipeline.evaluate(data(), batch_size=0)


def test_evaluation_needs_one_finite_source():
    with pytest.raises(UserError, match=r"evaluation needs an end: give count="):
        pipeline.evaluate(data(source=Records(0, endless=True)), batch_size=4)
    with pytest.raises(UserError, match="one source, not a mix"):
        pipeline.evaluate(mixed(), batch_size=4)


def test_rows_that_do_not_fit_together_are_named():
    def ragged(record, rng):
        return {"text": np.zeros(1 + record["number"] // 20, np.int32)}

    with pytest.raises(UserError, match=r"rows of 'text' have different shapes: \[\d\] for 'k\d+', \[\d\] for 'k\d+'"):
        take({**data(), "ops": ragged}, 2)

    with pytest.raises(UserError, match=r"rows of 'text' have different shapes"):  # also out of a worker process
        take({**data(num_workers=1), "ops": ragged}, 2)

    def uneven(record, rng):
        return {"image": 1, **({"text": 2} if record["number"] > 20 else {})}

    with pytest.raises(UserError, match=r"rows of one batch have different names: 'k\d+' has image.*keep"):
        take({**data(), "ops": uneven}, 2)


def test_length_counts_an_epoch():
    assert pipeline.open(data(37)).length == 37
    assert pipeline.open(mixed()).length == 130
    assert pipeline.open(data(source={"kind": "noise"})).length is None
    assert pipeline.open(data(source={"kind": "noise", "count": 5})).length == 5


# --- cost


def test_memory_stays_flat():
    config = {"source": {"kind": "noise", "resolution": 64}, "ops": lambda r, rng: {"image": r["image"]}}
    pages = resource.getpagesize()

    def resident():
        with open("/proc/self/statm") as f:
            return int(f.read().split()[1]) * pages / 2**20

    if not os.path.exists("/proc/self/statm"):
        pytest.skip("no /proc to read the resident size from")
    with pipeline.train(config, batch_size=64, seed=0) as stream:
        for _ in range(30):
            next(stream)
        before = resident()
        for _ in range(300):  # 225 MiB of pictures
            next(stream)
        assert resident() - before < 24


def test_close_ends_the_threads():
    import threading

    before = set(threading.enumerate())
    stream = pipeline.train(data(), batch_size=4, seed=0)
    next(stream)
    started = set(threading.enumerate()) - before
    assert started
    stream.close()
    for thread in started:
        thread.join(600)
        assert not thread.is_alive()
    stream.close()  # a second time does no harm


SCRIPT = """
import numpy as np
from maeclip_jax.data import pipeline

def ops(record, rng):
    return {"image": record["image"]}

if __name__ == "__main__":
    config = {"source": {"kind": "noise", "resolution": 8}, "ops": ops}
    stream = pipeline.train(config, batch_size=4, seed=0)
    print(next(stream)["image"].shape)
"""


def test_script_that_forgets_to_close_ends_quietly(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout, done.stderr) == (0, "(4, 8, 8, 3)\n", "")
