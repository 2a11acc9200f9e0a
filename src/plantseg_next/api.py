"""The Python API: one function per command.

check, plan, train, verify, evaluate, predict, pseudo_label, self_train, demo. Each takes
paths and settings and returns a result; none prints.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from plantseg_next.data import splits
from plantseg_next.data.formats import read_folder
from plantseg_next.data.manifest import MANIFEST_FILE, Manifest, Row, Split
from plantseg_next.data.quality.check import check as check_manifest
from plantseg_next.data.quality.issues import CheckReport
from plantseg_next.errors import UsageError, did_you_mean
from plantseg_next.evaluation import report
from plantseg_next.evaluation.report_tables import Report
from plantseg_next.files import AnyPath, prepare_output
from plantseg_next.inference.predictor import Predictor
from plantseg_next.inference.records import PredictionTable
from plantseg_next.models.bundle import CARD, ModelCard, find_bundle, read_bundle
from plantseg_next.models.start import STARTER_FOLDER, STARTERS, named_model, with_start
from plantseg_next.runtime import Device, find_device
from plantseg_next.settings import Settings
from plantseg_next.workflows.evaluate import eval_items, images_to_evaluate, severity_pct
from plantseg_next.workflows.predict import write_measures
from plantseg_next.workflows.pseudo_label import write_pseudo_labels
from plantseg_next.workflows.setup import DataSources, build_manifest
from plantseg_next.workflows.train import (
    Progress,
    ReproducibilityResult,
    TrainResult,
    plan_for,
    progress_for,
    train,
    verify,
)

if TYPE_CHECKING:
    from plantseg_next.inference.pipeline import Pipeline
    from plantseg_next.memory.plan import MemoryPlan
    from plantseg_next.training.callbacks.callback import Callback


__all__ = [
    "DataSources",
    "DemoResult",
    "PredictionTable",
    "Progress",
    "ReproducibilityResult",
    "TrainResult",
    "check",
    "demo",
    "evaluate",
    "find_model",
    "load_pipeline",
    "load_predictor",
    "plan",
    "predict",
    "pseudo_label",
    "self_train",
    "train",
    "verify",
]  # fmt: skip


def check(
    data: AnyPath | DataSources,
    *,
    classes: AnyPath | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> CheckReport:
    """Return the errors, warnings and notes about a data set.

    Args:
        data: Any folder that ``train`` takes, or several.
        classes: File of what mask values mean, if the folder has none.
        seed: Seed of the later run; it chooses the splits where the data set states none.
        progress: Called after every image.
    """
    sources = DataSources(data, classes) if isinstance(data, str | Path) else data
    manifest = splits.assign(sources.read(), seed=seed)
    return check_manifest(manifest, on_progress=progress_for(progress, "checking"))


def plan(
    data: AnyPath | DataSources,
    memory: int,
    settings: Settings | None = None,
    *,
    ram: int | None = None,
    classes: AnyPath | None = None,
    unlabeled: bool = False,
    device: Device | None = None,
) -> "MemoryPlan":
    """Return settings with which a run stays within a memory budget.

    Args:
        data: Images with masks in any layout that ``check`` reads.
        memory: The budget, in bytes: of the GPU, or on a CPU of the whole process.
        settings: The requested settings; by default those of ``Settings()``.
        ram: Budget of main memory for reading images, in bytes, beside that of a GPU.
        classes: File of what mask values mean, if the folder has none.
        unlabeled: Whether further images without masks will be learned from.
        device: Device of the run; by default that of this machine.

    Raises:
        UsageError: If no settings fit; it states the smallest budget that fits.
        DataError: If a file cannot be used.
    """
    settings = settings or Settings()
    settings = settings.model_copy(update={"model": with_start(settings.model)})
    sources = DataSources(data, classes) if isinstance(data, str | Path) else data
    manifest = build_manifest(sources, settings)
    return plan_for(manifest, settings, memory, ram=ram, unlabeled=unlabeled, device=device)


def evaluate(
    model: AnyPath,
    data: AnyPath | None = None,
    *,
    split: Split | Literal["all"] = "test",
    classes: AnyPath | None = None,
    progress: Progress | None = None,
) -> Report:
    """Evaluate a model on images with masks that it has not learned from.

    Where the data set does not state its splits, those of the model's run are used, and
    images that are not in the run count as test images. Images are identified by their
    content, not by their name.

    Args:
        model: A run, or one of its models.
        data: Images with masks; by default the data set of the run.
        split: Split to evaluate on; "all" is for data sets that had no part in training.
        classes: File of what mask values mean, if the folder has none.
        progress: Called after every image.

    Raises:
        UsageError: If no image has a mask, or training images are among them.
    """
    folder = find_model(model)
    data, classes = _as_path(data), _as_path(classes)
    rows = images_to_evaluate(folder, data, split, classes=classes)
    predictor, card = load_predictor(folder)
    eval_classes = card.classes
    if card.classes.lesions != rows.classes.lesions:
        eval_classes = replace(card.classes, lesions=("any lesion",))
    items = eval_items(
        predictor, card.classes, rows, eval_classes, progress_for(progress, "evaluating")
    )
    return report.evaluate(
        items, eval_classes, severity=severity_pct, source_domain=card.sources
    )


def predict(
    model: AnyPath | None,
    images: AnyPath,
    out: AnyPath,
    *,
    min_lesion_px: int = 20,
    progress: Progress | None = None,
) -> PredictionTable:
    """Measure every image of a folder: masks, overlays, and the tables of severity.

    Args:
        model: A run, or one of its models; ``None`` for the starter model of the package.
        images: An image, or a folder of images in any layout.
        out: New folder for the results.
        min_lesion_px: Smaller lesions are not counted, in pixels at the scale at which the
            model sees the image; every row states the value in pixels of the image itself.
        progress: Called after every image.

    Raises:
        OutputError: If ``out`` holds results already or cannot be written.
        DataError: If ``images`` is one image that cannot be read; of a folder, unreadable
            images are listed and the rest is measured.
    """
    images, out = Path(images), Path(out)
    manifest = read_folder(images)
    folder = STARTER_FOLDER if model is None else find_model(model)
    predictor, card = load_predictor(folder)
    return write_measures(
        predictor,
        card,
        manifest,
        out,
        name=_name_of(images),
        min_lesion_px=min_lesion_px,
        on_progress=progress_for(progress, "measuring"),
    )


def pseudo_label(
    model: AnyPath,
    images: AnyPath,
    out: AnyPath,
    *,
    threshold: float = 0.9,
    progress: Progress | None = None,
) -> PredictionTable:
    """Label images where a model is confident, as training data of the next run.

    Args:
        model: A run, or one of its models.
        images: An image, or a folder of images in any layout; of a data set or a run,
            the images without a mask, or with a mask hidden from the run.
        out: New folder; see ``workflows.pseudo_label``.
        threshold: Smallest probability accepted.
        progress: Called after every image.

    Raises:
        OutputError: If ``out`` holds results already or cannot be written.
        UsageError: If the threshold is not above 0.5 and below 1, or every image has
            a mask.
    """
    _refuse_threshold(threshold)
    images, out = Path(images), Path(out)
    manifest = read_folder(images)
    without_masks = manifest.only(
        row for row in manifest.rows if row.split == "unlabeled" or row.mask is None
    )
    if not len(without_masks):
        raise UsageError(
            f"Every image of `{images}` has a mask.",
            needed="images without masks",
            fix="name a folder that holds images only",
        )
    predictor, _ = load_predictor(find_model(model))
    return write_pseudo_labels(
        predictor,
        without_masks,
        out,
        name=_name_of(images),
        threshold=threshold,
        on_progress=progress_for(progress, "labeling"),
    )


def self_train(
    data: AnyPath | DataSources,
    out: AnyPath,
    settings: Settings | None = None,
    *,
    rounds: int = 1,
    callbacks: Sequence["Callback"] = (),
    log: Callable[[str], None] = lambda _: None,
    progress: Progress | None = None,
) -> tuple[TrainResult, ...]:
    """Train, label the images without masks, retrain on both, and repeat.

    Every run starts from the first weights: errors of an earlier run remain only in its
    labels, where a person can see and correct them.

    Args:
        data: As for ``train``.
        out: New folder, or one to resume; ``run_0`` is the run without pseudo-labels,
            ``labels_1`` are its pseudo-labels, ``run_1`` is the run that learned from
            them, and so on.
        settings: Settings of every run; ``semi.threshold`` is the smallest probability
            that becomes a label.
        rounds: How many times images are labeled, at least 1.
        callbacks: Called in every run.
        log: Receives lines for the user.
        progress: Called during each part.

    Returns:
        The runs, ``rounds + 1`` of them.

    Source:
        Yang et al. 2022 (ST++), arXiv:2106.05095: labels made once by a finished model
        and a student under strong augmentation are enough. Departure: ST++ ranks whole
        images; here pixels are selected.
    """
    sources = DataSources(data) if isinstance(data, str | Path) else data
    settings = settings or Settings()
    threshold = settings.semi.threshold
    _refuse_threshold(threshold)
    out = Path(out)
    names = [path.name for path in out.iterdir()] if out.is_dir() else []
    if not all(name.startswith(("run_", "labels_")) for name in names):
        prepare_output(out)
    runs: list[TrainResult] = []
    round_sources = sources
    for i in range(rounds + 1):
        if runs:
            labels, last = out / f"labels_{i}", runs[-1].folder
            if not (labels / MANIFEST_FILE).is_file():  # written last
                shutil.rmtree(labels, ignore_errors=True)
                pseudo_label(
                    last, runs[0].folder, labels, threshold=threshold, progress=progress
                )
            n = len(Manifest.read(labels / MANIFEST_FILE))
            log(f"round {i}: {n} images labeled by {last.name}")
            round_sources = replace(sources, pseudo_labels=(*sources.pseudo_labels, labels))
        runs.append(
            train(
                round_sources,
                out / f"run_{i}",
                settings,
                callbacks=callbacks,
                log=log,
                progress=progress,
            )
        )
    return tuple(runs)


def _refuse_threshold(threshold: float) -> None:
    if not 0.5 < threshold < 1:
        raise UsageError(
            f"The threshold is {threshold:g}.",
            needed="a probability above 0.5 and below 1",
            fix="for example 0.9",
        )


DEMO_MASKS = 20
"""Approximate number of masks that ``demo`` refines the starter model on."""


@dataclass(frozen=True)
class DemoResult:
    """The result of ``demo``.

    Args:
        before: Report of the starter model on the test leaves.
        after: Report of the refined model on the same leaves.
        measured: Severity table of the starter model.
        refined: Severity table of the refined model.
        trained: The run.
        folder: Folder of all results.
    """

    before: Report
    after: Report
    measured: PredictionTable
    refined: PredictionTable
    trained: TrainResult
    folder: Path


def demo(
    out: AnyPath,
    *,
    steps: int = 200,
    leaves: int = 200,
    callbacks: Sequence["Callback"] = (),
    log: Callable[[str], None] = lambda _: None,
    on_measured: Callable[[PredictionTable, Report], None] = lambda *_: None,
    progress: Progress | None = None,
) -> DemoResult:
    """Measure synthetic leaves, refine the starter model on a few masks, measure again.

    Args:
        out: New folder for leaves, run, reports and predictions.
        steps: Optimizer steps.
        leaves: Number of leaves to draw; 15 % of them are test leaves.
        callbacks: Called during training.
        log: Receives lines for the user.
        on_measured: Called before training with the results of the starter model.
        progress: Called during each part.
    """
    from plantseg_next.synthetic.leaves import write_drawn_folder
    from plantseg_next.workflows.demo import refine

    out = Path(out)
    prepare_output(out)
    log(f"drawing {leaves} leaves with exact masks")
    write_drawn_folder(out / "leaves", leaves, seed=0, size_hw=(256, 256))
    manifest = splits.assign(read_folder(out / "leaves"), seed=0)
    test = manifest.split("test")
    before, measured = _evaluate_and_measure(
        STARTER_FOLDER, test, out / "before", progress=progress
    )
    on_measured(measured, before)
    fraction = min(1.0, DEMO_MASKS / len(manifest.split("train").labeled))
    log(f"refining it on about {DEMO_MASKS} masks, for {steps} steps")
    trained = train(
        out / "leaves",
        out / "run",
        refine(steps, fraction),
        callbacks=callbacks,
        log=log,
        progress=progress,
    )
    after, refined = _evaluate_and_measure(
        find_model(out / "run"), test, out / "after", progress=progress
    )
    return DemoResult(before, after, measured, refined, trained, out)


def _evaluate_and_measure(
    model: Path, rows: Manifest, out: Path, *, progress: Progress | None
) -> tuple[Report, PredictionTable]:
    """Evaluate a model on "any lesion"; write its table, masks, overlays and report."""
    predictor, card = load_predictor(model)
    eval_classes = replace(card.classes, lesions=("any lesion",))
    items = eval_items(
        predictor,
        card.classes,
        rows,
        eval_classes,
        progress_for(progress, "evaluating"),
    )
    evaluation = report.evaluate(items, eval_classes, severity=severity_pct)
    table = write_measures(
        predictor,
        card,
        rows,
        out,
        name=lambda row: row.image.name,
        on_progress=progress_for(progress, "measuring"),
    )
    evaluation.write(out / "report")
    return evaluation, table


def _as_path(path: AnyPath | None) -> Path | None:
    return None if path is None else Path(path)


def _name_of(images: Path) -> Callable[[Row], str]:
    """Return a function that names an image: its path within ``images``, or its key."""
    root = images if images.is_dir() else images.parent

    def name(row: Row) -> str:
        if row.image.is_relative_to(root):
            path = row.image.relative_to(root).as_posix()
        else:
            path = f"{row.key}{row.image.suffix}"
        # Bytes that are not UTF-8 are escaped in tables, as `\xff`.
        return os.fsencode(path).decode("utf-8", "backslashreplace")

    return name


def holds_model(path: AnyPath) -> bool:
    """Return whether a path is a model, a run with a model, or the name of one."""
    path = Path(path)
    if path.exists():
        return find_bundle(path) is not None
    return str(path) in STARTERS


def find_model(path: AnyPath) -> Path:
    """Return the folder of a model: a path, ``best`` of a run, or a model of the package.

    Raises:
        UsageError: If there is none.
    """
    path = Path(path)
    folder = named_model(path)
    if folder is not None:
        return folder
    fix = "train one: plantseg-next train DATA --out RUN"
    raise UsageError(
        f"`{path}` holds no trained model.",
        needed=f"a run, a folder with `{CARD}`, or one of {', '.join(STARTERS)}",
        fix=fix if path.exists() else did_you_mean(str(path), STARTERS, fix),
    )


def load_predictor(model: AnyPath) -> tuple[Predictor, ModelCard]:
    """Return a predictor on the best device available, and the card of the model."""
    from plantseg_next.inference.predictor import make_predictor

    network, card = read_bundle(Path(model))
    device = find_device().kind
    return make_predictor(network.to(device), card, device), card


def load_pipeline(model: AnyPath) -> "Pipeline":
    """Return a model that predicts images in memory; see ``plantseg_next.load``.

    Raises:
        UsageError: If there is no such model.
        DataError: If its files are damaged.
    """
    from plantseg_next.inference.pipeline import Pipeline

    return Pipeline(*load_predictor(find_model(model)))
