"""One function a verb: check, plan, train, verify, evaluate, predict, pseudo_label, demo.

The rooms meet here.

Each takes paths and settings and returns what it found; none prints. The command line
says the same words.
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
from plantseg_next.files import prepare_output
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
    "load_predictor",
    "plan",
    "predict",
    "pseudo_label",
    "self_train",
    "train",
    "verify",
]  # fmt: skip


def check(
    data: Path | DataSources,
    *,
    classes: Path | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> CheckReport:
    """Return everything that is wrong, doubtful or worth knowing about a data set.

    Args:
        data: Any folder that ``train`` takes, or several.
        classes: What mask values mean, if the folder does not say.
        seed: Of the run to come; it draws the splits where the data set states none.
        progress: Told of every image.
    """
    sources = DataSources(data, classes) if isinstance(data, Path) else data
    manifest = splits.assign(sources.read(), seed=seed)
    return check_manifest(manifest, on_progress=progress_for(progress, "checking"))


def plan(
    data: Path | DataSources,
    memory: int,
    settings: Settings | None = None,
    *,
    ram: int | None = None,
    classes: Path | None = None,
    unlabeled: bool = False,
    device: Device | None = None,
) -> "MemoryPlan":
    """Return settings with which a run stays within a budget, before it is begun.

    Args:
        data: Images with masks in any layout that ``check`` knows.
        memory: The budget, in bytes: of the GPU, or on a CPU of the whole process.
        settings: As asked for; the defaults by default.
        ram: Bytes of main memory to read images within, beside a GPU's budget.
        classes: What mask values mean, if the folder does not say.
        unlabeled: Whether further images without masks will be learned from.
        device: Where the run will be; by default where this is called.

    Raises:
        UsageError: If nothing fits; it names the least budget that does.
        DataError: If a file cannot be used.
    """
    settings = settings or Settings()
    settings = settings.model_copy(update={"model": with_start(settings.model)})
    sources = DataSources(data, classes) if isinstance(data, Path) else data
    manifest = build_manifest(sources, settings)
    return plan_for(manifest, settings, memory, ram=ram, unlabeled=unlabeled, device=device)


def evaluate(
    model: Path,
    data: Path | None = None,
    *,
    split: Split | Literal["all"] = "test",
    classes: Path | None = None,
    progress: Progress | None = None,
) -> Report:
    """Judge a model on images with masks that it has not learned from.

    Where the data set does not state its splits, those of the model's run are used, and
    images that the run never saw count as test images. Images are known by their
    content, not by their name.

    Args:
        model: A run, or one of its models.
        data: Images with masks; the run's own by default.
        split: Which of them; "all" is for data sets that had no part in training.
        classes: What mask values mean, if the folder does not say.
        progress: Told of every image.

    Raises:
        UsageError: If there is nothing to judge by, or training images are in it.
    """
    folder = find_model(model)
    rows = images_to_evaluate(folder, data, split, classes=classes)
    predictor, card = load_predictor(folder)
    judged_as = card.classes
    if card.classes.lesions != rows.classes.lesions:
        judged_as = replace(card.classes, lesions=("any lesion",))
    items = eval_items(
        predictor, card.classes, rows, judged_as, progress_for(progress, "judging")
    )
    return report.evaluate(
        items, judged_as, severity=severity_pct, source_domain=card.sources
    )


def predict(
    model: Path | None,
    images: Path,
    out: Path,
    *,
    min_lesion_px: int = 20,
    progress: Progress | None = None,
) -> PredictionTable:
    """Measure every image of a folder: masks, overlays, and the tables of severity.

    Args:
        model: A run, or one of its models; ``None`` for the starter model that comes
            with the package.
        images: An image, or a folder of them in any layout.
        out: New folder for the results.
        min_lesion_px: Smaller lesions are not counted, at the scale at which the model
            sees the image; what that is in the image's own pixels stands in every row.
        progress: Told of every image.

    Raises:
        OutputError: If ``out`` holds results already or cannot be written.
        DataError: If the one image asked for cannot be read; of a folder, unreadable
            images are listed and the rest is measured.
    """
    manifest = read_folder(images)
    folder = STARTER_FOLDER if model is None else find_model(model)
    predictor, card = load_predictor(folder)
    return write_measures(
        predictor,
        card,
        manifest,
        out,
        name=_naming(images),
        min_lesion_px=min_lesion_px,
        told=progress_for(progress, "measuring"),
    )


def pseudo_label(
    model: Path,
    images: Path,
    out: Path,
    *,
    threshold: float = 0.9,
    progress: Progress | None = None,
) -> PredictionTable:
    """Label images with what a model is sure of, for the next run to learn from.

    Args:
        model: A run, or one of its models.
        images: An image, or a folder of them in any layout; of a data set or a run,
            those without a mask, or with a mask that the run was not shown.
        out: New folder; see ``pseudo_labels``.
        threshold: Least probability believed.
        progress: Told of every image.

    Raises:
        OutputError: If ``out`` holds results already or cannot be written.
        UsageError: If the threshold is not above 0.5 and below 1, or every image has
            a mask.
    """
    _refuse_threshold(threshold)
    manifest = read_folder(images)
    bare = manifest.only(
        row for row in manifest.rows if row.split == "unlabeled" or row.mask is None
    )
    if not len(bare):
        raise UsageError(
            f"Every image of `{images}` has a mask.",
            needed="images without masks",
            fix="name a folder that holds images only",
        )
    predictor, _ = load_predictor(find_model(model))
    return write_pseudo_labels(
        predictor,
        bare,
        out,
        name=_naming(images),
        threshold=threshold,
        told=progress_for(progress, "labeling"),
    )


def self_train(
    data: Path | DataSources,
    out: Path,
    settings: Settings | None = None,
    *,
    rounds: int = 1,
    callbacks: Sequence["Callback"] = (),
    log: Callable[[str], None] = lambda _: None,
    progress: Progress | None = None,
) -> tuple[TrainResult, ...]:
    """Train, label the images without masks, and train anew on both; in rounds.

    Every run starts from the beginning: errors of an earlier one live on in its labels
    only, where a person can see and correct them.

    Args:
        data: As for ``train``.
        out: New folder, or one to go on with; ``run_0`` is the run without pseudo-labels,
            ``labels_1`` what it labeled, ``run_1`` the run that learned from that, and
            so on.
        settings: Of every run; ``semi.threshold`` is the least probability that
            becomes a label.
        rounds: Times that images are labeled, at least 1.
        callbacks: Hear of every run.
        log: Hears what a person should know.
        progress: Told how far each part is.

    Returns:
        The runs, ``rounds + 1`` of them.

    Source:
        Yang et al. 2022 (ST++), arXiv:2106.05095, that labels made once by a finished
        model and a strongly disturbed student are enough; whole images are not
        ranked here, pixels are.
    """
    sources = DataSources(data) if isinstance(data, Path) else data
    settings = settings or Settings()
    threshold = settings.semi.threshold
    _refuse_threshold(threshold)
    names = [path.name for path in out.iterdir()] if out.is_dir() else []
    if not all(name.startswith(("run_", "labels_")) for name in names):
        prepare_output(out)
    runs: list[TrainResult] = []
    learned_from = sources
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
            learned_from = replace(sources, pseudo_labels=(*sources.pseudo_labels, labels))
        runs.append(
            train(
                learned_from,
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
"""About how many masks ``demo`` refines the starter model on."""


@dataclass(frozen=True)
class DemoResult:
    """What ``demo`` came to.

    Args:
        before: Report of the starter model on the test leaves.
        after: Report of the model that was refined on a few masks, on the same leaves.
        measured: The starter's table of severity.
        refined: The refined model's table.
        trained: The run.
        folder: Where all of it lies.
    """

    before: Report
    after: Report
    measured: PredictionTable
    refined: PredictionTable
    trained: TrainResult
    folder: Path


def demo(
    out: Path,
    *,
    steps: int = 200,
    leaves: int = 200,
    callbacks: Sequence["Callback"] = (),
    log: Callable[[str], None] = lambda _: None,
    on_measured: Callable[[PredictionTable, Report], None] = lambda *_: None,
    progress: Progress | None = None,
) -> DemoResult:
    """Measure drawn leaves with the starter model, refine it on a few masks, measure again.

    Args:
        out: New folder for leaves, run, reports and predictions.
        steps: Of the training.
        leaves: Leaves drawn; 15 % of them are test leaves.
        callbacks: Hear of the training.
        log: Hears what is being done.
        on_measured: Hears what the starter measured, before training begins.
        progress: Told how far each part is.
    """
    from plantseg_next.synthetic.leaves import write_drawn_folder
    from plantseg_next.workflows.demo import refine

    prepare_output(out)
    log(f"drawing {leaves} leaves with exact masks")
    write_drawn_folder(out / "leaves", leaves, seed=0, size_hw=(256, 256))
    manifest = splits.assign(read_folder(out / "leaves"), seed=0)
    test = manifest.split("test")
    before, measured = _judge_and_measure(
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
    after, refined = _judge_and_measure(
        find_model(out / "run"), test, out / "after", progress=progress
    )
    return DemoResult(before, after, measured, refined, trained, out)


def _judge_and_measure(
    model: Path, rows: Manifest, out: Path, *, progress: Progress | None
) -> tuple[Report, PredictionTable]:
    """Judge a model on any lesion, and write its table, masks, overlays and report."""
    predictor, card = load_predictor(model)
    judged_as = replace(card.classes, lesions=("any lesion",))
    items = eval_items(
        predictor,
        card.classes,
        rows,
        judged_as,
        progress_for(progress, "judging"),
    )
    found = report.evaluate(items, judged_as, severity=severity_pct)
    written = write_measures(
        predictor,
        card,
        rows,
        out,
        name=lambda row: row.image.name,
        told=progress_for(progress, "measuring"),
    )
    found.write(out / "report")
    return found, written


def _naming(images: Path) -> Callable[[Row], str]:
    """Return what calls an image by its path within what was read, or by its key."""
    root = images if images.is_dir() else images.parent

    def name(row: Row) -> str:
        if row.image.is_relative_to(root):
            called = row.image.relative_to(root).as_posix()
        else:
            called = f"{row.key}{row.image.suffix}"
        # Bytes that are no UTF-8 cannot stand in a table: escaped, as `\xff`.
        return os.fsencode(called).decode("utf-8", "backslashreplace")

    return name


def holds_model(path: Path) -> bool:
    """Return whether a path is that of a model, or of a run with one."""
    if path.exists():
        return find_bundle(path) is not None
    return str(path) in STARTERS


def find_model(path: Path) -> Path:
    """Return the folder of a model: a path, a run's ``best``, or a packaged one by name.

    Raises:
        UsageError: If there is none.
    """
    folder = named_model(path)
    if folder is not None:
        return folder
    fix = "train one: plantseg-next train DATA --out RUN"
    raise UsageError(
        f"`{path}` holds no trained model.",
        needed=f"a run, a folder with `{CARD}`, or one of {', '.join(STARTERS)}",
        fix=fix if path.exists() else did_you_mean(str(path), STARTERS, fix),
    )


def load_predictor(model: Path) -> tuple[Predictor, ModelCard]:
    """Return a predictor on the best device there is, and the model's card."""
    from plantseg_next.inference.predictor import make_predictor

    network, card = read_bundle(model)
    device = find_device().kind
    return make_predictor(network.to(device), card, device), card
