"""The training loop: batches, steps, validations, checkpoints, and recovery from failures.

What a step learns is in ``step.py``, how it is taken in ``engine.py``, what a batch holds
in ``data/dataset.py``.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, fields, replace
from typing import Any

from pydantic import TypeAdapter
from torch import Tensor, nn

from plantseg_next.data.dataset import TrainBatch
from plantseg_next.errors import (
    DataError,
    OutputError,
    PlantSegError,
    StoppedError,
    UsageError,
    is_out_of_memory,
)
from plantseg_next.models.start import STARTS
from plantseg_next.runtime import random_state, restore_random_state, same_bits
from plantseg_next.settings import Settings
from plantseg_next.training.callbacks.callback import (
    Callback,
    EndReason,
    Event,
    StepInfo,
    Validation,
)
from plantseg_next.training.callbacks.diagnostics import NO_LESION_EVENT
from plantseg_next.training.checkpoints import Checkpoints
from plantseg_next.training.engine import Engine
from plantseg_next.training.oom import retry_with_smaller_batch
from plantseg_next.training.rollback import RollbackError, RunProgress, refuse_too_many
from plantseg_next.training.signals import StopSignal, uninterrupted
from plantseg_next.training.time_budget import (
    PROFILE_STEPS,
    TimeBudget,
    few_steps_limit,
    is_due,
)

CHECKPOINT_TIME_FRACTION = 0.01
"""Largest fraction of the time spent on checkpoints between two validations."""
NOT_FINITE_IN_A_ROW = 3
MAX_UNREADABLE = 0.05
"""Fraction of the images that may turn out unreadable during a run."""
NO_GAIN = (
    "No validation reached the score of the model that training started from. With few "
    "validation images this may be noise: evaluate both models on more. Otherwise more "
    "masks, more minutes or a lower training.lr may help."
)


@dataclass(frozen=True)
class RunSummary:
    """The result of a run.

    Args:
        steps: Optimizer steps taken.
        best: The best validation.
        minutes: Wall time, validations included, before and after resuming.
    """

    steps: int
    best: Validation
    minutes: float


@dataclass(eq=False)
class Trainer:
    """Trains from the newest checkpoint to the end of the run.

    Args:
        engine: Takes the steps.
        batches: From a step to an iterator over the batches of it and later ones.
        validate: Evaluates the network in its current state.
        settings: The whole tree.
        checkpoints: Of the run.
        n_images: Number of training images.
        callbacks: Called in this order.
    """

    engine: Engine
    batches: Callable[[int], Iterator[TrainBatch]]
    validate: Callable[[nn.Module], Validation]
    settings: Settings
    checkpoints: Checkpoints
    _: KW_ONLY
    n_images: int
    callbacks: Sequence[Callback] = ()

    def __post_init__(self) -> None:
        training = self.settings.training
        keys = [callback.key for callback in self.callbacks if callback.key]
        if repeated := sorted({key for key in keys if keys.count(key) > 1}):
            raise UsageError(
                f"Two callbacks have the key {', '.join(repeated)}.",
                needed="a key of its own for each callback with state",
                fix="set another `key` on one of them",
            )
        self._few_steps = few_steps_limit(self.settings.model.start)
        self._time_budget = TimeBudget(training, few_steps=self._few_steps)
        self._best: Validation | None = None
        self._checkpoint_due = 0.0
        size = training.tiles_at_once
        self.progress = RunProgress(micro_batch=size, asked_micro_batch=size)

    def run(self, *, stop_after: int | None = None) -> RunSummary:
        """Train from the newest checkpoint to the end.

        Args:
            stop_after: Stop after so many steps, as if the user had asked for it.

        Raises:
            StoppedError: If the user asked for it; the run can be resumed.
            TrainingError: If training diverges, or memory is too small.
            DataError: If too many images cannot be read.
            OutputError: If the disk is full; earlier checkpoints are intact.
        """
        with StopSignal() as stop:
            try:
                with same_bits(self.settings.deterministic, self.engine.device):
                    summary = self._run(stop, stop_after)
            except StoppedError as stopped:
                self._end("stopped", stopped.came)
                raise
            except KeyboardInterrupt:
                raise self._interrupted() from None
            except BaseException as error:
                came = error.came if isinstance(error, PlantSegError) else repr(error)
                self._end("failed", came)
                raise
            self._end("finished", f"{summary.steps} steps were taken.")
        return summary

    def _interrupted(self) -> KeyboardInterrupt:
        """Write that the run was stopped within a step, as by a second Ctrl-C."""
        steps = self.checkpoints.steps()
        kept = f"the checkpoint of step {steps[-1]} is" if steps else "no checkpoint is"
        text = f"Interrupted in step {self.progress.step + 1}; {kept} kept."
        self._end("stopped", text)
        return KeyboardInterrupt(text)

    def emit(self, event: Event) -> None:
        """Pass an event to every callback."""
        for callback in self.callbacks:
            callback.on_event(self.progress.step, event)

    def _end(self, reason: EndReason, text: str) -> None:
        with uninterrupted():
            for callback in self.callbacks:
                callback.on_end(reason, text)

    def _run(self, stop: StopSignal, stop_after: int | None) -> RunSummary:
        progress = self.progress
        self._begin()
        source = self.batches(progress.step)
        while progress.step < self._time_budget.steps:
            if stop.by is not None or progress.step == stop_after:
                self._save()
                raise StoppedError(progress.step, self._time_budget.steps, stop.by)
            try:
                self._advance(source)
            except RollbackError as rollback:
                self._roll_back(rollback)
                source = self.batches(progress.step)
        assert self._best is not None, "a run ends with a validation"  # noqa: S101
        if (
            progress.start_metric is not None
            and self._best.monitored_metric < progress.start_metric
        ):
            self.emit(Event("no-gain", NO_GAIN))
        return RunSummary(progress.step, self._best, self._time_budget.seconds / 60)

    def _begin(self) -> None:
        """Resume from the newest checkpoint, or write the first one."""
        state = self.checkpoints.load(
            use=self._resume,
            log=lambda text: self.emit(Event("damaged-checkpoint", text)),
        )
        if state is None:
            if self.settings.model.start not in STARTS:
                self._validate_start()
            self._save()
            return
        self._set_checkpoint_due(0.0)
        step = self.progress.step
        has_finished = step >= self._time_budget.steps
        text = "is finished already" if has_finished else f"resumes from step {step}"
        self.emit(Event("resumed", f"The run {text}."))

    def _advance(self, batches: Iterator[TrainBatch]) -> None:
        """Take a step, then validate or save if due."""
        began = time.perf_counter()
        batch = next(batches)
        waited_s = time.perf_counter() - began
        self._note_skipped(batch)
        parts = self._step(batch)
        progress, steps = self.progress, self._time_budget.steps
        views = batch.unlabeled
        info = StepInfo(
            step=progress.step,
            steps=steps,
            losses=parts,
            seconds=time.perf_counter() - began,
            elapsed_s=self._time_budget.seconds,
            waited_s=waited_s,
            n_tiles=len(batch.labeled) + (0 if views is None else len(views)),
            micro_batch=progress.micro_batch,
        )
        for callback in self.callbacks:
            for event in callback.on_step(info):
                self.emit(event)
        few = self._time_budget.warn_if_few_steps(progress.step)
        if few is not None:
            self.emit(Event("few-steps", few))
        validations = self.settings.training.validations
        if self._time_budget.ends_profile(progress.step) or is_due(
            progress.step, steps, validations
        ):
            self._validate_and_save()
        elif time.perf_counter() > self._checkpoint_due:
            self._save()

    def _step(self, batch: TrainBatch) -> Mapping[str, Tensor]:
        """Take a step; return the parts of its loss, none if it was not applied."""
        progress, engine, steps = self.progress, self.engine, self._time_budget.steps
        undo = engine.undo_point()
        (parts, is_finite), progress.micro_batch = retry_with_smaller_batch(
            lambda micro_batch: engine.backward(
                batch,
                step=progress.step,
                steps=steps,
                micro_batch=micro_batch,
                profile=progress.step < PROFILE_STEPS,
            ),
            progress.micro_batch,
            what="a training step",
            emit=self.emit,
            before_retry=undo,
        )
        if not is_finite:
            return self._skip_step()
        try:
            engine.optimizer_step(
                step=progress.step, steps=steps, lr_scale=progress.lr_scale
            )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            cause = str(error)
        else:
            progress.step += 1
            progress.not_finite = 0
            return parts
        # The optimizer may have changed only some of the weights.
        progress.micro_batch = max(1, progress.micro_batch // 2)
        raise RollbackError(
            f"memory ran out while the weights were changed ({cause})", lower_rate=False
        )

    def _skip_step(self) -> Mapping[str, Tensor]:
        """Skip a step; roll back after several in a row."""
        progress = self.progress
        self.engine.zero_grad()
        progress.step += 1
        progress.not_finite += 1
        self.emit(
            Event(
                "not-finite",
                f"The gradient of step {progress.step} is not finite; the step was not "
                "applied.",
            )
        )
        if progress.not_finite == NOT_FINITE_IN_A_ROW:
            raise RollbackError(f"{NOT_FINITE_IN_A_ROW} gradients in a row were not finite")
        return {}

    def _validate_start(self) -> None:
        """Validate the model that training starts from, to compare with later.

        It is no candidate for ``best``: with few images it may score highest by noise,
        and training on masks of the target crop usually helps. New classes are not
        predicted yet, so the events of this validation are dropped.
        """
        validation = self.validate(self.engine.eval_model)
        self.progress.start_metric = validation.monitored_metric
        for callback in self.callbacks:
            callback.on_validation(0, validation, best=False)

    def _validate_and_save(self) -> None:
        """Validate, call the callbacks, and save a checkpoint."""
        progress = self.progress
        self.engine.zero_grad()
        began = time.perf_counter()
        validation = self.validate(self.engine.eval_model)
        validation = replace(validation, seconds=time.perf_counter() - began)
        few = self._time_budget.set_steps(progress.step, validation_s=validation.seconds)
        if few is not None:
            self.emit(Event("few-steps", few))
        for event in validation.events:
            self.emit(event.stated(with_advice=progress.step >= self._few_steps))
        if self._has_collapsed(validation):
            raise RollbackError(
                "no lesion is predicted any longer", step=progress.best_step
            )
        is_best = (
            self._best is None or validation.monitored_metric >= self._best.monitored_metric
        )
        if is_best:
            self._best, progress.best_step = validation, progress.step
        for callback in self.callbacks:
            for event in callback.on_validation(progress.step, validation, best=is_best):
                self.emit(event)
        self._save()

    def _has_collapsed(self, validation: Validation) -> bool:
        """Return whether lesions were predicted before and none are now."""
        return (
            self.settings.training.on_collapse == "rollback"
            and self._best is not None
            and self._best.metrics.get("lesion_dice", 0.0) > 0
            and any(event.kind == NO_LESION_EVENT for event in validation.events)
        )

    def _roll_back(self, rollback: RollbackError) -> None:
        """Roll back to a checkpoint; after a repeated failure, to an earlier one.

        Raises:
            TrainingError: After ``MAX_ROLLBACKS`` rollbacks.
        """
        failed = replace(self.progress)
        refuse_too_many(rollback, failed)
        state = self.checkpoints.load(
            step=rollback.step,
            before=failed.rolled_back_to if failed.has_failed_again else None,
            use=self._load,
        ) or self.checkpoints.load(use=self._load)
        assert state is not None, "a run begins with a checkpoint"  # noqa: S101
        self.progress.set_rolled_back(failed, lower_rate=rollback.lower_rate)
        self.emit(
            Event(
                "rollback",
                f"At step {failed.step}, {rollback}. The run resumes from step "
                f"{self.progress.step}, with {self.progress.lr_scale:g} of the learning "
                "rate.",
            )
        )
        self._save()

    def _note_skipped(self, batch: TrainBatch) -> None:
        """Emit events for unreadable images; stop when there are too many.

        Raises:
            DataError: If a larger fraction than ``MAX_UNREADABLE`` is unreadable.
        """
        skipped = self.progress.skipped
        for key, reason in batch.skipped:
            if key in skipped:
                continue
            skipped[key] = reason
            text = f"{reason} Another image replaces it."
            self.emit(Event("unreadable-image", text))
        if len(skipped) > MAX_UNREADABLE * self.n_images:
            self._save()
            raise DataError(
                f"{len(skipped)} of {self.n_images} images cannot be read; the last one: "
                f"{next(reversed(skipped.values()))}",
                needed=f"at most {MAX_UNREADABLE:.0%} of them unreadable",
                fix="repair or restore them, then run the same command again to resume",
            )

    def _save(self) -> None:
        """Write a checkpoint.

        Raises:
            OutputError: If it cannot be written; states from which step to resume.
        """
        progress = self.progress
        if progress.not_finite:
            return  # keep the last one with finite gradients
        try:
            saved = self.checkpoints.save(
                self._state_dict(), step=progress.step, also_keep=progress.best_step
            )
        except OutputError as error:
            kept_steps = self.checkpoints.steps()
            raise OutputError(
                f"{error.came} The run stopped at step {progress.step}.",
                needed=error.needed,
                fix=f"{error.fix}; the same command then resumes from step {kept_steps[-1]}"
                if kept_steps
                else error.fix,
            ) from error
        self._set_checkpoint_due(saved.seconds)
        for callback in self.callbacks:
            callback.on_checkpoint(progress.step, saved)

    def _set_checkpoint_due(self, seconds: float) -> None:
        """Set when the next checkpoint is due; ``seconds`` is what the last one took."""
        pause_s = 60 * self.settings.training.checkpoint_minutes
        if pause_s > 0:
            pause_s = max(pause_s, seconds / CHECKPOINT_TIME_FRACTION)
        self._checkpoint_due = time.perf_counter() + pause_s

    def _state_dict(self) -> dict[str, Any]:
        best = self._best and replace(self._best, events=(), extra_metrics={}, seconds=0.0)
        return {
            "progress": asdict(self.progress),
            "time_budget": self._time_budget.state_dict(),
            "best": best and asdict(best),
            "engine": self.engine.state_dict(),
            "rng": random_state(),
            "callbacks": {c.key: c.state_dict() for c in self.callbacks if c.key},
        }

    def _resume(self, state: Mapping[str, Any]) -> None:
        self._load(state)
        if not self.engine.is_finite():
            raise ValueError("weights are not finite")
        # Unreadable images may be back; those that are not count again when they are read.
        self.progress.skipped = {}

    def _load(self, state: Mapping[str, Any]) -> None:
        """Restore a state; raise any error if it is none."""
        known = {f.name for f in fields(RunProgress)}
        stored = {name: v for name, v in state["progress"].items() if name in known}
        stored["step"] = state["progress"]["step"]  # the others have a default
        progress = TypeAdapter(RunProgress).validate_python(stored)
        best = state["best"] and Validation(**state["best"])
        self._time_budget.load_state_dict(state["time_budget"])
        if progress.step > self._time_budget.steps:
            raise ValueError(f"step {progress.step} is after the end of the run")
        self.engine.load_state_dict(state["engine"])
        asked = self.progress.asked_micro_batch
        if asked != progress.asked_micro_batch:
            progress.micro_batch = progress.asked_micro_batch = asked
        vars(self.progress).update(vars(progress))
        self._best = best
        for callback in self.callbacks:
            callback_state = state["callbacks"].get(callback.key)
            if callback_state is not None:
                callback.load_state_dict(callback_state)
        restore_random_state(state["rng"])
