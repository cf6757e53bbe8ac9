import numpy as np
import pytest

from maeclip_jax.scenes import shapes


def solids(diameter):
    return [shapes.stamp(i, diameter, 0).solid for i in range(len(shapes.NAMES))]


def overlap(a, b):
    return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize("diameter", [20, 24, 40])
def test_first_eight_shapes_overlap_little(diameter):
    first = solids(diameter)[:8]
    worst = max(overlap(first[i], first[j]) for i in range(8) for j in range(i))
    assert worst <= 0.62


def test_no_two_shapes_are_alike():
    every = solids(24)
    assert max(overlap(every[i], every[j]) for i in range(len(every)) for j in range(i)) < 0.9


@pytest.mark.parametrize("degrees", [-10, 0, 10])
def test_stamps_keep_inside_their_window(degrees):
    for shape, name in enumerate(shapes.NAMES):
        stamp = shapes.stamp(shape, 40, degrees)
        rim = np.concatenate([stamp.solid[0], stamp.solid[-1], stamp.solid[:, 0], stamp.solid[:, -1]])
        assert not rim.any(), name
        assert stamp.alpha.min() == 0 and stamp.alpha.max() == shapes.FULL
        assert 0.1 < stamp.solid.mean() < 0.9


def test_edges_are_smooth_and_symmetric():
    circle = shapes.stamp(shapes.NAMES.index("circle"), 24, 0).alpha
    assert len(np.unique(circle)) > 5
    np.testing.assert_array_equal(circle, circle[::-1])
    np.testing.assert_array_equal(circle, circle.T)


def test_turning_moves_the_shape():
    bar = shapes.NAMES.index("bar")
    up, level = (shapes.stamp(bar, 40, d).solid for d in (20, 0))
    assert np.nonzero(up.any(1))[0].size > np.nonzero(level.any(1))[0].size + 5


def test_cached_planes_cannot_be_written():
    with pytest.raises(ValueError, match="read-only"):
        shapes.stamp(0, 20, 0).alpha[0, 0] = 1


def test_textures_cover_about_half_and_differ():
    planes = [shapes.texture(k, 40, 36, 0) for k in range(1, len(shapes.TEXTURE_NAMES))]
    for plane in planes:
        assert 0.2 < plane.mean() / shapes.FULL < 0.6
    assert len({p.tobytes() for p in planes}) == len(planes)
