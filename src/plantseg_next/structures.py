"""Data structures shared by all packages: samples, batches, predictions, class names.

Axes: b image or tile in a batch, h row, w column, v view. The docstring of each module
states its own.

Pixels without an annotation are ``IGNORE``. A row that is not annotated for a head is
``IGNORE`` everywhere in it. Losses and metrics skip ignored pixels, so each head is trained
only on rows annotated for it.

This module imports NumPy only; the tensors of ``Batch`` are for the type checker.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
from jaxtyping import Bool, Float16, UInt8

if TYPE_CHECKING:
    from torch import Tensor

IGNORE = 255
"""Label of pixels and images that are neither trained on nor evaluated."""

NO_LESION = 0
"""Class id of pixels without a lesion, in every mask of lesions."""


@overload
def is_lesion(lesion: UInt8[np.ndarray, "..."]) -> Bool[np.ndarray, "..."]: ...
@overload
def is_lesion(lesion: "Tensor") -> "Tensor": ...
def is_lesion(lesion: Any) -> Any:
    """Return where class ids are of a lesion; ``IGNORE`` is not."""
    return (lesion != NO_LESION) & (lesion != IGNORE)


@dataclass(frozen=True)
class ClassMap:
    """The class names of the three heads.

    Args:
        lesions: Names of the lesion classes; ``lesions[i]`` has the mask id ``i + 1``.
        diseases: Names of the image-level labels; ``diseases[i]`` has the id ``i``.
        has_leaf: Whether any row marks the leaf. Without it, severity is undefined.

    Example:
        >>> ClassMap(("rust", "phoma"), ("healthy", "rust"), True).lesion_name(2)
        'phoma'
    """

    lesions: tuple[str, ...]
    diseases: tuple[str, ...] = ()
    has_leaf: bool = False

    @property
    def n_lesion_logits(self) -> int:
        """Number of lesion logits per pixel: the classes and "no lesion"."""
        return len(self.lesions) + 1

    def lesion_name(self, class_id: int) -> str:
        """Return the name of a mask id, "no lesion" for 0."""
        return "no lesion" if class_id == NO_LESION else self.lesions[class_id - 1]


@dataclass(frozen=True)
class Sample:
    """One image, or one tile of it, with its labels.

    Args:
        key: Name of the manifest row it came from, unique in the manifest.
        image: RGB, upright (EXIF orientation applied), 0 to 255.
        lesion: Lesion class ids, 0 for none, ``IGNORE`` where not annotated.
        leaf: 1 on the leaf (its lesions included), 0 off it, ``IGNORE`` if unknown.
        disease: Index into ``ClassMap.diseases``, ``IGNORE`` if unknown.
    """

    key: str
    image: UInt8[np.ndarray, "h w 3"]
    lesion: UInt8[np.ndarray, "h w"]
    leaf: UInt8[np.ndarray, "h w"]
    disease: int = IGNORE


class SkippedImage(NamedTuple):
    """An image that could not be read, and was left out or replaced by another.

    Args:
        key: Its manifest row, or its name in the table of ``predict``.
        reason: What is wrong with which file.
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
        sparse_target: uint8 ``(b, h, w)``, labels from points and scribbles, class ids or
            ``IGNORE``; ``lesion`` of such tiles is ``IGNORE``. ``None`` in a run
            without sparse masks.
        skipped: Rows that could not be read when these were sampled.
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
        """Labels from masks, points and scribbles: class ids or ``IGNORE``."""
        if self.sparse_target is None:
            return self.lesion
        return self.lesion.where(self.lesion != IGNORE, self.sparse_target)

    def select(self, which: slice) -> "Batch":
        """Return a slice of the tiles."""
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
    """Tiles without masks, each with one weak and several strong views.

    Args:
        weak: uint8 ``(b, 3, h, w)``, photometrically unchanged; input of the EMA teacher.
        strong: uint8 ``(v, b, 3, h, w)``, strongly augmented; input of the student.
        valid: bool ``(b, h, w)``, whether a pixel lies inside the image.
        disease: uint8 ``(b,)``, ``IGNORE`` for an image without an image-level label.
        keys: Manifest rows the tiles came from.
        skipped: Rows that could not be read when these were sampled.
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
        """Return a slice of the tiles."""
        return UnlabeledBatch(
            self.weak[which],
            self.strong[:, which],
            self.valid[which],
            self.disease[which],
            self.keys[which],
        )


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image, at the size of the image.

    Args:
        lesion: Most probable lesion class where the probability of any lesion is at
            least the threshold of the model, 0 elsewhere.
        lesion_probability: Probability of any lesion, in [0, 1].
        leaf_probability: Probability of leaf, in [0, 1]; ``None`` if the model was not
            trained on the leaf.
        disease_probability: One probability for each of ``ClassMap.diseases``; empty
            if the model has no image-level head.
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
