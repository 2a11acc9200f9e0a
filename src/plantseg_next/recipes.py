"""Recipes: functions that return a whole ``Experiment``.

Each says what it is for and what it costs, so that its numbers have a reason. The
defaults of ``Experiment`` are the recipe for photographs and twelve minutes.
"""

from plantseg_next.experiment import (
    DataSettings,
    Experiment,
    ModelSettings,
    TrainingSettings,
)


def quick(minutes: float = 2.0) -> Experiment:
    """Return the recipe of ``plantseg-next demo``: a few minutes on two cores.

    The smallest encoder, and as few validations as still choose a model; for drawn leaves
    of 192 pixels. Two minutes find most lesions there; they are not enough for real ones.
    """
    return Experiment(
        data=DataSettings(tile_px=192, workers=0),
        model=ModelSettings(encoder="atto"),
        training=TrainingSettings(minutes=minutes, validations=2, validation_pictures=24),
    )
