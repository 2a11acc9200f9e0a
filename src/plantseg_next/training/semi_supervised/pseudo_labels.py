"""Pseudo-labels: the EMA teacher labels tiles without masks."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from plantseg_next.data.dataset import TrainBatch, collate
from plantseg_next.models.segmenter import LEAF_LOGITS, Scores
from plantseg_next.settings import SemiSettings
from plantseg_next.structures import (
    IGNORE,
    Batch,
    ClassMap,
    UnlabeledBatch,
    is_lesion,
)
from plantseg_next.training.schedule import ramp_up
from plantseg_next.training.semi_supervised.confidence_mask import (
    ConfidenceMask,
    ConfidenceStats,
)
from plantseg_next.training.semi_supervised.ema_teacher import EmaTeacher, TeacherPrediction
from plantseg_next.training.semi_supervised.image_labels import (
    CamSeeds,
    ImageLabelSupervision,
)
from plantseg_next.training.semi_supervised.mixing import mix
from plantseg_next.training.semi_supervised.pseudo_labeled_batch import PseudoLabeledBatch

CALIBRATE_EVERY = 20
"""Steps between two calibrations of the ranks on labeled tiles."""


class UnsupWeights(NamedTuple):
    """Weights of what is learned from unlabeled tiles in this step.

    Args:
        consistency: Of the teacher's labels or probabilities, by the method.
        disease: Of image-level labels, times that of the supervised disease loss.
        cam_seeds: Of CAM seeds.
    """

    consistency: float
    disease: float = 0.0
    cam_seeds: float = 0.0


class _TeacherLabels(NamedTuple):
    """The teacher's labels of part of a step, before the confidence mask is known."""

    lesion: ConfidenceStats
    leaf: ConfidenceStats | None  # None where no leaf is annotated
    scores: Scores | None  # where the method needs them
    cam: CamSeeds | None  # with image-level labels


@dataclass(eq=False)
class PseudoLabeler:
    """Label unlabeled tiles with the teacher's confident predictions.

    Args:
        teacher: Average of the student.
        settings: Method, confidence masks and mixing.
        classes: Of the network.
        image_labels: Makes CAM seeds, where images have image-level labels.
    """

    teacher: EmaTeacher
    settings: SemiSettings
    classes: ClassMap
    image_labels: ImageLabelSupervision | None = None

    def __post_init__(self) -> None:
        settings = self.settings
        self._started: float | None = None
        # pixels seen, of these in the confidence mask, of these lesion
        self._pixel_counts = torch.zeros(3, dtype=torch.long)
        self.lesion_mask, self.leaf_mask = (
            ConfidenceMask(
                settings.confidence,
                threshold=settings.threshold,
                n_classes=n,
                adaptive=settings.adaptive_threshold,
            )
            for n in (self.classes.n_lesion_logits, LEAF_LOGITS)
        )

    def weights(
        self, step: int, steps: int, micro_batches: Sequence[TrainBatch], *, profile: bool
    ) -> UnsupWeights | None:
        """Return the weights of the unsupervised losses; ``None`` before they start.

        They start after the warmup, as soon as the teacher finds a lesion of the masks.

        Args:
            step: Steps already taken.
            steps: Steps of the run.
            micro_batches: The step's tiles.
            profile: Whether to compute the losses with weight 0 meanwhile: timed steps
                then cost as much as later ones.
        """
        if self.settings.consistency_weight == 0:
            return None
        done = step / max(steps, 1)
        is_waiting = self._started is None and done >= self.settings.warmup_fraction
        if is_waiting or (self.lesion_mask.needs_ranks and step % CALIBRATE_EVERY == 0):
            finds_lesion = self._calibrate([batch.labeled for batch in micro_batches])
            if is_waiting and finds_lesion:
                self._started = done
        if self._started is None:
            return UnsupWeights(0.0) if profile else None
        ramp = ramp_up((done - self._started) / max(self.settings.rampup_fraction, 1e-6))
        return UnsupWeights(
            consistency=self.settings.consistency_weight * ramp,
            disease=1.0,
            cam_seeds=0.0 if self.image_labels is None else self.image_labels.weight(done),
        )

    def make_targets(self, micro_batches: Sequence[TrainBatch]) -> list[PseudoLabeledBatch]:
        """Return the student's pseudo-labeled tiles, by micro-batch.

        The teacher predicts the weak views, and the confident part of its predictions
        becomes the target of the strong views. Tiles are mixed across the whole step, so
        that a micro-batch of one tile is mixed too. With two strong views, the second half
        of a micro-batch shows the tiles of the first with another augmentation and mix.
        """
        views = [batch.unlabeled for batch in micro_batches if batch.unlabeled is not None]
        with self.teacher.on_device(views[0].weak.device):
            labels = [self._label(part) for part in views]
        pseudo_labeled = self._keep_confident(views, labels)
        mixed = []
        for i in range(len(views[0].strong)):
            strong = [
                replace(tiles, image=part.strong[i])
                for tiles, part in zip(pseudo_labeled, views, strict=True)
            ]
            tiles = PseudoLabeledBatch.joined(strong)
            if self.settings.method != "mean_teacher":  # published without mixing
                paints = self.image_labels is not None
                tiles = mix(tiles, self.settings.cut_mix, paint_backgrounds=paints)
            mixed.append(tiles)
        edges = accumulate((len(part.weak) for part in views), initial=0)
        return [
            PseudoLabeledBatch.joined([tiles.select(slice(*edge)) for tiles in mixed])
            for edge in pairwise(edges)
        ]

    def _label(self, views: UnlabeledBatch) -> _TeacherLabels:
        """Return the teacher's labels of weak views."""
        scores, lesion, leaf = self.predict(views.weak)
        cam = None
        if self.image_labels is not None and self.image_labels.makes_cam_seeds:
            on_leaf = self.on_leaf(leaf, views.valid)
            cam = self.image_labels.seed(self.teacher, views, lesion, on_leaf)
        return _TeacherLabels(
            self.lesion_mask.stats(lesion, views.valid),
            self.leaf_mask.stats(leaf, views.valid) if self.classes.has_leaf else None,
            scores if self.settings.method == "mean_teacher" else None,
            cam,
        )

    def _keep_confident(
        self, views: Sequence[UnlabeledBatch], labels: Sequence[_TeacherLabels]
    ) -> list[PseudoLabeledBatch]:
        """Return the weak views of a whole step with their confident labels."""
        lesions = _confident(self.lesion_mask, [part.lesion for part in labels])
        leaves = _confident(self.leaf_mask, [p.leaf for p in labels if p.leaf is not None])
        pseudo_labeled = []
        for part, label, lesion in zip(views, labels, lesions, strict=True):
            seed, target = None, lesion
            if label.cam is not None:
                target, seed = label.cam.merge(lesion)
            counts = [part.valid.sum(), (target != IGNORE).sum(), is_lesion(target).sum()]
            self._pixel_counts = self._pixel_counts.to(target.device) + torch.stack(counts)
            pseudo_labeled.append(
                PseudoLabeledBatch(
                    part.weak,
                    target,
                    next(leaves, torch.full_like(target, IGNORE)),
                    part.valid,
                    label.scores,
                    None if self.image_labels is None else part.disease,
                    seed,
                )
            )
        return pseudo_labeled

    def predict(self, image: Tensor) -> tuple[Scores, TeacherPrediction, TeacherPrediction]:
        """Return the teacher's scores and predictions; see ``EmaTeacher.predict``."""
        with_dropout = "dropout" in self.settings.confidence
        return self.teacher.predict(image, with_dropout=with_dropout)

    def on_leaf(self, leaf: TeacherPrediction, inside: Tensor) -> Tensor:
        """Return the pixels of the leaf; all of the image where leaves are not known."""
        return (leaf.label == 1) & inside if self.classes.has_leaf else inside

    def _calibrate(self, labeled: Sequence[Batch]) -> bool:
        """Calibrate the ranks; return whether the teacher finds a lesion of the masks."""
        finds_lesion, predictions = False, []
        for tiles in labeled:
            _, lesion, leaf = self.predict(tiles.image)
            hit = is_lesion(tiles.target) & is_lesion(lesion.label)
            finds_lesion |= bool(hit.any())
            predictions.append((lesion, leaf))
            if finds_lesion and not self.lesion_mask.needs_ranks:
                return True
        if self.lesion_mask.needs_ranks:
            tiles = collate(labeled)
            lesion, leaf = (
                TeacherPrediction.joined(parts) for parts in zip(*predictions, strict=True)
            )
            self.lesion_mask.calibrate(lesion, tiles.target != IGNORE)
            self.leaf_mask.calibrate(leaf, tiles.leaf != IGNORE)
        return finds_lesion

    def take_pixel_counts(self) -> list[int]:
        """Return pixels labeled since the last call: all, confident, confident lesion."""
        counts: list[int] = self._pixel_counts.tolist()
        self._pixel_counts.zero_()
        return counts

    def state_dict(self) -> dict[str, Any]:
        """Return the state without the teacher, small enough to copy at every step."""
        return {
            "lesion_mask": self.lesion_mask.state_dict(),
            "leaf_mask": self.leaf_mask.state_dict(),
            "started": self._started,
            "pixel_counts": self._pixel_counts.clone(),
            "image_labels": self.image_labels and self.image_labels.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a saved state."""
        self.lesion_mask.load_state_dict(state["lesion_mask"])
        self.leaf_mask.load_state_dict(state["leaf_mask"])
        self._started = state["started"]
        self._pixel_counts = state["pixel_counts"].clone()
        if self.image_labels is not None:
            self.image_labels.load_state_dict(state["image_labels"])


def _confident(mask: ConfidenceMask, stats: Sequence[ConfidenceStats]) -> Iterator[Tensor]:
    """Update the thresholds of a mask, and yield the labels of each part under it."""
    if not stats:
        return
    mask.update(stats)
    for part, is_confident in zip(stats, mask.mask(stats), strict=True):
        yield part.label.masked_fill(~is_confident, IGNORE)
