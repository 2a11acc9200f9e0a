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


def quick(steps: int = 600) -> Experiment:
    """Return the recipe of ``plantseg-next demo``: a few minutes on two cores.

    As many steps on any machine: in a fixed time a slow or busy one learns nothing.

    The smallest encoder, and as few validations as still choose a model; for drawn leaves
    of 192 pixels. That finds the large lesions there; it is not enough for
    real photographs.
    """
    return Experiment(
        data=DataSettings(tile_px=128, workers=0),
        model=ModelSettings(encoder="atto"),
        training=TrainingSettings(
            minutes=None, steps=steps, validations=2, validation_pictures=24
        ),
    )
