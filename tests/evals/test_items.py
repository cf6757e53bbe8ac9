"""What metrics are the means of: their mean, their file, their keys."""

import numpy as np
import pytest

from maeclip_jax.evals import items
from maeclip_jax.evals.items import Items
from maeclip_jax.evals.protocol import KEY_BYTES, key_rows, keys_of


def test_the_mean_is_over_strata_of_weighted_means():
    one = Items([10, 20, 90], ["a", "b", "c"], stratum=["x", "x", "y"], weight=[1, 3, 5])
    assert one.mean() == pytest.approx(((10 + 3 * 20) / 4 + 90) / 2)
    assert Items([10, 20, 90]).mean() == pytest.approx(40)
    # A stratum that has no weight is left out, not counted as 0.
    assert Items([10, 50], ["a", "b"], stratum=["x", "y"], weight=[1, 0]).mean() == 10


def test_only_right_and_wrong_of_independent_items_is_a_proportion():
    assert Items([0, 100, 100]).proportion
    assert not Items([0, 50, 100]).proportion
    assert not Items([0, 100], ["a", "b"], group=["g", "g"]).proportion
    assert not Items([0, 100], weight=[1, 1]).proportion


def test_a_file_gives_back_what_was_kept():
    kept = {
        "zero_shot/top1": Items([0, 100], ["val/0", "val/ü"]),
        "retrieval/text_to_image_R@1": Items([0, 1 / 3], ["a/0", "a/1"], group=["a", "a"]),
        "voc_segmentation/miou": Items([1, 2], ["a", "a"], stratum=["0", "1"], weight=[5, 6.5]),
    }
    back = items.Kept(items.from_bytes(items.to_bytes(items.table(kept))))
    assert list(back) == list(kept)
    for name, one in kept.items():
        for field in ("value", "key", "group", "stratum", "weight"):
            mine, theirs = getattr(one, field), getattr(back[name], field)
            assert (mine is None) == (theirs is None) and (mine is None or list(mine) == list(theirs)), (name, field)


def test_rows_of_an_evaluator_go_and_those_of_its_namesakes_stay():
    table = items.table({name: Items([1.0]) for name in ("knn/top1", "knn/top1_k5", "knn_max/top1", "zero_shot/top1")})
    assert list(items.Kept(items.without(table, ["knn"]))) == ["knn_max/top1", "zero_shot/top1"]


def test_nothing_kept_is_a_file_too():
    assert dict(items.Kept(items.from_bytes(items.to_bytes(items.table({}))))) == {}


@pytest.mark.parametrize("data", [b"", b"PAR1 and no more", b"\x00" * 100])
def test_bytes_that_are_no_such_file(data):
    with pytest.raises(ValueError, match="not a parquet file"):
        items.from_bytes(data)


def test_keys_are_told_apart():
    assert items.one_by_one(["a", "", "b", "a", ""]) == ["a", "#1", "b", "a#3", "#4"]
    long = ["x" * 300 + end for end in "ab"]
    rows = key_rows({"_key": np.array([*long, "é", ""], object)}, 4)
    assert rows.shape == (4, KEY_BYTES) and rows.dtype == np.uint8
    keys = keys_of(rows, 4)
    assert keys[2:] == ["é", "#3"] and keys[0] != keys[1] and keys[0].startswith("x" * 100)
    assert keys_of(None, 2) == ["#0", "#1"]
    assert keys_of(key_rows({}, 2), 2) == ["#0", "#1"]


def test_columns_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="3 values and 2 of key"):
        Items([1, 2, 3], ["a", "b"])
