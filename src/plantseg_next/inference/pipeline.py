"""A model in memory: an image goes in, masks and severity come out. No folder is written.

import plantseg_next
model = plantseg_next.load("RUN")
model.predict("leaf.jpg").severity_pct
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float16, Shaped, UInt8
from PIL import Image

from plantseg_next.data.image_io import decode_image
from plantseg_next.data.quality.inspect import HARDLY_GREEN, green_fraction
from plantseg_next.errors import DataError, UsageError, refuse_fewer
from plantseg_next.files import AnyPath
from plantseg_next.inference.predictor import Predictor, make_predictor
from plantseg_next.inference.records import table_row
from plantseg_next.inference.severity import MIN_LESION_PX, Assessment, Lesion, assess
from plantseg_next.models.bundle import ModelCard, read_bundle
from plantseg_next.models.start import find_model
from plantseg_next.names import Value
from plantseg_next.runtime import find_device

if TYPE_CHECKING:
    import pandas as pd

ImageSource = str | Path | bytes | Image.Image | np.ndarray
"""A path, the bytes of a file, a PIL image of any mode, or uint8 ``(h, w, 3)`` in RGB."""


@dataclass(frozen=True)
class LeafAnalysis:
    """What a model finds in one image. Arrays have the size of the upright image.

    Args:
        name: Of the image; "" where it has none.
        image: RGB, upright.
        assessment: Masks, lesions and severity.
        scale: Factor by which the image was shrunk for the model, at most 1.
        notes: What a reader of the measures should know.
        card: Of the model.
    """

    name: str
    image: UInt8[np.ndarray, "h w 3"]
    assessment: Assessment
    scale: float
    notes: tuple[str, ...]
    card: ModelCard

    @property
    def row(self) -> dict[str, Value]:
        """The measures, by column of ``severity.csv``."""
        return table_row(
            self.name,
            self.assessment,
            self.card.classes,
            scale=self.scale,
            model=self.card.model_id,
            notes=self.notes,
        )

    @property
    def severity_pct(self) -> float | None:
        """Lesion area over leaf area in percent; ``None`` where no leaf is known."""
        return self.assessment.measure.severity_pct

    @property
    def lesion(self) -> UInt8[np.ndarray, "h w"]:
        """Lesion class ids, 0 for no lesion."""
        return self.assessment.prediction.lesion

    @property
    def lesion_probability(self) -> Float16[np.ndarray, "h w"]:
        """Probability of any lesion, in [0, 1]."""
        return self.assessment.prediction.lesion_probability

    @property
    def leaf(self) -> Bool[np.ndarray, "h w"] | None:
        """Where the leaf is; ``None`` if the model does not know leaves."""
        leaf = self.assessment.prediction.leaf
        return None if leaf is None else leaf == 1

    @property
    def lesions(self) -> tuple[Lesion, ...]:
        """Every lesion, measured, largest first."""
        return self.assessment.lesions

    def to_pandas(self) -> "pd.DataFrame":
        """Return the measures as a table of one row.

        Raises:
            UsageError: If pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise UsageError(
                "pandas is not installed.",
                needed="pandas, for a table; `row` is a plain dict",
                fix="pip install pandas",
            ) from error
        return pd.DataFrame([self.row])


@dataclass(frozen=True)
class Pipeline:
    """A loaded model. ``predict`` may be called from several threads at once.

    Loading and predicting change no global state: no threads, seeds, logging or autocast.

    Args:
        predictor: Predicts masks.
        card: What is known of the model.
    """

    predictor: Predictor
    card: ModelCard

    def predict(
        self,
        image: ImageSource,
        *,
        name: str | None = None,
        min_lesion_px: int = MIN_LESION_PX,
    ) -> LeafAnalysis:
        """Return masks, lesions and severity of one image.

        Args:
            image: A path, the bytes of a file, a PIL image of any mode, or a uint8 array
                ``(h, w, 3)`` in RGB. The EXIF orientation of a file or PIL image is
                applied.
            name: Of the image in ``row``; a path's file name by default.
            min_lesion_px: Smaller lesions are not counted, in pixels at the scale at
                which the model sees the image.

        Raises:
            UsageError: If there is no such file, an array is not uint8 ``(h, w, 3)``,
                the image is of another kind, or ``min_lesion_px`` is not a whole number
                of at least 1.
            DataError: If the image is empty, or a file cannot be decoded.
        """
        refuse_fewer("min_lesion_px", min_lesion_px, 1)
        if name is None:
            name = Path(image).name if isinstance(image, str | Path) else ""
        pixels = _pixels(image)
        scale = self.predictor.scale(pixels.shape[:2])
        # What is too small to count is so at the scale that the model sees.
        least_px = round(min_lesion_px / scale**2)
        with np.errstate(under="ignore"):  # as is NumPy's default; callers may change it
            found = assess(self.predictor(pixels), min_lesion_px=least_px)
            notes = self._notes(pixels, found)
        return LeafAnalysis(name, pixels, found, scale, notes, self.card)

    def _notes(
        self, image: UInt8[np.ndarray, "h w 3"], found: Assessment
    ) -> tuple[str, ...]:
        notes = []
        if self.card.classes.has_leaf and found.measure.denominator == "image":
            notes.append("no leaf found")
        if green_fraction(image) < HARDLY_GREEN:
            notes.append("hardly any green: a plant?")
        return tuple(notes)


def _pixels(image: ImageSource) -> UInt8[np.ndarray, "h w 3"]:
    if not isinstance(image, ImageSource):
        raise UsageError(
            f"The image is of the type {type(image).__name__}.",
            needed="a path, the bytes of a file, a PIL image, or a uint8 array",
            fix="convert it, for example with numpy.asarray",
        )
    pixels = _array(image) if isinstance(image, np.ndarray) else decode_image(image)
    if not pixels.size:
        raise DataError(
            f"The image is empty: it has {pixels.shape[1]} x {pixels.shape[0]} pixels.",
            needed="an image of one pixel or more",
            fix="check how it was cut",
        )
    return pixels


def _array(image: Shaped[np.ndarray, "..."]) -> UInt8[np.ndarray, "h w 3"]:
    """Return an array that can be predicted; refuse one that would be misread."""
    needed = "uint8 of shape (height, width, 3): red, green, blue from 0 to 255"
    if image.dtype != np.uint8:
        fix = "round(255 * image) as uint8, if it lies in [0, 1]"
        raise UsageError(
            f"The array has the type {image.dtype}.",
            needed=needed,
            fix=fix if image.dtype.kind == "f" else "convert it to uint8",
        )
    if image.ndim != 3 or image.shape[2] != 3:
        raise UsageError(
            f"The array has the shape {image.shape}.",
            needed=needed,
            fix="give one image at a time, channels last, without an alpha channel",
        )
    return np.ascontiguousarray(image)


def load_pipeline(model: AnyPath) -> Pipeline:
    """Return a model on the best device available; see ``plantseg_next.load``.

    Raises:
        UsageError: If there is no such model.
        DataError: If its files are damaged.
    """
    network, card = read_bundle(find_model(model))
    device = find_device().kind
    predictor = make_predictor(network.to(device), card, device)
    return Pipeline(replace(predictor, only_finite=True), card)
