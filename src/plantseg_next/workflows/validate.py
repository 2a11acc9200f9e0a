"""How a run is judged while it goes: by masks, by hidden masks, and without any."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from plantseg_next.data.manifest import Manifest
from plantseg_next.inference.predictor import TILES_AT_ONCE
from plantseg_next.models.bundle import ModelCard
from plantseg_next.runtime import Device
from plantseg_next.settings import Settings
from plantseg_next.workflows.evaluate import validate

if TYPE_CHECKING:
    from torch import nn

    from plantseg_next.structures import Batch
    from plantseg_next.training.callbacks.callback import Event, Validation
    from plantseg_next.training.semi_supervised.pseudo_labels import PseudoLabeler
    from plantseg_next.training.semi_supervised.unlabeled_metrics import UnlabeledSetMetrics

EVALUATED_TILES = 16
EVALUATED_TILES_WITH_LABELS = 64
"""Enough to hold most diseases, each drawn as often as any: what is not among them has no
seeds."""


class Validator:
    """Say how good a network is, and how far its teacher is to be believed.

    Args:
        chosen: Images with masks to judge by.
        card: How the network predicts.
        device: Where.
        student: The network in training.
        lessons: What it learns beside masks, if anything.
        hidden: Tiles whose masks exist and are not learned from.
        domains: What the network is asked of images without masks.
    """

    def __init__(
        self,
        chosen: Manifest,
        card: ModelCard,
        device: Device,
        *,
        student: "nn.Module",
        pseudo_labeler: "PseudoLabeler | None" = None,
        hidden: "Batch | None" = None,
        unlabeled_metrics: "UnlabeledSetMetrics | None" = None,
    ) -> None:
        self._chosen = chosen
        self._card = card
        self._device = device
        self._student = student
        self._pseudo_labeler = pseudo_labeler
        self._hidden = hidden
        self._unlabeled_metrics = unlabeled_metrics
        self._at_once = TILES_AT_ONCE

    def __call__(self, network: "nn.Module") -> "Validation":
        """Return the figures of the network as it stands.

        Raises:
            TrainingError: If memory is too small for one tile.
        """
        from plantseg_next.training.oom import retry_with_smaller_batch

        shrunk: list[Event] = []
        found, self._at_once = retry_with_smaller_batch(
            lambda at_once: self._judge(network, at_once),
            self._at_once,
            what="a validation",
            emit=shrunk.append,
        )
        return replace(found, events=(*shrunk, *found.events))

    def _judge(self, network: "nn.Module", at_once: int) -> "Validation":
        from plantseg_next.inference.predictor import make_predictor
        from plantseg_next.training.callbacks.diagnostics import (
            few_right_pseudo_labels,
            inconsistent_predictions,
            non_plant_images,
            unreliable_cam_seeds,
        )
        from plantseg_next.training.engine import batch_to_device
        from plantseg_next.training.semi_supervised.image_labels import MIN_PRECISION

        place, home = (next(n.parameters()).device for n in (self._student, network))
        network.to(place)  # a teacher may wait elsewhere
        try:
            predictor = make_predictor(
                network, self._card, self._device.kind, tiles_at_once=at_once
            )
            found = validate(predictor, self._chosen)
            if (
                self._pseudo_labeler is None
                or self._hidden is None
                or self._unlabeled_metrics is None
            ):
                return found
            hidden = batch_to_device(self._hidden, place)
            extra_metrics = self._pseudo_labeler.evaluate(
                self._student, hidden, at_once=2 * at_once
            )
            extra_metrics |= self._unlabeled_metrics(network.eval(), at_once=2 * at_once)
        finally:
            network.to(home)
        events = (
            *found.events,
            *few_right_pseudo_labels(extra_metrics),
            *non_plant_images(extra_metrics),
            *inconsistent_predictions(extra_metrics),
            *unreliable_cam_seeds(extra_metrics, MIN_PRECISION),
        )
        return replace(found, extra_metrics=extra_metrics, events=events)


def hidden_tiles(
    manifest: Manifest,
    settings: Settings,
    pixels: Sequence[int],
    *,
    with_image_labels: bool,
) -> "Batch | None":
    """Return tiles to check the teacher by: their masks exist, but the run hides them.

    Where no mask is hidden, those of the validation split serve: the run does not learn
    from them either.

    Args:
        manifest: Every image, in its split.
        settings: How tiles are cut.
        pixels: Labeled pixels of each lesion class, "no lesion" first.
        with_image_labels: Whether image-level labels are learned from, and checked too.
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


def unlabeled_set_metrics(
    learned: Manifest, unlabeled: Manifest, settings: Settings, pixels: Sequence[int]
) -> "UnlabeledSetMetrics":
    """Return what is asked of every data set without a single mask to learn from.

    And, to compare, of the labeled tiles.
    """
    from plantseg_next.data.augment import strong_photometry
    from plantseg_next.data.dataset import TileDataset, ViewDataset
    from plantseg_next.training.callbacks.diagnostics import SOURCE_DOMAIN
    from plantseg_next.training.semi_supervised.unlabeled_metrics import (
        TILES,
        UnlabeledSetMetrics,
    )

    known = {row.source for row in learned.rows}
    bare = {
        source: tuple(row for row in unlabeled.rows if row.source == source)
        for source in dict.fromkeys(row.source for row in unlabeled.rows)
        if source not in known
    }
    if bare:
        bare[SOURCE_DOMAIN] = learned.rows
    data = settings.data.model_copy(update={"cache_mib": 0.0})  # they are seldom needed
    views = {
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
        for name, rows in bare.items()
    }
    return UnlabeledSetMetrics(views, visits=TILES)
