"""Weak labels: from the name of an image to seeds, pixels that probably show it.

An image that is called ill shows a lesion somewhere. Where a classifier looks to tell it
from a healthy one, or where the teacher finds a lesion likeliest, however unlikely, is a
seed of the lesion, inside the leaf; where neither does, and off the leaf, is a seed of
none; the rest stays ignored. Seeds are coarse, so they are doubted: their precision is
measured on images whose mask is known, and a disease whose seeds are more often wrong
than right teaches none, nor does one that no mask has judged. A disease that mottles the
whole leaf has no pixel that stands out, and its seeds lie on rims and shadows.

Axes: b tile, c channel, h row, w column, d image-level disease.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Integer, UInt8
from torch import Tensor

from plantseg_next.data.formats.folders import tidy_name
from plantseg_next.settings import ImageLabelSettings
from plantseg_next.structures import IGNORE, NO_LESION, ClassMap

HEALTHY = ("healthy", "normal", "background")
"""How a name begins that says that there is no lesion; PlantVillage's copies have
backgrounds without leaves."""
BACKGROUND_PROBABILITY = 0.5
"""Chance that what lies off the leaf is painted over in a tile with a name, where the leaf
is learned: a background can tell which folder an image is from."""
DECAY = 0.7
"""Part of the run over which the weight of seeds falls to 0, as the teacher takes over."""
HIGH, LOW = 0.95, 0.5
"""Quantiles of the leaf above which a pixel is a seed of the lesion, and of no lesion
below."""
MIN_PRECISION = 0.5
"""Seeds of a disease that are less often right than this, on images whose mask is known,
are not learned from."""
MOMENTUM = 0.5
"""Share of earlier counts that one more measurement keeps: the network was another."""


def cam_seed_classes(classes: ClassMap) -> tuple[int, ...]:
    """Return the lesion class that each disease is seeded as.

    Its own where there is one of that name; the only one where there is no other choice;
    ``NO_LESION`` for healthy; ``IGNORE`` where nobody knows.
    """
    found = []
    for name in classes.diseases:
        if tidy_name(name).startswith(HEALTHY):
            found.append(NO_LESION)
        elif name in classes.lesions:
            found.append(1 + classes.lesions.index(name))
        else:
            found.append(1 if len(classes.lesions) == 1 else IGNORE)
    return tuple(found)


class ImageLabelSupervision:
    """Draw seeds, and remember how right they were.

    Args:
        settings: Weight of the seeds.
        classes: Of the network.
    """

    def __init__(self, settings: ImageLabelSettings, classes: ClassMap) -> None:
        self.settings = settings
        self.names = classes.diseases
        # The last entry is that of an image without a name.
        table = torch.full((256,), IGNORE, dtype=torch.uint8)
        table[: len(classes.diseases)] = torch.tensor(cam_seed_classes(classes)).byte()
        self._class_of = table
        healthy = table[: len(classes.diseases)] == NO_LESION
        others = healthy if healthy.any() else torch.ones_like(healthy)
        self._against = others.float() / others.sum().clamp_min(1)
        self._counts = torch.zeros(256, 3)  # seeded, of these right, true lesion found

    def contrast_weights(self, device: torch.device) -> Float[Tensor, " d"]:
        """Return what a disease is told from: healthy, or else all others alike."""
        return self._against.to(device)

    @property
    def makes_cam_seeds(self) -> bool:
        """Whether seeds are wanted, and some disease can have them."""
        wanted = self.settings.cam_seeds > 0
        return wanted and bool((self._class_of != IGNORE).any())

    def weight(self, done: float) -> float:
        """Return what seeds are worth beside the teacher's word.

        Args:
            done: Part of the run that lies behind.
        """
        return self.settings.cam_seeds * max(0.0, 1 - done / DECAY)

    def cam_seeds(
        self,
        activation: Float[Tensor, "b h w"],
        leaf: Bool[Tensor, "b h w"],
        inside: Bool[Tensor, "b h w"],
        disease: UInt8[Tensor, " b"],
    ) -> UInt8[Tensor, "b h w"]:
        """Return the seeds of tiles by their names.

        Args:
            activation: Where the lesion may be, at least 0.
            leaf: Where the leaf is.
            inside: Where the image is.
            disease: ``IGNORE`` of a tile without a name.

        Returns:
            A lesion class where the activation is among the highest of the leaf;
            ``NO_LESION`` off the leaf, where it is low, and all over a healthy tile;
            ``IGNORE`` elsewhere, and all over a tile without a name, one that shows no
            leaf, or one of which no part stands out.
        """
        leaf = leaf & inside
        low, high = _quantiles(activation, leaf, LOW, HIGH)
        kind = self._class_of.to(disease.device)[disease.long()][:, None, None]
        is_healthy = kind == NO_LESION
        says_nothing = (kind == IGNORE) | ~(is_healthy | (high > low))
        found = torch.full_like(activation, IGNORE, dtype=torch.uint8)
        found = found.masked_fill(~leaf | (activation <= low), NO_LESION)
        found = torch.where(leaf & (activation >= high), kind, found)
        found = found.masked_fill(is_healthy, NO_LESION)
        return found.masked_fill(says_nothing | ~inside, IGNORE)

    def contradicts_label(
        self,
        label: Integer[Tensor, "b h w"],
        activation: Float[Tensor, "b h w"],
        leaf: Bool[Tensor, "b h w"],
        disease: UInt8[Tensor, " b"],
    ) -> Bool[Tensor, "b h w"]:
        """Return where the name of a tile denies what the teacher says of it.

        Every lesion on a healthy one; "no lesion" where one may be, on one that is ill.
        A teacher that overlooks what it was not shown would else be confirmed in it.

        Args:
            label: Lesion classes, as the teacher says.
            activation: Where the lesion may be, at least 0.
            leaf: Where the leaf is.
            disease: ``IGNORE`` of a tile without a name.
        """
        kind = self._class_of.to(disease.device)[disease.long()][:, None, None]
        (low,) = _quantiles(activation, leaf, LOW)
        says_none = label == NO_LESION
        overlooked = (kind != IGNORE) & says_none & leaf & (activation > low)
        return torch.where(kind == NO_LESION, ~says_none, overlooked)

    def reliable_classes(self) -> Bool[Tensor, " d"]:
        """Return which diseases may be seeded, by number; 256 of them.

        Those that masks have judged and found right often enough, and healthy.
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
        """Measure seeds on tiles whose masks are known, and remember it.

        Args:
            cam_seeds: Of these tiles.
            lesion: Their masks.
            disease: Their names.

        Returns:
            Of every disease there: ``cam_seed_precision/...``, the share of its lesion
            seeds that are lesion in the mask, and ``cam_seed_recall/...``, the share of
            the lesion that is seeded; over all measurements so far, older ones counting
            less.
        """
        known = lesion != IGNORE
        claimed = (cam_seeds != IGNORE) & (cam_seeds != NO_LESION) & known
        truly = known & (lesion != NO_LESION)
        counts = torch.stack([claimed, claimed & truly, truly], 1).sum((2, 3)).float()
        self._counts *= MOMENTUM
        self._counts.index_add_(0, disease.long().cpu(), counts.cpu())
        metrics = {}
        for number, name in enumerate(self.names):
            seeded, right, true = self._counts[number].tolist()
            if int(self._class_of[number]) in (IGNORE, NO_LESION):
                continue
            metrics[f"cam_seed_precision/{name}"] = right / seeded if seeded else math.nan
            metrics[f"cam_seed_recall/{name}"] = right / true if true else math.nan
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold."""
        return {"counts": self._counts.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the memory whose state it is."""
        self._counts = state["counts"].clone()


def _quantiles(
    values: Float[Tensor, "b h w"], where: Bool[Tensor, "b h w"], *qs: float
) -> list[Float[Tensor, "b 1 1"]]:
    """Return quantiles of the chosen pixels of every tile; infinity where there is none.

    Sorted with the others last, so that no count is asked of the device.
    """
    flat = values.masked_fill(~where, torch.inf).flatten(1).sort(1).values
    last = (where.flatten(1).sum(1) - 1).clamp_min(0)
    return [flat.gather(1, (q * last).long()[:, None])[..., None] for q in qs]
