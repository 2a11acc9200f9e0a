"""Lessons: what a slow teacher makes of tiles without labels."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plantseg_next.data.dataset import Drawn, collate
from plantseg_next.models.segmenter import LEAF_LOGITS, Scores
from plantseg_next.settings import UnlabeledSettings
from plantseg_next.structures import IGNORE, NO_LESION, Batch, ClassMap, Views
from plantseg_next.training.schedule import ramp_up
from plantseg_next.training.semi_supervised.confidence import Gate, Opinion, Verdict
from plantseg_next.training.semi_supervised.ema_teacher import Teacher
from plantseg_next.training.semi_supervised.image_labels import BACKGROUNDS, WeakLabels
from plantseg_next.training.semi_supervised.mixing import (
    cut_mix,
    draw_boxes,
    paint_ground,
)
from plantseg_next.training.semi_supervised.pseudo_labeled_batch import Taught

DROPOUT_PASSES = 4
ASKED_EVERY = 20
"""Steps between two looks of the teacher at labeled tiles."""


class Heard(NamedTuple):
    """What the teacher says of part of a step, before it is known what to believe.

    Args:
        lesion: Weighed.
        leaf: The same; ``None`` where no leaf is known.
        scores: Its logits, where the method wants them.
        seed: uint8 ``(b, h, w)``, lesion classes by the name alone, where there are names.
        denied: bool ``(b, h, w)``, where the name denies what it says; likewise.
    """

    lesion: Verdict
    leaf: Verdict | None
    scores: Scores | None
    seed: Tensor | None
    denied: Tensor | None


class Lessons:
    """Turn unlabeled tiles into labeled ones, as far as the teacher is to be believed.

    Args:
        teacher: Follows the student.
        settings: Method, gates and mixes.
        classes: Of the network.
        weak: What names say of pixels, where images have names.
    """

    def __init__(
        self,
        teacher: Teacher,
        settings: UnlabeledSettings,
        classes: ClassMap,
        weak: WeakLabels | None = None,
    ) -> None:
        self.teacher = teacher
        self.settings = settings
        self.weak = weak
        self.weight: float | None = None
        self.name_weight = self.seed_weight = 0.0
        self._begun: float | None = None
        self._classes = classes
        self._taught = torch.zeros(3, dtype=torch.long)  # pixels seen, believed, lesion
        self._lesion_gate, self._leaf_gate = (
            Gate(
                settings.gate,
                threshold=settings.threshold,
                n_classes=n,
                dynamic=settings.dynamic,
            )
            for n in (classes.n_lesion_logits, LEAF_LOGITS)
        )

    def begin_step(
        self, step: int, steps: int, drawn: Sequence[Drawn], *, rehearsal: bool
    ) -> None:
        """Set the weights of the lessons for this step; ``None`` while there are none.

        Now and then the teacher looks at labeled tiles: lessons begin when it finds a
        lesion there, and its ranks are learned from what it says of them.

        Args:
            step: Steps already taken.
            steps: Steps of the run.
            drawn: What the step learns from.
            rehearsal: Whether to give a lesson that counts for nothing, while steps are
                timed: the run is planned by what a step will cost.
        """
        self.weight = None
        self.name_weight = self.seed_weight = 0.0
        if self.settings.weight == 0:
            return
        if rehearsal:
            self.weight = 0.0
        done = step / max(steps, 1)
        waits = self._begun is None and done >= self.settings.starts
        if waits or (self._lesion_gate.needs_ranks and step % ASKED_EVERY == 0):
            found = self._look_at([one.labeled for one in drawn])
            if waits and found:
                self._begun = done
        if self._begun is not None:
            ramp = max(self.settings.ramp, 1e-6)
            self.weight = self.settings.weight * ramp_up((done - self._begun) / ramp)
            self.name_weight = 1.0
            self.seed_weight = 0.0 if self.weak is None else self.weak.weight(done)

    def teach(self, drawn: Sequence[Drawn]) -> list[Taught]:
        """Return the student's tiles, labeled by the teacher, by micro-batch.

        Tiles are mixed across the whole step, so that a micro-batch of one tile has
        partners too. With two strong views, the second half of a micro-batch shows the
        tiles of the first under another light and another mix.
        """
        views = [one.unlabeled for one in drawn if one.unlabeled is not None]
        with self.teacher.visit(views[0].weak.device):
            heard = [self._hear(one) for one in views]
        said = self._believed(views, heard)
        mixed = [
            self._mixed(
                Taught.joined(
                    [
                        replace(labels, image=one.strong[i])
                        for labels, one in zip(said, views, strict=True)
                    ]
                )
            )
            for i in range(len(views[0].strong))
        ]
        taught, first = [], 0
        for one in views:
            mine = slice(first, first + len(one.weak))
            taught.append(Taught.joined([tiles.part(mine) for tiles in mixed]))
            first = mine.stop
        return taught

    def _hear(self, views: Views) -> Heard:
        """Ask the teacher about weak views."""
        scores, lesion, leaf = self._opinions(views.weak)
        weak, seed, denied = self.weak, None, None
        if weak is not None and weak.is_asked:
            where = self._suspected(weak, views.weak, views.disease, lesion)
            on_leaf = self._on_leaf(leaf, views.inside)
            seed = weak.seeds(where, on_leaf, views.inside, views.disease)
            denied = weak.denied(lesion.label, where, on_leaf, views.disease)
            trusted = weak.trusted().to(seed.device)[views.disease.long()]
            seed = seed.masked_fill(~trusted[:, None, None], IGNORE)
        return Heard(
            self._lesion_gate.weigh(lesion, views.inside),
            self._leaf_gate.weigh(leaf, views.inside) if self._classes.has_leaf else None,
            scores if self.settings.method == "mean_teacher" else None,
            seed,
            denied,
        )

    def _believed(self, views: Sequence[Views], heard: Sequence[Heard]) -> list[Taught]:
        """Return the weak views of a whole step with what is believed of them."""
        lesions = self._labels(self._lesion_gate, [one.lesion for one in heard])
        leaves = self._labels(
            self._leaf_gate, [one.leaf for one in heard if one.leaf is not None]
        )
        taught = []
        for one, says, lesion in zip(views, heard, lesions, strict=True):
            sure = lesion != IGNORE
            seed, denied = says.seed, says.denied
            if seed is not None:
                # Where the teacher is sure of something else, there is no seed.
                other = sure & (lesion != seed)
                if denied is not None:
                    other &= ~(denied & (seed == NO_LESION))  # but healthy is healthy
                seed = seed.masked_fill(other, IGNORE)
            if denied is not None:
                sure &= ~denied
            believed = lesion.masked_fill(~sure, IGNORE)
            self._taught = self._taught.to(sure.device) + torch.stack(
                [one.inside.sum(), sure.sum(), (sure & (lesion != NO_LESION)).sum()]
            )
            taught.append(
                Taught(
                    one.weak,
                    believed,
                    next(leaves, torch.full_like(believed, IGNORE)),
                    one.inside,
                    says.scores,
                    None if self.weak is None else one.disease,
                    seed,
                )
            )
        return taught

    def _labels(self, gate: Gate, verdicts: Sequence[Verdict]) -> Iterator[Tensor]:
        """Yield the labels that the gate lets pass; it learns from all of them first."""
        if not verdicts:
            return
        gate.notice(verdicts)
        for verdict, sure in zip(verdicts, gate.believes(verdicts), strict=True):
            yield verdict.label.masked_fill(~sure, IGNORE)

    def _suspected(
        self, weak: WeakLabels, image: Tensor, disease: Tensor, lesion: Opinion
    ) -> Tensor:
        """Return where what a tile is called may show.

        Where the image-level head looks (LayerCAM), and the teacher finds a lesion
        likeliest.
        """
        likely = 1 - lesion.logits.float().softmax(1)[:, NO_LESION]
        seen = self.teacher.locate(image, disease, weak.against(image.device))
        seen = F.interpolate(
            seen[:, None], likely.shape[1:], mode="bilinear", align_corners=False
        )[:, 0]
        return seen * likely

    def _on_leaf(self, leaf: Opinion, inside: Tensor) -> Tensor:
        return (leaf.label == 1) & inside if self._classes.has_leaf else inside

    def audit(
        self, student: nn.Module, hidden: Batch, *, at_once: int = 16
    ) -> dict[str, float]:
        """Return how much of the teacher's word is believed, and how right that is.

        Args:
            student: Whose scores are compared with the teacher's.
            hidden: Tiles whose masks the run does not learn from.
            at_once: Tiles that either of them looks at at once.

        Returns:
            Of each class and of "no lesion": ``believed_...``, the share of the pixels
            that the teacher calls so which pass the gate, and ``right_...``, the share
            of those that are what it says. ``agreement``, the Dice overlap of the
            student's lesions with the teacher's. Of the tiles without labels since the
            last audit: ``taught``, the share of the pixels that was believed, and
            ``taught_lesion``, the share that was believed to be lesion. How right seeds
            are, see ``WeakLabels.judge``. All in [0, 1],
            NaN where there is nothing to divide by.
        """
        images = torch.split(hidden.image, at_once)
        said = [self._opinions(image)[1:] for image in images]
        opinion = Opinion.joined([lesion for lesion, _ in said])
        known = hidden.lesion != IGNORE
        (sure,) = self._lesion_gate.believes([self._lesion_gate.weigh(opinion, known)])
        label = opinion.label
        figures: dict[str, float] = {}
        for c, name in enumerate(("no lesion", *self._classes.lesions)):
            mine = label == c
            right = sure & mine & (label == hidden.lesion)
            figures[f"believed_{name}"] = _ratio(sure & mine, mine & known)
            figures[f"right_{name}"] = _ratio(right, sure & mine)
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
        figures["agreement"] = float(both / either) if either else math.nan
        n, believed, lesion = self._taught.tolist()
        figures["taught"] = believed / n if n else math.nan
        figures["taught_lesion"] = lesion / n if n else math.nan
        self._taught.zero_()
        if self.weak is not None and self.weak.is_asked:
            names = torch.split(hidden.disease, at_once)
            known_ = torch.split(known, at_once)
            seeds = [
                self.weak.seeds(
                    self._suspected(self.weak, image, name, lesion),
                    self._on_leaf(leaf, inside),
                    inside,
                    name,
                )
                for image, inside, name, (lesion, leaf) in zip(
                    images, known_, names, said, strict=True
                )
            ]
            figures |= self.weak.judge(torch.cat(seeds), hidden.lesion, hidden.disease)
        return figures

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold."""
        return {"teacher": self.teacher.state_dict(), "memory": self.memory()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on as the lessons whose state it is."""
        self.teacher.load_state_dict(state["teacher"])
        self.load_memory(state["memory"])

    def memory(self) -> dict[str, Any]:
        """Return the state without the teacher: little enough to copy at every step."""
        return {
            "lesion_gate": self._lesion_gate.state_dict(),
            "leaf_gate": self._leaf_gate.state_dict(),
            "begun": self._begun,
            "taught": self._taught.clone(),
            "weak": None if self.weak is None else self.weak.state_dict(),
        }

    def load_memory(self, state: Mapping[str, Any]) -> None:
        """Go back to an earlier ``memory``."""
        self._lesion_gate.load_state_dict(state["lesion_gate"])
        self._leaf_gate.load_state_dict(state["leaf_gate"])
        self._begun = state["begun"]
        self._taught = state["taught"].clone()
        if self.weak is not None:
            self.weak.load_state_dict(state["weak"])

    def _mixed(self, tiles: Taught) -> Taught:
        if self.settings.method == "mean_teacher":
            return tiles  # as it was published
        device = tiles.lesion.device
        b, h, w = tiles.lesion.shape
        if self.weak is not None and tiles.disease is not None:
            chosen = torch.rand(b) < BACKGROUNDS
            tiles = paint_ground(tiles, chosen.to(device) & (tiles.disease != IGNORE))
        if self.settings.cut_mix > 0:
            boxes = draw_boxes(b, (h, w), chance=self.settings.cut_mix)
            tiles = cut_mix(tiles, boxes.to(device))
        return tiles

    def _look_at(self, labeled: Sequence[Batch]) -> bool:
        """Learn the ranks from labeled tiles; return whether a lesion was found there."""
        found, seen = False, []
        for tiles in labeled:
            _, lesion, leaf = self._opinions(tiles.image)
            said = tiles.said
            is_lesion = (said != IGNORE) & (said != NO_LESION)
            found |= bool((is_lesion & (lesion.label != NO_LESION)).any())
            seen.append((lesion, leaf))
            if found and not self._lesion_gate.needs_ranks:
                return True
        if self._lesion_gate.needs_ranks:
            tiles = collate(labeled)
            lesion, leaf = (Opinion.joined(parts) for parts in zip(*seen, strict=True))
            self._lesion_gate.learn(lesion, tiles.said != IGNORE)
            self._leaf_gate.learn(leaf, tiles.leaf != IGNORE)
        return found

    def _opinions(self, image: Tensor) -> tuple[Scores, Opinion, Opinion]:
        """Return what the teacher says, and its opinions on the lesions and the leaf."""
        teacher = self.teacher
        size = (image.shape[2], image.shape[3])
        said = teacher(image)
        scores = said.resized(size)
        if "dropout" not in self.settings.gate:
            return said, Opinion(scores.lesion), Opinion(scores.leaf)
        with dropout_on(teacher.network):
            passes = [teacher(image).resized(size) for _ in range(DROPOUT_PASSES)]
        return (
            said,
            Opinion(scores.lesion, torch.stack([p.lesion for p in passes])),
            Opinion(scores.leaf, torch.stack([p.leaf for p in passes])),
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
