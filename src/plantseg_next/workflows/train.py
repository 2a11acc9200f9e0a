"""Start, resume and repeat a run.

The same call starts and resumes: in a folder that holds a run of the same configuration,
training resumes from the newest checkpoint.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from plantseg_next.data.formats.annotations import save_rasterized_masks
from plantseg_next.data.manifest import Manifest
from plantseg_next.errors import StoppedError, UsageError, missing_path, shorten
from plantseg_next.files import AnyPath, refuse_unwritable
from plantseg_next.models.start import (
    STARTS,
    absolute_start,
    moved_start,
    same_shape,
    starting_network,
    with_start,
)
from plantseg_next.runtime import find_device, preserved_random_state, use_threads
from plantseg_next.settings import ModelSettings, Settings
from plantseg_next.structures import ClassMap
from plantseg_next.training.run_record import (
    FIRST_STEPS,
    MASKS,
    PLAN,
    RunRecord,
    archive_run,
    environment_info,
    prepare_run,
    refuse_other_configuration,
    run_lock,
)
from plantseg_next.training.time_budget import few_steps
from plantseg_next.workflows.images import refuse_name
from plantseg_next.workflows.moved_data import follow_moved_data
from plantseg_next.workflows.plan import plan_for
from plantseg_next.workflows.progress import Progress, progress_for
from plantseg_next.workflows.setup import build_trainer
from plantseg_next.workflows.training_data import DataSources, TrainingData, build_manifest

if TYPE_CHECKING:
    from plantseg_next.training.callbacks.callback import Callback
    from plantseg_next.training.trainer import RunSummary, Trainer


@dataclass(frozen=True)
class TrainResult:
    """The result of ``train``.

    Args:
        summary: Steps, minutes, and the best validation.
        folder: Folder of the run; ``folder / "best"`` is the model.
        n_train: Number of labeled training images.
        n_val: Number of labeled validation images.
        few_steps: A sentence if the steps were too few to learn much.
    """

    summary: "RunSummary"
    folder: Path
    n_train: int
    n_val: int
    few_steps: str | None = None


@preserved_random_state()
def train(  # noqa: PLR0913 - the options of a user
    data: AnyPath | DataSources,
    out: AnyPath,
    settings: Settings | None = None,
    *,
    memory: int | None = None,
    ram: int | None = None,
    restart: bool = False,
    data_moved: Mapping[str, AnyPath] | Mapping[Path, AnyPath] | None = None,
    callbacks: Sequence["Callback"] = (),
    log: Callable[[str], None] = lambda _: None,
    progress: Progress | None = None,
) -> TrainResult:
    """Train a segmenter on a folder of images and masks; keep it under ``out``.

    Images without masks, of the folder itself or of others, are learned from too,
    unless ``semi.method`` is "supervised". The same call resumes a run that was
    interrupted, in whatever way; it ends with the weights of an uninterrupted run.

    Args:
        data: Images with masks in any layout that ``check`` reads; or several folders
            and the use of each.
        out: Folder of the run: settings, history, checkpoints, ``best`` and ``last``
            model. New or empty, or the folder of the run to resume.
        settings: Settings of the run; by default those of ``Settings()``.
        memory: Memory budget, in bytes: the settings are changed so that the run stays
            within it (see ``memory.planner``), and the plan is written to ``out``.
        ram: With ``memory`` of a GPU: budget of main memory for reading images, in bytes.
        restart: Archive an earlier run in ``out`` under another name, and start a new one.
        data_moved: From folders of the run in ``out`` to where they are now. The files
            must be those that the run learned from, by their SHA-256.
        callbacks: Called at every step and validation, after the callbacks that write
            ``out``.
        log: Receives lines for the user before training starts.
        progress: Called for every image that is read before training starts.

    Raises:
        OutputError: If ``out`` holds something else or cannot be written.
        UsageError: If there is no mask to learn from, a setting or the budget does not
            fit, or the run in ``out`` has another configuration.
        DataError: If a file cannot be used.
        TrainingError: If learning breaks down.
        StoppedError: If the user stopped the run; it can be resumed.
    """
    from plantseg_next.training.callbacks.callback import Event

    sources = DataSources.of(data)
    out = _run_folder(out, restart=restart)
    if data_moved:
        sources = follow_moved_data(out, sources, data_moved, restart=restart)
    settings = settings or Settings()
    settings = settings.model_copy(update={"model": absolute_start(settings.model)})
    known = None if restart else _run_to_resume(out, settings, sources, memory)
    if known is not None:
        record, allowed = known
        with run_lock(out), use_threads(record.environment["threads"]):
            images = TrainingData.of_run(out, record.settings, record.pixels, str(sources))
            trainer = build_trainer(images, out, callbacks=callbacks, log=log)
            for change in [*allowed, *_changes(images.manifest)]:
                text = f"The run resumes under changed conditions: {change}"
                trainer.emit(Event("changed", text))
            return _run(trainer, images, out, log)
    # Whatever can be refused is refused before a file is written or moved.
    if out.exists() and not restart:
        prepare_run(out)
    _refuse_bad_start(settings)
    settings = settings.model_copy(update={"model": with_start(settings.model)})
    on_progress = partial(progress_for, progress)
    manifest = build_manifest(
        sources, settings, log=log, on_progress=on_progress("comparing images")
    )
    planned = None if memory is None else plan_for(manifest, settings, memory, ram=ram)
    if planned is not None:
        settings = planned.settings
        _log_lines(planned.to_text(), log)
    images = TrainingData.create(
        manifest,
        settings,
        str(sources),
        log=log,
        on_progress=on_progress("reading masks"),
    )
    archive = restart or RunRecord.read(out) is not None
    if archive:
        _refuse_images_within(out, images.manifest)
    with _new_run(out, archive=archive, log=log) as earlier:
        if earlier is not None:
            model = moved_start(settings.model, out, earlier)
            settings = settings.model_copy(update={"model": model})
        images = _write_new_run(sources, replace(images, settings=settings), out)
        if planned is not None:
            planned.write(out / PLAN)
        trainer = build_trainer(images, out, callbacks=callbacks, log=log)
        return _run(trainer, images, out, log)


@contextmanager
def _new_run(
    out: Path, *, archive: bool, log: Callable[[str], None]
) -> Iterator[Path | None]:
    """Make the folder of a new run, and lock it.

    Yields:
        Where ``archive`` moved what was in the folder. It is moved back if an error ends
        the new run before a step that can be resumed.
    """
    earlier = archive_run(out) if archive else None
    if earlier is not None:
        log(f"what was in {out} is now in {earlier}")
    try:
        prepare_run(out)
        with run_lock(out):
            try:
                yield earlier
            except StoppedError:
                raise
            except BaseException:
                if earlier is not None and not _has_progress(out):
                    rmtree(out, ignore_errors=True)
                raise
    finally:
        # Not if the new run is kept, or another process has begun one meanwhile.
        if earlier is not None and _is_missing_or_empty(out):
            earlier.rename(out)
            log(f"the run could not start: {out} is as it was before")


def _log_lines(text: str, log: Callable[[str], None]) -> None:
    for line in text.splitlines():
        log(line)


def _has_progress(out: Path) -> bool:
    from plantseg_next.training.checkpoints import Checkpoints

    return Checkpoints(out).has_progress()


def _is_missing_or_empty(folder: Path) -> bool:
    return not folder.exists() or not any(folder.iterdir())


def _run_folder(out: AnyPath, *, restart: bool) -> Path:
    """Return the folder of a run, if it may be used.

    Raises:
        DataError: If its name is not UTF-8.
        OutputError: If a run in it is to be archived, and that is not allowed.
    """
    folder = Path(out)
    if folder.name in ("", ".."):
        folder = folder.resolve()  # "." would follow a folder that is renamed
    refuse_name(folder.absolute(), "choose another --out")
    if restart and folder.is_dir():
        refuse_unwritable(folder)
    return folder


def _run_to_resume(
    out: Path, settings: Settings, sources: DataSources, memory: int | None
) -> tuple[RunRecord, list[str]] | None:
    """Return the record of the run in a folder, and how the conditions have changed.

    Returns:
        With the settings of this call where they may differ. ``None`` if there is no run,
        or a run of another configuration of which no step would be resumed, for example
        because memory ran out in its first one.

    Raises:
        UsageError: If it is a run of another configuration.
    """
    import torch

    record = RunRecord.read(out)
    if record is None:
        return None
    try:
        model = _with_started_shape(settings.model, record.settings.model, out)
        settings = settings.model_copy(update={"model": model})
        if memory is not None:
            settings = record.planned(settings, memory)
        different, allowed = record.differences(settings, sources.plain())
        refuse_other_configuration(out, different)
    except UsageError:
        if _has_progress(out):
            raise
        return None
    before, now = record.environment["threads"], torch.get_num_threads()
    if now != before:
        allowed.append(f"threads: {before} then, {now} now")
    return replace(record, settings=settings), allowed


def _refuse_images_within(out: Path, manifest: Manifest) -> None:
    """Refuse to archive a folder that holds images of the new run."""
    folder = out.resolve()
    for row in manifest.rows:
        if row.image.resolve().is_relative_to(folder):
            raise UsageError(
                f"`{row.image}` is in `{out}`, which --restart would rename.",
                needed="images outside the folder of the run",
                fix="choose another --out",
            )


def _with_started_shape(
    model: ModelSettings, known: ModelSettings, out: Path
) -> ModelSettings:
    """Return the model settings with the shape of the model that the run started from.

    That model may have been deleted; its files are not read.
    """
    if Path(model.start).is_relative_to(out.resolve()):
        # A model of an earlier run in `out`, which --restart archived.
        model = model.model_copy(update={"start": known.start})
    if model.start in STARTS or model.start != known.start:
        return model
    return same_shape(model, known)


def _refuse_bad_start(settings: Settings) -> None:
    """Refuse a start without usable weights, before any file is moved or written."""
    if settings.model.start == "random" and settings.memory.freeze_encoder:
        raise UsageError(
            "memory.freeze_encoder is true, and model.start is random.",
            needed="published weights, or those of a model: a random encoder that is not "
            "trained learns nothing",
            fix="leave one of the two settings out",
        )
    starting_network(with_start(settings.model), ClassMap(("lesion",)))


def _write_new_run(sources: DataSources, images: TrainingData, out: Path) -> TrainingData:
    """Write the record of a new run, and return its data with the masks in its folder."""
    import torch

    settings = images.settings
    environment = environment_info(
        find_device(settings.device).name, torch.get_num_threads()
    )
    record = RunRecord(settings, sources.plain(), images.pixels, environment)
    record.announce(out)
    manifest = save_rasterized_masks(images.manifest, out / MASKS)
    record.write(out, manifest)
    return replace(images, manifest=manifest)


def _changes(manifest: Manifest) -> list[str]:
    """Return a line about the images that changed since the run started, if any did."""
    changed = manifest.changed().rows
    if not changed:
        return []
    return [f"images or masks changed: {shorten([row.key for row in changed], 3)}"]


def _run(
    trainer: "Trainer", images: TrainingData, out: Path, log: Callable[[str], None]
) -> TrainResult:
    """Train to the end, from the newest checkpoint if there is one."""
    settings = images.settings
    if few := few_steps(settings.training.steps, settings.model.start):
        log(few)
    summary = trainer.run()
    few = few_steps(summary.steps, settings.model.start)
    return TrainResult(summary, out, len(images.labeled), len(images.validation), few)


@dataclass(frozen=True)
class ReproducibilityResult:
    """Whether a run can be repeated on this machine.

    Args:
        difference: The first difference between the steps of the run and of its repetition;
            ``None`` if there is none.
        conditions: What changed since the run started, one line each.
    """

    difference: str | None
    conditions: tuple[str, ...]


@preserved_random_state()
def verify(
    run: AnyPath, *, log: Callable[[str], None] = lambda _: None
) -> ReproducibilityResult:
    """Repeat the first steps of a run and compare them bit for bit.

    Args:
        run: Folder of the run; it is not changed.
        log: Receives lines for the user before training starts.

    Raises:
        UsageError: If the folder holds no run, or the run ended before those steps.
        DataError: If its images cannot be read.
    """
    import torch

    from plantseg_next.training.callbacks.reproducibility import (
        N_STEPS,
        first_difference,
    )

    run = Path(run)
    if not run.exists():
        raise missing_path(run, "a folder that `train` wrote")
    record = RunRecord.read(run)
    if record is None or not (run / FIRST_STEPS).is_file():
        raise UsageError(
            f"`{run}` holds no run of {N_STEPS} steps or more.",
            needed=f"the folder of a run, of which the first {N_STEPS} steps are recorded",
            fix="check the path; a run with fewer steps cannot be verified",
        )
    images = TrainingData.of_run(run, record.settings, record.pixels, str(run))
    device = find_device(record.settings.device)
    now = environment_info(device.name, torch.get_num_threads())
    conditions = [
        f"{name}: {record.environment.get(name)} then, {now[name]} now"
        for name in ("device", "threads", "machine", "versions", "code")
        if record.environment.get(name) != now[name]
    ]
    with TemporaryDirectory() as folder, use_threads(record.environment["threads"]):
        repetition = Path(folder)
        record.write(repetition, images.manifest)
        with suppress(StoppedError):
            build_trainer(images, repetition, log=log).run(stop_after=N_STEPS)
        difference = first_difference(run, repetition)
    if difference and device.kind == "cuda" and not record.settings.deterministic:
        difference += "; a GPU gives the same bits only with deterministic=true"
    return ReproducibilityResult(difference, (*conditions, *_changes(images.manifest)))
