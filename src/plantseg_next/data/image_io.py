"""Decoding of all image files: upright RGB images, and masks by their values.

Libraries decode files differently: some apply the EXIF orientation, some do not; some
read a palette PNG as indices, some as colors; some silently clip 16-bit masks. Here
every file is read by Pillow, in one way, or an error gives the reason.

Axes: h row, w column.
"""

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import Shaped, UInt8, UInt16
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from plantseg_next.data.file_formats import (
    LOSSY_FORMATS,
    lossy_format,
    not_an_image,
    undecodable,
)
from plantseg_next.data.manifest import Channel, Exif, Manifest, MaskCoding, Row
from plantseg_next.data.mask_values import MaskColors, MaskValues, decode_mask
from plantseg_next.errors import DataError, PlantSegError, missing_path
from plantseg_next.files import is_temporary, regular_file
from plantseg_next.structures import IGNORE, ClassMap, Sample

MAX_PIXELS = 178_956_970
"""Largest number of pixels of an image: Pillow's limit against malicious files."""

_NEEDED = "an image such as JPEG, PNG or TIFF"
_ALPHA_MODES = {"RGBA", "LA", "RGBa", "La"}
_OPAQUE = 128
"""Alpha from which a pixel counts as painted."""

# `warnings.catch_warnings` changes the whole process: two threads must not interleave.
_warnings_lock = threading.Lock()


@dataclass(frozen=True)
class Header:
    """Metadata of an image file, read without decoding it.

    Args:
        height: Rows of the upright image.
        width: Columns of the upright image.
        file_format: Pillow's name of the format, detected from the content: "JPEG", "PNG".
        mode: Pillow's name of the pixel layout: "RGB", "P", "I;16".
        exif_orientation: EXIF orientation that reading must undo, 1 (none) to 8.
        lossy: "a JPEG", "a lossy WebP" or another format that changes values, which
            spoils the ids of a mask; empty for others.
        has_alpha: Whether it has an alpha channel; a transparent palette entry is none.
    """

    height: int
    width: int
    file_format: str
    mode: str
    exif_orientation: int
    lossy: str = ""
    has_alpha: bool = False


def read_header(path: Path) -> Header:
    """Return size, format and EXIF orientation of an image without decoding it.

    Raises:
        DataError: If the file is not an image.
        UsageError: If there is no such file.
    """
    with _opened(path) as (image, orientation):
        width, height = image.size
        if orientation >= 5:
            width, height = height, width
        return Header(
            height,
            width,
            image.format or "",
            image.mode,
            orientation,
            lossy_format(image, path),
            image.mode in _ALPHA_MODES,
        )


def read_size(path: Path, *, upright: bool = True) -> tuple[int, int]:
    """Return rows and columns of an image, upright or as stored, from the header alone.

    Raises:
        DataError: If the file is not an image.
        UsageError: If there is no such file.
    """
    header = read_header(path)
    if upright or header.exif_orientation < 5:
        return header.height, header.width
    return header.width, header.height


def read_image(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """Return an image as upright RGB, 0 to 255.

    The EXIF orientation is applied. Transparent pixels are composited on white, the
    background on which viewers show cut-out leaves. Gray images of 16 bits are scaled by
    1/257, not clipped. Of an animation, the first frame is read. Color profiles are not
    applied.

    Args:
        path: An image of at most ``MAX_PIXELS`` pixels, in any format of Pillow.

    Raises:
        DataError: If the file is empty, truncated, not an image, too large, or of a
            kind that cannot be converted to 8-bit RGB.
        UsageError: If there is no such file.
    """
    with _opened(path) as (image, orientation):
        return _upright_rgb(image, orientation, path)


def decode_image(source: str | Path | bytes | Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """Return an image as upright RGB, 0 to 255, as ``read_image`` does.

    Args:
        source: A path, the bytes of a file, or a PIL image of any mode, which is left as
            it is.

    Raises:
        DataError: If it cannot be decoded.
        UsageError: If there is no such file.
    """
    if isinstance(source, str | Path):
        return read_image(Path(source))
    if isinstance(source, bytes):
        name = Path("the given bytes")
        with _opened(name, BytesIO(source)) as (image, orientation):
            return _upright_rgb(image, orientation, name)
    return _upright_rgb(source, _exif_orientation(source), Path("the given image"))


def _upright_rgb(
    image: Image.Image, orientation: int, path: Path
) -> UInt8[np.ndarray, "h w 3"]:
    with _decoding(path):
        image.load()
        return apply_orientation(np.array(_to_rgb(image, path)), orientation)


def read_mask(
    path: Path, *, as_colors: bool = False, channel: Channel = "stored"
) -> MaskValues | MaskColors:
    """Return the values of a mask as they are stored.

    A palette gives its indices, one bit gives 0 and 1, two and four bits give 0 to 3
    and 0 to 15, sixteen bits are kept, and so are whole numbers stored as floats. The
    EXIF orientation of a mask is not applied. Gray stored as three equal channels is one
    channel; an alpha channel is dropped.

    Args:
        path: A mask in a lossless format.
        as_colors: Return RGB instead: palette indices become their colors. Needed
            if the coding of the mask is by color.
        channel: "alpha" returns the alpha channel alone; "painted" returns what is
            opaque, and 0 where the mask is transparent; "gray" returns the brightness of
            a mask whose values were changed by compression, lossy WebP and AVIF
            included.

    Returns:
        uint8 or uint16 ``(h, w)``; uint8 ``(h, w, 3)`` for a colored mask, and always
        with ``as_colors``.

    Raises:
        DataError: If the file is not an image, is a JPEG, has no such channel, or holds
            other numbers than 0 to 65 535.
        UsageError: If there is no such file.
    """
    with _opened(path) as (image, _):
        lossy = lossy_format(image, path)
        if lossy and (channel != "gray" or image.format in LOSSY_FORMATS):
            raise DataError(
                f"The mask `{path}` is {lossy}.",
                needed=f"a lossless file: {lossy.split(' ', 1)[1]} compression changes ids",
                fix="export the mask again as PNG; converting this file does not help",
            )
        step = _gray_step(image)
        with _decoding(path):
            image.load()
            if channel in {"alpha", "painted"}:
                return _of_opaque(image, path, channel, as_colors=as_colors)
            if as_colors:
                return np.array(image.convert("RGB"))
            if channel == "gray" and image.mode in {"RGB", "RGBA"}:
                return np.array(image.convert("L"))
            return _mask_values(image, path, step)


def load_sample(row: Row, manifest: Manifest) -> Sample:
    """Return the image of a row with its mask and its image-level label.

    A row without a mask is ``IGNORE`` everywhere, also if it is labeled healthy: an
    image-level label does not label pixels. The mask is rotated as ``mask_orientation``
    says.

    Args:
        row: A row of the manifest.
        manifest: Gives the classes and the coding of the row's source.

    Raises:
        DataError: If image or mask cannot be read, their sizes differ, or the mask
            holds a value without a meaning.
        UsageError: If one of the files does not exist.
    """
    image = read_image(row.image)
    disease = _disease_id(row, manifest.classes)
    if row.mask is None:
        unlabeled = np.full(image.shape[:2], IGNORE, np.uint8)
        return Sample(row.key, image, unlabeled, unlabeled, disease)

    coding = manifest.codings[row.source]
    values = read_mask_of(row.image, row.mask, image.shape[:2], coding)
    lesion, leaf = decode_mask(values, coding, manifest.classes, name=str(row.mask))
    return Sample(row.key, image, lesion, leaf, disease)


def read_mask_of(
    image: Path, mask: Path, size_hw: tuple[int, int], coding: MaskCoding
) -> Shaped[np.ndarray, "h w *c"]:
    """Return the values of a mask, rotated to lie on its upright image.

    Args:
        image: The image.
        mask: The mask.
        size_hw: Rows and columns of the upright image.
        coding: How the mask is read.

    Raises:
        DataError: As ``read_mask``, or if the sizes differ.
        UsageError: If there is no such file.
    """
    values = read_mask(mask, as_colors=coding.by_color, channel=coding.channel)
    own = read_header(mask).exif_orientation
    orientation = mask_orientation(image, mask, size_hw, values.shape[:2], own, coding.exif)
    return apply_orientation(values, orientation)


def mask_orientation(
    image: Path,
    mask: Path,
    size_hw: tuple[int, int],
    mask_hw: tuple[int, int],
    own: int,
    exif: Exif | None = None,
) -> int:
    """Return the EXIF orientation to apply to a mask as it is stored.

    A mask with an orientation of its own says how it lies, unless it fits the image only
    without. Otherwise it lies as stated. If nothing is stated, it is rotated as its image
    is where the sizes agree only then; where both ways fit (half turns, mirrored and
    square images) it is taken as upright.

    Args:
        image: The image.
        mask: The mask.
        size_hw: Rows and columns of the upright image.
        mask_hw: Rows and columns of the mask, as stored.
        own: EXIF orientation of the mask.
        exif: Which way the images were annotated, if stated.

    Raises:
        DataError: If the sizes differ then.
    """
    if own != 1 or exif == "upright":
        choices = [own, 1]
    else:
        of_image = read_header(image).exif_orientation
        choices = [of_image] if exif == "as-stored" else [1, of_image]
    for orientation in choices:
        if (mask_hw[::-1] if orientation >= 5 else mask_hw) == size_hw:
            return orientation
    stated = f", and masks are stated to lie {exif}" if exif else ""
    if is_temporary(mask):
        raise DataError(
            f"`{image}` was annotated at {mask_hw[1]} x {mask_hw[0]} pixels, but "
            f"has {size_hw[1]} x {size_hw[0]}{stated}.",
            needed="annotations of this image at its own size",
            fix="open the image in the annotation tool and export again, or put the "
            "image back that was annotated" + ("; or leave out --exif" if exif else ""),
        )
    raise DataError(
        f"The mask `{mask}` has {mask_hw[1]} x {mask_hw[0]} pixels, but its "
        f"image `{image}` has {size_hw[1]} x {size_hw[0]}{stated}.",
        needed="a mask of the size of its image",
        fix="export the mask at the size of the image, or pair the right files"
        + ("; or leave out --exif" if exif else ""),
    )


def _disease_id(row: Row, classes: ClassMap) -> int:
    if row.disease is None:
        return IGNORE
    if row.disease not in classes.diseases:
        raise DataError(
            f"`{row.key}` is labeled `{row.disease}`, which is not a known label.",
            needed=f"one of {', '.join(classes.diseases) or 'no label at all'}",
            fix="create the manifest again from the folder of images",
        )
    number = classes.diseases.index(row.disease)
    if number >= IGNORE:
        raise DataError(
            f"There are {len(classes.diseases)} different image-level labels.",
            needed=f"at most {IGNORE}: a label is stored in eight bits",
            fix="merge labels, or give fewer folders or rows a label",
        )
    return number


@contextmanager
def _opened(
    path: Path, content: BytesIO | None = None
) -> Iterator[tuple[Image.Image, int]]:
    """Yield the image, not yet decoded, and the EXIF orientation still to apply.

    Args:
        path: Of the file, or what to call the content in errors.
        content: Of a file that is in memory already.
    """
    if content is None:
        if not os.path.lexists(path):
            raise missing_path(path, "an image")
        regular_file(path, _NEEDED)
    try:
        with _warnings_lock, warnings.catch_warnings():
            # Pillow warns of large images and malformed metadata.
            warnings.simplefilter("ignore")
            image = Image.open(path if content is None else content)
            try:
                if image.format == "EPS":  # Pillow would start Ghostscript to draw it
                    raise UnidentifiedImageError("a program, not an image")
                orientation = _exif_orientation(image)
            except Exception:
                image.close()
                raise
    except Image.DecompressionBombError as error:
        raise DataError(
            f"`{path}` has more than {MAX_PIXELS / 1e6:.0f} megapixels.",
            needed="an image below that limit",
            fix="cut the image into parts, or scale it down",
        ) from error
    except Exception as error:  # decoders raise anything where content is damaged
        if content is not None:
            raise DataError(
                f"{str(path).capitalize()} are not an image: {len(content.getvalue())} "
                "bytes of no known format.",
                needed="the content of an image file, such as JPEG, PNG or TIFF",
                fix="check where they were read from",
            ) from error
        raise not_an_image(path, error) from error
    with image:
        yield image, orientation


def _exif_orientation(image: Image.Image) -> int:
    # Pillow applies the orientation of TIFF files itself. `PngImageFile.getexif` would
    # decode the whole PNG to find EXIF after it; the base class reads the header.
    if image.format == "TIFF":
        return 1
    orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    return orientation if orientation in range(1, 9) else 1


def apply_orientation(
    pixels: Shaped[np.ndarray, "h w *c"], turn: int
) -> Shaped[np.ndarray, "upright_h upright_w *c"]:
    """Return the upright image; the eight EXIF orientations are in Exif 2.32, table 6."""
    if turn >= 5:
        pixels = pixels.swapaxes(0, 1)
    if turn in {3, 4, 7, 8}:
        pixels = pixels[::-1]
    if turn in {2, 3, 6, 7}:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _to_rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        gray = np.rint(_sixteen_bits(image, path) / np.float32(257))
        return Image.fromarray(gray.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _sixteen_bits(image: Image.Image, path: Path) -> UInt16[np.ndarray, "h w"]:
    values = np.array(image)
    is_integer = np.issubdtype(values.dtype, np.integer)
    if not is_integer or values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise DataError(
            f"`{path}` holds numbers of 32 bits.",
            needed="8 or 16 bits a pixel; other numbers have no agreed range",
            fix="export it as 8-bit or 16-bit PNG",
        )
    return values.astype(np.uint16)


def _gray_step(image: Image.Image) -> int:
    """Return the factor by which Pillow scales gray of two or four bits on decoding."""
    tiles = image.tile if isinstance(image, ImageFile.ImageFile) else []
    if not tiles:
        return 1
    args = tiles[0].args
    stored = args[0] if isinstance(args, tuple) and args else args
    return {"L;2": 85, "L;4": 17}.get(str(stored), 1)


def _mask_values(image: Image.Image, path: Path, step: int) -> MaskValues | MaskColors:
    if image.mode == "F":
        return _whole_numbers(np.array(image), path)
    if image.mode.startswith("I"):
        return _sixteen_bits(image, path)
    if image.mode in {"1", "L", "P"}:
        return np.array(image).astype(np.uint8) // np.uint8(step)
    if image.mode in {"LA", "PA"}:
        return np.array(image.getchannel(0))
    return _one_channel(np.array(image.convert("RGB")))


def _one_channel(rgb: MaskColors) -> MaskValues | MaskColors:
    is_gray = (rgb[..., :1] == rgb[..., 1:]).all()
    return np.ascontiguousarray(rgb[..., 0]) if is_gray else rgb


def too_large(path: Path) -> DataError:
    """Return the error for an image for which memory does not suffice."""
    return DataError(
        f"`{path}` is too large for the memory of this machine.",
        needed="memory for about ten times the pixels of the image, in bytes",
        fix="close other programs, scale the image down, or cut it into parts",
    )


@contextmanager
def _decoding(path: Path) -> Iterator[None]:
    """Convert whatever a decoder raises where content is damaged into ``DataError``."""
    try:
        yield
    except PlantSegError:
        raise
    except MemoryError as error:
        raise too_large(path) from error
    except Exception as error:
        raise undecodable(path, error) from error


def _whole_numbers(values: np.ndarray, path: Path) -> MaskValues:
    with np.errstate(invalid="ignore"):  # of infinities
        fits = (values >= 0) & (values <= 65535) & (values % 1 == 0)
    if not fits.all():
        raise DataError(
            f"`{path}` holds the number {values[~fits][0]:g}.",
            needed="a mask of whole numbers from 0 to 65,535",
            fix="export the class of each pixel, not its probability",
        )
    return values.astype(np.uint8 if values.max(initial=0) < 256 else np.uint16)


def _of_opaque(
    image: Image.Image, path: Path, channel: Channel, *, as_colors: bool
) -> MaskValues | MaskColors:
    if image.mode not in _ALPHA_MODES:
        raise DataError(
            f"The mask `{path}` has no alpha channel, as the other masks have.",
            needed="masks of one kind",
            fix="export it as the others were, or remove it",
        )
    pixels = np.array(image.convert("RGBA"))
    if channel == "alpha":
        return np.ascontiguousarray(pixels[..., 3])
    rgb = pixels[..., :3] * (pixels[..., 3:] >= _OPAQUE)
    return rgb if as_colors else _one_channel(rgb)
