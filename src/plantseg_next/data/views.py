"""Views: one picture under another light, from another place.

Geometry is drawn first and moves picture and masks together; photometry then changes the
picture alone. Hue hardly moves: lesions are known by their colour.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from plantseg_next.data.tiling import Placement


@dataclass(frozen=True)
class Geometry:
    """How far a tile may be scaled and turned.

    Args:
        scale: Least and greatest magnification, drawn evenly in its logarithm.
        angle_deg: Greatest turn either way, on top of a random quarter turn.
    """

    scale: tuple[float, float] = (0.6, 1.5)
    angle_deg: float = 20.0

    def draw(
        self, centre_xy: tuple[float, float], scale: float, rng: np.random.Generator
    ) -> Placement:
        """Return a placement around a centre, at a scale that was drawn before."""
        quarter = 90.0 * int(rng.integers(4))
        return Placement(
            centre_xy,
            scale,
            quarter + float(rng.uniform(-self.angle_deg, self.angle_deg)),
            bool(rng.integers(2)),
        )

    def draw_scale(self, rng: np.random.Generator) -> float:
        """Return a magnification."""
        low, high = self.scale
        return math.exp(rng.uniform(math.log(low), math.log(high)))


@dataclass(frozen=True)
class Photometry:
    """How far light and camera may change; every number is a greatest change.

    Args:
        brightness: Factor on all values, in [1 - x, 1 + x].
        contrast: Factor on the distance from the mean.
        saturation: Factor on the distance from grey.
        hue: Turn of the colour circle, in parts of it.
        gamma: Exponent, in [1 / (1 + x), 1 + x].
        blur: Chance of a Gaussian blur of up to 1.5 pixels.
    """

    brightness: float = 0.25
    contrast: float = 0.25
    saturation: float = 0.25
    hue: float = 0.02
    gamma: float = 0.25
    blur: float = 0.15

    def apply(
        self, image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator
    ) -> UInt8[Tensor, "3 h w"]:
        """Return the picture under another light, as a tensor."""
        x = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        if self == UNCHANGED:
            return x
        x = tv.adjust_brightness(x, 1 + rng.uniform(-1, 1) * self.brightness)
        x = tv.adjust_contrast(x, 1 + rng.uniform(-1, 1) * self.contrast)
        x = tv.adjust_saturation(x, 1 + rng.uniform(-1, 1) * self.saturation)
        x = tv.adjust_gamma(x, (1 + self.gamma) ** rng.uniform(-1, 1))
        if self.hue:
            x = tv.adjust_hue(x, rng.uniform(-1, 1) * self.hue)
        if rng.random() < self.blur:
            x = tv.gaussian_blur(x, [5, 5], [float(rng.uniform(0.3, 1.5))] * 2)
        return x


UNCHANGED = Photometry(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
"""The weak view: as the camera saw it."""


def strong_light(factor: float) -> Photometry:
    """Return the light of the strong view, ``factor`` times as hard as that of training.

    Hue is left as it is, and colour is not taken away as it is elsewhere: lesions are
    known by their colour.
    """
    plain = Photometry()
    return replace(
        plain,
        brightness=min(1.0, plain.brightness * factor),
        contrast=min(1.0, plain.contrast * factor),
        saturation=min(1.0, plain.saturation * factor),
        gamma=plain.gamma * factor,
        blur=min(1.0, plain.blur * factor),
    )
