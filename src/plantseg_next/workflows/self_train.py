"""Train, label images with the model, and train again on both."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from plantseg_next.data.manifest import MANIFEST_FILE, Manifest
from plantseg_next.errors import refuse_fewer
from plantseg_next.files import AnyPath, prepare_output
from plantseg_next.settings import Settings
from plantseg_next.workflows.progress import Progress
from plantseg_next.workflows.pseudo_label import pseudo_label, refuse_threshold
from plantseg_next.workflows.train import TrainResult, train
from plantseg_next.workflows.training_data import DataSources

if TYPE_CHECKING:
    from plantseg_next.training.callbacks.callback import Callback


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
    sources = DataSources.of(data)
    settings = settings or Settings()
    threshold = settings.semi.threshold
    refuse_threshold(threshold)
    refuse_fewer("rounds", rounds, 1)
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
