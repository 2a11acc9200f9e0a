"""The dull loop: batches in, steps taken, checkpoints kept, whatever happens.

What a step learns is in ``step.py``, how it is taken in ``learner.py``, what a batch holds
in ``data/streams.py``. Here is the order of things, and what is done when one of them
fails.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from plantseg_next.data.dataset import Drawn
from plantseg_next.errors import (
    DataError,
    OutputError,
    PlantSegError,
    StoppedError,
    TrainingError,
)
from plantseg_next.models.start import STARTS
from plantseg_next.runtime import random_state, restore_random_state, same_bits
from plantseg_next.settings import Experiment
from plantseg_next.training.callbacks.callback import (
    Ending,
    Event,
    Stepped,
    Validation,
    Watcher,
)
from plantseg_next.training.callbacks.diagnostics import NO_LESION_EVENT
from plantseg_next.training.checkpoints import Checkpoints
from plantseg_next.training.engine import Learner
from plantseg_next.training.oom import (
    SMALLER,
    GoBackError,
    lacks_memory,
    within_memory,
)
from plantseg_next.training.signals import Interruption
from plantseg_next.training.time_budget import REHEARSED_STEPS, Pace, is_due

CHECKPOINT_SHARE = 0.01
"""Most of the time that goes into checkpoints between two validations."""
NOT_FINITE_IN_A_ROW = 3
MOST_RETURNS = 3
MAX_UNREADABLE = 0.05
"""Fraction of the images that may turn out unreadable during a run."""
RATE_AFTER_RETURN = 0.5
NO_GAIN = (
    "On the validation images no step was as good as the model that training started "
    "from. Where they are few, that may be chance: judge both models on more. Otherwise "
    "more masks, more minutes or a lower training.rate may help."
)


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Args:
        steps: Optimizer steps taken.
        best: The best validation.
        minutes: Wall time, validations included, of all parts of the run.
    """

    steps: int
    best: Validation
    minutes: float


@dataclass
class RunProgress:
    """Where a run is, and what has happened to it.

    Args:
        step: Steps taken.
        micro_batch: Labeled tiles at once.
        asked_micro_batch: What the settings asked for, before memory had its say.
        not_finite: Steps in a row whose gradient was not finite.
        returns: Times that the run went back to a checkpoint.
        returned_to: Step of the last such checkpoint; -1 if there was none.
        failed_at: Step at which it went back; -1 likewise.
        rate_factor: On the learning rate, lower in a run that went back.
        best_step: Step of the best validation; -1 before the first.
        start_score: Of the model that training started from, if it is one.
        lost: Images that could not be read, and why.
    """

    step: int = 0
    micro_batch: int = 1
    asked_micro_batch: int = 1
    not_finite: int = 0
    returns: int = 0
    returned_to: int = -1
    failed_at: int = -1
    rate_factor: float = 1.0
    best_step: int = -1
    start_score: float | None = None
    lost: dict[str, str] = field(default_factory=dict)


class Trainer:
    """One run, from its newest checkpoint to its end.

    Args:
        learner: What learns.
        batches: From a step to an iterator over what it and later ones learn from.
        n_images: That are drawn from.
        validate: Judges the network as it stands.
        settings: The whole tree.
        checkpoints: Where they are kept.
        watchers: Told of everything, in order.
    """

    def __init__(
        self,
        learner: Learner,
        batches: Callable[[int], Iterator[Drawn]],
        validate: Callable[[nn.Module], Validation],
        settings: Experiment,
        checkpoints: Checkpoints,
        *,
        n_images: int,
        watchers: Sequence[Watcher] = (),
    ) -> None:
        training = settings.training
        self._learner = learner
        self._batches = batches
        self._n_images = n_images
        self._validate = validate
        self._settings = settings
        self._checkpoints = checkpoints
        self._watchers = watchers
        self._pace = Pace(training)
        self._best: Validation | None = None
        self._checkpoint_due = 0.0
        size = training.tiles_at_once
        self.progress = RunProgress(micro_batch=size, asked_micro_batch=size)

    def run(self, *, stop_after: int | None = None) -> Outcome:
        """Train from the newest checkpoint to the end.

        Args:
            stop_after: Stop when so many steps are taken, as if the user had asked.

        Raises:
            StoppedError: If the user asked for it; the run can go on.
            TrainingError: If learning breaks down, or memory is too small.
            DataError: If too many images cannot be read.
            OutputError: If the disk is full; the checkpoints before are whole.
        """
        try:
            with same_bits(self._settings.deterministic, self._learner.device):
                outcome = self._run(stop_after)
        except StoppedError as stopped:
            self._end("stopped", stopped.came)
            raise
        except BaseException as error:
            came = error.came if isinstance(error, PlantSegError) else repr(error)
            self._end("failed", came)
            raise
        self._end("finished", f"{outcome.steps} steps were taken.")
        return outcome

    def tell(self, event: Event) -> None:
        """Let every watcher know."""
        for watcher in self._watchers:
            watcher.on_event(self.progress.step, event)

    def _end(self, how: Ending, text: str) -> None:
        for watcher in self._watchers:
            watcher.on_end(how, text)

    def _run(self, stop_after: int | None) -> Outcome:
        progress = self.progress
        with Interruption() as asked:
            self._begin()
            source = self._batches(progress.step)
            while progress.step < self._pace.steps:
                if asked.by is not None or progress.step == stop_after:
                    self._save()
                    raise StoppedError(progress.step, self._pace.steps, asked.by)
                try:
                    self._advance(source)
                except GoBackError as back:
                    self._go_back(back)
                    source = self._batches(progress.step)
        assert self._best is not None, "a run ends with a validation"  # noqa: S101
        if progress.start_score is not None and self._best.score < progress.start_score:
            self.tell(Event("no-gain", NO_GAIN))
        return Outcome(progress.step, self._best, self._pace.seconds / 60)

    def _begin(self) -> None:
        """Go on from the newest checkpoint, or write the first one."""
        state = self._checkpoints.load(
            say=lambda text: self.tell(Event("damaged-checkpoint", text))
        )
        if state is None:
            if self._settings.model.start not in STARTS:
                self._judge_start()
            self._save()
            return
        self._load(state)
        self._plan_checkpoint(0.0)
        step = self.progress.step
        is_over = step >= self._pace.steps
        text = "is finished already" if is_over else f"goes on from step {step}"
        self.tell(Event("resumed", f"The run {text}."))

    def _advance(self, source: Iterator[Drawn]) -> None:
        """Take a step, and do whatever is due after it."""
        began = time.perf_counter()
        drawn = next(source)
        waited_s = time.perf_counter() - began
        self._note_lost(drawn)
        parts = self._step(drawn)
        progress, steps = self.progress, self._pace.steps
        views = drawn.unlabeled
        stepped = Stepped(
            step=progress.step,
            steps=steps,
            parts=parts,
            seconds=time.perf_counter() - began,
            elapsed_s=self._pace.seconds,
            waited_s=waited_s,
            n_tiles=len(drawn.labeled) + (0 if views is None else len(views)),
            micro_batch=progress.micro_batch,
        )
        for watcher in self._watchers:
            for event in watcher.on_step(stepped):
                self.tell(event)
        few = self._pace.foresee(progress.step)
        if few is not None:
            self.tell(Event("few-steps", few))
        validations = self._settings.training.validations
        if self._pace.measures_at(progress.step) or is_due(
            progress.step, steps, validations
        ):
            self._judge()
        elif time.perf_counter() > self._checkpoint_due:
            self._save()

    def _step(self, drawn: Drawn) -> Mapping[str, Tensor]:
        """Take a step; return the parts of its loss, or none if it was not applied."""
        progress, learner, steps = self.progress, self._learner, self._pace.steps
        undo = learner.snapshot()
        (parts, is_finite), progress.micro_batch = within_memory(
            lambda micro_batch: learner.find_gradients(
                drawn,
                step=progress.step,
                steps=steps,
                micro_batch=micro_batch,
                rehearsal=progress.step < REHEARSED_STEPS,
            ),
            progress.micro_batch,
            what="a training step",
            tell=self.tell,
            before_again=undo,
        )
        if not is_finite:
            return self._leave_out_step()
        try:
            learner.apply(step=progress.step, steps=steps, rate_factor=progress.rate_factor)
        except (RuntimeError, MemoryError) as error:
            if not lacks_memory(error):
                raise
            torn = str(error)
        else:
            progress.step += 1
            progress.not_finite = 0
            return parts
        # The optimizer has changed some weights and not others.
        progress.micro_batch = max(1, progress.micro_batch // 2)
        raise GoBackError(
            f"memory ran out while the weights were changed ({torn})", lower_rate=False
        )

    def _leave_out_step(self) -> Mapping[str, Tensor]:
        """Go on with the next step; several in a row are too many."""
        progress = self.progress
        self._learner.forget_gradients()
        progress.step += 1
        progress.not_finite += 1
        self.tell(
            Event(
                "not-finite",
                f"The gradient of step {progress.step} is not finite; the step was not "
                "applied.",
            )
        )
        if progress.not_finite == NOT_FINITE_IN_A_ROW:
            raise GoBackError(f"{NOT_FINITE_IN_A_ROW} gradients in a row were not finite")
        return {}

    def _judge_start(self) -> None:
        """Validate the model that training starts from, to compare with later.

        It is not among those that ``best`` is chosen from: a few images may prefer it by
        chance, and masks of the crop at hand usually help. New classes are not predicted
        yet, so what the validation would warn of is not told.
        """
        found = self._validate(self._learner.judged)
        self.progress.start_score = found.score
        for watcher in self._watchers:
            watcher.on_validation(0, found, best=False)

    def _judge(self) -> None:
        """Validate, tell of it, and keep a checkpoint."""
        progress = self.progress
        self._learner.forget_gradients()
        began = time.perf_counter()
        found = self._validate(self._learner.judged)
        found = replace(found, seconds=time.perf_counter() - began)
        few = self._pace.fix(progress.step, validation_s=found.seconds)
        if few is not None:
            self.tell(Event("few-steps", few))
        for event in found.events:
            self.tell(event)
        if self._has_collapsed(found):
            raise GoBackError("no lesion is found any longer", step=progress.best_step)
        is_best = self._best is None or found.score >= self._best.score
        if is_best:
            self._best, progress.best_step = found, progress.step
        for watcher in self._watchers:
            for event in watcher.on_validation(progress.step, found, best=is_best):
                self.tell(event)
        self._save()

    def _has_collapsed(self, found: Validation) -> bool:
        """Return whether to go back, for lesions were found before and none are now."""
        return (
            self._settings.training.after_collapse == "go_back"
            and self._best is not None
            and self._best.figures["lesion_dice"] > 0
            and any(event.kind == NO_LESION_EVENT for event in found.events)
        )

    def _go_back(self, back: GoBackError) -> None:
        """Go on from an earlier checkpoint; if it fails again, from one before that.

        Raises:
            TrainingError: If it has been tried often enough.
        """
        progress = self.progress
        failed_at, micro_batch, returns = (
            progress.step,
            progress.micro_batch,
            progress.returns,
        )
        if returns == MOST_RETURNS:
            raise TrainingError(
                f"At step {failed_at}, {back}, after going back {returns} times.",
                needed="a loss that stays finite and a model that finds lesions"
                if back.lower_rate
                else "memory for the weights and their optimizer",
                fix="a new run with --set training.rate at a third of its value, or "
                "--set training.precision=float32"
                if back.lower_rate
                else SMALLER,
            )
        again = failed_at <= progress.failed_at
        state = (
            self._checkpoints.load(
                step=back.step, before=progress.returned_to if again else None
            )
            or self._checkpoints.load()
        )
        assert state is not None, "a run begins with a checkpoint"  # noqa: S101
        factor = progress.rate_factor * (RATE_AFTER_RETURN if back.lower_rate else 1)
        self._load(state)
        progress.micro_batch = micro_batch
        progress.rate_factor = factor
        progress.returns = returns + 1
        progress.returned_to, progress.failed_at = progress.step, failed_at
        self.tell(
            Event(
                "went-back",
                f"At step {failed_at}, {back}. The run goes on from step {progress.step}, "
                f"with {factor:g} of the learning rate.",
            )
        )
        self._save()

    def _note_lost(self, drawn: Drawn) -> None:
        """Tell of images that could not be read; stop when they are too many.

        Raises:
            DataError: If a larger share than ``MAX_UNREADABLE`` is lost.
        """
        lost = self.progress.lost
        for key, reason in drawn.lost:
            if key in lost:
                continue
            lost[key] = reason
            text = f"{reason} Another image takes its place."
            self.tell(Event("unreadable-image", text))
        if len(lost) > MAX_UNREADABLE * self._n_images:
            self._save()
            raise DataError(
                f"{len(lost)} of {self._n_images} images cannot be read; the last one: "
                f"{next(reversed(lost.values()))}",
                needed=f"at most {MAX_UNREADABLE:.0%} of them lost",
                fix="mend or restore them, then the same command goes on from here",
            )

    def _save(self) -> None:
        """Write a checkpoint of the run as it stands.

        Raises:
            OutputError: If it cannot be written; says from where the run can go on.
        """
        progress = self.progress
        if progress.not_finite:
            return  # the last good one is older
        try:
            saved = self._checkpoints.save(
                self._state_dict(), step=progress.step, also_keep=progress.best_step
            )
        except OutputError as error:
            held = self._checkpoints.steps()
            raise OutputError(
                f"{error.came} The run stopped at step {progress.step}.",
                needed=error.needed,
                fix=f"{error.fix}; the same command then goes on from step {held[-1]}"
                if held
                else error.fix,
            ) from error
        self._plan_checkpoint(saved.seconds)
        for watcher in self._watchers:
            watcher.on_checkpoint(progress.step, saved)

    def _plan_checkpoint(self, seconds: float) -> None:
        """Set when the next one is due, the last having taken so many seconds."""
        pause_s = 60 * self._settings.training.checkpoint_minutes
        if pause_s > 0:
            pause_s = max(pause_s, seconds / CHECKPOINT_SHARE)
        self._checkpoint_due = time.perf_counter() + pause_s

    def _state_dict(self) -> dict[str, Any]:
        best = self._best
        return {
            "progress": asdict(self.progress),
            "pace": self._pace.state_dict(),
            "best": best and {"score": best.score, "figures": dict(best.figures)},
            "learner": self._learner.state_dict(),
            "chance": random_state(),
            "watchers": {type(w).__name__: w.state_dict() for w in self._watchers},
        }

    def _load(self, state: Mapping[str, Any]) -> None:
        self._learner.load_state_dict(state["learner"])
        asked = self.progress.asked_micro_batch
        for name, value in state["progress"].items():
            setattr(self.progress, name, value)
        if asked != self.progress.asked_micro_batch:
            self.progress.micro_batch = self.progress.asked_micro_batch = asked
        self._pace.load_state_dict(state["pace"])
        self._best = state["best"] and Validation(**state["best"])
        for watcher in self._watchers:
            known = state["watchers"].get(type(watcher).__name__)
            if known is not None:
                watcher.load_state_dict(known)
        restore_random_state(state["chance"])
