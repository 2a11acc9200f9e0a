"""The images of a run: where they come from, their splits, and what is sampled of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plantseg_next.data import splits
from plantseg_next.data.class_names import read_names, renamed
from plantseg_next.data.formats import read_folder, read_folders
from plantseg_next.data.manifest import MANIFEST_FILE, Manifest
from plantseg_next.data.quality.inspect import inspect, with_digests
from plantseg_next.data.quality.refusals import refusals, refusals_of_files, spoiled
from plantseg_next.data.quality.scene_splits import (
    add_datasets,
    describe_excluded,
    draw_splits,
    drop_leaks,
)
from plantseg_next.data.sampler import refuse_unknown
from plantseg_next.data.splits import labeled_rows
from plantseg_next.errors import DataError
from plantseg_next.files import AnyPath
from plantseg_next.settings import Settings
from plantseg_next.workflows.images import left_out_names, without_unstatable_names

if TYPE_CHECKING:
    from plantseg_next.data.dataset import MixedDataset


@dataclass(frozen=True)
class DataSources:
    """Where images come from.

    Args:
        data: One data set or several, in any layout that ``check`` reads; some of the
            images have masks.
        classes: File of what mask values mean, if the folder has none.
        unlabeled: Further folders of images; their masks and labels, if any, are not
            read. Images that show the scene of a labeled, validation or test image are
            left out.
        pseudo_labels: Folders that ``pseudo_label`` wrote; their masks are learned from
            where they are not ``IGNORE``.
        names: File of the class names of the data sets, with the names of the run.
        exif: Which way images with an EXIF orientation were annotated: "as-stored" or
            "upright", or "NAME=as-stored" for one data set of several.
    """

    data: AnyPath | Sequence[AnyPath]
    classes: AnyPath | None = None
    unlabeled: Sequence[AnyPath] = ()
    pseudo_labels: Sequence[AnyPath] = ()
    names: AnyPath | None = None
    exif: Sequence[str] = ()

    @classmethod
    def of(cls, data: "AnyPath | DataSources") -> "DataSources":
        """Return the sources of a call, which may be one folder."""
        return data if isinstance(data, DataSources) else cls(data)

    @property
    def folders(self) -> tuple[Path, ...]:
        """The data sets."""
        data = [self.data] if isinstance(self.data, str | Path) else self.data
        return tuple(Path(folder) for folder in data)

    def __str__(self) -> str:
        """Return the paths of the data sets, for error messages."""
        return ", ".join(str(path) for path in self.folders)

    def read(self) -> Manifest:
        """Return the images of the data sets, with the class names of the run.

        Raises:
            UsageError: If the layout of one of them is not recognized.
            DataError: If a file cannot be used.
        """
        classes = None if self.classes is None else Path(self.classes)
        manifest = without_unstatable_names(
            read_folders(self.folders, classes=classes, exif=self.exif)
        )
        if self.names is None:
            return manifest
        return renamed(manifest, read_names(Path(self.names)))

    def plain(self) -> dict[str, Any]:
        """Return the absolute paths as text, as a run records them."""

        def absolute(path: AnyPath) -> str:
            return str(Path(path).resolve())

        folders = [absolute(path) for path in self.folders]
        return {
            "data": folders if len(folders) > 1 else folders[0],
            "classes": self.classes and absolute(self.classes),
            **({"class-names": absolute(self.names)} if self.names else {}),
            **({"exif": list(self.exif)} if self.exif else {}),
            "unlabeled": [absolute(path) for path in self.unlabeled],
            "pseudo-labels": [absolute(path) for path in self.pseudo_labels],
        }


def build_manifest(
    sources: DataSources,
    settings: Settings,
    *,
    log: Callable[[str], None] = lambda _: None,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> Manifest:
    """Return every image of a run, each in its split.

    Args:
        sources: Where the images come from.
        settings: Settings of the run. The seed chooses splits where the data set states
            none, and the hidden masks where ``data.labeled_fraction`` is below 1.
        log: Receives a line about the images of one scene, and one about the images
            that are left out, with the reason.
        on_progress: Called after every image compared with the others.

    Raises:
        UsageError: If no image of the training or of the validation split has a mask, the
            masks name no lesion class, or a setting names an unknown data set.
        DataError: If a file cannot be used.
    """
    manifest = sources.read()
    _log_left_out(manifest, log)
    manifest = draw_splits(manifest, seed=settings.seed, log=log, on_progress=on_progress)
    if len(sources.folders) > 1:
        manifest, excluded = drop_leaks(manifest, on_progress=on_progress)
        for line in describe_excluded(excluded):
            log(line)
    manifest = splits.labeled_fraction(
        manifest, settings.data.labeled_fraction, seed=settings.seed
    )
    # Pseudo-labels first: an image that has one is no longer without a label.
    for folders, masks in ((sources.pseudo_labels, True), (sources.unlabeled, False)):
        if folders:
            others = [
                without_unstatable_names(read_folder(Path(folder))) for folder in folders
            ]
            for other in others:
                _log_left_out(other, log)
            manifest, excluded = add_datasets(
                manifest, others, masks=masks, on_progress=on_progress
            )
            for line in describe_excluded(excluded):
                log(line)
    for refusal in refusals(manifest, sources):
        raise refusal.error
    learned = (row for row in manifest.rows if row.split in ("train", "unlabeled"))
    refuse_unknown(settings.data, sorted({row.source for row in learned}))
    codings = (manifest.codings[r.source] for r in manifest.split("train").labeled.rows)
    is_marked = any(coding.marks_leaf for coding in codings)
    return _without_unlearned_leaf(manifest, log, is_marked=is_marked)


def _log_left_out(manifest: Manifest, log: Callable[[str], None]) -> None:
    for image in left_out_names(manifest):
        log(f"`{image.key}`: {image.reason}")


def _without_unlearned_leaf(
    manifest: Manifest, log: Callable[[str], None], *, is_marked: bool
) -> Manifest:
    """Return the manifest without a leaf class, if no training mask marks the leaf.

    Otherwise severity would be computed from the output of an untrained leaf head.
    """
    if is_marked or not manifest.classes.has_leaf:
        return manifest
    log("No training mask marks the leaf: the model will give no severity.")
    return replace(manifest, classes=replace(manifest.classes, has_leaf=False))


@dataclass(frozen=True)
class TrainingData:
    """Images and settings of a run: all that is needed to start or resume it.

    Args:
        manifest: Every image, in its split.
        settings: All settings.
        pixels: Labeled pixels of each lesion class, "no lesion" first.
        origin: Name of the images in error messages.
    """

    manifest: Manifest
    settings: Settings
    pixels: tuple[int, ...]
    origin: str

    @classmethod
    def create(
        cls,
        manifest: Manifest,
        settings: Settings,
        origin: str,
        *,
        log: Callable[[str], None] = lambda _: None,
        on_progress: Callable[[int, int], None] = lambda *_: None,
    ) -> "TrainingData":
        """Return the data of a new run: compute file digests and count mask pixels.

        Every image and mask is inspected. Masks of a few points or scribbles are marked as
        sparse.

        Args:
            manifest: Every image, in its split.
            settings: All settings.
            origin: Name of the images in error messages.
            log: Receives a warning for each error of ``check`` with which training starts:
                the same image in two splits, test images that cannot be used.
            on_progress: Called after every row.

        Raises:
            DataError: If an image of training or validation, or its mask, cannot be used.
            UsageError: If no training mask shows a lesion.
        """
        from plantseg_next.data.dataset import label_stats

        # Images of validation and test first: a leak is a pair with one of them.
        ordered = sorted(manifest.rows, key=lambda row: row.split not in ("val", "test"))
        all_stats = inspect(manifest.only(ordered), on_progress)
        for refusal in refusals_of_files(manifest, all_stats, origin):
            raise refusal.error
        for text in spoiled(all_stats):
            log(text)
        train = [s for s in all_stats if s.row.split == "train" and s.row.mask is not None]
        counts = label_stats(manifest, train)
        is_marked = any(s.mask is not None and s.mask.leaf_is_marked for s in train)
        manifest = _without_unlearned_leaf(manifest, log, is_marked=is_marked)
        manifest = with_digests(manifest)  # those of the inspected images are known now
        rows = (replace(row, sparse=row.key in counts.sparse) for row in manifest.rows)
        return cls(manifest.only(rows), settings, counts.pixels, origin)

    @classmethod
    def of_run(
        cls, folder: Path, settings: Settings, pixels: tuple[int, ...], origin: str
    ) -> "TrainingData":
        """Return the data of the run in a folder, with the pixels that it recorded.

        Raises:
            DataError: If its manifest cannot be read, or has another number of classes.
        """
        manifest = Manifest.read(folder / MANIFEST_FILE)
        if len(pixels) != 1 + len(manifest.classes.lesions):
            raise DataError(
                f"The record of `{folder}` counts the pixels of {len(pixels)} classes, and "
                f"its manifest has {1 + len(manifest.classes.lesions)}.",
                needed="`run.json` and `manifest.json` of one run",
                fix="restore both from a copy, or start again with --restart",
            )
        if not any(pixels[1:]):
            raise DataError(
                f"The record of `{folder}` counts no pixel of a lesion.",
                needed="`run.json` as the run wrote it",
                fix="restore it from a copy, or start again with --restart",
            )
        return cls(manifest, settings, pixels, origin)

    @property
    def labeled(self) -> Manifest:
        """Images whose masks are learned from."""
        return labeled_rows(self.manifest, "train", self.origin)

    @property
    def validation(self) -> Manifest:
        """Images whose masks select the best model."""
        return labeled_rows(self.manifest, "val", self.origin)

    @property
    def unlabeled(self) -> Manifest:
        """Images that are learned from without a mask; none in a supervised run.

        Those of the training split may have an image-level label, which is learned from
        if ``image_labels.fraction`` is above 0; labels of other images are not used. An
        image whose mask is a few points is both labeled and unlabeled.
        """
        if self.settings.semi.method == "supervised":
            return self.manifest.only(())
        train = self.manifest.split("train").rows
        bare = (
            *self.manifest.split("unlabeled").rows,
            *(row for row in train if row.sparse),
        )
        with_label = [r for r in train if r.mask is None and r.disease is not None]
        if self.settings.image_labels.fraction == 0:
            with_label = [replace(row, disease=None) for row in with_label]
        return self.manifest.only(
            (
                *(replace(row, mask=None, disease=None, sparse=False) for row in bare),
                *with_label,
            )
        )

    @property
    def used(self) -> Manifest:
        """All images but those that a supervised run does not use: without a mask."""
        if self.settings.semi.method != "supervised":
            return self.manifest
        labeled = self.manifest.labeled
        return labeled.only(row for row in labeled.rows if row.split != "unlabeled")


def train_dataset(
    learned: Manifest, unlabeled: Manifest, settings: Settings, pixels: Sequence[int]
) -> "MixedDataset":
    """Return the data set that the run samples from.

    Args:
        learned: Images with masks.
        unlabeled: Images without masks, some perhaps with an image-level label; may be
            empty.
        settings: All settings.
        pixels: Labeled pixels of each lesion class, "no lesion" first.
    """
    from plantseg_next.data.augment import strong_photometry
    from plantseg_next.data.dataset import MixedDataset, TileDataset, ViewDataset

    views = None
    if len(unlabeled):
        tiles = TileDataset(
            unlabeled,
            settings.data,
            seed=settings.seed + 1,
            pixels=pixels,
            named_fraction=settings.image_labels.fraction,
        )
        views = ViewDataset(
            tiles,
            n_strong=settings.semi.strong_views,
            strong=strong_photometry(settings.semi.strong_aug),
        )
    labeled = TileDataset(
        learned,
        settings.data,
        seed=settings.seed,
        pixels=pixels,
    )
    return MixedDataset(labeled, views, settings.semi.ratio)
