"""Subsets: nested by size, of the clusters that they may have, read through the parent's files; refusals in words."""

import json
import pickle
import tracemalloc

import numpy as np
import pytest

from maeclip_jax.data import pipeline, source
from maeclip_jax.errors import UserError
from maeclip_jax.prepare.builders.scenes import build
from maeclip_jax.study import clusters, diversity, subsets


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    build("mu", str(folder), workers=1)
    return dict(kind="tfds", name="scenes/mu", split="train", dir=str(folder))


@pytest.fixture(scope="module")
def labels(parent):
    """The first object's class of each record stands for its cluster."""
    made = source.make(parent)
    return np.array([made[i]["object_class"][0] for i in range(len(made))])


def opened(parent, tmp_path, *args, **how):
    file = tmp_path / f"{'-'.join(map(str, (args, how.get('seed'), how.get('share'), how.get('unit'))))}.json"
    file.write_text(json.dumps(subsets.make(parent, *args, **how)))
    return source.make(dict(kind="subset", path=str(file), dir=parent["dir"]))


def indices(made):
    return [made.index(i) for i in range(len(made))]


@pytest.mark.parametrize("how", [{}, {"unit": 8}, {"share": 0.5}, {"share": 0.5, "draw": "balanced"}])
def test_sizes_of_one_seed_are_nested_and_seeds_differ(parent, labels, tmp_path, how):
    if "share" in how:
        how = how | {"clusters_N": labels}
    small, large = (opened(parent, tmp_path, size, seed=1, **how) for size in (16, 48))
    other = opened(parent, tmp_path, 48, seed=2, **how)
    assert set(indices(small)) < set(indices(large)) and len(set(indices(large))) == 48
    assert set(indices(large)) != set(indices(other))
    first = source.make(parent)
    assert [small[i]["key"] for i in range(16)] == [first[i]["key"] for i in indices(small)]
    again = pickle.loads(pickle.dumps(small))
    assert indices(again) == indices(small) and again.account == small.account


def test_records_are_read_in_ranges_of_the_parent(parent, tmp_path, monkeypatch):
    made = opened(parent, tmp_path, 64, unit=16)
    asked = []
    read = made.parent.read
    monkeypatch.setattr(made.parent, "read", lambda *span: asked.append(span) or read(*span))
    found = [made.record(data, 16 + i)["key"] for i, data in enumerate(made.read(16, 48))]
    assert found == [made[i]["key"] for i in range(16, 48)]
    assert [end - begin for begin, end in asked[:2]] == [16, 16]  # the others are the single ones just above
    with_blocks = dict(source=made, ops='decode|pick_caption|keep("image")', order="blocks", blocks=dict(size=16))
    with pipeline.train(with_blocks, batch_size=16, seed=0) as batches:
        seen = [key for _ in range(4) for key in next(batches)["_key"]]
    assert sorted(seen) == sorted(made[i]["key"] for i in range(64))


def test_diversity_is_the_share_of_clusters_and_is_measured(parent, labels, tmp_path):
    few, all_ = (opened(parent, tmp_path, 30, share=share, clusters_N=labels) for share in (0.25, 1.0))
    kinds = len(set(labels))
    assert len(set(labels[indices(few)])) <= round(0.25 * kinds) < len(set(labels[indices(all_)]))
    told = [diversity.measure(made, clusters_N=labels[indices(made)]) for made in (few, all_)]
    assert told[0]["entropy of clusters (bits)"] < told[1]["entropy of clusters (bits)"]
    assert told[0]["unique pairs"] == 30 and told[0]["unique captions"] >= 30
    even = opened(parent, tmp_path, 30, share=0.25, clusters_N=labels, draw="balanced")
    each = np.bincount(labels[indices(even)], minlength=kinds)
    assert each[each > 0].max() - each[each > 0].min() <= 1
    assert diversity.overlap(few, {"itself": few})["itself"]["pictures"] == 30
    assert diversity.entropy([5, 5, 5, 5, 0]) == 2


def test_what_cannot_be_is_one_line(parent, labels, tmp_path):
    for match, size, how in (
        (r"--size=257 is above the 256 records of scenes/mu", 257, {}),
        (r"above the 250 records of .* in whole units of 50", 256, {"unit": 50}),
        (r"--diversity=0.25 leaves \d+ records .*valid: .* a diversity of at least 0\.\d", 200,
         {"share": 0.25, "clusters_N": labels}),
        (r"--diversity=0.01 of 14 clusters; valid: 0.0714 to 1", 5, {"share": 0.01, "clusters_N": labels}),
        (r"valid with them: --clusters=FILE", 5, {"share": 0.5}),
        (r"the clusters are of 3 records and .* has 256", 5, {"clusters_N": labels[:3]}),
        (r"unknown --draw 'fair'", 5, {"draw": "fair"}),
    ):  # fmt: skip
        with pytest.raises(UserError, match=match):
            subsets.make(parent, size, **how)
    made = subsets.make(parent, 5)
    made["parent"]["account"]["bytes"] += 1
    (tmp_path / "changed.json").write_text(json.dumps(made))
    (tmp_path / "other.json").write_text("{}")
    for name, match in (("changed", "has changed: bytes"), ("other", "not the file of a subset"), ("no", "no subset")):
        with pytest.raises(UserError, match=match):
            source.make(dict(kind="subset", path=str(tmp_path / f"{name}.json"), dir=parent["dir"]))


def test_kmeans_finds_planted_clusters_in_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(clusters, "CHUNK", 4096)
    generator = np.random.default_rng(0)
    centres, truth = generator.normal(size=(8, 32)), generator.integers(0, 8, 40_000)
    path = tmp_path / "z.npy"
    np.save(path, (centres[truth] + 0.1 * generator.normal(size=(40_000, 32))).astype(np.float16))
    clusters.kmeans(path, 8)  # what libraries keep from their first use on
    tracemalloc.start()
    found = clusters.kmeans(path, 8)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 6e6 < 40_000 * 32 * 4 * 2
    together = [np.bincount(found[truth == k], minlength=8).max() / (truth == k).sum() for k in range(8)]
    assert min(together) > 0.99 and len(np.unique(found)) >= 7
    with pytest.raises(UserError, match=r"50000 clusters of 40,000 embeddings"):
        clusters.kmeans(path, 50_000)


def test_the_command_makes_and_describes(parent, labels, tmp_path, capsys):
    where, out = f"--dir={parent['dir']}", str(tmp_path / "s.json")
    np.save(tmp_path / "z.npy", np.eye(16, dtype=np.float32)[labels])
    for words in (
        ["cluster", "--name=scenes/mu", f"--embeddings={tmp_path}/z.npy", "--clusters=4", f"--out={tmp_path}/k.npz"],
        ["make", "--name=scenes/mu", "--size=0.02k", f"--clusters={tmp_path}/k.npz", "--diversity=0.5", f"--out={out}"],
    ):
        assert subsets.main([*words, where]) == 0, capsys.readouterr().err
    capsys.readouterr()
    told = ["describe", out, f"--clusters={tmp_path}/k.npz", "--against=scenes/mu:val", where]
    assert subsets.main(told) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["unique pairs"] == 20 and said["clusters"] <= 2 and said["same records in"]["scenes/mu:val"]["records"]
    assert subsets.main(["make", "--name=scenes/mu", "--size=300", f"--out={out}", where]) == 2
    assert "--size=300 is above the 256 records" in capsys.readouterr().err
