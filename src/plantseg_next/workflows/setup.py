"""Put a run together: network, engine, validation, callbacks and the training loop."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from plantseg_next import __version__
from plantseg_next.data.manifest import Manifest
from plantseg_next.models.bundle import ModelCard, Normalization
from plantseg_next.runtime import find_device, prepare_gpu, seed_everything
from plantseg_next.workflows.evaluate import images_of_run
from plantseg_next.workflows.training_data import TrainingData, train_dataset
from plantseg_next.workflows.validate import (
    PseudoLabelValidation,
    Validator,
    hidden_tiles,
    some_rows,
    views_without_masks,
)

if TYPE_CHECKING:
    from plantseg_next.models.pretrained import PretrainedSource
    from plantseg_next.models.segmenter import Segmenter
    from plantseg_next.training.callbacks.callback import Callback
    from plantseg_next.training.trainer import Trainer


def build_trainer(
    data: TrainingData,
    folder: Path,
    *,
    callbacks: Sequence["Callback"] = (),
    log: Callable[[str], None] = lambda _: None,
) -> "Trainer":
    """Return the trainer of a run, with its network, before the first step.

    Args:
        data: Images and settings of the run.
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
    from plantseg_next.training.engine import Engine
    from plantseg_next.training.trainer import Trainer

    settings, classes = data.settings, data.manifest.classes
    labeled, validation, unlabeled = data.labeled, data.validation, data.unlabeled
    device = find_device(settings.device)
    budget_mb = settings.memory.budget_mb
    if device.kind == "cuda":
        prepare_gpu(budget_mb, deterministic=settings.deterministic)
    seed_everything(settings.seed)
    checkpoints = Checkpoints(folder)
    network, source = network_of_run(
        settings.model, classes, folder, resumed=bool(checkpoints.steps())
    )
    _announce(labeled, validation, unlabeled, log)
    log(f"device: {device.name}; {source.notice}")
    with_label = [row for row in unlabeled.rows if row.disease is not None]
    engine = Engine(
        network,
        settings,
        device,
        classes,
        with_unlabeled=len(unlabeled) > 0,
        with_image_labels=bool(with_label),
    )
    pseudo_labels = None
    if engine.pseudo_labeler is not None:
        pseudo_labels = PseudoLabelValidation(
            engine.pseudo_labeler,
            hidden_tiles(
                data.manifest, settings, data.pixels, with_image_labels=bool(with_label)
            ),
            views_without_masks(labeled, unlabeled, settings, data.pixels),
        )
    monitor = ResourceMonitor(
        folder,
        cache_mib=2 * settings.data.cache_mib,
        budget_mb=budget_mb if device.kind == "cpu" else None,
    )
    eta = EtaEstimator(
        validations=settings.training.validations,
        minutes=settings.training.minutes,
        unsup_start=settings.semi.warmup_fraction if pseudo_labels else None,
    )
    chosen = some_rows(validation, settings.training.validation_images, settings.seed)
    card = _model_card(data, network, source, n_val_images=len(chosen))
    validator = Validator(
        chosen,
        card,
        device,
        student=network,
        pseudo_labels=pseudo_labels,
    )
    tiles = train_dataset(labeled, unlabeled, settings, data.pixels)
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
            CsvLogger(folder, engine.eval_model, card, images_of_run(data.used)),
            ReproducibilityProbe(folder, network),
            monitor,
            StatusFile(folder, monitor, eta),
            *callbacks,
        ],
    )
    return trainer


def _announce(
    labeled: Manifest, validation: Manifest, unlabeled: Manifest, log: Callable[[str], None]
) -> None:
    """Say how many images are learned from, and what is known to be of doubtful use."""
    sparse = sum(row.sparse for row in labeled.rows)
    by_points = f" ({sparse} of them by points or scribbles)" if sparse else ""
    log(
        f"{len(labeled)} labeled images to learn from{by_points}, {len(validation)} to "
        "validate on"
    )
    if not len(unlabeled):
        return
    with_label = [row for row in unlabeled.rows if row.disease is not None]
    n_label = len(with_label)
    of_them = f", {n_label} of them with an image-level label" if n_label else ""
    log(f"{len(unlabeled)} images without masks to learn from{of_them}")
    known = {row.source for row in labeled.rows}
    if with_label and not any(row.source in known for row in with_label):
        log(
            "  no image with an image-level label is of a data set with masks: in "
            "measurements, such labels lowered the lesion Dice "
            "(docs/results/few-labels.md); compare with a run without them"
        )


def _model_card(
    data: TrainingData,
    network: "Segmenter",
    source: "PretrainedSource",
    *,
    n_val_images: int,
) -> ModelCard:
    """Return the card of the models of a run, without metrics and digests."""
    from plantseg_next.training.run_record import code_commit, version_of

    encoder = network.encoder
    names = {row.source for row in data.labeled.rows} | {*source.data_sets}
    return ModelCard(
        classes=data.manifest.classes,
        model=data.settings.model,
        tile_px=data.settings.data.tile_px,
        long_side_px=data.settings.data.long_side_px,
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
