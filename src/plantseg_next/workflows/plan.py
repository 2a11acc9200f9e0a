"""Plan the memory of a run: settings that fit a budget."""

from dataclasses import replace
from typing import TYPE_CHECKING

from plantseg_next.data.manifest import Manifest
from plantseg_next.errors import UsageError
from plantseg_next.files import AnyPath
from plantseg_next.models.start import with_start
from plantseg_next.runtime import Device, find_device
from plantseg_next.settings import Settings
from plantseg_next.workflows.progress import Progress, progress_for
from plantseg_next.workflows.training_data import DataSources, TrainingData, build_manifest

if TYPE_CHECKING:
    from plantseg_next.memory.plan import MemoryPlan


def plan(
    data: AnyPath | DataSources,
    memory: int,
    settings: Settings | None = None,
    *,
    ram: int | None = None,
    unlabeled: bool = False,
    device: Device | None = None,
    progress: Progress | None = None,
) -> "MemoryPlan":
    """Return settings with which a run stays within a memory budget.

    Args:
        data: Images with masks in any layout that ``check`` reads; or several folders
            and the use of each.
        memory: The budget, in bytes: of the GPU, or on a CPU of the whole process.
        settings: The requested settings; by default those of ``Settings()``.
        ram: Budget of main memory for reading images, in bytes, beside that of a GPU.
        unlabeled: Whether further images without masks will be learned from.
        device: Device of the run; by default that of this machine.
        progress: Called after every image that is compared with others.

    Raises:
        UsageError: If no settings fit; it states the smallest budget that fits.
        DataError: If a file cannot be used.
    """
    settings = settings or Settings()
    settings = settings.model_copy(update={"model": with_start(settings.model)})
    manifest = build_manifest(
        DataSources.of(data),
        settings,
        on_progress=progress_for(progress, "comparing images"),
    )
    return plan_for(manifest, settings, memory, ram=ram, unlabeled=unlabeled, device=device)


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
        settings: The requested settings.
        memory: The budget, in bytes.
        ram: Budget of main memory for reading images, beside the budget of a GPU.
        unlabeled: Whether there will be further images without masks.
        device: Device of the run; by default that of this machine.

    Raises:
        UsageError: If no settings fit a budget, or ``ram`` is given for a CPU.
    """
    import psutil

    from plantseg_next.memory.host_memory import plan_host_memory
    from plantseg_next.memory.planner import plan_memory

    device = device or find_device(settings.device)
    if ram is not None and device.kind == "cpu":
        raise UsageError(
            "--ram was given for a run on a CPU.",
            needed="one budget: on a CPU, --memory covers the whole process",
            fix="leave --ram out, or plan for a GPU with --gpu",
        )
    without_masks = TrainingData(manifest, settings, (), "").unlabeled
    has_unlabeled = unlabeled or len(without_masks) > 0
    with_unlabeled = has_unlabeled and settings.semi.method != "supervised"
    resting = psutil.Process().memory_info().rss
    memory_plan = plan_memory(
        settings,
        manifest.classes,
        device,
        memory,
        with_unlabeled=with_unlabeled,
        with_image_labels=any(row.disease is not None for row in without_masks.rows),
        resting=resting,
    )
    if ram is None:
        return memory_plan
    chosen, needs = plan_host_memory(
        memory_plan.settings, ram, resting=resting, with_unlabeled=with_unlabeled
    )
    return replace(memory_plan, settings=chosen, reading=(needs, ram))
