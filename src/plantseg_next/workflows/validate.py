"""Validation during a run: on masks, on hidden masks, and on images without masks."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from plantseg_next.data.image_io import load_sample
from plantseg_next.data.manifest import Manifest
from plantseg_next.evaluation.grouped import GroupedMetrics
from plantseg_next.evaluation.metrics import Confusion, LeafOverlap, Overlap
from plantseg_next.inference.predictor import TILES_AT_ONCE, Predictor
from plantseg_next.models.bundle import ModelCard
from plantseg_next.runtime import Device
from plantseg_next.settings import Settings
from plantseg_next.structures import SkippedImage
from plantseg_next.workflows.images import read_each, refuse_unreadable

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.data import Dataset

    from plantseg_next.structures import Batch, UnlabeledBatch
    from plantseg_next.training.callbacks.callback import Event, Validation
    from plantseg_next.training.semi_supervised.pseudo_labels import PseudoLabeler

VALIDATION_RESAMPLES = 200
"""For the interval of a validation, which is a sign of its noise and no result."""
EVALUATED_TILES = 16
EVALUATED_TILES_WITH_LABELS = 64
"""Enough tiles for most diseases, sampled equally often: a disease without a tile here
gets no CAM seeds."""


@dataclass(frozen=True)
class PseudoLabelValidation:
    """What a semi-supervised run is validated on beside masks.

    Args:
        pseudo_labeler: Makes pseudo-labels.
        hidden: Tiles whose masks exist and are not learned from.
        views: Tiles of data sets without masks, by name; see ``views_without_masks``.
    """

    pseudo_labeler: "PseudoLabeler"
    hidden: "Batch"
    views: Mapping[str, "Dataset[UnlabeledBatch]"]


@dataclass(eq=False)
class Validator:
    """Compute the validation metrics of a network, and the precision of pseudo-labels.

    Args:
        chosen: Images with masks to validate on.
        card: Card of the model: classes, tile size and image size.
        device: Device to predict on.
        student: The network in training.
        pseudo_labels: What pseudo-labels are validated on, in a semi-supervised run.
    """

    chosen: Manifest
    card: ModelCard
    device: Device
    student: "nn.Module"
    pseudo_labels: PseudoLabelValidation | None = None
    _at_once: int = field(default=TILES_AT_ONCE, init=False)

    def __call__(self, network: "nn.Module") -> "Validation":
        """Return the metrics of the network in its present state.

        Raises:
            TrainingError: If memory is too small for one tile.
        """
        from plantseg_next.training.oom import retry_with_smaller_batch

        oom_events: list[Event] = []
        result, self._at_once = retry_with_smaller_batch(
            lambda at_once: self._validate(network, at_once),
            self._at_once,
            what="a validation",
            emit=oom_events.append,
        )
        return replace(result, events=(*oom_events, *result.events))

    def _validate(self, network: "nn.Module", at_once: int) -> "Validation":
        from plantseg_next.inference.predictor import make_predictor
        from plantseg_next.training.callbacks.diagnostics import (
            inconsistent_predictions,
            non_plant_images,
            teacher_drift,
            unreliable_cam_seeds,
        )
        from plantseg_next.training.engine import to_device
        from plantseg_next.training.semi_supervised.image_labels import MIN_PRECISION
        from plantseg_next.training.semi_supervised.pseudo_label_metrics import (
            pseudo_label_metrics,
        )
        from plantseg_next.training.semi_supervised.unlabeled_metrics import (
            unlabeled_set_metrics,
        )

        device, home = (next(n.parameters()).device for n in (self.student, network))
        network.to(device)  # the EMA teacher may be offloaded to the CPU
        try:
            predictor = make_predictor(
                network, self.card, self.device.kind, tiles_at_once=at_once
            )
            result = validate(predictor, self.chosen)
            if (on := self.pseudo_labels) is None:
                return result
            hidden = to_device(on.hidden, device)
            extra_metrics = pseudo_label_metrics(
                on.pseudo_labeler, self.student, hidden, at_once=2 * at_once
            )
            extra_metrics |= unlabeled_set_metrics(
                network.eval(), on.views, at_once=2 * at_once
            )
        finally:
            network.to(home)
        events = (
            *result.events,
            *teacher_drift(extra_metrics),
            *non_plant_images(extra_metrics),
            *inconsistent_predictions(extra_metrics),
            *unreliable_cam_seeds(extra_metrics, MIN_PRECISION),
        )
        return replace(result, extra_metrics=extra_metrics, events=events)


def some_rows(manifest: Manifest, n: int, seed: int) -> Manifest:
    """Return at most ``n`` rows, chosen by the seed."""
    order = np.random.default_rng(seed).permutation(len(manifest))[:n]
    return manifest.only(manifest.rows[i] for i in sorted(order))


def validate(predictor: Predictor, manifest: Manifest) -> "Validation":
    """Return the validation metrics of a predictor.

    They are lesion Dice, IoU over diseases if there are several, and leaf IoU. A metric is
    left out where the masks hold nothing of it: without a lesion in any mask there is no
    Dice, and an event states it. The monitored metric is the mean of the others; without
    any it is 0 at every validation, so that the newest model counts as the best. An image
    that cannot be read is skipped, with an event.

    Raises:
        DataError: If no image can be read.
    """
    from plantseg_next.training.callbacks.callback import Event, Validation
    from plantseg_next.training.callbacks.diagnostics import no_lesion_found, no_true_lesion

    classes = manifest.classes
    n = classes.n_lesion_logits
    confusion = Confusion(n)
    groups = GroupedMetrics(lambda: {"lesion": Overlap(n), "leaf": LeafOverlap()})
    skipped: list[SkippedImage] = []
    read = partial(load_sample, manifest=manifest)
    for row, truth in read_each(manifest, read, skipped=skipped):
        prediction = predictor(truth.image)
        confusion.update(truth, prediction)
        groups.update(row.group_key, truth, prediction)
    refuse_unreadable(manifest, skipped)
    scores = groups.compute(n_resamples=VALIDATION_RESAMPLES)
    total = groups.total()
    n_images = total["lesion"].n_images
    has_lesion = bool(confusion.counts[1:].any())
    has_leaf = bool(total["leaf"].counts[1])
    names = ["lesion_dice", *(["disease_miou"] if n > 2 else [])] if has_lesion else []
    names += ["leaf_iou"] if has_leaf else []
    metrics = {name: scores[name].value for name in names}
    score = sum(metrics.values()) / max(len(metrics), 1)  # severity depends on both heads
    unreadable = (
        Event("unreadable-image", f"{image.reason} It is not validated on.")
        for image in skipped
    )
    no_dice = [] if has_lesion else [no_true_lesion(n_images, with_leaf=has_leaf)]
    dice = scores["lesion_dice"] if has_lesion else None
    return Validation(
        score,
        metrics,
        events=(*unreadable, *no_dice, *no_lesion_found(confusion.counts, classes.lesions)),
        n_images=n_images,
        lesion_dice_low=dice.low if dice else math.nan,
        lesion_dice_high=dice.high if dice else math.nan,
    )


def hidden_tiles(
    manifest: Manifest,
    settings: Settings,
    pixels: Sequence[int],
    *,
    with_image_labels: bool,
) -> "Batch":
    """Return tiles to validate pseudo-labels on: with masks that training does not use.

    Where no mask is hidden, tiles of the validation split are used: the run does not learn
    from them either.

    Args:
        manifest: Every image, in its split.
        settings: Settings of the run.
        pixels: Labeled pixels of each lesion class, "no lesion" first.
        with_image_labels: Whether image-level labels are learned from, and validated too.
    """
    from plantseg_next.data.augment import UNCHANGED
    from plantseg_next.data.dataset import TileDataset, collate

    hidden = manifest.split("unlabeled").labeled
    tiles = TileDataset(
        hidden if len(hidden) else manifest.split("val").labeled,
        settings.data.model_copy(update={"balance": 1.0})
        if with_image_labels
        else settings.data,
        seed=settings.seed,
        pixels=pixels,
        photometry=UNCHANGED,
    )
    n = EVALUATED_TILES_WITH_LABELS if with_image_labels else EVALUATED_TILES
    return collate([tiles[i] for i in range(n)])


def views_without_masks(
    learned: Manifest, unlabeled: Manifest, settings: Settings, pixels: Sequence[int]
) -> dict[str, "Dataset[UnlabeledBatch]"]:
    """Return tiles of every data set without a training mask, by its name.

    For comparison, the labeled tiles are among them.
    """
    from plantseg_next.data.augment import strong_photometry
    from plantseg_next.data.dataset import TileDataset, ViewDataset
    from plantseg_next.training.callbacks.diagnostics import SOURCE_DOMAIN

    known = {row.source for row in learned.rows}
    without_masks = {
        source: tuple(row for row in unlabeled.rows if row.source == source)
        for source in dict.fromkeys(row.source for row in unlabeled.rows)
        if source not in known
    }
    if without_masks:
        without_masks[SOURCE_DOMAIN] = learned.rows
    data = settings.data.model_copy(
        update={"cache_mib": 0.0}
    )  # these tiles are seldom read
    return {
        name: ViewDataset(
            TileDataset(
                learned.only(replace(row, mask=None, disease=None) for row in rows),
                data,
                seed=settings.seed,
                pixels=pixels,
            ),
            n_strong=1,
            strong=strong_photometry(settings.semi.strong_aug),
        )
        for name, rows in without_masks.items()
    }
