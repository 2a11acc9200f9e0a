"""Tiles with pseudo-labels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

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

    def map_tensors(self, moved: Callable[[Tensor], Tensor]) -> "PseudoLabeledBatch":
        """Return the tiles with every pixel map changed the same way, without scores."""
        image, lesion, leaf, valid = map(
            moved, (self.image, self.lesion, self.leaf, self.valid)
        )
        seed = None if self.cam_seed is None else moved(self.cam_seed)
        return PseudoLabeledBatch(
            image, lesion, leaf, valid, disease=self.disease, cam_seed=seed
        )

    def select(self, which: slice) -> "PseudoLabeledBatch":
        """Return some of the tiles."""
        return replace(
            self.map_tensors(lambda tensor: tensor[which]),
            scores=self.scores and Scores(*(m[which] for m in self.scores)),
            disease=None if self.disease is None else self.disease[which],
        )

    @classmethod
    def joined(cls, parts: Sequence["PseudoLabeledBatch"]) -> "PseudoLabeledBatch":
        """Return the tiles of many batches as one batch, in order."""
        scores = [part.scores for part in parts if part.scores is not None]
        diseases = [part.disease for part in parts if part.disease is not None]
        seeds = [part.cam_seed for part in parts if part.cam_seed is not None]
        return cls(
            torch.cat([part.image for part in parts]),
            torch.cat([part.lesion for part in parts]),
            torch.cat([part.leaf for part in parts]),
            torch.cat([part.valid for part in parts]),
            Scores(*(torch.cat(maps) for maps in zip(*scores, strict=True)))
            if scores
            else None,
            torch.cat(diseases) if diseases else None,
            torch.cat(seeds) if seeds else None,
        )
