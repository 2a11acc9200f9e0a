"""Views: one image under another light, from another place.

Geometry is drawn first and moves image and masks together; photometry then changes the
image alone. Hue hardly moves: lesions are known by their color.
"""

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from plantseg_next.data.tiling import Placement

LUMINANCE = np.array([0.299, 0.587, 0.114])
"""Of red, green and blue; ITU-R BT.601."""


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
        self, center_xy: tuple[float, float], scale: float, rng: np.random.Generator
    ) -> Placement:
        """Return a placement around a center, at a scale that was drawn before."""
        quarter = 90.0 * int(rng.integers(4))
        return Placement(
            center_xy,
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
        saturation: Factor on the distance from gray.
        hue: Turn of the color circle, in parts of it.
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
        """Return the image under another light, as a tensor.

        Brightness, contrast, saturation and hue are one linear map of the colors, so that
        an image is gone through once; hue turns around the gray axis.
        """
        if self == UNCHANGED:
            return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        bright, contrast, saturation = (
            1 + rng.uniform(-1, 1) * x
            for x in (self.brightness, self.contrast, self.saturation)
        )
        gamma = (1 + self.gamma) ** rng.uniform(-1, 1)
        hue = rng.uniform(-1, 1) * self.hue if self.hue else 0.0
        mean = bright * float(np.dot(cv2.mean(image)[:3], LUMINANCE))
        saturate = saturation * np.eye(3) + (1 - saturation) * LUMINANCE
        colors = contrast * bright * saturate @ _hue_turn(hue)
        # Of a gray level, the changes of saturation and hue are none.
        offset = np.full((3, 1), (1 - contrast) * mean)
        x = cv2.transform(image, np.hstack([colors, offset]))
        levels = 255 * (np.arange(256) / 255) ** gamma
        x = cv2.LUT(x, np.rint(levels).astype(np.uint8))
        if rng.random() < self.blur:
            x = cv2.GaussianBlur(x, (5, 5), float(rng.uniform(0.3, 1.5)))
        return torch.from_numpy(np.ascontiguousarray(x.transpose(2, 0, 1)))


def _hue_turn(turns: float) -> Float[np.ndarray, "3 3"]:
    """Return the map of colors that turns around the gray axis."""
    cosine, sine = math.cos(2 * math.pi * turns), math.sin(2 * math.pi * turns)
    axis = np.array([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
    turned: np.ndarray = (
        cosine * np.eye(3) + sine * axis + (1 - cosine) * np.full((3, 3), 1 / 3)
    )
    return turned


UNCHANGED = Photometry(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
"""The weak view: as the camera saw it."""


def strong_photometry(factor: float) -> Photometry:
    """Return the light of the strong view, ``factor`` times as hard as that of training.

    Hue is left as it is, and color is not taken away as it is elsewhere: lesions are
    known by their color.
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
