import numpy as np

from plantseg_next.data.grounds import Grounds
from plantseg_next.structures import IGNORE, Sample

SIZE = 64


def tile(leaf):
    image = np.full((SIZE, SIZE, 3), 200, np.uint8)
    return Sample("a", image, np.zeros((SIZE, SIZE), np.uint8), leaf, 1)


def half_leaf():
    leaf = np.zeros((SIZE, SIZE), np.uint8)
    leaf[:, 32:] = 1
    leaf[:8] = IGNORE
    return leaf


def test_only_what_is_known_to_be_off_the_leaf_is_replaced():
    before = tile(half_leaf())
    after = Grounds(SIZE, seed=0).behind(before, np.random.default_rng(0))
    changed = (after.image != before.image).any(2)
    off = before.leaf == 0
    assert not changed[~off].any()
    assert changed[off].mean() > 0.95
    assert after.lesion is before.lesion
    assert after.leaf is before.leaf
    assert after.disease == before.disease


def test_the_leafs_edge_is_blended():
    before = tile(half_leaf())
    shift = [
        np.abs(
            Grounds(SIZE, seed=seed)
            .behind(before, np.random.default_rng(seed))
            .image.astype(int)
            - 200
        ).mean((0, 2))
        for seed in range(6)
    ]
    column = np.mean(shift, axis=0)
    assert 0 < column[31] < 0.9 * column[28]


def test_a_tile_without_a_known_leaf_stays():
    grounds, rng = Grounds(SIZE, seed=0), np.random.default_rng(0)
    for value in (0, 1, IGNORE):
        before = tile(np.full((SIZE, SIZE), value, np.uint8))
        assert grounds.behind(before, rng) is before


def test_scenes_depend_on_the_seed_and_the_chance_alone():
    def shown(seed, draws):
        grounds = Grounds(SIZE, seed=seed)
        chances = [np.random.default_rng(draw) for draw in draws]
        return [grounds.behind(tile(half_leaf()), rng).image for rng in chances]

    first, last = shown(0, [1, 2, 3])[-1], shown(0, [3])[0]
    assert np.array_equal(first, last)  # whatever was drawn before
    assert not np.array_equal(last, shown(1, [3])[0])
    assert not np.array_equal(last, shown(0, [4])[0])
