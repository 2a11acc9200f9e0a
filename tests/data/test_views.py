import numpy as np
import pytest
import torch

from plantseg_next.data.views import Geometry, Photometry


def test_scales_stay_in_range_and_are_even_in_their_logarithm():
    rng = np.random.default_rng(0)
    scales = np.array([Geometry((0.5, 2.0)).draw_scale(rng) for _ in range(400)])
    assert 0.5 <= scales.min() < 0.6
    assert 1.8 < scales.max() <= 2.0
    assert np.log(scales).mean() == pytest.approx(0, abs=0.1)


def test_all_turns_and_mirrorings_are_drawn():
    rng = np.random.default_rng(0)
    drawn = [Geometry(angle_deg=0.0).draw((5.0, 5.0), 1.0, rng) for _ in range(60)]
    assert {p.angle_deg for p in drawn} == {0.0, 90.0, 180.0, 270.0}
    assert {p.mirrored for p in drawn} == {True, False}


def test_no_change_of_light_is_no_change():
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    still = Photometry(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    out = still.apply(image, np.random.default_rng(1))
    assert out.shape == (3, 16, 16)
    assert (out.permute(1, 2, 0).numpy().astype(int) - image).max() <= 1


def test_light_is_repeatable_and_changes_values():
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    one, again, other = (
        Photometry(blur=1.0).apply(image, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert one.dtype == torch.uint8
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_a_brown_spot_stays_browner_than_its_leaf():
    """Lesions are known by colour: no change of light may turn one green."""
    image = np.full((8, 8, 3), (70, 130, 50), np.uint8)
    image[2:6, 2:6] = (120, 75, 40)
    for seed in range(100):
        out = Photometry().apply(image, np.random.default_rng(seed)).float()
        redness = out[0] - out[1]
        assert redness[3:5, 3:5].min() > redness[0, 0]
