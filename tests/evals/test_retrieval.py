import json

import numpy as np
import pytest

from maeclip_jax.errors import UserError
from maeclip_jax.evals import retrieval
from maeclip_jax.evals.retrieval import Retrieval, chances, image_to_text, text_to_image
from tests.evals.found import notes, values


def reference(images, texts, owner, k, merge):
    """Recalls by the letter: texts is one row per caption, equal rows = equal captions, ties before the right one."""
    names = [t.tobytes() for t in texts]
    score = images @ texts.T
    hits_i, hits_t = [], []
    for i in range(len(images)):
        own_names = {names[m] for m in range(len(texts)) if owner[m] == i}
        if not own_names:
            continue
        right = [m for m in range(len(texts)) if owner[m] == i or (merge and names[m] in own_names)]
        best = max(score[i, m] for m in right)
        wrong = [m for m in range(len(texts)) if m not in right and score[i, m] >= best]
        hits_i.append((len({names[m] for m in wrong}) if merge else len(wrong)) < k)
    queries = {(owner[m], names[m]): m for m in range(len(texts))} if merge else {m: m for m in range(len(texts))}
    for m in queries.values():
        right = {owner[n] for n in range(len(texts)) if names[n] == names[m]} if merge else {owner[m]}
        best = max(score[i, m] for i in right)
        hits_t.append(sum(score[i, m] >= best for i in range(len(images)) if i not in right) < k)
    return 100 * np.mean(hits_i), 100 * np.mean(hits_t)


def problem(seed, images=17, vocabulary=20):
    """Integer embeddings: scores are exact, ties many. Up to 3 captions a picture, some shared, one picture has none.

    Words differ in their embeddings, since the reference tells texts apart by vector and the evaluator by token ids.
    """
    rng = np.random.default_rng(seed)
    corners = np.stack(np.meshgrid(*[np.arange(-2, 3)] * 4), -1).reshape(-1, 4).astype(np.float32)
    tables = [corners[rng.choice(len(corners), images)], corners[rng.choice(len(corners), vocabulary, replace=False)]]
    text = rng.integers(1, vocabulary, (images, 3, 1)).astype(np.int32)
    count = rng.integers(1, 4, images).astype(np.int32)
    count[3] = 0
    return tables, text, count


@pytest.mark.parametrize("duplicates", ["apart", "merge"])
@pytest.mark.parametrize("seed", range(4))
def test_recall_is_what_the_definition_says(fake, processes, pictures, words, monkeypatch, seed, duplicates):
    (image, word), text, count = problem(seed)
    monkeypatch.setattr(retrieval, "BLOCK_BYTES", 4 * 20 * 3)  # three rows of similarities at a time
    monkeypatch.setattr(retrieval, "unit_rows", lambda x: x)  # keep the scores exact
    data = {"image": pictures(range(len(image))), "text": text, "_captions": count}
    data["_key"] = np.array([f"k{i}" for i in range(len(image))], object)

    def make(context):
        return Retrieval(context, data={}, batch_size=4, k=(1, 3), duplicates=duplicates, tile=8)

    words.words += [f"w{i}" for i in range(1, len(word))]
    tables = {"image": image, "text": word, "tokenizer": words}
    got = values(make(fake(data, **tables)).run(None))
    owner = [i for i in range(len(image)) for _ in range(count[i])]
    texts = np.concatenate([word[text[i, : count[i], 0]] for i in range(len(image))])
    for k in (1, 3):
        i2t, t2i = reference(image, texts, owner, k, duplicates == "merge")
        assert got[f"image_to_text_R@{k}"] == pytest.approx(i2t)
        assert got[f"text_to_image_R@{k}"] == pytest.approx(t2i)
    two = processes(make, data, **tables)
    assert {k: v for k, v in two.items() if k != "tiles"} == {k: v for k, v in got.items() if k != "tiles"}
    assert np.array_equal(two["tiles"], got["tiles"])
    json.dumps(got["examples"])


def test_any_of_several_captions_is_a_hit():
    # Picture 0 has texts 0 and 1; only text 1 is near. Picture 1 has text 2.
    images = np.array([[1, 0], [0, 1]], np.float32)
    texts = np.array([[0.1, 0], [1, 0], [0, 1]], np.float32)
    pairs = np.array([[0, 0], [0, 1], [1, 2]])
    assert image_to_text(images, texts, pairs, False)[0].tolist() == [0, 0]
    assert text_to_image(images, texts, pairs, False)[0].tolist() == [0, 0, 0]


def test_a_caption_on_two_pictures():
    # Both pictures have text 0 and score the same on it.
    images, texts = np.ones((2, 2), np.float32), np.ones((1, 2), np.float32)
    pairs = np.array([[0, 0], [1, 0]])
    assert image_to_text(images, texts, pairs, False)[0].tolist() == [1, 1]  # the other one's copy stands before
    assert image_to_text(images, texts, pairs, True)[0].tolist() == [0, 0]
    assert text_to_image(images, texts, pairs, False)[0].tolist() == [1, 1]
    assert text_to_image(images, texts, pairs, True)[0].tolist() == [0, 0]


@pytest.mark.parametrize("value", [0.0, 1.0, np.nan])
def test_a_collapsed_or_broken_model_finds_nothing(value):
    n = 30
    images, texts = np.full((n, 3), value, np.float32), np.full((n, 3), value, np.float32)
    pairs = np.stack([np.arange(n)] * 2, 1)
    assert image_to_text(images, texts, pairs, False)[0].min() == n - 1
    assert text_to_image(images, texts, pairs, False)[0].min() == n - 1


def test_chance_is_what_random_embeddings_get():
    rng = np.random.default_rng(0)
    n, per, k = 40, 3, 5
    pairs = np.stack([np.repeat(np.arange(n), per), np.arange(n * per)], 1)
    i2t, t2i = chances(pairs, n, n * per, False)
    assert t2i(k) == pytest.approx(100 * k / n)
    assert i2t(1) == pytest.approx(100 / n)
    assert i2t(n * per) == pytest.approx(100) and t2i(1000) == pytest.approx(100)
    got = [
        100 * np.mean(image_to_text(rng.normal(size=(n, 64)), rng.normal(size=(n * per, 64)), pairs, False)[0] < k)
        for _ in range(60)
    ]
    assert abs(np.mean(got) - i2t(k)) < 4 * np.std(got) / 60**0.5 + 0.1


def test_examples_show_the_right_pictures(fake, pictures):
    # Six pictures, grey levels 0..5; picture 5 is taken for picture 0.
    table = np.eye(6, dtype=np.float32)
    seen = table.copy()
    seen[5] = table[0] * 0.9 + table[5] * 0.1
    data = {"image": pictures(range(6)), "text": np.arange(6, dtype=np.int32)[:, None] + 1}
    data["_key"] = np.array([f"<k{i}>" for i in range(6)], object)
    context = fake(data, image=seen, text=np.concatenate([np.zeros((1, 6), np.float32), table]))
    context.tokenizer.words += list("abcdef")
    found = list(Retrieval(context, data={}, batch_size=4, examples=1, shown=2, tile=4).run(None))
    got = values(found)
    # Among six, the first ten hold the right one whatever the model does.
    assert notes(found) == dict.fromkeys(("image_to_text_R@10", "text_to_image_R@10"), "of 6 candidates")
    assert got["image_to_text_R@1"] == pytest.approx(500 / 6)
    worst = next(e for e in got["examples"]["image_to_text"] if e["which"] == "worst")
    assert (worst["key"], worst["captions"], worst["rank"]) == ("<k5>", ["f"], 2)
    assert [(f["text"], f["right"]) for f in worst["found"]] == [("a", False), ("f", True)]
    for query in got["examples"]["text_to_image"]:
        for found in [query, *query["found"]]:
            y, x = divmod(found["tile"], got["examples"]["columns"])
            tile = got["tiles"][4 * y : 4 * y + 4, 4 * x : 4 * x + 4]
            assert found["key"] == f"<k{tile[0, 0, 0]}>" and (tile == tile[0, 0, 0]).all()


def test_errors(fake, pictures):
    with pytest.raises(UserError, match=r"unknown retrieval duplicates 'both'; valid: apart, merge"):
        Retrieval(fake({}), data={}, duplicates="both")
    data = {"image": pictures([0, 1]), "text": np.zeros((2, 3), np.int32)}
    context = fake(data, image=np.eye(2, dtype=np.float32), text=np.eye(2, dtype=np.float32))
    with pytest.raises(UserError, match="retrieval found no captioned pictures"):
        values(Retrieval(context, data={}, batch_size=2).run(None))
    with pytest.raises(UserError, match=r"retrieval needs 'text' in its batches, which hold: image"):
        values(Retrieval(fake({"image": pictures([0])}, image=np.eye(2)), data={}, batch_size=2).run(None))
