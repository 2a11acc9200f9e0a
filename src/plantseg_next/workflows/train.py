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

from plantseg_next.data.formats.annotations import keep_drawn
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
from plantseg_next.settings import Experiment, ModelSettings
from plantseg_next.structures import ClassMap
from plantseg_next.training.run_record import (
    MASKS,
    PLAN,
    RECORD,
    Record,
    alone_in,
    facts,
    prepare_run,
    refuse_other,
    set_aside,
)
from plantseg_next.workflows.evaluate import labeled_rows
from plantseg_next.workflows.setup import Plan, Sources, build_trainer, gather

if TYPE_CHECKING:
    from plantseg_next.memory.plan import MemoryPlan
    from plantseg_next.training.callbacks.callback import Watcher
    from plantseg_next.training.trainer import Outcome

Progress = Callable[[str, int, int], None]
"""Hears what is being done, how much of it is done, and of how much."""


def told_of(progress: Progress | None, what: str) -> Callable[[int, int], None]:
    """Return what tells of one thing that is being done; nobody may be listening."""
    return lambda done, total: progress(what, done, total) if progress else None


@dataclass(frozen=True)
class Trained:
    """What ``train`` came to.

    Args:
        outcome: Steps, minutes, and the best validation.
        folder: The run; ``folder / "best"`` is the model.
        n_train: Labeled images it learned from.
        n_val: Labeled images it was judged on.
    """

    outcome: "Outcome"
    folder: Path
    n_train: int
    n_val: int


def train(  # noqa: PLR0913 - what a user may say
    data: Path | Sources,
    out: Path,
    settings: Experiment | None = None,
    *,
    memory: int | None = None,
    ram: int | None = None,
    restart: bool = False,
    watchers: Sequence["Watcher"] = (),
    say: Callable[[str], None] = lambda _: None,
    progress: Progress | None = None,
) -> Trained:
    """Train a segmenter on a folder of images and masks; keep it under ``out``.

    Images without masks, of the folder itself or of others, are learned from too,
    unless ``unlabeled.method`` is "supervised". A run that was interrupted, however it
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
        watchers: Hear of every step and validation, after the run's own folder.
        say: Hears what a person should know before training starts.
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

    sources = Sources(data) if isinstance(data, Path) else data
    settings = settings or Experiment()
    model = absolute_start(settings.model)
    _refuse_bad_start(model, out, restart=restart)
    if restart and (earlier := set_aside(out)) is not None:
        say(f"what was in {out} is now in {earlier}")
        model = moved_start(model, out, earlier)
    settings = settings.model_copy(update={"model": model})
    record = Record.read(out)
    told = partial(told_of, progress)
    if record is None:
        settings = settings.model_copy(update={"model": with_start(settings.model)})
        manifest = gather(sources, settings, say=say, told=told("comparing images"))
        for split in ("train", "val"):
            labeled_rows(manifest, split, str(sources))
        planned = None if memory is None else plan_for(manifest, settings, memory, ram=ram)
        prepare_run(out)
        with alone_in(out):
            if planned is not None:
                settings = planned.settings
                say(planned.to_text())
            plan = _begin(sources, manifest, settings, out, told("reading masks"))
            if planned is not None:
                planned.write(out / PLAN)
            return _run(plan, out, watchers, say, ())
    model = _as_started(settings.model, record.settings.model, out)
    settings = settings.model_copy(update={"model": model})
    if memory is not None:
        settings = record.planned(settings, memory)
    different, allowed = record.differences(settings, sources.plain())
    refuse_other(out, different)
    began = record.facts.get("threads", torch.get_num_threads())
    with alone_in(out), use_threads(began):
        plan = Plan(
            Manifest.read(out / MANIFEST_FILE), settings, record.pixels, str(sources)
        )
        now = torch.get_num_threads()
        threads = "" if now == began else f"threads: {began} then, {now} now"
        return _run(plan, out, watchers, say, [*allowed, threads, *_changes(plan.manifest)])


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
    settings: Experiment,
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

    from plantseg_next.memory.host_memory import plan_reading
    from plantseg_next.memory.planner import plan_memory

    device = device or find_device(settings.device)
    if ram is not None and device.kind == "cpu":
        raise UsageError(
            "--ram was given for a run on a CPU.",
            needed="one budget: there, --memory is of the whole process",
            fix="leave --ram out, or plan for a GPU with --gpu",
        )
    taught = Plan(manifest, settings, (), "").unlabeled
    without = unlabeled or len(taught) > 0
    with_lessons = without and settings.unlabeled.method != "supervised"
    resting = psutil.Process().memory_info().rss
    plan = plan_memory(
        settings,
        manifest.classes,
        device,
        memory,
        with_lessons=with_lessons,
        with_names=any(row.disease is not None for row in taught.rows),
        resting=resting,
    )
    if ram is None:
        return plan
    chosen, needs = plan_reading(
        plan.settings, ram, resting=resting, with_lessons=with_lessons
    )
    return replace(plan, settings=chosen, reading=(needs, ram))


def _begin(
    sources: Sources,
    manifest: Manifest,
    settings: Experiment,
    out: Path,
    told: Callable[[int, int], None],
) -> Plan:
    """Write down what a run is, and return it."""
    import torch

    manifest = keep_drawn(manifest, out / MASKS)
    plan = Plan.of(manifest, settings, str(sources), told=told)
    about = facts(find_device(settings.device).name, torch.get_num_threads())
    record = Record(settings, sources.plain(), plan.pixels, about)
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
    plan: Plan,
    out: Path,
    watchers: Sequence["Watcher"],
    say: Callable[[str], None],
    changes: Sequence[str],
) -> Trained:
    """Train to the end, from the newest checkpoint if there is one."""
    from plantseg_next.training.callbacks.callback import Event

    trainer = build_trainer(plan, out, watchers=watchers, say=say)
    for change in filter(None, changes):
        trainer.tell(
            Event("changed", f"The run goes on under changed conditions: {change}")
        )
    outcome = trainer.run()
    return Trained(outcome, out, len(plan.learned), len(plan.judged_on))


@dataclass(frozen=True)
class Verified:
    """Whether a run can be repeated here.

    Args:
        difference: Where its first steps part from a repetition's; ``None`` if nowhere.
        conditions: What is not as it was when the run began, in words.
    """

    difference: str | None
    conditions: tuple[str, ...]


def verify(run: Path, *, say: Callable[[str], None] = lambda _: None) -> Verified:
    """Repeat the first steps of a run and compare them bit for bit.

    Args:
        run: Its folder; nothing is changed in it.
        say: Hears what a person should know before training starts.

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

    record = Record.read(run)
    if record is None or not (run / FIRST_STEPS).is_file():
        raise UsageError(
            f"`{run}` holds no run of {N_STEPS} steps or more.",
            needed="a folder that `train` wrote",
            fix="check the path",
        )
    manifest = Manifest.read(run / MANIFEST_FILE)
    threads = int(record.facts["threads"])
    device = find_device(record.settings.device)
    now = facts(device.name, torch.get_num_threads())
    conditions = [
        f"{name}: {record.facts.get(name)} then, {now[name]} now"
        for name in ("device", "threads", "machine", "versions", "code")
        if record.facts.get(name) != now[name]
    ]
    plan = Plan(manifest, record.settings, record.pixels, str(run))
    with TemporaryDirectory() as folder, use_threads(threads):
        again = Path(folder)
        record.write(again, manifest)
        with suppress(StoppedError):
            build_trainer(plan, again, say=say).run(stop_after=N_STEPS)
        difference = first_difference(run, again)
    if difference and device.kind == "cuda" and not record.settings.deterministic:
        difference += "; a GPU gives the same bits only with deterministic=true"
    return Verified(difference, (*conditions, *_changes(manifest)))
