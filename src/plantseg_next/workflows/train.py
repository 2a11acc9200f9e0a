"""Where a run is begun, gone on with, and repeated.

The same call does the first two: a folder that holds a run of the same configuration is
gone on with from its newest checkpoint.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from plantseg_next.data.formats.annotations import save_rasterized_masks
from plantseg_next.data.manifest import MANIFEST_FILE, Manifest
from plantseg_next.errors import StoppedError, UsageError
from plantseg_next.models.start import (
    STARTS,
    absolute_start,
    moved_start,
    same_shape,
    starting_network,
    with_start,
)
from plantseg_next.runtime import Device, find_device, use_threads
from plantseg_next.settings import ModelSettings, Settings
from plantseg_next.structures import ClassMap
from plantseg_next.training.run_record import (
    MASKS,
    PLAN,
    RECORD,
    RunRecord,
    archive_run,
    environment_info,
    prepare_run,
    refuse_other_configuration,
    run_lock,
)
from plantseg_next.workflows.evaluate import labeled_rows
from plantseg_next.workflows.setup import (
    DataSources,
    TrainingData,
    build_manifest,
    build_trainer,
)

if TYPE_CHECKING:
    from plantseg_next.memory.plan import MemoryPlan
    from plantseg_next.training.callbacks.callback import Callback
    from plantseg_next.training.trainer import RunSummary

Progress = Callable[[str, int, int], None]
"""Hears what is being done, how much of it is done, and of how much."""


def progress_for(progress: Progress | None, what: str) -> Callable[[int, int], None]:
    """Return what tells of one thing that is being done; nobody may be listening."""
    return lambda done, total: progress(what, done, total) if progress else None


@dataclass(frozen=True)
class TrainResult:
    """What ``train`` came to.

    Args:
        summary: Steps, minutes, and the best validation.
        folder: The run; ``folder / "best"`` is the model.
        n_train: Labeled images it learned from.
        n_val: Labeled images it was judged on.
    """

    summary: "RunSummary"
    folder: Path
    n_train: int
    n_val: int


def train(  # noqa: PLR0913 - what a user may say
    data: Path | DataSources,
    out: Path,
    settings: Settings | None = None,
    *,
    memory: int | None = None,
    ram: int | None = None,
    restart: bool = False,
    callbacks: Sequence["Callback"] = (),
    log: Callable[[str], None] = lambda _: None,
    progress: Progress | None = None,
) -> TrainResult:
    """Train a segmenter on a folder of images and masks; keep it under ``out``.

    Images without masks, of the folder itself or of others, are learned from too,
    unless ``semi.method`` is "supervised". A run that was interrupted, however it
    was, goes on where it stopped when it is called again in the same way, and ends with
    the weights that it would have had.

    Args:
        data: Images with masks in any layout that ``check`` knows; or several folders
            and what each is for.
        out: Folder of the run: settings, history, checkpoints, ``best`` and ``last``
            model. New or empty, or of the run to go on with.
        settings: Everything that can be chosen; the defaults by default.
        memory: A budget, in bytes: the settings are changed so that the run stays within
            it (see ``training.memory.planner``), and the plan is kept in ``out``.
        ram: With ``memory`` of a GPU: bytes of main memory to read images within.
        restart: Set an earlier run in ``out`` aside, under another name, and begin anew.
        callbacks: Hear of every step and validation, after the run's own folder.
        log: Hears what a person should know before training starts.
        progress: Told of every image that is read before training starts.

    Raises:
        OutputError: If ``out`` holds something else or cannot be written.
        UsageError: If there is nothing to learn from, a setting or the budget does not
            fit, or the run in ``out`` has another configuration.
        DataError: If a file cannot be used.
        TrainingError: If learning breaks down.
        StoppedError: If the user asked for it; the run can go on.
    """
    import torch

    sources = DataSources(data) if isinstance(data, Path) else data
    settings = settings or Settings()
    model = absolute_start(settings.model)
    _refuse_bad_start(model, out, restart=restart)
    if restart and (earlier := archive_run(out)) is not None:
        log(f"what was in {out} is now in {earlier}")
        model = moved_start(model, out, earlier)
    settings = settings.model_copy(update={"model": model})
    record = RunRecord.read(out)
    told = partial(progress_for, progress)
    if record is None:
        settings = settings.model_copy(update={"model": with_start(settings.model)})
        manifest = build_manifest(
            sources, settings, log=log, on_progress=told("comparing images")
        )
        for split in ("train", "val"):
            labeled_rows(manifest, split, str(sources))
        planned = None if memory is None else plan_for(manifest, settings, memory, ram=ram)
        prepare_run(out)
        with run_lock(out):
            if planned is not None:
                settings = planned.settings
                log(planned.to_text())
            plan = _begin(sources, manifest, settings, out, told("reading masks"))
            if planned is not None:
                planned.write(out / PLAN)
            return _run(plan, out, callbacks, log, ())
    model = _as_started(settings.model, record.settings.model, out)
    settings = settings.model_copy(update={"model": model})
    if memory is not None:
        settings = record.planned(settings, memory)
    different, allowed = record.differences(settings, sources.plain())
    refuse_other_configuration(out, different)
    began = record.environment.get("threads", torch.get_num_threads())
    with run_lock(out), use_threads(began):
        plan = TrainingData(
            Manifest.read(out / MANIFEST_FILE), settings, record.pixels, str(sources)
        )
        now = torch.get_num_threads()
        threads = "" if now == began else f"threads: {began} then, {now} now"
        return _run(
            plan, out, callbacks, log, [*allowed, threads, *_changes(plan.manifest)]
        )


def _as_started(model: ModelSettings, known: ModelSettings, out: Path) -> ModelSettings:
    """Return the settings of a model with the shape of what its run started from.

    That may be gone by now, and is not needed again.
    """
    if Path(model.start).is_relative_to(out.resolve()):
        # An earlier run of this name, which --restart has moved.
        model = model.model_copy(update={"start": known.start})
    if model.start in STARTS or model.start != known.start:
        return model
    return same_shape(model, known)


def _refuse_bad_start(model: ModelSettings, out: Path, *, restart: bool) -> None:
    """Refuse weights that cannot be had, before anything is moved or written."""
    if restart or not (out / RECORD).is_file():
        starting_network(with_start(model), ClassMap(("lesion",)))


def plan_for(
    manifest: Manifest,
    settings: Settings,
    memory: int,
    *,
    ram: int | None = None,
    unlabeled: bool = False,
    device: Device | None = None,
) -> "MemoryPlan":
    """Return the memory plan of a run.

    Args:
        manifest: Every image of the run.
        settings: As asked for.
        memory: The budget, in bytes.
        ram: That of main memory, beside a GPU's.
        unlabeled: Whether there will be further images without masks.
        device: Where the run will be; here by default.

    Raises:
        UsageError: If nothing fits a budget, or one of main memory is given for a CPU.
    """
    import psutil

    from plantseg_next.memory.host_memory import plan_host_memory
    from plantseg_next.memory.planner import plan_memory

    device = device or find_device(settings.device)
    if ram is not None and device.kind == "cpu":
        raise UsageError(
            "--ram was given for a run on a CPU.",
            needed="one budget: there, --memory is of the whole process",
            fix="leave --ram out, or plan for a GPU with --gpu",
        )
    pseudo_labeled = TrainingData(manifest, settings, (), "").unlabeled
    without = unlabeled or len(pseudo_labeled) > 0
    with_unlabeled = without and settings.semi.method != "supervised"
    resting = psutil.Process().memory_info().rss
    plan = plan_memory(
        settings,
        manifest.classes,
        device,
        memory,
        with_unlabeled=with_unlabeled,
        with_image_labels=any(row.disease is not None for row in pseudo_labeled.rows),
        resting=resting,
    )
    if ram is None:
        return plan
    chosen, needs = plan_host_memory(
        plan.settings, ram, resting=resting, with_unlabeled=with_unlabeled
    )
    return replace(plan, settings=chosen, reading=(needs, ram))


def _begin(
    sources: DataSources,
    manifest: Manifest,
    settings: Settings,
    out: Path,
    told: Callable[[int, int], None],
) -> TrainingData:
    """Write down what a run is, and return it."""
    import torch

    manifest = save_rasterized_masks(manifest, out / MASKS)
    plan = TrainingData.create(manifest, settings, str(sources), on_progress=told)
    about = environment_info(find_device(settings.device).name, torch.get_num_threads())
    record = RunRecord(settings, sources.plain(), plan.pixels, about)
    record.write(out, plan.manifest)
    return plan


def _changes(manifest: Manifest) -> list[str]:
    """Return what a run that goes on should know of its images."""
    changed = manifest.changed().rows
    if not changed:
        return []
    names = ", ".join(row.key for row in changed[:3])
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    return [f"images or masks that are not what they were: {names}{more}"]


def _run(
    plan: TrainingData,
    out: Path,
    callbacks: Sequence["Callback"],
    say: Callable[[str], None],
    changes: Sequence[str],
) -> TrainResult:
    """Train to the end, from the newest checkpoint if there is one."""
    from plantseg_next.training.callbacks.callback import Event

    trainer = build_trainer(plan, out, callbacks=callbacks, log=say)
    for change in filter(None, changes):
        trainer.emit(
            Event("changed", f"The run goes on under changed conditions: {change}")
        )
    outcome = trainer.run()
    return TrainResult(outcome, out, len(plan.labeled), len(plan.validation))


@dataclass(frozen=True)
class ReproducibilityResult:
    """Whether a run can be repeated here.

    Args:
        difference: Where its first steps part from a repetition's; ``None`` if nowhere.
        conditions: What is not as it was when the run began, in words.
    """

    difference: str | None
    conditions: tuple[str, ...]


def verify(
    run: Path, *, log: Callable[[str], None] = lambda _: None
) -> ReproducibilityResult:
    """Repeat the first steps of a run and compare them bit for bit.

    Args:
        run: Its folder; nothing is changed in it.
        log: Hears what a person should know before training starts.

    Raises:
        UsageError: If there is no run in the folder, or it ended before those steps.
        DataError: If its images cannot be used.
    """
    import torch

    from plantseg_next.training.callbacks.reproducibility import (
        FIRST_STEPS,
        N_STEPS,
        first_difference,
    )

    record = RunRecord.read(run)
    if record is None or not (run / FIRST_STEPS).is_file():
        raise UsageError(
            f"`{run}` holds no run of {N_STEPS} steps or more.",
            needed="a folder that `train` wrote",
            fix="check the path",
        )
    manifest = Manifest.read(run / MANIFEST_FILE)
    threads = int(record.environment["threads"])
    device = find_device(record.settings.device)
    now = environment_info(device.name, torch.get_num_threads())
    conditions = [
        f"{name}: {record.environment.get(name)} then, {now[name]} now"
        for name in ("device", "threads", "machine", "versions", "code")
        if record.environment.get(name) != now[name]
    ]
    plan = TrainingData(manifest, record.settings, record.pixels, str(run))
    with TemporaryDirectory() as folder, use_threads(threads):
        again = Path(folder)
        record.write(again, manifest)
        with suppress(StoppedError):
            build_trainer(plan, again, log=log).run(stop_after=N_STEPS)
        difference = first_difference(run, again)
    if difference and device.kind == "cuda" and not record.settings.deterministic:
        difference += "; a GPU gives the same bits only with deterministic=true"
    return ReproducibilityResult(difference, (*conditions, *_changes(manifest)))
