import itertools
import json

import numpy as np
import pytest

from maeclip_jax.errors import UserError
from maeclip_jax.evals import recall, retrieval
from maeclip_jax.evals.recall import chances, drawn, image_to_text, text_to_image
from maeclip_jax.evals.retrieval import Retrieval
from tests.evals.found import notes, values


def hit(score, right, k):
    """How likely a right candidate is among the first k of a sort that breaks ties by chance; counted, not derived."""
    best = max(score[c] for c in right)
    above = sum(score[c] > best for c in range(len(score)))
    equal = [c in right for c in range(len(score)) if score[c] == best]
    places = [set(where) for where in itertools.combinations(range(len(equal)), sum(equal))]
    return np.mean([any(place < k - above for place in where) for where in places])


def reference(images, texts, owner, k, merge):
    """Recalls by the letter: texts is one row per caption, equal rows = equal captions."""
    names = [t.tobytes() for t in texts]
    first = [names.index(n) for n in names]
    candidates = sorted(set(first)) if merge else list(range(len(texts)))
    score = images @ texts.T
    hits_i, hits_t = [], []
    for i in range(len(images)):
        own = {first[m] if merge else m for m in range(len(texts)) if owner[m] == i}
        if own:
            right = [place for place, c in enumerate(candidates) if c in own]
            hits_i.append(hit([score[i, c] for c in candidates], right, k))
    queries = {(owner[m], names[m]): m for m in range(len(texts))} if merge else {m: m for m in range(len(texts))}
    for m in queries.values():
        right = {owner[n] for n in range(len(texts)) if names[n] == names[m]} if merge else {owner[m]}
        hits_t.append(hit(score[:, m], right, k))
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
    monkeypatch.setattr(recall, "BLOCK_BYTES", 4 * 20 * 3)  # three rows of similarities at a time
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
    assert image_to_text(images, texts, pairs, False).hit(1).tolist() == [1, 1]
    assert text_to_image(images, texts, pairs, False).hit(1).tolist() == [1, 1, 1]


def test_a_caption_on_two_pictures():
    # Both pictures have text 0 and score the same on it.
    images, texts = np.ones((2, 2), np.float32), np.ones((1, 2), np.float32)
    pairs = np.array([[0, 0], [1, 0]])
    # The other one's copy stands before in every second order; so does the other picture.
    assert image_to_text(images, texts, pairs, False).hit(1).tolist() == [0.5, 0.5]
    assert image_to_text(images, texts, pairs, True).hit(1).tolist() == [1, 1]
    assert text_to_image(images, texts, pairs, False).hit(1).tolist() == [0.5, 0.5]
    assert text_to_image(images, texts, pairs, False).hit(2).tolist() == [1, 1]
    assert text_to_image(images, texts, pairs, True).hit(1).tolist() == [1, 1]


@pytest.mark.parametrize("k", [1, 5, 10])
def test_copies_of_captions_count_as_the_mean_over_random_orders(k):
    """400 pictures with a caption each, 2 % of them copies of another, and scores in whole numbers, which tie often."""
    rng = np.random.default_rng(k)
    n, copies = 400, 8
    images = rng.integers(-2, 3, (n, 8)).astype(np.float32)
    texts = images + rng.integers(-2, 3, (n, 8)).astype(np.float32)
    text_of = np.arange(n)
    text_of[-copies:] = np.arange(copies)  # the last pictures have the words of the first
    images[-copies:] = images[:copies]
    pairs = np.stack([np.arange(n), text_of], 1)
    texts = texts[: n - copies]
    found = image_to_text(images, texts, pairs, False)
    got = 100 * found.hit(k).mean()
    score = images @ texts[text_of].T
    orders = []
    for _ in range(300):
        shuffled = rng.permutation(n)
        first = shuffled[np.argsort(-score[:, shuffled], axis=1, kind="stable")[:, :k]]
        orders.append(100 * np.mean((first == np.arange(n)[:, None]).any(1)))
    assert np.std(orders) > 0  # the order of ties matters
    assert abs(got - np.mean(orders)) < 4 * np.std(orders) / 300**0.5
    against, for_it = (100 * np.mean(found.above + tied < k) for tied in (found.tied, 0))
    assert against < got < for_it
    np.testing.assert_array_equal(image_to_text(images, texts, pairs, False).hit(k), found.hit(k))


def test_draws_are_counted():
    for right, wrong, k in itertools.product(range(1, 4), range(4), range(-1, 8)):
        boxes = [True] * right + [False] * wrong
        want = np.mean([any(order[: max(k, 0)]) for order in itertools.permutations(boxes)])
        assert drawn(np.array([right]), np.array([right + wrong]), k) == pytest.approx([want])


def test_a_collapsed_model_scores_what_chance_does():
    n = 30
    for value in (0.0, 1.0):
        images, texts = np.full((n, 3), value, np.float32), np.full((2 * n, 3), value, np.float32)
        pairs = np.stack([np.repeat(np.arange(n), 2), np.arange(2 * n)], 1)
        i2t, t2i = chances(pairs, n, 2 * n, False)
        for k in (1, 5):
            assert 100 * image_to_text(images, texts, pairs, False).hit(k).mean() == pytest.approx(i2t(k))
            assert 100 * text_to_image(images, texts, pairs, False).hit(k).mean() == pytest.approx(t2i(k))


def test_a_broken_model_finds_nothing():
    n = 30
    images = texts = np.full((n, 3), np.nan, np.float32)
    pairs = np.stack([np.arange(n)] * 2, 1)
    for merge in (False, True):
        for found in (image_to_text(images, texts, pairs, merge), text_to_image(images, texts, pairs, merge)):
            assert found.above.min() == n - 1 and not found.hit(n - 1).any()


def test_chance_is_what_random_embeddings_get():
    rng = np.random.default_rng(0)
    n, per, k = 40, 3, 5
    pairs = np.stack([np.repeat(np.arange(n), per), np.arange(n * per)], 1)
    i2t, t2i = chances(pairs, n, n * per, False)
    assert t2i(k) == pytest.approx(100 * k / n)
    assert i2t(1) == pytest.approx(100 / n)
    assert i2t(n * per) == pytest.approx(100) and t2i(1000) == pytest.approx(100)
    got = [
        100 * np.mean(image_to_text(rng.normal(size=(n, 64)), rng.normal(size=(n * per, 64)), pairs, False).hit(k))
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
