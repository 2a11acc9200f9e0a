"""Pseudo-labels: the EMA teacher labels tiles without masks."""

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
from plantseg_next.training.step import UnsupWeights

DROPOUT_PASSES = 4
CALIBRATE_EVERY = 20
"""Steps between two calibrations of the ranks on labeled tiles."""


class _TileTargets(NamedTuple):
    """The teacher's predictions for part of a step, before the confidence mask is known.

    Args:
        lesion: Confidence statistics of the lesion head.
        leaf: The same of the leaf head; ``None`` where no leaf is annotated.
        scores: The teacher's logits, where the method needs them.
        cam_seed: uint8 ``(b, h, w)``, lesion classes from the image-level label alone;
            ``None`` without image-level labels.
        contradicted: bool ``(b, h, w)``, where the image-level label contradicts the
            prediction; likewise.
    """

    lesion: ConfidenceStats
    leaf: ConfidenceStats | None
    scores: Scores | None
    cam_seed: Tensor | None
    contradicted: Tensor | None


class PseudoLabeler:
    """Label unlabeled tiles with the teacher's confident predictions.

    Args:
        teacher: Average of the student.
        settings: Method, confidence masks and mixing.
        classes: Of the network.
        image_labels: Makes CAM seeds, where images have image-level labels.
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
        self._started: float | None = None
        self._classes = classes
        # pixels seen, of these in the confidence mask, of these lesion
        self._pixel_counts = torch.zeros(3, dtype=torch.long)
        self._lesion_mask, self._leaf_mask = (
            ConfidenceMask(
                settings.confidence,
                threshold=settings.threshold,
                n_classes=n,
                adaptive=settings.adaptive_threshold,
            )
            for n in (classes.n_lesion_logits, LEAF_LOGITS)
        )

    def weights(
        self, step: int, steps: int, micro_batches: Sequence[TrainBatch], *, profile: bool
    ) -> UnsupWeights | None:
        """Return the weights of the unsupervised losses; ``None`` before they start.

        After the warmup, they start as soon as the teacher predicts a lesion where labeled
        tiles have one. Where the confidence needs ranks, they are calibrated on labeled
        tiles every ``CALIBRATE_EVERY`` steps.

        Args:
            step: Steps already taken.
            steps: Steps of the run.
            micro_batches: The step's tiles.
            profile: Whether to compute the unsupervised losses with weight 0 while steps
                are timed, so that they cost as much as later ones.
        """
        if self.settings.consistency_weight == 0:
            return None
        done = step / max(steps, 1)
        is_waiting = self._started is None and done >= self.settings.warmup_fraction
        if is_waiting or (self._lesion_mask.needs_ranks and step % CALIBRATE_EVERY == 0):
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

        Tiles are mixed across the whole step, so that a micro-batch of one tile is mixed
        too. With two strong views, the second half of a micro-batch shows the tiles of
        the first with another augmentation and another mix.
        """
        views = [batch.unlabeled for batch in micro_batches if batch.unlabeled is not None]
        with self.teacher.on_device(views[0].weak.device):
            tile_targets = [self._tile_targets(part) for part in views]
        labeled_views = self._pseudo_labeled(views, tile_targets)
        mixed = [
            self._mix(
                PseudoLabeledBatch.joined(
                    [
                        replace(labels, image=part.strong[i])
                        for labels, part in zip(labeled_views, views, strict=True)
                    ]
                )
            )
            for i in range(len(views[0].strong))
        ]
        pseudo_labeled, first = [], 0
        for part in views:
            own = slice(first, first + len(part.weak))
            pseudo_labeled.append(
                PseudoLabeledBatch.joined([tiles.select(own) for tiles in mixed])
            )
            first = own.stop
        return pseudo_labeled

    def _tile_targets(self, views: UnlabeledBatch) -> _TileTargets:
        """Return the teacher's predictions for weak views."""
        scores, lesion, leaf = self._teacher_predictions(views.weak)
        weak, seed, contradicted = self.image_labels, None, None
        if weak is not None and weak.makes_cam_seeds:
            likelihood = self._lesion_likelihood(weak, views.weak, views.disease, lesion)
            on_leaf = self._on_leaf(leaf, views.valid)
            seed = weak.cam_seeds(likelihood, on_leaf, views.valid, views.disease)
            contradicted = weak.contradicts_label(
                lesion.label, likelihood, on_leaf, views.disease
            )
            is_reliable = weak.reliable_classes().to(seed.device)[views.disease.long()]
            seed = seed.masked_fill(~is_reliable[:, None, None], IGNORE)
        return _TileTargets(
            self._lesion_mask.stats(lesion, views.valid),
            self._leaf_mask.stats(leaf, views.valid) if self._classes.has_leaf else None,
            scores if self.settings.method == "mean_teacher" else None,
            seed,
            contradicted,
        )

    def _pseudo_labeled(
        self, views: Sequence[UnlabeledBatch], tile_targets: Sequence[_TileTargets]
    ) -> list[PseudoLabeledBatch]:
        """Return the weak views of a whole step with their pseudo-labels."""
        lesions = self._labels(self._lesion_mask, [part.lesion for part in tile_targets])
        leaves = self._labels(
            self._leaf_mask, [part.leaf for part in tile_targets if part.leaf is not None]
        )
        pseudo_labeled = []
        for part, targets, lesion in zip(views, tile_targets, lesions, strict=True):
            is_confident = lesion != IGNORE
            seed, contradicted = targets.cam_seed, targets.contradicted
            if seed is not None:
                # No seed where the teacher is confident of another class.
                differs = is_confident & (lesion != seed)
                if contradicted is not None:  # keep seeds of healthy tiles
                    differs &= ~(contradicted & (seed == NO_LESION))
                seed = seed.masked_fill(differs, IGNORE)
            if contradicted is not None:
                is_confident &= ~contradicted
            pseudo_label = lesion.masked_fill(~is_confident, IGNORE)
            self._pixel_counts = self._pixel_counts.to(is_confident.device) + torch.stack(
                [
                    part.valid.sum(),
                    is_confident.sum(),
                    (is_confident & (lesion != NO_LESION)).sum(),
                ]
            )
            pseudo_labeled.append(
                PseudoLabeledBatch(
                    part.weak,
                    pseudo_label,
                    next(leaves, torch.full_like(pseudo_label, IGNORE)),
                    part.valid,
                    targets.scores,
                    None if self.image_labels is None else part.disease,
                    seed,
                )
            )
        return pseudo_labeled

    def _labels(
        self, confidence_mask: ConfidenceMask, stats: Sequence[ConfidenceStats]
    ) -> Iterator[Tensor]:
        """Update the thresholds of the confidence mask, and yield the masked labels."""
        if not stats:
            return
        confidence_mask.update(stats)
        for part, is_confident in zip(stats, confidence_mask.mask(stats), strict=True):
            yield part.label.masked_fill(~is_confident, IGNORE)

    def _lesion_likelihood(
        self,
        weak: ImageLabelSupervision,
        image: Tensor,
        disease: Tensor,
        lesion: TeacherPrediction,
    ) -> Tensor:
        """Return how likely each pixel shows the tile's disease.

        The product of the image-level head's LayerCAM and the teacher's lesion
        probability.
        """
        probability = 1 - lesion.logits.float().softmax(1)[:, NO_LESION]
        cam = self.teacher.layer_cam(image, disease, weak.contrast_weights(image.device))
        cam = F.interpolate(
            cam[:, None], probability.shape[1:], mode="bilinear", align_corners=False
        )[:, 0]
        return cam * probability

    def _on_leaf(self, leaf: TeacherPrediction, inside: Tensor) -> Tensor:
        return (leaf.label == 1) & inside if self._classes.has_leaf else inside

    def evaluate(
        self, student: nn.Module, hidden: Batch, *, at_once: int = 16
    ) -> dict[str, float]:
        """Return the coverage and precision of the pseudo-labels.

        Args:
            student: Whose predictions are compared with the teacher's.
            hidden: Tiles whose masks the run does not learn from.
            at_once: Tiles in a forward pass.

        Returns:
            For each class and "no lesion": ``pl_coverage/...``, the fraction of the
            pixels predicted as the class that pass the confidence mask, and
            ``pl_precision/...``, the fraction of those that are of the class.
            ``student_teacher_dice``, the Dice overlap of the student's lesions with the
            teacher's. For the unlabeled tiles since the last evaluation:
            ``pl_mask_ratio``, the fraction of the pixels in the confidence mask, and
            ``pl_lesion_ratio``, the fraction pseudo-labeled as lesion. The precision of
            seeds, see ``ImageLabelSupervision.update_precision``. All in [0, 1], NaN
            where there is nothing to divide by.
        """
        images = torch.split(hidden.image, at_once)
        predictions = [self._teacher_predictions(image)[1:] for image in images]
        prediction = TeacherPrediction.joined([lesion for lesion, _ in predictions])
        known = hidden.lesion != IGNORE
        (is_confident,) = self._lesion_mask.mask(
            [self._lesion_mask.stats(prediction, known)]
        )
        label = prediction.label
        metrics: dict[str, float] = {}
        for c, name in enumerate(("no lesion", *self._classes.lesions)):
            is_class = label == c
            right = is_confident & is_class & (label == hidden.lesion)
            metrics[f"pl_coverage/{name}"] = _ratio(
                is_confident & is_class, is_class & known
            )
            metrics[f"pl_precision/{name}"] = _ratio(right, is_confident & is_class)
        with torch.no_grad():
            was_training = student.training
            student.eval()
            student_lesion = torch.cat(
                [
                    student(image).resized(label.shape[1:]).lesion.argmax(1) != NO_LESION
                    for image in images
                ]
            )
            student.train(was_training)
        teacher_lesion = label != NO_LESION
        both = (student_lesion & teacher_lesion & known).sum() * 2
        total = (student_lesion & known).sum() + (teacher_lesion & known).sum()
        metrics["student_teacher_dice"] = float(both / total) if total else math.nan
        n, n_masked, n_lesion = self._pixel_counts.tolist()
        metrics["pl_mask_ratio"] = n_masked / n if n else math.nan
        metrics["pl_lesion_ratio"] = n_lesion / n if n else math.nan
        self._pixel_counts.zero_()
        if self.image_labels is not None and self.image_labels.makes_cam_seeds:
            diseases = torch.split(hidden.disease, at_once)
            known_parts = torch.split(known, at_once)
            seeds = [
                self.image_labels.cam_seeds(
                    self._lesion_likelihood(self.image_labels, image, disease, lesion),
                    self._on_leaf(leaf, valid),
                    valid,
                    disease,
                )
                for image, valid, disease, (lesion, leaf) in zip(
                    images, known_parts, diseases, predictions, strict=True
                )
            ]
            metrics |= self.image_labels.update_precision(
                torch.cat(seeds), hidden.lesion, hidden.disease
            )
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Return the state to save in a checkpoint."""
        return {"teacher": self.teacher.state_dict(), "light": self.light_state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a saved state."""
        self.teacher.load_state_dict(state["teacher"])
        self.load_light_state_dict(state["light"])

    def light_state_dict(self) -> dict[str, Any]:
        """Return the state without the teacher, small enough to copy at every step."""
        return {
            "lesion_mask": self._lesion_mask.state_dict(),
            "leaf_mask": self._leaf_mask.state_dict(),
            "started": self._started,
            "pixel_counts": self._pixel_counts.clone(),
            "image_labels": None
            if self.image_labels is None
            else self.image_labels.state_dict(),
        }

    def load_light_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state of ``light_state_dict``."""
        self._lesion_mask.load_state_dict(state["lesion_mask"])
        self._leaf_mask.load_state_dict(state["leaf_mask"])
        self._started = state["started"]
        self._pixel_counts = state["pixel_counts"].clone()
        if self.image_labels is not None:
            self.image_labels.load_state_dict(state["image_labels"])

    def _mix(self, tiles: PseudoLabeledBatch) -> PseudoLabeledBatch:
        if self.settings.method == "mean_teacher":
            return tiles  # as published
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
        """Calibrate the ranks; return whether the teacher finds a lesion of the masks."""
        finds_lesion, predictions = False, []
        for tiles in labeled:
            _, lesion, leaf = self._teacher_predictions(tiles.image)
            target = tiles.target
            is_lesion = (target != IGNORE) & (target != NO_LESION)
            finds_lesion |= bool((is_lesion & (lesion.label != NO_LESION)).any())
            predictions.append((lesion, leaf))
            if finds_lesion and not self._lesion_mask.needs_ranks:
                return True
        if self._lesion_mask.needs_ranks:
            tiles = collate(labeled)
            lesion, leaf = (
                TeacherPrediction.joined(parts) for parts in zip(*predictions, strict=True)
            )
            self._lesion_mask.calibrate(lesion, tiles.target != IGNORE)
            self._leaf_mask.calibrate(leaf, tiles.leaf != IGNORE)
        return finds_lesion

    def _teacher_predictions(
        self, image: Tensor
    ) -> tuple[Scores, TeacherPrediction, TeacherPrediction]:
        """Return the teacher's scores, and its full-size predictions of each head."""
        teacher = self.teacher
        size = (image.shape[2], image.shape[3])
        coarse = teacher(image)
        scores = coarse.resized(size)
        if "dropout" not in self.settings.confidence:
            return coarse, TeacherPrediction(scores.lesion), TeacherPrediction(scores.leaf)
        with dropout_on(teacher.network):
            passes = [teacher(image).resized(size) for _ in range(DROPOUT_PASSES)]
        return (
            coarse,
            TeacherPrediction(scores.lesion, torch.stack([p.lesion for p in passes])),
            TeacherPrediction(scores.leaf, torch.stack([p.leaf for p in passes])),
        )


def _ratio(some: Tensor, all_: Tensor) -> float:
    return float(some.sum() / all_.sum()) if all_.any() else math.nan


@contextmanager
def dropout_on(network: nn.Module) -> Iterator[None]:
    """Turn on dropout alone in a network in eval mode, within this context."""
    layers = [m for m in network.modules() if isinstance(m, (nn.Dropout, nn.Dropout2d))]
    for layer in layers:
        layer.train()
    try:
        yield
    finally:
        for layer in layers:
            layer.eval()
