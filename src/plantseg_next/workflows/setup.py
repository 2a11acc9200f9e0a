"""Set up a run: its data sources, its manifest, its training data, and its trainer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plantseg_next import __version__
from plantseg_next.data import splits
from plantseg_next.data.class_names import read_names, renamed
from plantseg_next.data.formats import read_folder, read_folders
from plantseg_next.data.manifest import Manifest
from plantseg_next.data.quality.inspect import with_known_digests
from plantseg_next.data.quality.leakage import (
    add_datasets,
    describe_excluded,
    draw_splits,
    drop_leaks,
)
from plantseg_next.data.sampler import refuse_unknown
from plantseg_next.data.splits import labeled_rows
from plantseg_next.errors import UsageError
from plantseg_next.files import AnyPath
from plantseg_next.models.bundle import ModelCard, Normalization
from plantseg_next.runtime import find_device, prepare_gpu, seed_everything
from plantseg_next.settings import Settings
from plantseg_next.workflows.evaluate import images_of_run, some_rows
from plantseg_next.workflows.validate import Validator, hidden_tiles, unlabeled_set_metrics

if TYPE_CHECKING:
    from plantseg_next.data.dataset import MixedDataset
    from plantseg_next.models.pretrained import PretrainedSource
    from plantseg_next.models.segmenter import Segmenter
    from plantseg_next.training.callbacks.callback import Callback
    from plantseg_next.training.trainer import Trainer


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
    """

    data: AnyPath | Sequence[AnyPath]
    classes: AnyPath | None = None
    unlabeled: Sequence[AnyPath] = ()
    pseudo_labels: Sequence[AnyPath] = ()
    names: AnyPath | None = None

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
        manifest = read_folders(self.folders, classes=classes)
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
        UsageError: If the masks name no lesion class.
        DataError: If a file cannot be used.
    """
    manifest = draw_splits(
        sources.read(), seed=settings.seed, log=log, on_progress=on_progress
    )
    if len(sources.folders) > 1:
        manifest, excluded = drop_leaks(manifest, on_progress=on_progress)
        for line in describe_excluded(excluded):
            log(line)
    manifest = splits.labeled_fraction(
        manifest, settings.data.labeled_fraction, seed=settings.seed
    )
    if len(manifest.labeled) and not manifest.classes.lesions:
        raise UsageError(
            f"The masks of `{sources}` name no lesion class.",
            needed="masks that mark lesions; leaf masks alone are not enough",
            fix="state in classes.yaml which value is a lesion",
        )
    # Pseudo-labels first: an image that has one is no longer without a label.
    for folders, masks in ((sources.pseudo_labels, True), (sources.unlabeled, False)):
        if folders:
            others = [read_folder(Path(folder)) for folder in folders]
            manifest, excluded = add_datasets(
                manifest, others, masks=masks, on_progress=on_progress
            )
            for line in describe_excluded(excluded):
                log(line)
    return _without_unlearned_leaf(manifest, log)


def _without_unlearned_leaf(manifest: Manifest, log: Callable[[str], None]) -> Manifest:
    """Return the manifest without a leaf class, if no training mask marks the leaf.

    Otherwise severity would be computed from the output of an untrained leaf head.
    """
    train_rows = manifest.split("train").labeled.rows
    if not manifest.classes.has_leaf or any(
        manifest.codings[row.source].marks_leaf for row in train_rows
    ):
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
        on_progress: Callable[[int, int], None] = lambda *_: None,
    ) -> "TrainingData":
        """Return the data of a new run: compute file digests and count mask pixels.

        Masks of a few points or scribbles are marked as sparse.

        Raises:
            DataError: If a file cannot be used.
        """
        from plantseg_next.data.dataset import count_pixels

        data = cls(with_known_digests(manifest).digested(), settings, (), origin)
        counts = count_pixels(data.labeled, on_progress=on_progress)
        rows = (replace(r, sparse=r.key in counts.sparse) for r in data.manifest.rows)
        return replace(data, manifest=data.manifest.only(rows), pixels=counts.pixels)

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


def build_trainer(
    plan: TrainingData,
    folder: Path,
    *,
    callbacks: Sequence["Callback"] = (),
    log: Callable[[str], None] = lambda _: None,
) -> "Trainer":
    """Return the trainer of a run, with its network, before the first step.

    Args:
        plan: Images and settings of the run.
        folder: Folder of the run.
        callbacks: Called after the callbacks that write the run folder.
        log: Receives lines for the user before training starts.
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
    labeled, validation, unlabeled = plan.labeled, plan.validation, plan.unlabeled
    names = {row.source for row in (*labeled.rows, *unlabeled.rows)}
    refuse_unknown(settings.data, sorted(names))
    device = find_device(settings.device)
    budget_mb = settings.memory.budget_mb
    if device.kind == "cuda":
        prepare_gpu(budget_mb, deterministic=settings.deterministic)
    seed_everything(settings.seed)
    checkpoints = Checkpoints(folder)
    network, source = network_of_run(
        settings.model, classes, folder, resumed=bool(checkpoints.steps())
    )
    sparse = sum(row.sparse for row in labeled.rows)
    log(
        f"{len(labeled)} labeled images to learn from"
        + (f" ({sparse} of them by points or scribbles)" if sparse else "")
        + f", {len(validation)} to validate on"
    )
    log(f"device: {device.name}; {source.notice}")
    hidden = unlabeled_metrics = None
    with_label = [row for row in unlabeled.rows if row.disease is not None]
    if len(unlabeled):
        log(
            f"{len(unlabeled)} images without masks to learn from"
            + (
                f", {len(with_label)} of them with an image-level label"
                if with_label
                else ""
            )
        )
        known = {row.source for row in labeled.rows}
        if with_label and not any(row.source in known for row in with_label):
            log(
                "  no image with an image-level label is of a data set with masks: in "
                "measurements, such labels lowered the lesion Dice "
                "(docs/results/few-labels.md); compare with a run without them"
            )
        hidden = hidden_tiles(
            plan.manifest, settings, plan.pixels, with_image_labels=bool(with_label)
        )
        unlabeled_metrics = unlabeled_set_metrics(labeled, unlabeled, settings, plan.pixels)
    engine = build_engine(
        network,
        settings,
        device,
        classes,
        with_unlabeled=len(unlabeled) > 0,
        with_image_labels=bool(with_label),
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
    chosen = some_rows(validation, settings.training.validation_images, settings.seed)
    card = _model_card(plan, network, source, n_val_images=len(chosen))
    validator = Validator(
        chosen,
        card,
        device,
        student=network,
        pseudo_labeler=pseudo_labeler,
        hidden=hidden,
        unlabeled_metrics=unlabeled_metrics,
    )
    tiles = train_dataset(labeled, unlabeled, settings, plan.pixels)
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
        validator,
        settings,
        checkpoints,
        n_images=len(labeled) + len(unlabeled),
        # The EMA teacher, if there is one, is saved: it is the better network.
        callbacks=[
            CsvLogger(folder, engine.eval_model, card, images_of_run(plan.manifest)),
            ReproducibilityProbe(folder, network),
            monitor,
            StatusFile(folder, monitor, eta),
            *callbacks,
        ],
    )
    return trainer


def _model_card(
    plan: TrainingData,
    network: "Segmenter",
    source: "PretrainedSource",
    *,
    n_val_images: int,
) -> ModelCard:
    """Return the card of the models of a run, without metrics and digests."""
    from plantseg_next.training.run_record import code_commit, version_of

    encoder = network.encoder
    names = {row.source for row in plan.labeled.rows} | {*source.data_sets}
    return ModelCard(
        classes=plan.manifest.classes,
        model=plan.settings.model,
        tile_px=plan.settings.data.tile_px,
        long_side_px=plan.settings.data.long_side_px,
        weights_origin=source.name,
        weights_license=source.license,
        weights_sha256=source.sha256,
        sources=tuple(sorted(names)),
        n_val_images=n_val_images,
        normalization=Normalization(encoder.mean, encoder.std),
        versions={
            "plantseg-next": __version__,
            "torch": version_of("torch"),
            "timm": version_of("timm"),
        },
        code=code_commit(),
    )


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
