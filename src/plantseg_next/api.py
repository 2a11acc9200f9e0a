"""The Python API: one function per command.

check, plan, train, verify, evaluate, predict, pseudo_label, self_train, demo. Each takes
paths and settings and returns a result; none prints.
"""

from dataclasses import replace
from pathlib import Path
from typing import Literal

from plantseg_next.data.manifest import Split
from plantseg_next.data.quality.check import check as check_manifest
from plantseg_next.data.quality.issues import CheckReport
from plantseg_next.data.quality.leakage import draw_splits
from plantseg_next.evaluation import report
from plantseg_next.evaluation.report_tables import Report
from plantseg_next.files import AnyPath
from plantseg_next.inference.pipeline import load_pipeline, load_predictor
from plantseg_next.inference.records import PredictionTable
from plantseg_next.models.start import find_model, holds_model
from plantseg_next.workflows.demo import DemoResult, demo
from plantseg_next.workflows.evaluate import eval_items, images_to_evaluate, severity_pct
from plantseg_next.workflows.plan import plan
from plantseg_next.workflows.predict import predict
from plantseg_next.workflows.progress import Progress, progress_for
from plantseg_next.workflows.pseudo_label import pseudo_label
from plantseg_next.workflows.self_train import self_train
from plantseg_next.workflows.setup import DataSources
from plantseg_next.workflows.train import ReproducibilityResult, TrainResult, train, verify

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
    "holds_model",
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
    stated = sources.read()
    drawn = draw_splits(
        stated, seed=seed, on_progress=progress_for(progress, "comparing images")
    )
    split_of = {row.key: row.split for row in drawn.rows}  # with the stated groups
    manifest = stated.only(replace(row, split=split_of[row.key]) for row in stated.rows)
    return check_manifest(manifest, on_progress=progress_for(progress, "checking"))


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


def _as_path(path: AnyPath | None) -> Path | None:
    return None if path is None else Path(path)
