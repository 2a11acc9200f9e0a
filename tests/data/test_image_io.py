import os
import struct
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from plantseg_next.data.image_io import (
    decode_image,
    load_sample,
    mask_orientation,
    read_header,
    read_image,
    read_mask,
    read_size,
)
from plantseg_next.data.manifest import Manifest, MaskCoding, Row, common_classes
from plantseg_next.errors import DataError, UsageError
from plantseg_next.structures import IGNORE

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 10, 3), np.uint8)


def save_turned(path: Path, turn: int) -> Path:
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.fromarray(PIXELS).save(path, exif=exif)
    return path


def gray_png(path: Path, values: list[int], bits: int) -> Path:
    """Write a gray PNG of one row with two or four bits per pixel; Pillow cannot."""
    packed = 0
    for value in values:
        packed = packed << bits | value
    line = b"\0" + packed.to_bytes(len(values) * bits // 8, "big")

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", len(values), 1, bits, 0, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(line))]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "tif", "jpg"])
def test_read_image_exif_orientation_matches_pillow(tmp_path, turn, ending):
    path = save_turned(tmp_path / f"leaf.{ending}", turn)
    with Image.open(path) as image:
        expected = np.array(ImageOps.exif_transpose(image))
    assert np.array_equal(read_image(path), expected)
    assert read_size(path) == expected.shape[:2]


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "LA", "RGBA", "YCbCr"])
def test_read_image_every_mode_becomes_rgb(tmp_path, mode):
    image = Image.fromarray(PIXELS).convert(mode)
    path = tmp_path / ("leaf.tif" if mode in {"CMYK", "YCbCr"} else "leaf.png")
    image.save(path)
    got = read_image(path)
    assert got.shape == (6, 10, 3)
    assert np.array_equal(got, np.array(image.convert("RGB")))


def test_read_image_16_bit_gray_is_scaled(tmp_path):
    values = np.array([[0, 257, 32768, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "gray.png")
    assert read_image(tmp_path / "gray.png")[0, :, 0].tolist() == [0, 1, 128, 255]


def test_read_image_transparency_becomes_white(tmp_path):
    Image.new("RGBA", (3, 2), (10, 20, 30, 0)).save(tmp_path / "cut_out.png")
    assert (read_image(tmp_path / "cut_out.png") == 255).all()


def test_read_image_transparent_palette_becomes_white_without_warning(tmp_path):
    image = Image.fromarray(PIXELS).convert("P")
    index = image.getpixel((0, 0))
    image.save(
        tmp_path / "p.png", transparency=bytes(0 if i == index else 255 for i in range(256))
    )
    assert read_image(tmp_path / "p.png")[0, 0].tolist() == [255, 255, 255]


def test_read_image_animation_gives_first_frame(tmp_path):
    frames = [Image.new("L", (4, 4), gray) for gray in (0, 255)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert not read_image(tmp_path / "a.gif").any()


def test_read_image_100_megapixels_without_warning(tmp_path):
    Image.new("1", (12_500, 8_000)).save(tmp_path / "mosaic.png")
    assert read_size(tmp_path / "mosaic.png") == (8_000, 12_500)
    assert read_image(tmp_path / "mosaic.png").shape == (8_000, 12_500, 3)


def test_read_image_above_pixel_limit_is_refused(tmp_path):
    Image.new("1", (14_000, 13_000)).save(tmp_path / "mosaic.png")
    with pytest.raises(DataError, match="has more than 179 megapixels"):
        read_image(tmp_path / "mosaic.png")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b"<html>404 not found</html>", "holds text, not an image"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "is a HEIC image"),
        (b"\0\x01\x02\x03" * 20, "is not an image of a known format"),
    ],
)
def test_read_image_not_an_image_is_refused_with_reason(tmp_path, content, sentence):
    path = tmp_path / "leaf.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match=sentence) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    with pytest.raises(DataError, match=sentence):
        read_size(path)


@pytest.mark.parametrize("ending", ["jpg", "png", "tif"])
def test_read_image_truncated_file_is_refused(tmp_path, ending):
    path = tmp_path / f"leaf.{ending}"
    big = np.random.default_rng(1).integers(0, 256, (200, 200, 3), np.uint8)
    Image.fromarray(big).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=r"is damaged or truncated|cannot be opened"):
        read_image(path)


def test_read_image_missing_file_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match=r"gone.jpg` does not exist"):
        read_image(tmp_path / "gone.jpg")


@pytest.mark.skipif(os.name == "nt", reason="pipes and devices of Unix")
@pytest.mark.parametrize(
    ("make", "came"),
    [
        (Path.mkdir, "is a folder, not a file"),
        (os.mkfifo, "is a pipe, not a file"),
        (lambda path: path.symlink_to("/dev/zero"), "is a device, not a file"),
        (lambda path: path.symlink_to(path.name), "is a link that leads to itself"),
        (lambda path: path.symlink_to("nowhere"), "is a link that leads nowhere"),
    ],
)
def test_what_is_no_regular_file_is_refused_and_not_opened(tmp_path, make, came):
    path = tmp_path / "leaf.jpg"
    make(path)
    for read in (read_image, read_mask, read_size, decode_image):
        with pytest.raises(DataError, match=rf"leaf\.jpg` {came}") as refused:
            read(path)
        assert refused.value.needed == "an image such as JPEG, PNG or TIFF"


def chunk(kind, content):
    """Return a chunk of a PNG file."""
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check


@pytest.mark.parametrize("kind", [b"sRGB", b"IHDR", b"cHRM", b"pHYs", b"tRNS", b"acTL"])
def test_png_with_a_chunk_without_content_is_refused_or_read(tmp_path, kind):
    """After python-pillow/Pillow#6430 and #6252: IndexError and struct.error escaped."""
    path = tmp_path / "leaf.png"
    Image.new("RGB", (3, 2)).save(path)
    content = path.read_bytes()
    data_ends = content.index(b"IEND") - 4
    for place in (33, data_ends):
        path.write_bytes(content[:place] + chunk(kind, b"") + content[place:])
        for read in (read_image, read_mask):
            with suppress(DataError):
                assert read(path).size


def test_png_with_chunks_that_expand_to_gigabytes_is_refused_or_read(tmp_path):
    path = tmp_path / "leaf.png"
    Image.new("RGB", (3, 2)).save(path)
    content = path.read_bytes()
    zeros = zlib.compress(bytes(80 * 2**20))
    bombs = {
        b"zTXt": b"a\0\0" + zeros,
        b"iTXt": b"a\0\1\0\0\0" + zeros,
        b"iCCP": b"a\0\0" + zeros,
        b"eXIf": b"Exif\0\0MM\0*" + b"\xff" * 99,
    }
    for kind, bomb in bombs.items():
        path.write_bytes(content[:33] + chunk(kind, bomb) + content[33:])
        with suppress(DataError):
            assert read_image(path).shape == (2, 3, 3)


def test_postscript_is_not_given_to_another_program(tmp_path):
    path = tmp_path / "leaf.jpg"
    path.write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n"
    )
    with pytest.raises(DataError, match="holds text, not an image"):
        read_image(path)


def test_read_image_floating_point_is_refused(tmp_path):
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "depth.tif")
    with pytest.raises(DataError, match="holds numbers of 32 bits"):
        read_image(tmp_path / "depth.tif")


def test_read_mask_keeps_stored_values(tmp_path):
    ids = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
    palette = Image.fromarray(ids).convert("P")
    palette.putpalette([0, 0, 0, 0, 255, 0, 255, 0, 0])
    palette.save(tmp_path / "p.png")
    Image.fromarray(ids * 100).save(tmp_path / "l.png")
    Image.fromarray(ids.astype(np.uint16) * 300).save(tmp_path / "i.png")
    Image.fromarray(ids > 1).save(tmp_path / "1.png")
    Image.fromarray(np.stack([ids] * 3, -1)).save(tmp_path / "gray_rgb.png")
    assert np.array_equal(read_mask(tmp_path / "l.png"), ids * 100)
    assert read_mask(tmp_path / "i.png").max() == 600
    assert read_mask(tmp_path / "1.png").max() == 1
    assert np.array_equal(read_mask(tmp_path / "gray_rgb.png"), ids)
    assert np.array_equal(read_mask(tmp_path / "p.png"), ids)


def test_read_mask_palette_as_colors(tmp_path):
    image = Image.new("P", (2, 1), 1)
    image.putpalette([0, 0, 0, 255, 128, 0])
    image.save(tmp_path / "p.png")
    assert read_mask(tmp_path / "p.png").tolist() == [[1, 1]]
    colored = read_mask(tmp_path / "p.png", as_colors=True)
    assert colored[0, 0].tolist() == [255, 128, 0]


@pytest.mark.parametrize(("bits", "values"), [(2, [0, 1, 2, 3]), (4, [0, 1, 7, 15])])
def test_read_mask_two_and_four_bits_are_not_scaled(tmp_path, bits, values):
    path = gray_png(tmp_path / "few.png", values, bits)
    assert read_mask(path).tolist() == [values]


def test_read_mask_colored_has_three_channels(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "c.png")
    assert np.array_equal(read_mask(tmp_path / "c.png"), PIXELS)


def test_read_mask_jpeg_is_refused_with_any_ending(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "mask.png", format="JPEG")
    with pytest.raises(DataError, match="is a JPEG") as caught:
        read_mask(tmp_path / "mask.png")
    assert "JPEG compression changes ids" in str(caught.value)


def manifest_of(row: Row) -> Manifest:
    coding = MaskCoding({0: "background", 1: "leaf", 2: "rust"}, True, "test")
    codings = {"s": coding} if row.mask else {}
    return Manifest((row,), common_classes([row], codings), codings)


def write_pair(folder: Path, mask: np.ndarray, turn: int = 1) -> Row:
    image = save_turned(folder / "leaf.png", turn)
    Image.fromarray(mask).save(folder / "mask.png")
    return Row("leaf", image, "s", folder / "mask.png", disease="rust")


def test_load_sample_returns_image_masks_and_label(tmp_path):
    mask = np.zeros((6, 10), np.uint8)
    mask[0, :3] = [0, 1, 2]
    row = write_pair(tmp_path, mask)
    sample = load_sample(row, manifest_of(row))
    assert np.array_equal(sample.image, PIXELS)
    assert sample.lesion[0, :3].tolist() == [0, 0, 1]
    assert sample.leaf[0, :3].tolist() == [0, 1, 1]
    assert sample.disease == 0


def test_load_sample_healthy_without_mask_is_ignored(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "leaf.png")
    row = Row("leaf", tmp_path / "leaf.png", "s", disease="healthy")
    sample = load_sample(row, manifest_of(row))
    assert (sample.lesion == IGNORE).all()
    assert (sample.leaf == IGNORE).all()
    assert sample.disease == 0


@pytest.mark.parametrize("turn", [5, 6, 7, 8])
def test_load_sample_mask_of_stored_image_is_rotated(tmp_path, turn):
    mask = (PIXELS[..., 0] > 128).astype(np.uint8)
    row = write_pair(tmp_path, mask, turn)
    sample = load_sample(row, manifest_of(row))
    assert sample.lesion.shape == (10, 6)
    assert np.array_equal(sample.leaf == 1, sample.image[..., 0] > 128)


def test_load_sample_mask_of_upright_image_is_kept(tmp_path):
    mask = np.zeros((10, 6), np.uint8)
    mask[0, 0] = 2
    row = write_pair(tmp_path, mask, turn=6)
    assert load_sample(row, manifest_of(row)).lesion[0, 0] == 1


def test_load_sample_mask_of_other_size_is_refused(tmp_path):
    row = write_pair(tmp_path, np.zeros((6, 9), np.uint8))
    with pytest.raises(DataError, match="has 9 x 6 pixels, but its image"):
        load_sample(row, manifest_of(row))
    with pytest.raises(DataError, match="has 10 x 6"):
        mask_orientation(row.image, row.mask, (6, 10), (6, 9), own=1)


def test_load_sample_unknown_label_is_refused(tmp_path):
    row = write_pair(tmp_path, np.zeros((6, 10), np.uint8))
    manifest = Manifest((row,), common_classes([], {}), manifest_of(row).codings)
    with pytest.raises(DataError, match="labeled `rust`, which is not a known label"):
        load_sample(row, manifest)


def test_read_header_returns_format_and_orientation(tmp_path):
    header = read_header(save_turned(tmp_path / "leaf.png", 6))
    assert (header.file_format, header.mode, header.exif_orientation) == ("PNG", "RGB", 6)
    assert (header.height, header.width) == (10, 6)
