"""Recipes: functions that return a whole ``Experiment``.

Each says what it is for, what it costs and what it reached, so that the numbers in the
settings have a reason.
"""

from plantseg_next.experiment import (
    DataSettings,
    Experiment,
    ModelSettings,
    TrainingSettings,
)


def quick(minutes: float = 2.0) -> Experiment:
    """Return the recipe of ``plantseg-next demo``: a few minutes on two cores.

    Small tiles and the smallest encoder; drawn leaves of 192 pixels.
    """
    return Experiment(
        data=DataSettings(tile_px=192, workers=0),
        model=ModelSettings(encoder="atto"),
        training=TrainingSettings(minutes=minutes, validations=2, validation_pictures=24),
    )
