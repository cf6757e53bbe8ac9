"""A stand-in for what the runner gives to evaluators: tables instead of towers, threads instead of processes."""

from __future__ import annotations

import contextlib
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from maeclip_jax.evals.protocol import Context
from tests.evals.found import values


class Words:
    """One id a word, 0 = padding."""

    def __init__(self):
        self.words = ["<pad>"]

    def __call__(self, text, length):
        ids = np.zeros(length, np.int32)
        for n, word in enumerate(text.split()[:length]):
            if word not in self.words:
                self.words.append(word)
            ids[n] = self.words.index(word)
        return ids

    def token(self, i):
        return self.words[i]

    def decode(self, ids):
        return " ".join(self.words[i] for i in ids)


class Exchange:
    """Gathers the arrays of several threads, in order of their index; every thread gets the whole."""

    def __init__(self, count):
        self.barrier, self.held, self.count = threading.Barrier(count, timeout=600), {}, count

    def __call__(self, index, arrays):
        self.held[index] = arrays
        self.barrier.wait()
        whole = {k: np.concatenate([self.held[i][k] for i in range(self.count)]) for k in arrays}
        self.barrier.wait()
        return whole


class Fake(Context):
    """`data`: arrays of all rows. An image's embedding is row `image[0, 0, 0]` of `table`; a text's is row `ids[0]`."""

    def __init__(
        self,
        data,
        *,
        image=None,
        text=None,
        objective=None,
        classes=None,
        tokenizer=None,
        process=(0, 1),
        exchange=None,
    ):
        self.data, self.image, self.text, self.classes = data, image, text, classes
        self.objective = objective or SimpleNamespace(contrastive=True, streams=("image", "text"))
        self.tokenizer = tokenizer or Words()
        self.process_index, self.process_count = process
        self.exchange = exchange or Exchange(1)
        self.calls, self.names = [], {}

    def source(self, config_data):
        return Sized(len(next(iter(self.data.values()), ())), classes=self.classes)

    def batches(self, config_data, batch_size):
        count = len(next(iter(self.data.values())))
        share = batch_size // self.process_count
        for start in range(0, count, batch_size):
            mine = start + self.process_index * share + np.arange(share)
            real = mine < count
            yield {k: np.asarray(v)[np.where(real, mine, 0)] for k, v in self.data.items()} | {"_valid": real}

    def rows(self, batch):
        assert all(v.dtype in (np.uint8, np.int32, np.float32, np.bool_) for v in batch.values()), "only these travel"
        whole = self.exchange(self.process_index, dict(batch))
        return {k: v[whole["_valid"]] for k, v in whole.items() if k != "_valid"}

    def want(self, config_data, *pools):
        self.calls.append(("want", *pools))

    def features(self, params, config_data, batch_size, pool):
        parts = []
        for batch in self.batches(config_data, batch_size):
            others = {k: v for k, v in batch.items() if k not in ("image", "text")}
            image = self.embed(params, {k: batch[k] for k in ("image", "_valid")})["image"]
            parts.append({"image": image, **(self.rows(others) if len(others) > 1 else {})})
        return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}

    def compile(self, function):
        import jax

        jitted = jax.jit(lambda params, arrays, *rest: function(self.objective, params, arrays, *rest))
        return lambda params, batch, *rest: jax.tree.map(np.asarray, jitted(params, self.rows(batch), *rest))

    def progress(self, what, total):
        return contextlib.nullcontext(SimpleNamespace(update=lambda n=1: None))

    def embed(self, params, batch):
        assert set(batch) <= {"image", "text", "_valid"}
        rows = self.rows(batch)
        out = {}
        if "image" in rows:
            out["image"] = self.image[rows["image"][:, 0, 0, 0]]
        if "text" in rows:
            out["text"] = self.text[rows["text"][:, 0]]
        return out


def in_threads(make_evaluator, data, count=2, **kwargs):
    """Runs the evaluator in `count` stand-in processes; their values must agree; returns the first one's."""
    exchange, out = Exchange(count), [None] * count

    def work(index):
        context = Fake(data, process=(index, count), exchange=exchange, **kwargs)
        out[index] = values(make_evaluator(context).run(None))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(count)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(o is not None for o in out), "a stand-in process failed"
    for name, value in out[0].items():
        assert np.array_equal(out[1][name], value) if isinstance(value, np.ndarray) else out[1][name] == value, name
    return out[0]


@pytest.fixture
def words():
    return Words()


@pytest.fixture
def fake():
    return Fake


@pytest.fixture
def processes():
    return in_threads


def pictures(values, size=4):
    """uint8 [N, size, size, 3] whose every pixel holds the value."""
    return np.broadcast_to(np.asarray(values, np.uint8)[:, None, None, None], (len(values), size, size, 3)).copy()


@pytest.fixture(name="pictures")
def _pictures():
    return pictures


class Sets(Fake):
    """Named sets of labelled features, {"train": (x, label)}: a data config is dict(set="train"), a picture its x."""

    def __init__(self, sets, classes=None):
        def apply(variables, batch, pools, method):
            assert method == "features"
            return dict.fromkeys(pools, batch["image"])

        super().__init__({}, objective=SimpleNamespace(apply=apply))
        self.sets, self.by_set, self.wanted = sets, classes or {}, []

    def source(self, config_data):
        name = config_data["set"]
        return Sized(len(self.sets[name][0]), classes=self.by_set.get(name))

    def want(self, config_data, *pools):
        self.wanted.append((config_data["set"], *pools))

    def features(self, params, config_data, batch_size, pool):
        assert (config_data["set"], pool) in self.wanted, "announce what is needed"
        x, label = self.sets[config_data["set"]]
        return {"image": np.asarray(x, np.float32)} | ({} if label is None else {"label": np.asarray(label, np.int32)})

    def train_batches(self, config_data, batch_size, seed):
        x, label = self.sets[config_data["set"]]
        draw = np.random.default_rng(seed)
        while True:
            rows = draw.permutation(len(x))[:batch_size]
            yield {"image": np.asarray(x, np.float32)[rows], "label": np.asarray(label, np.int32)[rows],
                   "_valid": np.ones(len(rows), bool)}  # fmt: skip


class Sized(SimpleNamespace):
    """A source that knows its length and its classes."""

    def __init__(self, length, **kwargs):
        super().__init__(**kwargs)
        self.length = length

    def __len__(self):
        return self.length


@pytest.fixture
def labelled_sets():
    return Sets


@pytest.fixture
def clouds():
    """(x, label) of `count` points around one centre per class; the same centres for every seed."""

    def make(count, seed=0, classes=6, width=10, spread=1.0, far=2.0):
        draw = np.random.default_rng(seed)
        centres = far * np.random.default_rng(99).normal(size=(classes, width))
        label = draw.permutation(np.arange(count) % classes)
        return (centres[label] + spread * draw.normal(size=(count, width)) + 5).astype(np.float32), label

    return make
