"""Tiles whose labels come from the teacher."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from plantseg_next.models.segmenter import Scores


@dataclass(frozen=True)
class Taught:
    """What the student sees, and what the teacher says of it.

    Args:
        image: ``(b, 3, h, w)``, bytes or in [0, 1].
        lesion: uint8 ``(b, h, w)``, ``IGNORE`` where the teacher is not believed.
        leaf: The same for the leaf.
        inside: bool ``(b, h, w)``, whether the pixel lies in the picture at all.
        scores: The teacher's logits, at its own resolution, where the method wants them.
    """

    image: Tensor
    lesion: Tensor
    leaf: Tensor
    inside: Tensor
    scores: Scores | None = None

    def each(self, moved: Callable[[Tensor], Tensor]) -> "Taught":
        """Return the tiles with every map changed in the same way."""
        image, lesion, leaf, inside = map(
            moved, (self.image, self.lesion, self.leaf, self.inside)
        )
        return Taught(image, lesion, leaf, inside)

    def part(self, which: slice) -> "Taught":
        """Return some of the tiles."""
        scores = self.scores and Scores(*(m[which] for m in self.scores))
        return replace(self.each(lambda own: own[which]), scores=scores)

    @classmethod
    def joined(cls, parts: Sequence["Taught"]) -> "Taught":
        """Return the tiles of many parts as one, in order."""
        scores = [part.scores for part in parts if part.scores is not None]
        return cls(
            torch.cat([part.image for part in parts]),
            torch.cat([part.lesion for part in parts]),
            torch.cat([part.leaf for part in parts]),
            torch.cat([part.inside for part in parts]),
            Scores(*(torch.cat(maps) for maps in zip(*scores, strict=True)))
            if scores
            else None,
        )
