"""Where a run is put together: which images teach, who is the teacher, who judges."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plantseg_next.data import splits
from plantseg_next.data.class_names import read_names, renamed
from plantseg_next.data.formats import read_folder, read_folders
from plantseg_next.data.manifest import Manifest
from plantseg_next.data.quality.leakage import add_datasets, describe_excluded, drop_leaks
from plantseg_next.data.sampler import refuse_unknown
from plantseg_next.errors import UsageError
from plantseg_next.models.bundle import ModelCard
from plantseg_next.runtime import find_device, prepare_gpu, seed_everything
from plantseg_next.settings import Settings
from plantseg_next.workflows.evaluate import labeled_rows, some_rows
from plantseg_next.workflows.validate import Validator, hidden_tiles, unlabeled_set_metrics

if TYPE_CHECKING:
    from plantseg_next.data.dataset import MixedDataset
    from plantseg_next.training.callbacks.callback import Callback
    from plantseg_next.training.trainer import Trainer


@dataclass(frozen=True)
class DataSources:
    """Where images come from.

    Args:
        data: One data set or many, in any layout that ``check`` knows; some of the
            images have masks.
        classes: What mask values mean, if the folder does not say.
        unlabeled: Further folders of images; their masks and labels, if any, are not
            looked at. Those that show a labeled or judged scene are left out.
        pseudo_labels: Folders that ``pseudo_label`` wrote; their masks are learned from
            as far as they say anything.
        names: File of what the data sets call things, and what the run calls them.
    """

    data: Path | Sequence[Path]
    classes: Path | None = None
    unlabeled: Sequence[Path] = ()
    pseudo_labels: Sequence[Path] = ()
    names: Path | None = None

    @property
    def folders(self) -> tuple[Path, ...]:
        """The data sets."""
        return (self.data,) if isinstance(self.data, Path) else tuple(self.data)

    def __str__(self) -> str:
        """Return what the data sets are called in errors."""
        return ", ".join(str(path) for path in self.folders)

    def read(self) -> Manifest:
        """Return the images of the data sets, under the run's names.

        Raises:
            UsageError: If one of them cannot be understood.
            DataError: If a file cannot be used.
        """
        manifest = read_folders(self.folders, classes=self.classes)
        return manifest if self.names is None else renamed(manifest, read_names(self.names))

    def plain(self) -> dict[str, Any]:
        """Return the absolute paths as text: what is kept of them in a run."""
        folders = [str(path.resolve()) for path in self.folders]
        return {
            "data": folders if len(folders) > 1 else folders[0],
            "classes": self.classes and str(self.classes.resolve()),
            **({"names": str(self.names.resolve())} if self.names else {}),
            "unlabeled": [str(path.resolve()) for path in self.unlabeled],
            "pseudo-labels": [str(path.resolve()) for path in self.pseudo_labels],
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
        sources: Where they come from.
        settings: The seed draws splits where the data set states none, and which masks
            are hidden where ``data.labeled_fraction`` is below 1.
        log: Hears what is left out, and why.
        on_progress: Hears of every image that is compared with the others.

    Raises:
        UsageError: If the masks name no lesion.
        DataError: If a file cannot be used.
    """
    manifest = splits.assign(sources.read(), seed=settings.seed)
    if len(sources.folders) > 1:
        manifest, left = drop_leaks(manifest, on_progress=on_progress)
        for line in describe_excluded(left):
            log(line)
    manifest = splits.labeled_fraction(
        manifest, settings.data.labeled_fraction, seed=settings.seed
    )
    if len(manifest.labeled) and not manifest.classes.lesions:
        raise UsageError(
            f"The masks of `{sources}` name no lesion class.",
            needed="masks that mark lesions; leaf masks alone teach no disease",
            fix="say in classes.yaml which value is a lesion",
        )
    # Pseudo-labels first: an image that has one is no longer without a label.
    for folders, masks in ((sources.pseudo_labels, True), (sources.unlabeled, False)):
        if folders:
            others = [read_folder(folder) for folder in folders]
            manifest, left = add_datasets(
                manifest, others, masks=masks, on_progress=on_progress
            )
            for line in describe_excluded(left):
                log(line)
    return _with_what_is_learned(manifest, log)


def _with_what_is_learned(manifest: Manifest, say: Callable[[str], None]) -> Manifest:
    """Return the table without the leaf among its classes, if only judges know it.

    A head that no mask teaches says something all the same, and severity would be made
    of it.
    """
    pseudo_labeled = manifest.split("train").labeled.rows
    if not manifest.classes.has_leaf or any(
        manifest.codings[row.source].marks_leaf for row in pseudo_labeled
    ):
        return manifest
    say("No mask that is learned from marks the leaf: the model will know no severity.")
    return replace(manifest, classes=replace(manifest.classes, has_leaf=False))


@dataclass(frozen=True)
class TrainingData:
    """All that a run learns from and under: with it, a run can be begun or gone on with.

    Args:
        manifest: Every image, in its split.
        settings: The whole tree.
        pixels: Labeled pixels of each lesion class, "no lesion" first.
        origin: What the images are called in errors.
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
        on_progress: Callable[[int, int], None] = lambda *_: None,
    ) -> "TrainingData":
        """Return the plan of a run to come: every file is digested, every mask counted.

        Masks of a few points or scribbles are found out, and marked so.

        Raises:
            DataError: If a file cannot be used.
        """
        from plantseg_next.data.dataset import count_pixels

        plan = cls(manifest.digested(), settings, (), origin)
        counted = count_pixels(plan.labeled, on_progress=on_progress)
        rows = (replace(r, sparse=r.key in counted.sparse) for r in plan.manifest.rows)
        return replace(plan, manifest=plan.manifest.only(rows), pixels=counted.pixels)

    @property
    def labeled(self) -> Manifest:
        """Images whose masks are learned from."""
        return labeled_rows(self.manifest, "train", self.origin)

    @property
    def validation(self) -> Manifest:
        """Images whose masks choose the best model."""
        return labeled_rows(self.manifest, "val", self.origin)

    @property
    def unlabeled(self) -> Manifest:
        """Images that are learned from without a mask; none in a supervised run.

        Those of the training split may have a name, which is learned where
        ``image_labels.fraction`` is above 0; of others, nothing that is known is looked
        at. Where a mask is a few points, its image is both.
        """
        if self.settings.semi.method == "supervised":
            return self.manifest.only(())
        train = self.manifest.split("train").rows
        bare = (
            *self.manifest.split("unlabeled").rows,
            *(row for row in train if row.sparse),
        )
        named = [row for row in train if row.mask is None and row.disease is not None]
        if self.settings.image_labels.fraction == 0:
            named = [replace(row, disease=None) for row in named]
        return self.manifest.only(
            (
                *(replace(row, mask=None, disease=None, sparse=False) for row in bare),
                *named,
            )
        )


def build_trainer(
    plan: TrainingData,
    folder: Path,
    *,
    callbacks: Sequence["Callback"] = (),
    log: Callable[[str], None] = lambda _: None,
) -> "Trainer":
    """Return the trainer of a run, network and all, as it stands before the first step.

    Args:
        plan: What is learned from, and how.
        folder: Of the run.
        callbacks: Hear of everything, after the run's own folder.
        log: Hears what a person should know before training starts.
    """
    from plantseg_next.data.dataloader import loader
    from plantseg_next.models.start import network_of_run
    from plantseg_next.training.callbacks.callback import Event
    from plantseg_next.training.callbacks.csv_logger import CsvLogger
    from plantseg_next.training.callbacks.eta import EtaEstimator
    from plantseg_next.training.callbacks.reproducibility import ReproducibilityProbe
    from plantseg_next.training.callbacks.resources import ResourceMonitor
    from plantseg_next.training.callbacks.status_file import StatusFile
    from plantseg_next.training.checkpoints import Checkpoints
    from plantseg_next.training.engine import build_engine
    from plantseg_next.training.trainer import Trainer

    settings, classes = plan.settings, plan.manifest.classes
    learned, judged_on, unlabeled = plan.labeled, plan.validation, plan.unlabeled
    drawn_from = {row.source for row in (*learned.rows, *unlabeled.rows)}
    refuse_unknown(settings.data, sorted(drawn_from))
    device = find_device(settings.device)
    budget_mb = settings.memory.budget_mb
    if device.kind == "cuda":
        prepare_gpu(budget_mb, deterministic=settings.deterministic)
    seed_everything(settings.seed)
    checkpoints = Checkpoints(folder)
    network, source = network_of_run(
        settings.model, classes, folder, resumed=bool(checkpoints.steps())
    )
    sparse = sum(row.sparse for row in learned.rows)
    log(
        f"{len(learned)} labeled images to learn from"
        + (f" ({sparse} of them by points or scribbles)" if sparse else "")
        + f", {len(judged_on)} to judge by"
    )
    log(f"device: {device.name}; {source.notice}")
    hidden = unlabeled_metrics = None
    named = [row for row in unlabeled.rows if row.disease is not None]
    if len(unlabeled):
        log(
            f"{len(unlabeled)} images without masks to learn from"
            + (f", {len(named)} of them with a name" if named else "")
        )
        known = {row.source for row in learned.rows}
        if named and not any(row.source in known for row in named):
            log(
                "  no named image is of a data set with masks: where it was measured, "
                "such names cost lesions more than they brought (docs/few-labels.md); "
                "compare with a run without them"
            )
        hidden = hidden_tiles(
            plan.manifest, settings, plan.pixels, with_image_labels=bool(named)
        )
        unlabeled_metrics = unlabeled_set_metrics(learned, unlabeled, settings, plan.pixels)
    card = ModelCard(
        classes=classes,
        model=settings.model,
        tile_px=settings.data.tile_px,
        long_side_px=settings.data.long_side_px,
        weights_origin=source.name,
        weights_license=source.license,
        weights_sha256=source.sha256,
        sources=tuple(sorted({row.source for row in learned.rows} | {*source.data_sets})),
    )
    engine = build_engine(
        network,
        settings,
        device,
        classes,
        with_unlabeled=len(unlabeled) > 0,
        with_image_labels=bool(named),
    )
    pseudo_labeler = engine.pseudo_labeler
    monitor = ResourceMonitor(
        folder,
        cache_mib=2 * settings.data.cache_mib,
        budget_mb=budget_mb if device.kind == "cpu" else None,
    )
    eta = EtaEstimator(
        validations=settings.training.validations,
        minutes=settings.training.minutes,
        unsup_start=settings.semi.warmup_fraction if pseudo_labeler else None,
    )
    chosen = some_rows(judged_on, settings.training.validation_images, settings.seed)
    judge = Validator(
        chosen,
        card,
        device,
        student=network,
        pseudo_labeler=pseudo_labeler,
        hidden=hidden,
        unlabeled_metrics=unlabeled_metrics,
    )
    tiles = train_dataset(learned, unlabeled, settings, plan.pixels)
    trainer = Trainer(
        engine,
        lambda start: loader(
            tiles,
            batch_size=settings.training.batch,
            start=start,
            stop=settings.training.steps,
            workers=settings.data.workers,
            prefetch=settings.data.prefetch,
            log=lambda text: trainer.emit(Event("worker-replaced", text)),
        ),
        judge,
        settings,
        checkpoints,
        n_images=len(learned) + len(unlabeled),
        # The teacher is the better network of the two, and the one to keep.
        callbacks=[
            CsvLogger(folder, engine.eval_model, card),
            ReproducibilityProbe(folder, network),
            monitor,
            StatusFile(folder, monitor, eta),
            *callbacks,
        ],
    )
    return trainer


def train_dataset(
    learned: Manifest, unlabeled: Manifest, settings: Settings, pixels: Sequence[int]
) -> "MixedDataset":
    """Return what the run draws from.

    Args:
        learned: Images with masks.
        unlabeled: Images without masks, some perhaps with a name; may be empty.
        settings: The whole tree.
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
