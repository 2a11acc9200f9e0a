from dataclasses import replace

import torch

from plantseg_next.structures import IGNORE
from plantseg_next.training.semi_supervised.mixing import (
    BOX_AREA,
    cut_mix,
    paint_background,
    sample_boxes,
)
from plantseg_next.training.semi_supervised.pseudo_labeled_batch import PseudoLabeledBatch


def tiles(n: int = 3, size: int = 32) -> PseudoLabeledBatch:
    """Tiles in which every map holds the number of its tile."""
    own = torch.arange(n)[:, None, None].expand(n, size, size).clone()
    return PseudoLabeledBatch(
        image=own[:, None].expand(n, 3, size, size).float() / 10,
        lesion=own,
        leaf=own.clone(),
        valid=own != 1,
    )


def test_boxes_have_the_stated_size_and_probability():
    torch.manual_seed(0)
    area = sample_boxes(2000, (64, 64), probability=0.5).flatten(1).float().mean(1)
    drawn = area[area > 0]
    assert 0.45 < len(drawn) / 2000 < 0.55
    assert BOX_AREA[0] * 0.8 < drawn.min()
    assert drawn.max() < BOX_AREA[1] * 1.1
    assert not sample_boxes(20, (64, 64), probability=0.0).any()


def test_cut_mix_moves_image_and_labels_together():
    before = tiles()
    boxes = torch.zeros(3, 32, 32, dtype=torch.bool)
    boxes[:, 4:10, 6:20] = True
    after = cut_mix(before, boxes)
    for own in range(3):
        partner = (own - 1) % 3
        for maps in ((after.lesion, before.lesion), (after.leaf, before.leaf),
                     (after.valid, before.valid)):  # fmt: skip
            new, old = maps
            assert torch.equal(new[own][boxes[own]], old[partner][boxes[own]])
            assert torch.equal(new[own][~boxes[own]], old[own][~boxes[own]])
        assert (after.image[own][:, boxes[own]] == before.image[partner, 0, 0, 0]).all()
    as_bytes = replace(before, image=(10 * before.image).byte())
    assert torch.equal(cut_mix(as_bytes, boxes).image, (10 * after.image).byte())


def test_paint_background_keeps_leaf_and_ignored_pixels():
    torch.manual_seed(0)
    own = tiles(2)
    leaf = torch.full((2, 32, 32), 1)
    leaf[:, :8], leaf[:, 8:12] = 0, IGNORE
    for image in (own.image, (255 * own.image).byte()):
        found = paint_background(
            replace(own, image=image, leaf=leaf), torch.tensor([True, False])
        )
        assert torch.equal(found.image[1], image[1])
        assert torch.equal(found.image[0, :, 8:], image[0, :, 8:])
        assert (found.image[0, :, :8] != image[0, :, :8]).float().mean() > 0.9
        assert torch.equal(found.lesion, own.lesion)
        assert found.image.dtype == image.dtype
