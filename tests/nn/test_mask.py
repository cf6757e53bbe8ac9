"""Masking keeps the promised number of tokens, uniformly, reversibly, and whatever the devices are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maeclip_jax.nn.mask import keep_count, random_keep, restore, take

KEY = jax.random.key(0)


@pytest.mark.parametrize(
    "length, ratio, keep",
    [(196, 0.75, 49), (64, 0.75, 16), (256, 0.75, 64), (100, 0.9, 10), (10, 0.0, 10), (7, 0.5, 3), (3, 0.99, 1)],
)
def test_keep_count_is_mae_s(length, ratio, keep):
    assert keep_count(length, ratio) == keep


@pytest.mark.parametrize("ratio", [1.0, -0.1, 1.5])
def test_a_ratio_outside_its_range_is_refused(ratio):
    with pytest.raises(ValueError, match=rf"^mask ratio must lie in \[0, 1\), got {ratio}$"):
        keep_count(8, ratio)


def test_keep_outside_its_range_and_unknown_share_are_refused():
    for keep in (0, 9):
        with pytest.raises(ValueError, match=rf"^cannot keep {keep} of 8 tokens$"):
            random_keep(KEY, 2, 8, keep)
    with pytest.raises(ValueError, match=r"^unknown share 'token'; valid: sample, batch$"):
        random_keep(KEY, 2, 8, 4, "token")


@pytest.mark.parametrize("share", ["sample", "batch"])
def test_ids_are_distinct_and_the_mask_is_their_complement(share):
    kept = jax.tree.map(np.asarray, random_keep(KEY, 5, 12, 3, share))
    assert kept.keep_BxK.shape == (5, 3) and kept.restore_BxN.shape == kept.mask_BxN.shape == (5, 12)
    for ids, order, mask in zip(*kept):
        assert ids.tolist() == sorted(set(ids)) and len(ids) == 3  # ascending: a causal tower may be masked too
        assert set(np.flatnonzero(~mask)) == set(ids)
        assert sorted(order) == list(range(12))
        assert [order[i] for i in ids] == [0, 1, 2]  # kept tokens come first


def test_restore_undoes_take():
    x = jax.random.normal(KEY, (4, 10, 3))
    fill = jnp.asarray([7.0, 8.0, 9.0])
    kept = random_keep(jax.random.key(1), 4, 10, 4)
    back = np.asarray(restore(take(x, kept.keep_BxK), fill, kept.restore_BxN))
    mask = np.asarray(kept.mask_BxN)
    np.testing.assert_array_equal(back[~mask], np.asarray(x)[~mask])
    np.testing.assert_array_equal(back[mask], np.broadcast_to(fill, (mask.sum(), 3)))
    everything = random_keep(KEY, 4, 10, 10)
    np.testing.assert_array_equal(restore(take(x, everything.keep_BxK), fill, everything.restore_BxN), x)
    np.testing.assert_array_equal(take(x[..., 0], kept.keep_BxK), take(x, kept.keep_BxK)[..., 0])


@pytest.mark.parametrize("share", ["sample", "batch"])
def test_one_of_some_tokens_is_kept_and_nothing_else_changes(share):
    draws, length, keep = 4000, 64, 16
    words = np.arange(length)[None] < np.array([3, 1, 0, 40] * (draws // 4))[:, None]
    free = random_keep(KEY, draws, length, keep, share)
    made = random_keep(KEY, draws, length, keep, share, words)
    shown_free, shown = (~np.asarray(x.mask_BxN) & words for x in (free, made))
    had = shown_free.any(1)
    assert shown.any(1)[words.any(1)].all() and (~np.asarray(made.mask_BxN)).sum(1).tolist() == [keep] * draws
    same = had | ~words.any(1)
    np.testing.assert_array_equal(np.asarray(made.mask_BxN)[same], np.asarray(free.mask_BxN)[same])
    assert (shown[~had].sum(1) <= 1).all()
    if share == "sample":
        # Of 3 words among 64 tokens none is among the 16 kept in 41 % of the captions.
        none = np.prod([(48 - i) / (64 - i) for i in range(3)])
        assert none == pytest.approx(0.415, abs=0.001)
        assert np.mean(~had[::4]) == pytest.approx(none, abs=4 * np.sqrt(none * (1 - none) * 4 / draws))
        which = shown[::4][~had[::4]][:, :3].mean(0)
        np.testing.assert_allclose(which, 1 / 3, atol=4 * np.sqrt(2 / 9 / (~had[::4]).sum()))


def test_every_token_and_every_pair_is_kept_equally_often():
    draws, length, keep = 20_000, 6, 2
    seen = ~np.asarray(random_keep(KEY, draws, length, keep).mask_BxN)
    # Binomial with p = 1/3: standard deviation 0.0033; pairs p = 1/15: 0.0018. Five of those.
    np.testing.assert_allclose(seen.mean(0), keep / length, atol=5 * np.sqrt(2 / 9 / draws))
    both = (seen.T.astype(float) @ seen) / draws
    pairs = both[~np.eye(length, dtype=bool)]
    np.testing.assert_allclose(pairs, 1 / 15, atol=5 * np.sqrt(14 / 225 / draws))


def test_share_sample_differs_between_rows_and_share_batch_does_not():
    own = np.asarray(random_keep(KEY, 16, 20, 5).mask_BxN)
    assert len({row.tobytes() for row in own}) == 16
    shared = np.asarray(random_keep(KEY, 16, 20, 5, "batch").mask_BxN)
    assert len({row.tobytes() for row in shared}) == 1
    assert (np.asarray(random_keep(jax.random.key(1), 16, 20, 5).mask_BxN) != own).any()


def test_masks_do_not_depend_on_how_the_batch_is_sharded():
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    x = jax.random.normal(KEY, (16, 12, 4))

    def kept(rng, x):
        k = random_keep(rng, 16, 12, 3)
        return k, take(x, k.keep_BxK)

    whole = jax.jit(kept)(KEY, x)
    split = jax.jit(kept)(KEY, jax.device_put(x, jax.NamedSharding(mesh, jax.P("fsdp"))))
    assert len(split[1].sharding.device_set) == 8
    jax.tree.map(np.testing.assert_array_equal, whole, split)
