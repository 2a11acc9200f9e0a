"""The currency between rooms: samples, batches, predictions and class names.

Axis letters, here and in every signature of the package:

    b image or tile in a batch    k class (0 is "no lesion")    c channel
    h row        w column           n token                       t tile

Pixels without an annotation carry ``IGNORE``. A row that is not annotated for a head at
all is ``IGNORE`` everywhere, so that "a row teaches only the heads it is annotated for"
needs no further bookkeeping: losses and scores skip ignored pixels, and that is all.

This module knows numpy only; the tensors of ``Batch`` are named for the type checker.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Float16, UInt8

if TYPE_CHECKING:
    from torch import Tensor

IGNORE = 255
"""Label of pixels, and of whole images, that teach nothing and are not scored."""

NO_LESION = 0
"""Class id of pixels without a lesion, in every mask of lesions."""


def is_lesion(lesion: UInt8[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Return where a map of class ids says lesion; where nobody looked is none."""
    return (lesion != NO_LESION) & (lesion != IGNORE)


@dataclass(frozen=True)
class ClassMap:
    """The names behind the ids of the three heads.

    Args:
        lesions: Names of the lesion classes; ``lesions[i]`` has the mask id ``i + 1``.
        diseases: Names of the image-level labels; ``diseases[i]`` has the id ``i``.
        has_leaf: Whether any row marks the leaf. Without it, no severity can be given.

    Example:
        >>> ClassMap(("rust", "phoma"), ("healthy", "rust"), True).lesion_name(2)
        'phoma'
    """

    lesions: tuple[str, ...]
    diseases: tuple[str, ...] = ()
    has_leaf: bool = False

    @property
    def n_lesion_logits(self) -> int:
        """Number of lesion scores a pixel has: the classes and "no lesion"."""
        return len(self.lesions) + 1

    def lesion_name(self, class_id: int) -> str:
        """Return the name of a mask id, "no lesion" for 0."""
        return "no lesion" if class_id == NO_LESION else self.lesions[class_id - 1]


@dataclass(frozen=True)
class Sample:
    """One image, or one tile of it, with what is known about it.

    Args:
        key: Name of the manifest row it came from, unique in the manifest.
        image: RGB, upright (EXIF turn applied), 0 to 255.
        lesion: Lesion class ids, 0 for none, ``IGNORE`` where nobody looked.
        leaf: 1 on the leaf (its lesions included), 0 off it, ``IGNORE`` if unknown.
        disease: Index into ``ClassMap.diseases``, ``IGNORE`` if unknown.
    """

    key: str
    image: UInt8[np.ndarray, "h w 3"]
    lesion: UInt8[np.ndarray, "h w"]
    leaf: UInt8[np.ndarray, "h w"]
    disease: int = IGNORE


class SkippedImage(NamedTuple):
    """An image that could not be read, and was replaced by another.

    Args:
        key: Its manifest row.
        reason: What reading it said.
    """

    key: str
    reason: str


@dataclass(frozen=True)
class Batch:
    """Tiles stacked for one forward pass.

    Args:
        image: uint8 ``(b, 3, h, w)``, or float32 in [0, 1]; the network normalizes.
        lesion: uint8 ``(b, h, w)``, class ids or ``IGNORE``.
        leaf: uint8 ``(b, h, w)``, 0, 1 or ``IGNORE``.
        disease: uint8 ``(b,)``, index or ``IGNORE``.
        keys: Manifest rows the tiles came from.
        sparse_target: uint8 ``(b, h, w)``, what points and scribbles say, class ids or
            ``IGNORE``; such tiles have no other ``lesion``. ``None`` in a run without.
        skipped: Rows that could not be read when these were drawn.
    """

    image: "Tensor"
    lesion: "Tensor"
    leaf: "Tensor"
    disease: "Tensor"
    keys: tuple[str, ...]
    sparse_target: "Tensor | None" = None
    skipped: tuple[SkippedImage, ...] = ()

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def target(self) -> "Tensor":
        """What masks and points say, class ids or ``IGNORE``."""
        if self.sparse_target is None:
            return self.lesion
        return self.lesion.where(self.lesion != IGNORE, self.sparse_target)

    def select(self, which: slice) -> "Batch":
        """Return some of the tiles."""
        return Batch(
            self.image[which],
            self.lesion[which],
            self.leaf[which],
            self.disease[which],
            self.keys[which],
            None if self.sparse_target is None else self.sparse_target[which],
        )


@dataclass(frozen=True)
class UnlabeledBatch:
    """Tiles without masks, each from one place under several lights.

    Args:
        weak: Bytes ``(b, 3, h, w)``, as the camera saw it: the teacher looks at this.
        strong: ``(v, b, 3, h, w)``, changed light and camera: the student looks at these.
        valid: bool ``(b, h, w)``, whether a pixel lies in the image at all.
        disease: uint8 ``(b,)``, ``IGNORE`` of an image without a name.
        keys: Manifest rows the tiles came from.
        skipped: Rows that could not be read when these were drawn.
    """

    weak: "Tensor"
    strong: "Tensor"
    valid: "Tensor"
    disease: "Tensor"
    keys: tuple[str, ...]
    skipped: tuple[SkippedImage, ...] = ()

    def __len__(self) -> int:
        return len(self.keys)

    def select(self, which: slice) -> "UnlabeledBatch":
        """Return some of the tiles."""
        return UnlabeledBatch(
            self.weak[which],
            self.strong[:, which],
            self.valid[which],
            self.disease[which],
            self.keys[which],
        )


@dataclass(frozen=True)
class Prediction:
    """What a model says about one image, at the image's own size.

    Args:
        lesion: Most probable lesion class where a lesion of any class is more probable
            than none, 0 elsewhere.
        lesion_probability: Probability of any lesion, in [0, 1].
        leaf_probability: Probability of leaf, in [0, 1]; ``None`` where the model never
            learned the leaf.
        disease_probability: A probability a disease of ``ClassMap.diseases``; empty
            where the model has no image-level head.
    """

    lesion: UInt8[np.ndarray, "h w"]
    lesion_probability: Float16[np.ndarray, "h w"]
    leaf_probability: Float16[np.ndarray, "h w"] | None
    disease_probability: tuple[float, ...] = ()

    @property
    def leaf(self) -> UInt8[np.ndarray, "h w"] | None:
        """Leaf mask, 1 where leaf is more probable than not; ``None`` if unknown."""
        if self.leaf_probability is None:
            return None
        return (self.leaf_probability >= 0.5).astype(np.uint8)
