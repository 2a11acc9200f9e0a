"""Rollback: a run that breaks down resumes from an earlier checkpoint."""

from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from plantseg_next.errors import TrainingError
from plantseg_next.training.oom import SMALLER

MAX_ROLLBACKS = 3
LR_SCALE_AFTER_ROLLBACK = 0.5


class RollbackError(Exception):
    """The run must return to an earlier checkpoint.

    Args:
        cause: Reason, as a clause for messages.
        lower_rate: Whether to resume with a lower learning rate.
        step: Step of the checkpoint; by default the newest.
    """

    def __init__(
        self, cause: str, *, lower_rate: bool = True, step: int | None = None
    ) -> None:
        super().__init__(cause)
        self.lower_rate = lower_rate
        self.step = step


@dataclass
class RunProgress:
    """The position of a run, and its failures so far.

    Args:
        step: Steps taken.
        micro_batch: Labeled tiles in a forward pass.
        asked_micro_batch: That of the settings, before it was lowered to fit the memory.
        not_finite: Steps in a row whose gradient was not finite.
        rollbacks: Number of rollbacks.
        rolled_back_to: Step of the last checkpoint rolled back to; -1 if none.
        failed_at: Step at which that rollback happened; -1 likewise.
        lr_scale: Factor on the learning rate, lowered by rollbacks.
        best_step: Step of the best validation; -1 before the first.
        start_metric: Score of the model that training started from, if any.
        skipped: Images that could not be read, and why.
    """

    step: Annotated[int, Field(ge=0)] = 0
    micro_batch: Annotated[int, Field(ge=1)] = 1
    asked_micro_batch: Annotated[int, Field(ge=1)] = 1
    not_finite: Annotated[int, Field(ge=0)] = 0
    rollbacks: Annotated[int, Field(ge=0)] = 0
    rolled_back_to: int = -1
    failed_at: int = -1
    lr_scale: Annotated[float, Field(gt=0, le=1)] = 1.0
    best_step: int = -1
    start_metric: float | None = None
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def has_failed_again(self) -> bool:
        """Whether the run fails where it failed before, or earlier."""
        return self.step <= self.failed_at

    def set_rolled_back(self, failed: "RunProgress", *, lower_rate: bool) -> None:
        """Keep the consequences of a failure beside the state of the checkpoint.

        Args:
            failed: The progress at the failure.
            lower_rate: Whether the learning rate is lowered.
        """
        self.micro_batch = failed.micro_batch
        self.lr_scale = failed.lr_scale * (LR_SCALE_AFTER_ROLLBACK if lower_rate else 1)
        self.rollbacks = failed.rollbacks + 1
        self.rolled_back_to, self.failed_at = self.step, failed.step


def refuse_too_many(rollback: RollbackError, failed: RunProgress) -> None:
    """Refuse a further rollback after ``MAX_ROLLBACKS``.

    Args:
        rollback: What happened.
        failed: The progress at the failure.

    Raises:
        TrainingError: States what to change.
    """
    if failed.rollbacks < MAX_ROLLBACKS:
        return
    raise TrainingError(
        f"At step {failed.step}, {rollback}, after {failed.rollbacks} rollbacks.",
        needed="a loss that stays finite and a model that predicts lesions"
        if rollback.lower_rate
        else "memory for the weights and their optimizer",
        fix="start a new run with --set training.lr at a third of its value, or "
        "with --set training.precision=float32"
        if rollback.lower_rate
        else SMALLER,
    )
