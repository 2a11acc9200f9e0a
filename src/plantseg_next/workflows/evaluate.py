"""Where a model meets its judges: on which images, and under which class names.

Inference knows no truth and evaluation knows no model; this is the table between them.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from plantseg_next.data.formats import read_folder
from plantseg_next.data.image_io import load_sample
from plantseg_next.data.manifest import MANIFEST_FILE, Manifest, Split
from plantseg_next.errors import DataError, UsageError
from plantseg_next.evaluation.metrics import ClassScores, confusion_matrix
from plantseg_next.evaluation.report import EvalItem
from plantseg_next.inference.predictor import Predictor
from plantseg_next.inference.severity import measure_severity
from plantseg_next.models.bundle import read_card
from plantseg_next.models.start import STARTERS
from plantseg_next.structures import IGNORE, ClassMap

if TYPE_CHECKING:
    from plantseg_next.training.callbacks.callback import Validation


def images_to_evaluate(
    model: Path,
    data: Path | None,
    split: Split | Literal["all"],
    *,
    classes: Path | None = None,
) -> Manifest:
    """Return the images with masks that a model is to be judged on.

    Args:
        model: Folder of the model; its run, one folder up, knows what it learned from.
        data: Images with masks; the run's own by default.
        split: Which of them; "all" is for data sets that had no part in training.
        classes: What mask values mean, if the folder does not say.

    Raises:
        UsageError: If there is nothing to judge by, or training images are in it.
    """
    learned = _manifest_of_run(model)
    manifest = _in_splits_of_run(model, learned, data, split, classes)
    if split != "all":
        return labeled_rows(manifest, split, data or model)
    if learned is not None:
        _refuse_learned(learned, manifest)
    if not len(manifest.labeled):
        raise UsageError(
            f"`{data}` has no image with a mask.",
            needed="masks to judge the model by",
            fix="run `plantseg-next check` on it: it says how the folder was read",
        )
    return manifest.labeled


def labeled_rows(manifest: Manifest, split: Split, origin: object) -> Manifest:
    """Return the rows of a split that have a mask.

    Raises:
        UsageError: If there are none.
    """
    found = manifest.split(split).labeled
    if not len(found):
        counts = {s: len(manifest.split(s).labeled) for s in ("train", "val", "test")}
        raise UsageError(
            f"`{origin}` has no image with a mask in its {split} split (images with "
            f"masks: {', '.join(f'{name} {n}' for name, n in counts.items())}).",
            needed="masks of at least a few images of every split",
            fix="run `plantseg-next check` on it: it says how the folder was read",
        )
    return found


def some_rows(manifest: Manifest, n: int, seed: int) -> Manifest:
    """Return at most ``n`` rows, drawn once by the seed."""
    order = np.random.default_rng(seed).permutation(len(manifest))[:n]
    return manifest.only(manifest.rows[i] for i in sorted(order))


def validate(predictor: Predictor, manifest: Manifest) -> "Validation":
    """Return the validation figures: lesion Dice, and IoU over diseases if several.

    And IoU of the leaf where it is marked. The score is their mean.

    An image that cannot be read is passed over, with an event.
    """
    from plantseg_next.training.callbacks.callback import Event, Validation
    from plantseg_next.training.callbacks.diagnostics import no_lesion_found

    n = manifest.classes.n_lesion_logits
    confusion = np.zeros((n, n), np.int64)
    leaf = np.zeros((2, 2), np.int64)
    lost = []
    for row in manifest.rows:
        try:
            truth = load_sample(row, manifest)
        except DataError as error:
            lost.append(Event("unreadable-image", f"{error.came} It judges nothing."))
            continue
        found = predictor(truth.image)
        confusion += confusion_matrix(truth.lesion, found.lesion, n)
        if found.leaf is not None:
            leaf += confusion_matrix(truth.leaf, found.leaf, 2)
    scores = ClassScores(confusion)
    # Undefined means: there was nothing to find, and nothing was claimed.
    metrics = {"lesion_dice": float(np.nan_to_num(scores.lesion_dice, nan=1.0))}
    if n > 2:
        metrics["disease_miou"] = float(np.nan_to_num(scores.disease_miou))
    if leaf.any():
        metrics["leaf_iou"] = float(np.nan_to_num(ClassScores(leaf).lesion_iou))
    score = sum(metrics.values()) / len(metrics)  # severity rests on lesion and leaf alike
    events = (*lost, *no_lesion_found(confusion, manifest.classes.lesions))
    return Validation(score, metrics, events=events)


def eval_items(
    predictor: Predictor,
    model_classes: ClassMap,
    manifest: Manifest,
    judged_as: ClassMap,
    told: Callable[[int, int], None] = lambda *_: None,
) -> Iterator[EvalItem]:
    """Yield every row with its prediction, merged to "any lesion" where names differ."""
    merge = judged_as.lesions != model_classes.lesions
    names = {name: i for i, name in enumerate(judged_as.diseases)}
    for i, row in enumerate(manifest.rows):
        sample = load_sample(row, manifest)
        sample = replace(sample, disease=names.get(row.disease or "", IGNORE))
        found = predictor(sample.image)
        if merge:
            sample = replace(sample, lesion=_any_lesion(sample.lesion))
            found = replace(found, lesion=_any_lesion(found.lesion))
        yield EvalItem(sample, found, row.source, row.group_key, row.disease)
        told(i + 1, len(manifest))


def severity_pct(lesion: np.ndarray, leaf: np.ndarray | None) -> float | None:
    """Return lesion over leaf area in percent, ``None`` where no leaf is known."""
    return measure_severity(lesion, leaf).severity_pct


def _in_splits_of_run(
    model: Path,
    learned: Manifest | None,
    data: Path | None,
    split: Split | Literal["all"],
    classes: Path | None,
) -> Manifest:
    """Return what a model may be judged on, each row in the split its run had it in.

    An image that the run knows by content, or whose group it knows, keeps its split
    there; one that it never saw is a test image.
    """
    if data is None:
        if learned is None:
            raise UsageError(
                f"`{model}` does not say which images it was trained on.",
                needed="images with masks to judge it by",
                fix="name a folder: plantseg-next evaluate MODEL DATA",
            )
        return learned
    manifest = read_folder(data, classes=classes)
    _refuse_own_data(model, learned, manifest, split)
    if learned is None:
        return manifest.only(
            replace(row, split=row.split or "test") for row in manifest.rows
        )
    contents = {row.sha256: row.split for row in learned.rows}
    groups = {(row.source, row.group): row.split for row in learned.rows if row.group}
    return manifest.only(
        replace(
            row,
            split=contents.get(row.sha256)
            or groups.get((row.source, row.group))
            or row.split
            or "test",
        )
        for row in manifest.digested().rows
    )


def _refuse_own_data(
    model: Path, learned: Manifest | None, manifest: Manifest, split: Split | Literal["all"]
) -> None:
    """Refuse to call images test images when nobody knows whether they are.

    Those are images of a data set that the model learned from, or the model that it
    started from, where no manifest of a run says which.
    """
    known = {row.source for row in learned.rows} if learned is not None else set()
    doubtful = set(read_card(model).sources) - known
    rows = [row for row in manifest.labeled.rows if row.source in doubtful]
    if all(row.split == "test" or (row.split and split != "all") for row in rows):
        return
    names = ", ".join(sorted({row.source for row in rows}))
    if learned is not None or model in STARTERS.values():
        came = (
            f"`{model}`, or a model that it was started from, learned from a data set "
            f"called {names}, and which images of it is not known here."
        )
        fix = (
            "rename the folder if its images are others; if not, state their published "
            "`split` in index.csv and judge by --split test"
        )
    else:
        came = (
            f"`{model}` learned from a data set called {names}, and has been moved away "
            "from its run, which knows which images those were."
        )
        fix = "put the model back beside the run's manifest.json, or rename the data"
    raise UsageError(
        came,
        needed="the model in its run, or images that it cannot have learned from",
        fix=fix,
    )


def _manifest_of_run(model: Path) -> Manifest | None:
    path = model.resolve().parent / MANIFEST_FILE
    return Manifest.read(path) if path.is_file() else None


def _refuse_learned(learned: Manifest, manifest: Manifest) -> None:
    seen = {row.sha256 for row in learned.labeled.rows if row.split != "test"}
    shared = sum(row.sha256 in seen for row in manifest.labeled.rows)
    if shared:
        raise UsageError(
            f"{shared} of these images are ones the model learned from or was chosen by.",
            needed="images that had no part in its training",
            fix="leave out --split all, and the run's test images are taken",
        )


def _any_lesion(lesion: np.ndarray) -> np.ndarray:
    """Return the map with every class as 1: a judge of where, not of which."""
    any_lesion = (lesion > 0).astype(np.uint8)
    any_lesion[lesion == IGNORE] = IGNORE
    return any_lesion
