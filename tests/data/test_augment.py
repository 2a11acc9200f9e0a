import colorsys
from itertools import cycle

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from plantseg_next.data.augment import UNCHANGED, Geometry, Photometry

STILL = dict.fromkeys(("brightness", "contrast", "saturation", "hue", "gamma", "blur"), 0.0)
PRIMARIES = np.array(
    [[(255, 0, 0), (0, 255, 0), (0, 0, 255)], [(0, 0, 0), (255, 255, 255), (0, 255, 255)]],
    np.uint8,
)


class Certain(np.random.Generator):
    """Random generator that returns the given values in a cycle, and never blurs."""

    def __init__(self, *draws):
        super().__init__(np.random.PCG64(0))
        self.draws = cycle(draws)

    def uniform(self, low, high):
        assert (low, high) == (-1, 1)
        return next(self.draws)

    def random(self):
        return 1.0


def changed(image, end=1.0, **greatest):
    """Return the image after one largest photometric change; h w 3, as integers."""
    out = Photometry(**(STILL | greatest)).apply(image, Certain(end))
    return out.permute(1, 2, 0).numpy().astype(int)


def by_reference(image, adjust, *arguments):
    """Return the image after a torchvision transform; h w 3, as integers."""
    x = torch.from_numpy(image).permute(2, 0, 1)
    return adjust(x, *arguments).permute(1, 2, 0).numpy().astype(int)


def random_image(low, high, seed=0):
    return np.random.default_rng(seed).integers(low, high, (40, 30, 3), np.uint8)


def test_geometry_scale_is_log_uniform_in_range():
    rng = np.random.default_rng(0)
    scales = np.array([Geometry((0.5, 2.0)).draw_scale(rng) for _ in range(400)])
    assert 0.5 <= scales.min() < 0.6
    assert 1.8 < scales.max() <= 2.0
    assert np.log(scales).mean() == pytest.approx(0, abs=0.1)


def test_geometry_draws_all_rotations_and_mirrorings():
    rng = np.random.default_rng(0)
    drawn = [Geometry(angle_deg=0.0).draw((5.0, 5.0), 1.0, rng) for _ in range(60)]
    assert {p.angle_deg for p in drawn} == {0.0, 90.0, 180.0, 270.0}
    assert {p.mirrored for p in drawn} == {True, False}


@pytest.mark.parametrize("light", [UNCHANGED, Photometry(**STILL)])
def test_photometry_without_changes_is_the_identity(light):
    image = random_image(0, 256)
    out = light.apply(image, np.random.default_rng(1))
    assert out.shape == (3, 40, 30)
    assert out.is_contiguous()
    np.testing.assert_array_equal(out.permute(1, 2, 0).numpy(), image)


def test_photometry_with_neutral_draws_is_the_identity():
    """Runs the full computation, unlike ``UNCHANGED``."""
    image = random_image(0, 256)
    np.testing.assert_array_equal(changed(image, end=0.0, brightness=0.5, hue=0.3), image)


@pytest.mark.parametrize("end", [-1.0, -0.3, 0.6, 1.0])
@pytest.mark.parametrize(
    ("name", "adjust"),
    [
        ("brightness", reference.adjust_brightness),
        ("contrast", reference.adjust_contrast),
        ("saturation", reference.adjust_saturation),
    ],
)
@pytest.mark.parametrize("range_", [(70, 170), (0, 256)], ids=["inside", "clipped"])
def test_photometry_factor_matches_torchvision(name, adjust, end, range_):
    image = random_image(*range_)
    result = changed(image, end, **{name: 0.25})
    expected = by_reference(image, adjust, 1 + 0.25 * end)
    assert np.abs(result - expected).max() <= 1
    assert np.abs(result - image).max() > 3


@pytest.mark.parametrize("end", [-1.0, -0.3, 0.6, 1.0])
def test_photometry_gamma_matches_torchvision(end):
    image = random_image(0, 256)
    result = changed(image, end, gamma=0.25)
    expected = by_reference(image, reference.adjust_gamma, 1.25**end)
    assert np.abs(result - expected).max() <= 1
    assert np.abs(result - image).max() > 3


@pytest.mark.parametrize("end", [-1.0, 1.0])
def test_photometry_combined_changes_match_torchvision_sequence(end):
    image = random_image(90, 150)
    result = changed(image, end, brightness=0.2, contrast=0.2, saturation=0.2)
    x = torch.from_numpy(image).permute(2, 0, 1) / 255
    for name in ("brightness", "contrast", "saturation"):
        x = getattr(reference, f"adjust_{name}")(x, 1 + 0.2 * end)
    expected = (255 * x).permute(1, 2, 0).numpy()
    assert np.abs(result - expected).max() <= 1


@pytest.mark.parametrize("hue", [0.02, 0.25, 0.5, 0.9])
def test_photometry_hue_does_not_change_gray(hue):
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    gray = np.stack([levels] * 3, axis=-1)
    assert np.abs(changed(gray, hue=hue) - gray).max() <= 1


@pytest.mark.parametrize("end", [-1.0, 1.0])
def test_photometry_hue_of_a_full_turn_is_the_identity(end):
    image = random_image(0, 256)
    np.testing.assert_array_equal(changed(image, end, hue=1.0), image)


@pytest.mark.parametrize("end", [-1.0, 1.0])
def test_photometry_hue_of_a_third_matches_torchvision(end):
    """Red becomes green, green blue and blue red: there both definitions of hue agree."""
    image = random_image(0, 256)
    result = changed(image, end, hue=1 / 3)
    np.testing.assert_array_equal(result, np.roll(image, round(end), axis=-1))
    expected = by_reference(image, reference.adjust_hue, end / 3)
    assert np.abs(result - expected).max() <= 2  # torchvision rounds on its way to HSV


@pytest.mark.parametrize(("end", "sign"), [(1.0, 1), (-1.0, -1)])
def test_photometry_hue_rotates_from_red_to_green(end, sign):
    """Also for small rotations, and without a change of the channel mean."""
    colors = np.array([[(150, 90, 90), (90, 150, 90), (90, 90, 150)]], np.uint8)
    out = changed(colors, end, hue=0.05)
    for before, after in zip(colors[0], out[0], strict=True):
        hues = [colorsys.rgb_to_hsv(*map(float, color))[0] for color in (before, after)]
        turned = (hues[1] - hues[0] + 0.5) % 1 - 0.5
        assert sign * turned == pytest.approx(0.05, abs=0.015)
        assert after.sum() == pytest.approx(before.sum(), abs=2)


@pytest.mark.parametrize("end", [-1.0, 1.0])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue", "gamma"])
def test_photometry_values_are_clipped_and_do_not_wrap(name, end):
    """Values outside the range are clipped: bright pixels do not become dark."""
    out = changed(PRIMARIES, end, **{name: 0.02 if name == "hue" else 0.9})
    strongest = PRIMARIES == 255
    for i, j in np.ndindex(2, 3):
        if 0 < strongest[i, j].sum() < 3:
            levels = out[i, j]
            assert levels[strongest[i, j]].min() >= levels[~strongest[i, j]].max()
    white, black = out[1, 1], out[1, 0]
    assert white.min() >= black.max()
    if name in ("saturation", "hue", "gamma"):
        assert (white >= 254).all()
        assert (black <= 1).all()


def test_photometry_clips_once_at_the_end():
    """Brightness, then contrast: intermediate values above white are not clipped."""
    image = np.full((8, 8, 3), 20, np.uint8)
    image[:, 0], image[:, 1] = 230, 215
    x = image * 1.5
    mean = (x @ [0.299, 0.587, 0.114]).mean()
    rng = Certain(1.0, -1.0, 0.0, 0.0)  # brightness, contrast, saturation, gamma
    light = Photometry(**(STILL | {"brightness": 0.5, "contrast": 0.5}))
    out = light.apply(image, rng).permute(1, 2, 0).numpy()
    expected = np.clip(0.5 * x + 0.5 * mean, 0, 255)
    assert np.abs(out - expected).max() <= 1
    assert out[0, 0, 0] > out[0, 1, 0]  # both intermediate values were above white


def test_photometry_is_repeatable_and_changes_values():
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    first, again, other = (
        Photometry(blur=1.0).apply(image, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert first.dtype == torch.uint8
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_photometry_keeps_brown_spot_browner_than_leaf():
    """Lesions are recognized by color: no change may turn one green."""
    image = np.full((8, 8, 3), (70, 130, 50), np.uint8)
    image[2:6, 2:6] = (120, 75, 40)
    for seed in range(100):
        out = Photometry().apply(image, np.random.default_rng(seed)).float()
        redness = out[0] - out[1]
        assert redness[3:5, 3:5].min() > redness[0, 0]
