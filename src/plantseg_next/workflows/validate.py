"""How a run is judged while it goes: by masks, by hidden masks, and without any."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from plantseg_next.data.manifest import Manifest
from plantseg_next.inference.predictor import TILES_AT_ONCE
from plantseg_next.models.bundle import Card
from plantseg_next.runtime import Device
from plantseg_next.settings import Experiment
from plantseg_next.workflows.evaluate import validate

if TYPE_CHECKING:
    from torch import nn

    from plantseg_next.structures import Batch
    from plantseg_next.training.callbacks.callback import Event, Validation
    from plantseg_next.training.semi_supervised.pseudo_labels import Lessons
    from plantseg_next.training.semi_supervised.unlabeled_metrics import Domains

AUDITED_TILES = 16
AUDITED_TILES_WITH_NAMES = 64
"""Enough to hold most diseases, each drawn as often as any: what is not among them has no
seeds."""


class Judge:
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
        card: Card,
        device: Device,
        *,
        student: "nn.Module",
        lessons: "Lessons | None" = None,
        hidden: "Batch | None" = None,
        domains: "Domains | None" = None,
    ) -> None:
        self._chosen = chosen
        self._card = card
        self._device = device
        self._student = student
        self._lessons = lessons
        self._hidden = hidden
        self._domains = domains
        self._at_once = TILES_AT_ONCE

    def __call__(self, network: "nn.Module") -> "Validation":
        """Return the figures of the network as it stands.

        Raises:
            TrainingError: If memory is too small for one tile.
        """
        from plantseg_next.training.oom import within_memory

        shrunk: list[Event] = []
        found, self._at_once = within_memory(
            lambda at_once: self._judge(network, at_once),
            self._at_once,
            what="a validation",
            tell=shrunk.append,
        )
        return replace(found, events=(*shrunk, *found.events))

    def _judge(self, network: "nn.Module", at_once: int) -> "Validation":
        from plantseg_next.inference.predictor import make_predictor
        from plantseg_next.training.callbacks.diagnostics import (
            doubtful_seeds,
            drift,
            strangers,
            unsteady,
        )
        from plantseg_next.training.engine import batch_to_device
        from plantseg_next.training.semi_supervised.image_labels import LEAST_PRECISION

        place, home = (next(n.parameters()).device for n in (self._student, network))
        network.to(place)  # a teacher may wait elsewhere
        try:
            predictor = make_predictor(
                network, self._card, self._device.kind, tiles_at_once=at_once
            )
            found = validate(predictor, self._chosen)
            if self._lessons is None or self._hidden is None or self._domains is None:
                return found
            hidden = batch_to_device(self._hidden, place)
            details = self._lessons.audit(self._student, hidden, at_once=2 * at_once)
            details |= self._domains(network.eval(), at_once=2 * at_once)
        finally:
            network.to(home)
        events = (
            *found.events,
            *drift(details),
            *strangers(details),
            *unsteady(details),
            *doubtful_seeds(details, LEAST_PRECISION),
        )
        return replace(found, details=details, events=events)


def hidden_tiles(
    manifest: Manifest, settings: Experiment, pixels: Sequence[int], *, with_names: bool
) -> "Batch | None":
    """Return tiles to check the teacher by: their masks exist, but the run hides them.

    Where no mask is hidden, those of the validation split serve: the run does not learn
    from them either.

    Args:
        manifest: Every image, in its split.
        settings: How tiles are cut.
        pixels: Labeled pixels of each lesion class, "no lesion" first.
        with_names: Whether the names of images are learned from, and checked too.
    """
    from plantseg_next.data.augment import UNCHANGED
    from plantseg_next.data.dataset import TileDataset, collate

    hidden = manifest.split("unlabeled").labeled
    tiles = TileDataset(
        hidden if len(hidden) else manifest.split("val").labeled,
        settings.data.model_copy(update={"balance": 1.0}) if with_names else settings.data,
        seed=settings.seed,
        pixels=pixels,
        photometry=UNCHANGED,
    )
    n = AUDITED_TILES_WITH_NAMES if with_names else AUDITED_TILES
    return collate([tiles[i] for i in range(n)])


def domains_of(
    learned: Manifest, unlabeled: Manifest, settings: Experiment, pixels: Sequence[int]
) -> "Domains":
    """Return what is asked of every data set without a single mask to learn from.

    And, to compare, of the labeled tiles.
    """
    from plantseg_next.data.augment import strong_light
    from plantseg_next.data.dataset import TileDataset, ViewDataset
    from plantseg_next.training.callbacks.diagnostics import HOME
    from plantseg_next.training.semi_supervised.unlabeled_metrics import TILES, Domains

    known = {row.source for row in learned.rows}
    bare = {
        source: tuple(row for row in unlabeled.rows if row.source == source)
        for source in dict.fromkeys(row.source for row in unlabeled.rows)
        if source not in known
    }
    if bare:
        bare[HOME] = learned.rows
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
            strong=strong_light(settings.unlabeled.light),
        )
        for name, rows in bare.items()
    }
    return Domains(views, visits=TILES)
