"""Augmentation: geometric and photometric.

The geometric transform applies to image and masks; the photometric one then changes only
the image. Hue changes little, because lesions are recognized by color.
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
"""Luma weights of red, green and blue; ITU-R BT.601."""


@dataclass(frozen=True)
class Geometry:
    """Ranges of random scaling and rotation.

    Args:
        scale: Least and greatest magnification, drawn log-uniformly.
        angle_deg: Largest rotation either way, added to a random multiple of 90.
    """

    scale: tuple[float, float] = (0.6, 1.5)
    angle_deg: float = 20.0

    def draw(
        self, center_xy: tuple[float, float], scale: float, rng: np.random.Generator
    ) -> Placement:
        """Return a random placement with the given center and scale."""
        quarter = 90.0 * int(rng.integers(4))
        return Placement(
            center_xy,
            scale,
            quarter + float(rng.uniform(-self.angle_deg, self.angle_deg)),
            bool(rng.integers(2)),
        )

    def draw_scale(self, rng: np.random.Generator) -> float:
        """Return a random magnification."""
        low, high = self.scale
        return math.exp(rng.uniform(math.log(low), math.log(high)))


@dataclass(frozen=True)
class Photometry:
    """Photometric augmentation; every value is the largest change.

    Args:
        brightness: Factor on all values, in [1 - x, 1 + x].
        contrast: Factor on the distance from the mean.
        saturation: Factor on the distance from gray.
        hue: Rotation of hue, as a fraction of the full circle.
        gamma: Exponent, in [1 / (1 + x), 1 + x].
        blur: Probability of a Gaussian blur with sigma up to 1.5 pixels.
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
        """Return the augmented image as a tensor.

        Brightness, contrast, saturation and hue are combined into one affine map of the
        colors, applied in one pass; hue rotates around the gray axis.
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
        colors = contrast * bright * saturate @ _hue_rotation(hue)
        # Saturation and hue do not change gray levels.
        offset = np.full((3, 1), (1 - contrast) * mean)
        x = cv2.transform(image, np.hstack([colors, offset]))
        levels = 255 * (np.arange(256) / 255) ** gamma
        x = cv2.LUT(x, np.rint(levels).astype(np.uint8))
        if rng.random() < self.blur:
            x = cv2.GaussianBlur(x, (5, 5), float(rng.uniform(0.3, 1.5)))
        return torch.from_numpy(np.ascontiguousarray(x.transpose(2, 0, 1)))


def _hue_rotation(turns: float) -> Float[np.ndarray, "3 3"]:
    """Return the color matrix that rotates hue around the gray axis."""
    cosine, sine = math.cos(2 * math.pi * turns), math.sin(2 * math.pi * turns)
    axis = np.array([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
    rotation: np.ndarray = (
        cosine * np.eye(3) + sine * axis + (1 - cosine) * np.full((3, 3), 1 / 3)
    )
    return rotation


UNCHANGED = Photometry(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
"""The weak view: no photometric change."""


def strong_photometry(factor: float) -> Photometry:
    """Return the strong augmentation: ``factor`` times the default of training.

    Hue is not scaled, and there is no random grayscale as in other methods: lesions are
    recognized by color.
    """
    default = Photometry()
    return replace(
        default,
        brightness=min(1.0, default.brightness * factor),
        contrast=min(1.0, default.contrast * factor),
        saturation=min(1.0, default.saturation * factor),
        gamma=default.gamma * factor,
        blur=min(1.0, default.blur * factor),
    )
