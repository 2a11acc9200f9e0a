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

from plantseg_next.data.manifest import Manifest, Row
from plantseg_next.data.mask_values import MaskColors, MaskValues, decode_mask
from plantseg_next.errors import DataError, PlantSegError, missing_path
from plantseg_next.files import is_temporary, read_head, regular_file
from plantseg_next.structures import IGNORE, ClassMap, Sample

MAX_PIXELS = 178_956_970
"""Largest number of pixels of an image: Pillow's limit against malicious files."""

_NEEDED = "an image such as JPEG, PNG or TIFF"
LOSSY_FORMATS = frozenset({"JPEG", "MPO", "JPEG2000"})
"""Lossy formats, which change ids; masks in them are refused."""

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
    """

    height: int
    width: int
    file_format: str
    mode: str
    exif_orientation: int


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
        return Header(height, width, image.format or "", image.mode, orientation)


def read_size(path: Path) -> tuple[int, int]:
    """Return rows and columns of the upright image, from the header alone.

    Raises:
        DataError: If the file is not an image.
        UsageError: If there is no such file.
    """
    header = read_header(path)
    return header.height, header.width


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


def read_mask(path: Path, *, as_colors: bool = False) -> MaskValues | MaskColors:
    """Return the values of a mask as they are stored.

    A palette gives its indices, one bit gives 0 and 1, two and four bits give 0 to 3
    and 0 to 15, sixteen bits are kept. The EXIF orientation of a mask is not applied. Gray
    stored as three equal channels is one channel; an alpha channel is dropped.

    Args:
        path: A mask in a lossless format.
        as_colors: Return RGB instead: palette indices become their colors. Needed
            if the coding of the mask is by color.

    Returns:
        uint8 or uint16 ``(h, w)``; uint8 ``(h, w, 3)`` for a colored mask, and always
        with ``as_colors``.

    Raises:
        DataError: If the file is not an image, is a JPEG, or holds other numbers than
            0 to 65 535.
        UsageError: If there is no such file.
    """
    with _opened(path) as (image, _):
        if image.format in LOSSY_FORMATS:
            raise DataError(
                f"The mask `{path}` is a JPEG.",
                needed="a lossless file: JPEG compression changes ids",
                fix="export the mask again as PNG; converting the JPEG does not help",
            )
        step = _gray_step(image)
        with _decoding(path):
            image.load()
            if as_colors:
                return np.array(image.convert("RGB"))
            return _mask_values(image, path, step)


def load_sample(row: Row, manifest: Manifest) -> Sample:
    """Return the image of a row with its mask and its image-level label.

    A row without a mask is ``IGNORE`` everywhere, also if it is labeled healthy: an
    image-level label does not label pixels. A mask drawn on the image as stored, before
    the EXIF orientation was applied, is rotated with it; where both ways fit (180
    degrees, square images) the mask is taken as upright.

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
    values = read_mask(row.mask, as_colors=coding.by_color)
    if values.shape[:2] != image.shape[:2]:
        values = orient_mask(values, image.shape[:2], row)
    lesion, leaf = decode_mask(values, coding, manifest.classes, name=str(row.mask))
    return Sample(row.key, image, lesion, leaf, disease)


def orient_mask(
    values: MaskValues | MaskColors, size_hw: tuple[int, int], row: Row
) -> Shaped[np.ndarray, "upright_h upright_w *c"]:
    """Return a mask with the EXIF orientation of its image, if only then the sizes agree.

    Args:
        values: Mask as stored, of another size than the upright image.
        size_hw: Rows and columns of the upright image.
        row: Names the two files.

    Raises:
        DataError: If the sizes still differ.
    """
    orientation = read_header(row.image).exif_orientation
    mask_hw = values.shape[:2]
    if orientation < 5 or mask_hw[::-1] != size_hw:
        if row.mask is not None and is_temporary(row.mask):
            raise DataError(
                f"`{row.image}` was annotated at {mask_hw[1]} x {mask_hw[0]} pixels, but "
                f"has {size_hw[1]} x {size_hw[0]}.",
                needed="annotations of this image at its own size",
                fix="open the image in the annotation tool and export again, or put the "
                "image back that was annotated",
            )
        raise DataError(
            f"The mask `{row.mask}` has {mask_hw[1]} x {mask_hw[0]} pixels, but its "
            f"image `{row.image}` has {size_hw[1]} x {size_hw[0]}.",
            needed="a mask of the size of its image",
            fix="export the mask at the size of the image, or pair the right files",
        )
    return apply_orientation(values, orientation)


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
        raise _not_an_image(path, error) from error
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
    if image.mode.startswith("I") or image.mode == "F":
        return _sixteen_bits(image, path)
    if image.mode in {"1", "L", "P"}:
        return np.array(image).astype(np.uint8) // np.uint8(step)
    if image.mode in {"LA", "PA"}:
        return np.array(image.getchannel(0))
    rgb = np.array(image.convert("RGB"))
    is_gray = (rgb[..., :1] == rgb[..., 1:]).all()
    return np.ascontiguousarray(rgb[..., 0]) if is_gray else rgb


def too_large(path: Path) -> DataError:
    """Return the error for an image for which memory does not suffice."""
    return DataError(
        f"`{path}` is too large for the memory of this machine.",
        needed="memory for about ten times the pixels of the image, in bytes",
        fix="close other programs, scale the image down, or cut it into parts",
    )


def _not_an_image(path: Path, error: Exception) -> DataError:
    if not isinstance(error, UnidentifiedImageError):
        return DataError(
            f"`{path}` cannot be opened: {error}.",
            needed=_NEEDED,
            fix="check the file in an image viewer, and its permissions",
        )
    head = read_head(path, 256)
    if not head:
        came, fix = "is empty (0 bytes)", "copy the file again, or remove it"
    elif head.startswith(b"version https://git-lfs"):
        came, fix = "is a Git LFS pointer, not the file itself", "run `git lfs pull`"
    elif head[4:8] == b"ftyp" and head[8:11] in {b"hei", b"hev", b"mif"}:
        came, fix = "is a HEIC image, the format of some phones", "export it as JPEG"
    elif b"\0" not in head and head.isascii():
        came, fix = "holds text, not an image", "remove it, or replace it by the image"
    else:
        came = "is not an image of a known format"
        fix = "open it in an image viewer and export it as JPEG or PNG"
    return DataError(f"`{path}` {came}.", needed=_NEEDED, fix=fix)


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
        raise _undecodable(path, error) from error


def _undecodable(path: Path, error: Exception) -> DataError:
    return DataError(
        f"`{path}` is damaged or truncated: {error}.",
        needed="an image that can be decoded completely",
        fix="copy or download the file again, or remove it",
    )
