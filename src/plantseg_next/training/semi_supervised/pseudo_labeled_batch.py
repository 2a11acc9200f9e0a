"""Tiles with pseudo-labels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from plantseg_next.models.segmenter import Scores


@dataclass(frozen=True)
class PseudoLabeledBatch:
    """Tiles that the student learns from, with the teacher's labels.

    Args:
        image: ``(b, 3, h, w)``, bytes or in [0, 1].
        lesion: uint8 ``(b, h, w)``, ``IGNORE`` off the confidence mask.
        leaf: The same for the leaf.
        valid: bool ``(b, h, w)``, whether the pixel lies in the image.
        scores: The teacher's logits, at its own resolution, where the method needs them.
        disease: uint8 ``(b,)``, the image-level label, ``IGNORE`` where there is none or
            where the tile shows more than one leaf; ``None`` where no image has one.
        cam_seed: uint8 ``(b, h, w)``, lesion classes from the image-level label alone;
            ``None`` likewise.
    """

    image: Tensor
    lesion: Tensor
    leaf: Tensor
    valid: Tensor
    scores: Scores | None = None
    disease: Tensor | None = None
    cam_seed: Tensor | None = None

    def select(self, which: slice) -> "PseudoLabeledBatch":
        """Return some of the tiles."""
        return _of_each(lambda tensors: tensors[0][which], [self])

    @classmethod
    def joined(cls, parts: Sequence["PseudoLabeledBatch"]) -> "PseudoLabeledBatch":
        """Return the tiles of many batches as one batch, in order."""
        return _of_each(torch.cat, parts)


def _of_each(
    make: Callable[[list[Tensor]], Tensor], parts: Sequence[PseudoLabeledBatch]
) -> PseudoLabeledBatch:
    """Return tiles with every tensor made from those of the parts; ``None`` stays."""

    def made(values: list[Any]) -> Any:  # noqa: ANN401 - a tensor, scores or None
        if isinstance(values[0], Scores):
            return Scores(*(make(list(maps)) for maps in zip(*values, strict=True)))
        return None if values[0] is None else make(values)

    names = [field.name for field in fields(PseudoLabeledBatch)]
    return PseudoLabeledBatch(*(made([getattr(p, name) for p in parts]) for name in names))
