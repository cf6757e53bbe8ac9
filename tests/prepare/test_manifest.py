import random

import numpy as np
import pytest

from maeclip_jax.errors import UserError
from maeclip_jax.prepare import manifest
from maeclip_jax.prepare.image_text import Dropped, Kept, Stored
from maeclip_jax.prepare.manifest import QUANTILES, Tally


def _outcomes(count: int):
    rng = random.Random(0)
    for i in range(count):
        if rng.random() < 0.2:
            yield Dropped(f"k{i}", "s", rng.choice(["empty", "corrupt"]), "d", records=rng.randint(1, 3))
        else:
            width, height = rng.randint(1, 900), rng.randint(1, 9000)
            stored = Stored(b"x" * rng.randint(1, 50), width, height, width * 2, height * 2, rng.random() < 0.5)
            texts = ["word " * rng.randint(1, 9) for _ in range(rng.randint(1, 4))]
            yield Kept(rng.choice(["train", "val"]), f"k{i}", {"texts": texts}, stored, 100, rng.randint(1, 3), 1)


def _tally(outcomes) -> Tally:
    tally = Tally()
    for outcome in outcomes:
        tally.add(outcome)
    return tally


def test_tallies_of_parts_add_up_and_survive_json():
    outcomes = list(_outcomes(200))
    whole = _tally(outcomes)
    parts = [_tally(outcomes[i::3]) for i in range(3)]
    assert Tally.sum(Tally.from_json(p.json()) for p in parts).json() == whole.json()
    assert whole.records == sum(getattr(o, "records", 1) for o in outcomes)
    assert whole.totals["rows"] == sum(o.rows for o in outcomes)


def test_quantiles_are_those_of_numpy_to_three_digits():
    outcomes = list(_outcomes(300))
    tally = _tally(outcomes)
    for name, limit in (("width", 0), ("height", 0.005)):
        values = [getattr(o.stored, name) for o in outcomes if isinstance(o, Kept)]
        expected = np.quantile(values, QUANTILES, method="inverted_cdf")
        np.testing.assert_allclose(list(tally.quantiles(name).values()), expected, rtol=limit)
    assert Tally().quantiles("width") == {}


def test_share_of_bad_records():
    tally = _tally([Dropped("a", "s", "empty", "")] * 3 + list(_outcomes(1)))
    assert tally.kept.total() == 1
    manifest.check_share(tally, 0.75)
    with pytest.raises(UserError, match=r"3 of 4 records are bad \(empty 3\), more than max_bad=0.7; valid: "):
        manifest.check_share(tally, 0.7)
    with pytest.raises(UserError, match=r"1 of 1 records are bad .*so nothing is left"):
        manifest.check_share(_tally([Dropped("a", "s", "empty", "")]), 1)


def test_what_differs_is_named(tmp_path):
    before = {"options": {"short_side": 256}, "source": {"root": "/a", "files": {"0.tar": "1", "1.tar": "2"}}}

    def message(options=None, **source) -> str:
        now = {"options": options or before["options"], "source": before["source"] | source}
        with pytest.raises(UserError) as caught:
            manifest.check_same(before, now, tmp_path)
        assert "valid: the same as before, another --name or --out, or --overwrite" in str(caught.value)
        return str(caught.value)

    manifest.check_same(before, before, tmp_path)
    assert "short_side=256, which is now 0" in message({"short_side": 0})
    assert "root='/a', which is now '/b'" in message(root="/b")
    assert "source file '1.tar', which has changed;" in message(files={"0.tar": "1", "1.tar": "9"})
    assert "source file '0.tar', which is gone (and 1 more differ);" in message(files={"1.tar": "9"})
    assert "source file '2.tar' absent;" in message(files={"0.tar": "1", "1.tar": "2", "2.tar": "1"})
