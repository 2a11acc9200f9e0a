"""Lessons: what a slow teacher makes of tiles without labels."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plantseg_next.data.dataset import TrainBatch, collate
from plantseg_next.models.segmenter import LEAF_LOGITS, Scores
from plantseg_next.settings import SemiSettings
from plantseg_next.structures import IGNORE, NO_LESION, Batch, ClassMap, UnlabeledBatch
from plantseg_next.training.schedule import ramp_up
from plantseg_next.training.semi_supervised.confidence import (
    ConfidenceMask,
    ConfidenceStats,
    TeacherPrediction,
)
from plantseg_next.training.semi_supervised.ema_teacher import EmaTeacher
from plantseg_next.training.semi_supervised.image_labels import (
    BACKGROUND_PROBABILITY,
    ImageLabelSupervision,
)
from plantseg_next.training.semi_supervised.mixing import (
    cut_mix,
    paint_background,
    sample_boxes,
)
from plantseg_next.training.semi_supervised.pseudo_labeled_batch import PseudoLabeledBatch

DROPOUT_PASSES = 4
CALIBRATE_EVERY = 20
"""Steps between two looks of the teacher at labeled tiles."""


class _TileTargets(NamedTuple):
    """What the teacher says of part of a step, before it is known what to believe.

    Args:
        lesion: Weighed.
        leaf: The same; ``None`` where no leaf is known.
        scores: Its logits, where the method wants them.
        cam_seed: uint8 ``(b, h, w)``, lesion classes by the name alone, where there are
            names.
        contradicted: bool ``(b, h, w)``, where the name denies what it says; likewise.
    """

    lesion: ConfidenceStats
    leaf: ConfidenceStats | None
    scores: Scores | None
    cam_seed: Tensor | None
    contradicted: Tensor | None


class PseudoLabeler:
    """Turn unlabeled tiles into labeled ones, as far as the teacher is to be believed.

    Args:
        teacher: Follows the student.
        settings: Method, gates and mixes.
        classes: Of the network.
        image_labels: What names say of pixels, where images have names.
    """

    def __init__(
        self,
        teacher: EmaTeacher,
        settings: SemiSettings,
        classes: ClassMap,
        image_labels: ImageLabelSupervision | None = None,
    ) -> None:
        self.teacher = teacher
        self.settings = settings
        self.image_labels = image_labels
        self.weight: float | None = None
        self.disease_weight = self.cam_seed_weight = 0.0
        self._started: float | None = None
        self._classes = classes
        self._pixel_counts = torch.zeros(
            3, dtype=torch.long
        )  # pixels seen, believed, lesion
        self._lesion_mask, self._leaf_mask = (
            ConfidenceMask(
                settings.confidence,
                threshold=settings.threshold,
                n_classes=n,
                adaptive=settings.adaptive_threshold,
            )
            for n in (classes.n_lesion_logits, LEAF_LOGITS)
        )

    def begin_step(
        self, step: int, steps: int, micro_batches: Sequence[TrainBatch], *, profile: bool
    ) -> None:
        """Set the weights of the lessons for this step; ``None`` while there are none.

        Now and then the teacher looks at labeled tiles: lessons begin when it finds a
        lesion there, and its ranks are learned from what it says of them.

        Args:
            step: Steps already taken.
            steps: Steps of the run.
            micro_batches: What the step learns from.
            profile: Whether to give a lesson that counts for nothing, while steps are
                timed: the run is planned by what a step will cost.
        """
        self.weight = None
        self.disease_weight = self.cam_seed_weight = 0.0
        if self.settings.consistency_weight == 0:
            return
        if profile:
            self.weight = 0.0
        done = step / max(steps, 1)
        waits = self._started is None and done >= self.settings.warmup_fraction
        if waits or (self._lesion_mask.needs_ranks and step % CALIBRATE_EVERY == 0):
            found = self._calibrate([one.labeled for one in micro_batches])
            if waits and found:
                self._started = done
        if self._started is not None:
            ramp = max(self.settings.rampup_fraction, 1e-6)
            self.weight = self.settings.consistency_weight * ramp_up(
                (done - self._started) / ramp
            )
            self.disease_weight = 1.0
            self.cam_seed_weight = (
                0.0 if self.image_labels is None else self.image_labels.weight(done)
            )

    def make_targets(self, micro_batches: Sequence[TrainBatch]) -> list[PseudoLabeledBatch]:
        """Return the student's tiles, labeled by the teacher, by micro-batch.

        Tiles are mixed across the whole step, so that a micro-batch of one tile has
        partners too. With two strong views, the second half of a micro-batch shows the
        tiles of the first under another light and another mix.
        """
        views = [one.unlabeled for one in micro_batches if one.unlabeled is not None]
        with self.teacher.on_device(views[0].weak.device):
            tile_targets = [self._tile_targets(one) for one in views]
        said = self._pseudo_labeled(views, tile_targets)
        mixed = [
            self._mix(
                PseudoLabeledBatch.joined(
                    [
                        replace(labels, image=one.strong[i])
                        for labels, one in zip(said, views, strict=True)
                    ]
                )
            )
            for i in range(len(views[0].strong))
        ]
        pseudo_labeled, first = [], 0
        for one in views:
            mine = slice(first, first + len(one.weak))
            pseudo_labeled.append(
                PseudoLabeledBatch.joined([tiles.select(mine) for tiles in mixed])
            )
            first = mine.stop
        return pseudo_labeled

    def _tile_targets(self, views: UnlabeledBatch) -> _TileTargets:
        """Ask the teacher about weak views."""
        scores, lesion, leaf = self._teacher_predictions(views.weak)
        weak, seed, denied = self.image_labels, None, None
        if weak is not None and weak.makes_cam_seeds:
            where = self._lesion_likelihood(weak, views.weak, views.disease, lesion)
            on_leaf = self._on_leaf(leaf, views.valid)
            seed = weak.cam_seeds(where, on_leaf, views.valid, views.disease)
            denied = weak.contradicts_label(lesion.label, where, on_leaf, views.disease)
            trusted = weak.reliable_classes().to(seed.device)[views.disease.long()]
            seed = seed.masked_fill(~trusted[:, None, None], IGNORE)
        return _TileTargets(
            self._lesion_mask.stats(lesion, views.valid),
            self._leaf_mask.stats(leaf, views.valid) if self._classes.has_leaf else None,
            scores if self.settings.method == "mean_teacher" else None,
            seed,
            denied,
        )

    def _pseudo_labeled(
        self, views: Sequence[UnlabeledBatch], tile_targets: Sequence[_TileTargets]
    ) -> list[PseudoLabeledBatch]:
        """Return the weak views of a whole step with what is believed of them."""
        lesions = self._labels(self._lesion_mask, [one.lesion for one in tile_targets])
        leaves = self._labels(
            self._leaf_mask, [one.leaf for one in tile_targets if one.leaf is not None]
        )
        pseudo_labeled = []
        for one, says, lesion in zip(views, tile_targets, lesions, strict=True):
            sure = lesion != IGNORE
            seed, denied = says.cam_seed, says.contradicted
            if seed is not None:
                # Where the teacher is sure of something else, there is no seed.
                other = sure & (lesion != seed)
                if denied is not None:
                    other &= ~(denied & (seed == NO_LESION))  # but healthy is healthy
                seed = seed.masked_fill(other, IGNORE)
            if denied is not None:
                sure &= ~denied
            trusted = lesion.masked_fill(~sure, IGNORE)
            self._pixel_counts = self._pixel_counts.to(sure.device) + torch.stack(
                [one.valid.sum(), sure.sum(), (sure & (lesion != NO_LESION)).sum()]
            )
            pseudo_labeled.append(
                PseudoLabeledBatch(
                    one.weak,
                    trusted,
                    next(leaves, torch.full_like(trusted, IGNORE)),
                    one.valid,
                    says.scores,
                    None if self.image_labels is None else one.disease,
                    seed,
                )
            )
        return pseudo_labeled

    def _labels(
        self, confidence_mask: ConfidenceMask, stats: Sequence[ConfidenceStats]
    ) -> Iterator[Tensor]:
        """Yield the labels that pass the mask, whose thresholds are updated first."""
        if not stats:
            return
        confidence_mask.update(stats)
        for part, sure in zip(stats, confidence_mask.mask(stats), strict=True):
            yield part.label.masked_fill(~sure, IGNORE)

    def _lesion_likelihood(
        self,
        weak: ImageLabelSupervision,
        image: Tensor,
        disease: Tensor,
        lesion: TeacherPrediction,
    ) -> Tensor:
        """Return where what a tile is called may show.

        Where the image-level head looks (LayerCAM), and the teacher finds a lesion
        likeliest.
        """
        likely = 1 - lesion.logits.float().softmax(1)[:, NO_LESION]
        seen = self.teacher.layer_cam(image, disease, weak.contrast_weights(image.device))
        seen = F.interpolate(
            seen[:, None], likely.shape[1:], mode="bilinear", align_corners=False
        )[:, 0]
        return seen * likely

    def _on_leaf(self, leaf: TeacherPrediction, inside: Tensor) -> Tensor:
        return (leaf.label == 1) & inside if self._classes.has_leaf else inside

    def evaluate(
        self, student: nn.Module, hidden: Batch, *, at_once: int = 16
    ) -> dict[str, float]:
        """Return how much of the teacher's word is believed, and how right that is.

        Args:
            student: Whose scores are compared with the teacher's.
            hidden: Tiles whose masks the run does not learn from.
            at_once: Tiles that either of them looks at at once.

        Returns:
            Of each class and of "no lesion": ``pl_coverage/...``, the share of the pixels
            that the teacher calls so which pass the gate, and ``pl_precision/...``, the
            share of those that are what it says. ``student_teacher_dice``, the Dice
            overlap of the student's lesions with the teacher's. Of the tiles without
            labels since the last audit: ``pl_mask_ratio``, the share of the pixels that
            was believed, and ``pl_lesion_ratio``, the share that was believed to be
            lesion. How right seeds are, see ``WeakLabels.judge``. All in [0, 1], NaN
            where there is nothing to divide by.
        """
        images = torch.split(hidden.image, at_once)
        said = [self._teacher_predictions(image)[1:] for image in images]
        prediction = TeacherPrediction.joined([lesion for lesion, _ in said])
        known = hidden.lesion != IGNORE
        (sure,) = self._lesion_mask.mask([self._lesion_mask.stats(prediction, known)])
        label = prediction.label
        metrics: dict[str, float] = {}
        for c, name in enumerate(("no lesion", *self._classes.lesions)):
            mine = label == c
            right = sure & mine & (label == hidden.lesion)
            metrics[f"pl_coverage/{name}"] = _ratio(sure & mine, mine & known)
            metrics[f"pl_precision/{name}"] = _ratio(right, sure & mine)
        with torch.no_grad():
            was_training = student.training
            student.eval()
            mine = torch.cat(
                [
                    student(image).resized(label.shape[1:]).lesion.argmax(1) != NO_LESION
                    for image in images
                ]
            )
            student.train(was_training)
        its = label != NO_LESION
        both = (mine & its & known).sum() * 2
        either = (mine & known).sum() + (its & known).sum()
        metrics["student_teacher_dice"] = float(both / either) if either else math.nan
        n, trusted, lesion = self._pixel_counts.tolist()
        metrics["pl_mask_ratio"] = trusted / n if n else math.nan
        metrics["pl_lesion_ratio"] = lesion / n if n else math.nan
        self._pixel_counts.zero_()
        if self.image_labels is not None and self.image_labels.makes_cam_seeds:
            names = torch.split(hidden.disease, at_once)
            known_ = torch.split(known, at_once)
            seeds = [
                self.image_labels.cam_seeds(
                    self._lesion_likelihood(self.image_labels, image, name, lesion),
                    self._on_leaf(leaf, inside),
                    inside,
                    name,
                )
                for image, inside, name, (lesion, leaf) in zip(
                    images, known_, names, said, strict=True
                )
            ]
            metrics |= self.image_labels.update_precision(
                torch.cat(seeds), hidden.lesion, hidden.disease
            )
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold."""
        return {"teacher": self.teacher.state_dict(), "memory": self.light_state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on as the lessons whose state it is."""
        self.teacher.load_state_dict(state["teacher"])
        self.load_light_state_dict(state["memory"])

    def light_state_dict(self) -> dict[str, Any]:
        """Return the state without the teacher: little enough to copy at every step."""
        return {
            "lesion_gate": self._lesion_mask.state_dict(),
            "leaf_gate": self._leaf_mask.state_dict(),
            "begun": self._started,
            "pl_mask_ratio": self._pixel_counts.clone(),
            "weak": None if self.image_labels is None else self.image_labels.state_dict(),
        }

    def load_light_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to an earlier ``memory``."""
        self._lesion_mask.load_state_dict(state["lesion_gate"])
        self._leaf_mask.load_state_dict(state["leaf_gate"])
        self._started = state["begun"]
        self._pixel_counts = state["pl_mask_ratio"].clone()
        if self.image_labels is not None:
            self.image_labels.load_state_dict(state["weak"])

    def _mix(self, tiles: PseudoLabeledBatch) -> PseudoLabeledBatch:
        if self.settings.method == "mean_teacher":
            return tiles  # as it was published
        device = tiles.lesion.device
        b, h, w = tiles.lesion.shape
        if self.image_labels is not None and tiles.disease is not None:
            chosen = torch.rand(b) < BACKGROUND_PROBABILITY
            tiles = paint_background(tiles, chosen.to(device) & (tiles.disease != IGNORE))
        if self.settings.cut_mix > 0:
            boxes = sample_boxes(b, (h, w), probability=self.settings.cut_mix)
            tiles = cut_mix(tiles, boxes.to(device))
        return tiles

    def _calibrate(self, labeled: Sequence[Batch]) -> bool:
        """Learn the ranks from labeled tiles; return whether a lesion was found there."""
        found, seen = False, []
        for tiles in labeled:
            _, lesion, leaf = self._teacher_predictions(tiles.image)
            said = tiles.target
            is_lesion = (said != IGNORE) & (said != NO_LESION)
            found |= bool((is_lesion & (lesion.label != NO_LESION)).any())
            seen.append((lesion, leaf))
            if found and not self._lesion_mask.needs_ranks:
                return True
        if self._lesion_mask.needs_ranks:
            tiles = collate(labeled)
            lesion, leaf = (
                TeacherPrediction.joined(parts) for parts in zip(*seen, strict=True)
            )
            self._lesion_mask.calibrate(lesion, tiles.target != IGNORE)
            self._leaf_mask.calibrate(leaf, tiles.leaf != IGNORE)
        return found

    def _teacher_predictions(
        self, image: Tensor
    ) -> tuple[Scores, TeacherPrediction, TeacherPrediction]:
        """Return what the teacher says, and its opinions on the lesions and the leaf."""
        teacher = self.teacher
        size = (image.shape[2], image.shape[3])
        said = teacher(image)
        scores = said.resized(size)
        if "dropout" not in self.settings.confidence:
            return said, TeacherPrediction(scores.lesion), TeacherPrediction(scores.leaf)
        with dropout_on(teacher.network):
            passes = [teacher(image).resized(size) for _ in range(DROPOUT_PASSES)]
        return (
            said,
            TeacherPrediction(scores.lesion, torch.stack([p.lesion for p in passes])),
            TeacherPrediction(scores.leaf, torch.stack([p.leaf for p in passes])),
        )


def _ratio(some: Tensor, all_: Tensor) -> float:
    return float(some.sum() / all_.sum()) if all_.any() else math.nan


@contextmanager
def dropout_on(network: nn.Module) -> Iterator[None]:
    """Let a network in eval drop values, and nothing else, for a while."""
    layers = [m for m in network.modules() if isinstance(m, (nn.Dropout, nn.Dropout2d))]
    for layer in layers:
        layer.train()
    try:
        yield
    finally:
        for layer in layers:
            layer.eval()
