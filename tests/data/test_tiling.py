from itertools import pairwise

import cv2
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from plantseg_next.data.tiling import (
    CELL,
    Placement,
    TileGrid,
    choose_center,
    class_weights,
    draw_tile,
    lesion_information,
    pad_to,
    saliency,
    shrink_sample,
    shrink_to,
)
from plantseg_next.structures import IGNORE, Sample

REACH = 7  # receptive field of the network below, in every direction


def bounded_network(tile: np.ndarray) -> np.ndarray:
    """Two scores from a blur: a network with a bounded receptive field."""
    gray = tile.astype(np.float32).mean(2)
    size = 2 * REACH + 1
    blurred = cv2.blur(gray, (size, size), borderType=cv2.BORDER_CONSTANT)
    return np.stack([blurred, np.sqrt(blurred)])


def make_sample(h: int = 64, w: int = 96, *, lesion_at: slice | None = None) -> Sample:
    rng = np.random.default_rng(0)
    lesion = np.zeros((h, w), np.uint8)
    if lesion_at is not None:
        lesion[lesion_at, lesion_at] = 1
    return Sample(
        "a",
        rng.integers(0, 256, (h, w, 3), np.uint8),
        lesion,
        np.ones((h, w), np.uint8),
        disease=1,
    )


@given(
    h=st.integers(1, 200),
    w=st.integers(1, 200),
    tile=st.integers(2, 6).map(lambda n: 16 * n),
    quarter=st.integers(0, 12),
)
@settings(max_examples=60, deadline=None)
def test_tile_grid_covers_image_with_positive_weights(h, w, tile, quarter):
    overlap = min(4 * quarter, tile // 2)
    grid = TileGrid((h, w), tile, overlap)
    ones = (np.ones((1, tile, tile), np.float32) for _ in range(len(grid)))
    bands = [band for _, band in grid.stitch(ones)]
    whole = np.concatenate(bands, axis=1)
    assert whole.shape == (1, h, w)
    np.testing.assert_allclose(whole, 1, rtol=1e-5)
    for a, b in pairwise(grid.lefts):
        assert 0 < b - a <= tile - overlap + 1


@given(h=st.integers(40, 190), w=st.integers(40, 190))
@settings(max_examples=25, deadline=None)
def test_stitch_equals_untiled_if_rim_covers_receptive_field(h, w):
    image = np.random.default_rng(h * 1000 + w).integers(0, 256, (h, w, 3), np.uint8)
    grid = TileGrid((h, w), tile_px=64, overlap_px=4 * (REACH + 1))
    tiled = grid.stitch(bounded_network(t) for t in grid.cut(image))
    stitched = np.concatenate([band for _, band in tiled], axis=1)
    inner = np.s_[:, REACH : h - REACH, REACH : w - REACH]  # away from the border
    np.testing.assert_allclose(
        stitched[inner], bounded_network(image)[inner], rtol=1e-4, atol=1e-3
    )


def test_stitch_without_rim_has_seams():
    """The tolerance above fails without the rim."""
    image = np.random.default_rng(0).integers(0, 256, (64, 150, 3), np.uint8)
    grid = TileGrid((64, 150), tile_px=64, overlap_px=2)
    tiled = grid.stitch(bounded_network(t) for t in grid.cut(image))
    stitched = np.concatenate([band for _, band in tiled], axis=1)
    assert np.abs(stitched - bounded_network(image))[:, REACH:-REACH].max() > 1


def test_stitch_yields_bands_in_order_with_bounded_rows():
    grid = TileGrid((1000, 70), 64, 16)
    ones = (np.ones((1, 64, 64), np.float32) for _ in range(len(grid)))
    bands = list(grid.stitch(ones))
    starts = [top for top, _ in bands]
    assert starts == sorted(starts)
    assert starts[0] == 0
    assert max(band.shape[1] for _, band in bands) <= 64


def test_pad_to_image_of_one_pixel():
    tile = pad_to(np.full((1, 1, 3), 7, np.uint8), (32, 32))
    assert tile.shape == (32, 32, 3)
    assert (tile == 7).all()


def test_shrink_only_large_images():
    image = np.zeros((50, 100, 3), np.uint8)
    assert shrink_to(image, None) is image
    assert shrink_to(image, 100) is image
    assert shrink_to(image, 40).shape == (20, 40, 3)
    small = shrink_sample(make_sample(50, 100), 40)
    assert small.image.shape[:2] == small.lesion.shape == small.leaf.shape == (20, 40)


def test_draw_tile_identity_returns_image():
    sample = make_sample(64, 64, lesion_at=slice(8, 20))
    tile = draw_tile(sample, Placement((31.5, 31.5)), 64)
    np.testing.assert_array_equal(tile.image, sample.image)
    np.testing.assert_array_equal(tile.lesion, sample.lesion)


@given(
    angle=st.floats(-180, 180),
    scale=st.floats(0.5, 2),
    mirrored=st.booleans(),
    x=st.floats(20, 76),
    y=st.floats(20, 44),
)
@settings(max_examples=40, deadline=None)
def test_draw_tile_transforms_image_and_masks_equally(angle, scale, mirrored, x, y):
    lesion = np.zeros((64, 96), np.uint8)
    lesion[20:50, 30:70] = 1
    image = np.repeat((lesion * 200)[:, :, None], 3, axis=2)
    sample = Sample("a", image, lesion, np.ones_like(lesion), 0)
    tile = draw_tile(sample, Placement((x, y), scale, angle, mirrored), 64)
    inside = tile.lesion != IGNORE
    seen = tile.image[:, :, 0] > 100
    wrong = inside & (seen != (tile.lesion == 1))
    assert wrong.mean() < 0.06  # nearest against linear, on the outline only
    assert ((tile.leaf == IGNORE) == ~inside).all()


def test_draw_tile_outside_image_is_ignored():
    tile = draw_tile(make_sample(32, 32), Placement((0.0, 0.0)), 64)
    assert (tile.lesion[:31, :31] == IGNORE).all()
    assert (tile.lesion[32:63, 32:63] == 0).all()


def test_draw_tile_without_lesion_has_no_disease_label():
    sample = make_sample(64, 96, lesion_at=slice(0, 10))
    assert draw_tile(sample, Placement((15.0, 15.0)), 32).disease == 1
    assert draw_tile(sample, Placement((75.0, 45.0)), 32).disease == IGNORE
    healthy = make_sample()
    assert draw_tile(healthy, Placement((75.0, 45.0)), 32).disease == 1


def test_lesion_information_is_higher_for_rare_classes():
    weights = class_weights(np.array([1000, 100, 1]))
    assert weights[2] > weights[1] > weights[0]
    lesion = np.zeros((CELL, 3 * CELL), np.uint8)
    lesion[0, 0], lesion[0, CELL], lesion[0, 2 * CELL] = 1, 2, IGNORE
    common, rare, ignored = lesion_information(lesion, weights)[0]
    assert rare > common > ignored == 0


def test_saliency_is_highest_at_spot():
    image = np.full((128, 128, 3), (60, 140, 60), np.uint8)
    cv2.circle(image, (100, 40), 5, (120, 70, 30), -1)
    row, column = divmod(int(saliency(image).argmax()), 128 // CELL)
    assert (row, column) == (40 // CELL, 100 // CELL)


def test_choose_center_follows_information():
    information = np.zeros((20, 20), np.float32)
    information[3, 15] = 1
    rng = np.random.default_rng(0)

    def centers(n, background):
        return np.array(
            [
                choose_center(
                    information,
                    reach_cells=2.0,
                    background_fraction=background,
                    rng=rng,
                )
                for _ in range(n)
            ]
        )

    assert np.abs(centers(50, 0.0) / CELL - (15.5, 3.5)).max() <= 1
    spread = centers(200, 1.0)
    assert spread.std() > 4 * CELL  # background tiles are drawn uniformly


@given(seed=st.integers(0, 1000), rows=st.integers(1, 30), columns=st.integers(1, 30))
@settings(max_examples=40, deadline=None)
def test_choose_center_keeps_tile_inside_image(seed, rows, columns):
    rng = np.random.default_rng(seed)
    information = rng.random((rows, columns)).astype(np.float32)
    for _ in range(4):
        x, y = choose_center(information, reach_cells=4.0, background_fraction=0.5, rng=rng)
        for center, length in ((x, columns), (y, rows)):
            if length >= 8:
                assert 4 * CELL <= center <= (length - 4) * CELL
            else:
                assert (length - 4) * CELL <= center <= 4 * CELL  # all of it in the tile
