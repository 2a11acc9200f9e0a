"""Weak supervision: from image-level labels to CAM seeds, pixels that likely show a lesion.

An image labeled with a disease shows a lesion somewhere. Inside the leaf, the pixels where
the class activation map and the teacher's lesion probability are highest, however low,
become seeds of the lesion; those where they are low, and those off the leaf, become seeds
of "no lesion"; the rest is ignored. Seeds are coarse, so their precision is measured on
images whose mask is known. A disease whose seeds are wrong more often than right is left
out, and so is one without any such mask. Where a disease mottles the whole leaf no pixel
stands out, and its seeds lie on edges and shadows.

Axes: b tile, c channel, h row, w column, d image-level disease.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Integer, UInt8
from torch import Tensor
from torch.nn import functional as F

from plantseg_next.data.formats.folders import tidy_name
from plantseg_next.settings import ImageLabelSettings
from plantseg_next.structures import (
    IGNORE,
    NO_LESION,
    ClassMap,
    UnlabeledBatch,
    is_lesion,
)
from plantseg_next.training.semi_supervised.ema_teacher import EmaTeacher, TeacherPrediction

HEALTHY = ("healthy", "normal", "background")
"""Prefixes of image-level labels that mean "no lesion"; PlantVillage's copies contain
backgrounds without leaves."""
DECAY = 0.7
"""Fraction of the run over which the weight of seeds falls to 0."""
HIGH, LOW = 0.95, 0.5
"""Quantiles of the activation in the leaf: above the first a pixel is a seed of the
lesion, below the second a seed of "no lesion"."""
MIN_PRECISION = 0.5
"""Least precision, on images whose mask is known, of seeds that are learned from."""
MOMENTUM = 0.5
"""Fraction of earlier counts that a new measurement keeps: the network has changed."""


def cam_seed_classes(classes: ClassMap) -> tuple[int, ...]:
    """Return the lesion class of each disease's seeds.

    The class of the same name, or else the only lesion class; ``NO_LESION`` for healthy;
    ``IGNORE`` where the class is unknown.
    """
    seed_classes = []
    for name in classes.diseases:
        if tidy_name(name).startswith(HEALTHY):
            seed_classes.append(NO_LESION)
        elif name in classes.lesions:
            seed_classes.append(1 + classes.lesions.index(name))
        else:
            seed_classes.append(1 if len(classes.lesions) == 1 else IGNORE)
    return tuple(seed_classes)


class CamSeeds(NamedTuple):
    """What the image-level labels of tiles say of their pixels.

    Args:
        seed: uint8 ``(b, h, w)``, lesion classes; ``IGNORE`` where nothing is known.
        contradicted: bool ``(b, h, w)``, where a label contradicts the teacher.
    """

    seed: Tensor
    contradicted: Tensor

    def merge(self, lesion: UInt8[Tensor, "b h w"]) -> tuple[Tensor, Tensor]:
        """Return pseudo-labels without what is contradicted, and the seeds to learn.

        There is no seed where the teacher is confident of another class, except in
        healthy tiles.

        Args:
            lesion: Pseudo-labels, ``IGNORE`` off the confidence mask.
        """
        overruled = (lesion != IGNORE) & (lesion != self.seed)
        overruled &= ~(self.contradicted & (self.seed == NO_LESION))
        target = lesion.masked_fill(self.contradicted, IGNORE)
        return target, self.seed.masked_fill(overruled, IGNORE)


class ImageLabelSupervision:
    """Make CAM seeds, and keep running counts of their precision.

    Args:
        settings: Weight of the seeds.
        classes: Of the network.
    """

    def __init__(self, settings: ImageLabelSettings, classes: ClassMap) -> None:
        self.settings = settings
        self.names = classes.diseases
        # The last entry is for an image without an image-level label.
        table = torch.full((256,), IGNORE, dtype=torch.uint8)
        table[: len(classes.diseases)] = torch.tensor(cam_seed_classes(classes)).byte()
        self._class_of = table
        healthy = table[: len(classes.diseases)] == NO_LESION
        others = healthy if healthy.any() else torch.ones_like(healthy)
        self._against = others.float() / others.sum().clamp_min(1)
        # Pixels seeded, seeded correctly, of the true lesion.
        self._counts = torch.zeros(256, 3)

    def contrast_weights(self, device: torch.device) -> Float[Tensor, " d"]:
        """Return the classes that a CAM contrasts with: healthy, or else all others."""
        return self._against.to(device)

    @property
    def makes_cam_seeds(self) -> bool:
        """Whether seeds have a weight, and some disease has a seed class."""
        wanted = self.settings.cam_seeds > 0
        return wanted and bool((self._class_of != IGNORE).any())

    def weight(self, done: float) -> float:
        """Return the weight of the loss on seeds.

        Args:
            done: Completed fraction of the run.
        """
        return self.settings.cam_seeds * max(0.0, 1 - done / DECAY)

    def seed(
        self,
        teacher: EmaTeacher,
        views: UnlabeledBatch,
        lesion: TeacherPrediction,
        on_leaf: Bool[Tensor, "b h w"],
    ) -> CamSeeds:
        """Return the CAM seeds of tiles, of the diseases whose seeds are precise enough.

        Args:
            teacher: Whose activation maps are used.
            views: The tiles and their image-level labels.
            lesion: The teacher's prediction.
            on_leaf: Pixels of the leaf.
        """
        likely = self.likelihood(teacher, views.weak, views.disease, lesion)
        seed = self.cam_seeds(likely, on_leaf, views.valid, views.disease)
        reliable = self.reliable_classes().to(seed.device)[views.disease.long()]
        return CamSeeds(
            seed.masked_fill(~reliable[:, None, None], IGNORE),
            self.contradicts_label(lesion.label, likely, on_leaf, views.disease),
        )

    def likelihood(
        self,
        teacher: EmaTeacher,
        image: Tensor,
        disease: Tensor,
        lesion: TeacherPrediction,
    ) -> Float[Tensor, "b h w"]:
        """Return how likely each pixel shows the tile's disease, at least 0.

        The product of the image-level head's LayerCAM and the teacher's lesion
        probability.
        """
        probability = 1 - lesion.logits.float().softmax(1)[:, NO_LESION]
        cam = teacher.layer_cam(image, disease, self.contrast_weights(image.device))
        size = probability.shape[1:]
        cam = F.interpolate(cam[:, None], size, mode="bilinear", align_corners=False)[:, 0]
        return cam * probability

    def cam_seeds(
        self,
        activation: Float[Tensor, "b h w"],
        leaf: Bool[Tensor, "b h w"],
        inside: Bool[Tensor, "b h w"],
        disease: UInt8[Tensor, " b"],
    ) -> UInt8[Tensor, "b h w"]:
        """Return the seeds of tiles from their image-level labels.

        Args:
            activation: Activation map of the lesion, at least 0.
            leaf: Pixels of the leaf.
            inside: Pixels of the image, without padding.
            disease: Image-level label of each tile, ``IGNORE`` without one.

        Returns:
            A lesion class where the activation is among the highest of the leaf;
            ``NO_LESION`` off the leaf, where the activation is low, and everywhere in a
            healthy tile; ``IGNORE`` elsewhere, and everywhere in a tile without a label,
            without a leaf, or with a constant activation.
        """
        leaf = leaf & inside
        low, high = _quantiles(activation, leaf, LOW, HIGH)
        lesion_class = self._class_of.to(disease.device)[disease.long()][:, None, None]
        is_healthy = lesion_class == NO_LESION
        without_seeds = (lesion_class == IGNORE) | ~(is_healthy | (high > low))
        seeds = torch.full_like(activation, IGNORE, dtype=torch.uint8)
        seeds = seeds.masked_fill(~leaf | (activation <= low), NO_LESION)
        seeds = torch.where(leaf & (activation >= high), lesion_class, seeds)
        seeds = seeds.masked_fill(is_healthy, NO_LESION)
        return seeds.masked_fill(without_seeds | ~inside, IGNORE)

    def contradicts_label(
        self,
        label: Integer[Tensor, "b h w"],
        activation: Float[Tensor, "b h w"],
        leaf: Bool[Tensor, "b h w"],
        disease: UInt8[Tensor, " b"],
    ) -> Bool[Tensor, "b h w"]:
        """Return where an image-level label contradicts the teacher's prediction.

        In a healthy tile, every predicted lesion; in a diseased one, "no lesion" where
        the activation of a lesion is high. Otherwise the student would learn the
        teacher's false negatives.

        Args:
            label: Lesion classes predicted by the teacher.
            activation: Activation map of the lesion, at least 0.
            leaf: Pixels of the leaf.
            disease: Image-level label of each tile, ``IGNORE`` without one.
        """
        lesion_class = self._class_of.to(disease.device)[disease.long()][:, None, None]
        (low,) = _quantiles(activation, leaf, LOW)
        is_none = label == NO_LESION
        missed = (lesion_class != IGNORE) & is_none & leaf & (activation > low)
        return torch.where(lesion_class == NO_LESION, ~is_none, missed)

    def reliable_classes(self) -> Bool[Tensor, " d"]:
        """Return which diseases may be seeded, by class id; 256 of them.

        Healthy, and those whose seeds were measured and are precise enough.
        """
        seeded, right, _ = self._counts.unbind(1)
        good = (seeded > 0) & (right >= MIN_PRECISION * seeded)
        return good | (self._class_of == NO_LESION)

    def update_precision(
        self,
        cam_seeds: UInt8[Tensor, "b h w"],
        lesion: UInt8[Tensor, "b h w"],
        disease: UInt8[Tensor, " b"],
    ) -> dict[str, float]:
        """Measure seeds on tiles whose masks are known, and update the running counts.

        Args:
            cam_seeds: Of these tiles.
            lesion: Their masks.
            disease: Their image-level labels.

        Returns:
            For every disease: ``cam_seed_precision/...``, the fraction of its lesion
            seeds that are lesion in the mask, and ``cam_seed_recall/...``, the fraction
            of the lesion that is seeded; over all measurements so far, older ones with
            less weight.
        """
        seeded_lesion = is_lesion(cam_seeds) & (lesion != IGNORE)
        true_lesion = is_lesion(lesion)
        maps = torch.stack([seeded_lesion, seeded_lesion & true_lesion, true_lesion], 1)
        self._counts *= MOMENTUM
        self._counts.index_add_(0, disease.long().cpu(), maps.sum((2, 3)).float().cpu())
        metrics = {}
        for number, name in enumerate(self.names):
            seeded, right, true = self._counts[number].tolist()
            if int(self._class_of[number]) in (IGNORE, NO_LESION):
                continue
            metrics[f"cam_seed_precision/{name}"] = right / seeded if seeded else math.nan
            metrics[f"cam_seed_recall/{name}"] = right / true if true else math.nan
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Return the state to save in a checkpoint."""
        return {"counts": self._counts.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a saved state."""
        self._counts = state["counts"].clone()


def _quantiles(
    values: Float[Tensor, "b h w"], where: Bool[Tensor, "b h w"], *qs: float
) -> list[Float[Tensor, "b 1 1"]]:
    """Return quantiles of the chosen pixels of every tile; infinity where there is none.

    The other pixels are sorted last, so that no count must be copied from the device.
    """
    flat = values.masked_fill(~where, torch.inf).flatten(1).sort(1).values
    last = (where.flatten(1).sum(1) - 1).clamp_min(0)
    return [flat.gather(1, (q * last).long()[:, None])[..., None] for q in qs]
