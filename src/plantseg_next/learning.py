"""Where a run is put together: which pictures teach, who is the teacher, who judges."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from plantseg_next.data import splits
from plantseg_next.data.joining import join, left_out
from plantseg_next.data.layouts import read_folder
from plantseg_next.data.manifest import Manifest
from plantseg_next.errors import UsageError
from plantseg_next.experiment import Experiment
from plantseg_next.judging import validate
from plantseg_next.models.bundle import Card
from plantseg_next.runtime import Device
from plantseg_next.structures import ClassMap

if TYPE_CHECKING:
    from torch import nn

    from plantseg_next.data.streams import MixedDataset
    from plantseg_next.structures import Batch
    from plantseg_next.training.lessons import Lessons
    from plantseg_next.training.trainer import Validation

AUDITED_TILES = 16


@dataclass(frozen=True)
class Sources:
    """Where pictures come from.

    Args:
        data: Pictures with masks in any layout that ``check`` knows.
        classes: What mask values mean, if the folder does not say.
        unlabelled: Further folders of pictures; their masks and labels, if any, are not
            looked at. Those that show a labelled or judged scene are left out.
        pseudo_labels: Folders that ``pseudo_label`` wrote; their masks are learned from
            as far as they say anything.
    """

    data: Path
    classes: Path | None = None
    unlabelled: Sequence[Path] = ()
    pseudo_labels: Sequence[Path] = ()


def gather(
    sources: Sources,
    settings: Experiment,
    *,
    say: Callable[[str], None],
    told: Callable[[int, int], None],
) -> Manifest:
    """Return every picture of a run, each in its split.

    Args:
        sources: Where they come from.
        settings: The seed draws splits where the data set states none, and which masks
            are hidden where ``data.labelled_share`` is below 1.
        say: Hears what is left out, and why.
        told: Hears of every picture that is compared with the others.

    Raises:
        UsageError: If the masks name no lesion.
        DataError: If a file cannot be used.
    """
    manifest = splits.assign(
        read_folder(sources.data, classes=sources.classes), seed=settings.seed
    )
    manifest = splits.labelled_fraction(
        manifest, settings.data.labelled_share, seed=settings.seed
    )
    if len(manifest.labelled) and not manifest.classes.lesions:
        raise UsageError(
            f"The masks of `{sources.data}` name no lesion class.",
            needed="masks that mark lesions; leaf masks alone teach no disease",
            fix="say in classes.yaml which value is a lesion",
        )
    # Pseudo-labels first: a picture that has one is no longer without a label.
    for folders, masks in ((sources.pseudo_labels, True), (sources.unlabelled, False)):
        if folders:
            others = [read_folder(folder) for folder in folders]
            manifest, left = join(manifest, others, masks=masks, told=told)
            for line in left_out(left):
                say(line)
    return manifest


def tiles_of(
    learned: Manifest, unlabelled: Manifest, settings: Experiment, pixels: Sequence[int]
) -> "MixedDataset":
    """Return what the run draws from.

    Args:
        learned: Pictures with masks.
        unlabelled: Pictures whose masks, if any, are not to be looked at; may be empty.
        settings: The whole tree.
        pixels: Labelled pixels of each lesion class, "no lesion" first.
    """
    from plantseg_next.data.streams import MixedDataset, TileDataset, ViewDataset
    from plantseg_next.data.views import strong_light

    views = None
    if len(unlabelled):
        bare = [replace(row, mask=None, disease=None) for row in unlabelled.rows]
        tiles = TileDataset(
            unlabelled.only(bare), settings.data, seed=settings.seed + 1, pixels=pixels
        )
        views = ViewDataset(
            tiles,
            n_strong=settings.unlabelled.strong_views,
            strong=strong_light(settings.unlabelled.light),
        )
    labelled = TileDataset(learned, settings.data, seed=settings.seed, pixels=pixels)
    return MixedDataset(labelled, views, settings.unlabelled.ratio)


def build_lessons(
    network: "nn.Module", classes: ClassMap, settings: Experiment, device: Device
) -> "Lessons":
    """Return the lessons of a teacher that starts as a copy of the network."""
    from plantseg_next.training.lessons import Lessons
    from plantseg_next.training.teacher import Teacher
    from plantseg_next.training.trainer import uses_bfloat16

    teacher = Teacher(
        network,
        decay=settings.unlabelled.decay,
        bfloat16=uses_bfloat16(settings.training, device),
    )
    return Lessons(teacher, settings.unlabelled, classes)


class Judge:
    """Say how good a network is, and how far its teacher is to be believed.

    Args:
        chosen: Pictures with masks to judge by.
        card: How the network predicts.
        device: Where.
        student: The network in training.
        lessons: What it learns beside masks, if anything.
        hidden: Tiles whose masks exist and are not learned from.
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
    ) -> None:
        self._chosen = chosen
        self._card = card
        self._device = device
        self._student = student
        self._lessons = lessons
        self._hidden = hidden

    def __call__(self, network: "nn.Module") -> "Validation":
        """Return the figures of the network as it stands."""
        from plantseg_next.inference.predictor import make_predictor
        from plantseg_next.training.guards import drift
        from plantseg_next.training.trainer import batch_to_device

        found = validate(
            make_predictor(network, self._card, self._device.kind), self._chosen
        )
        if self._lessons is None or self._hidden is None:
            return found
        place = next(self._student.parameters()).device
        details = self._lessons.audit(self._student, batch_to_device(self._hidden, place))
        return replace(found, details=details, events=(*found.events, *drift(details)))


def hidden_tiles(
    manifest: Manifest, settings: Experiment, pixels: Sequence[int]
) -> "Batch | None":
    """Return tiles to check the teacher by: their masks exist, but the run hides them.

    Where no mask is hidden, those of the validation split serve: the run does not learn
    from them either.
    """
    from plantseg_next.data.streams import TileDataset, collate
    from plantseg_next.data.views import UNCHANGED

    hidden = manifest.split("unlabelled").labelled
    tiles = TileDataset(
        hidden if len(hidden) else manifest.split("val").labelled,
        settings.data,
        seed=settings.seed,
        pixels=pixels,
        photometry=UNCHANGED,
    )
    visits = -(-AUDITED_TILES // settings.data.max_tiles)
    return collate([tiles[i] for i in range(visits)])
