"""Masks whose values are not what they should be, read through a folder."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from plantseg_next.data.formats import read_folder
from plantseg_next.data.image_io import load_sample, read_mask
from plantseg_next.data.quality.check import check
from plantseg_next.data.quality.inspect import MaskFile, inspect
from plantseg_next.errors import DataError, UsageError
from plantseg_next.structures import IGNORE

SIDE = 96


def truth(n: int) -> np.ndarray:
    """Return where the lesion of mask ``n`` is: a square of 30 pixels."""
    left, top = np.random.default_rng(n).integers(8, 55, 2)
    inside = np.zeros((SIDE, SIDE), bool)
    inside[top : top + 30, left : left + 30] = True
    return inside


def blotches(n: int) -> np.ndarray:
    """Return an image of random colors."""
    small = Image.fromarray(np.random.default_rng(n).integers(20, 200, (8, 8, 3), np.uint8))
    return np.array(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def write(
    folder: Path,
    mask_of: Callable[[int], Image.Image | np.ndarray],
    *,
    count: int = 8,
    ending: str = "png",
    image_of: Callable[[int], np.ndarray] = blotches,
    **options: object,
) -> Path:
    """Write images, and masks of what ``mask_of`` returns for each."""
    for place in ("images", "masks"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    for n in range(count):
        Image.fromarray(image_of(n)).save(folder / "images" / f"{n}.png")
        mask = mask_of(n)
        mask = Image.fromarray(mask) if isinstance(mask, np.ndarray) else mask
        mask.save(folder / "masks" / f"{n}.{ending}", **options)
    return folder


def lesions(folder: Path) -> list[np.ndarray]:
    """Return the lesion mask of every image; the index gives the same counts."""
    manifest = read_folder(folder)
    samples = [load_sample(row, manifest) for row in manifest.rows]
    for stats, sample in zip(inspect(manifest), samples, strict=True):
        assert stats.failures == []
        assert (
            sum(stats.mask.lesion_px.values())
            == ((sample.lesion > 0) & (sample.lesion != IGNORE)).sum()
        )
    return [sample.lesion for sample in samples]


def origin(folder: Path) -> str:
    (coding,) = read_folder(folder).codings.values()
    return coding.origin


def assert_true(folder: Path, *, count: int = 8) -> None:
    """Assert that the lesion masks of a folder are the squares, to the pixel."""
    for n, lesion in enumerate(lesions(folder)):
        assert np.array_equal(lesion, truth(n)), n
    assert len(read_folder(folder).rows) == count


def white(n: int) -> np.ndarray:
    return truth(n).astype(np.uint8) * 255


# smoothed edges


def test_edges_of_five_levels_are_divided_half_way(tmp_path):
    """After mantasu/glasses-detector#23: values between 0 and 255 in binary masks."""

    def mask(n: int) -> np.ndarray:
        values = white(n)
        rows = np.flatnonzero(values.any(axis=1))
        for row, level in zip(rows, (64, 128, 191), strict=False):
            values[row][truth(n)[row]] = level
        return values

    write(tmp_path, mask)
    for n, lesion in enumerate(lesions(tmp_path)):
        expected = truth(n)
        expected[np.flatnonzero(expected.any(axis=1))[0]] = False  # 64 is nearer to 0
        assert np.array_equal(lesion, expected)
    assert "0 and 255, and between or near them 64, 128, 191 on 720 pixels" in origin(
        tmp_path
    )
    assert "128 and above is taken as 255, a lesion" in origin(tmp_path)
    (coding,) = read_folder(tmp_path).codings.values()
    assert len(coding.meaning) == 256  # masks that were not sampled too
    assert {issue.code: issue.severity for issue in check(read_folder(tmp_path)).issues}[
        "coding-inferred"
    ] == "warning"


@pytest.mark.parametrize("step", [10, 1])
def test_blurred_edges_of_many_levels_are_divided_half_way(tmp_path, step):
    """After open-mmlab/mmsegmentation#1335: a binary mask with values such as 127."""

    def mask(n: int) -> np.ndarray:
        soft = Image.fromarray(white(n)).filter(ImageFilter.GaussianBlur(1.5))
        return np.array(soft) // step * step

    write(tmp_path, mask)
    for n, lesion in enumerate(lesions(tmp_path)):
        rounded_corners = lesion.astype(bool) ^ truth(n)
        assert rounded_corners.sum() <= 4 * ((step > 1 and 5) or 4)
        assert not (lesion.astype(bool) & ~truth(n)).any()


@pytest.mark.parametrize("scale", [2, 4])
def test_masks_enlarged_or_reduced_with_smoothing_are_read(tmp_path, scale):
    """After Beckschen/TransUNet#68: masks resized with interpolation."""

    def mask(n: int) -> Image.Image:
        large = Image.fromarray(np.kron(white(n), np.ones((scale, scale), np.uint8)))
        shifted = np.roll(np.array(large), (1, 1), axis=(0, 1))
        return Image.fromarray(shifted).resize((SIDE, SIDE), Image.Resampling.BOX)

    write(tmp_path, mask)
    for n, lesion in enumerate(lesions(tmp_path)):
        assert (lesion.astype(bool) ^ truth(n)).sum() <= 4 * 30


def test_smoothed_masks_of_16_bits_are_divided_half_way(tmp_path):
    def mask(n: int) -> np.ndarray:
        soft = np.array(Image.fromarray(white(n)).filter(ImageFilter.BoxBlur(1)))
        return soft.astype(np.uint16) * 257

    write(tmp_path, mask)
    for n, lesion in enumerate(lesions(tmp_path)):
        assert (lesion.astype(bool) ^ truth(n)).sum() <= 4


def test_small_ids_smoothed_at_their_edges_are_divided_half_way(tmp_path):
    def mask(n: int) -> np.ndarray:
        soft = np.array(Image.fromarray(white(n)).filter(ImageFilter.BoxBlur(1)), float)
        return np.rint(soft / 255 * 9).astype(np.uint8)

    write(tmp_path, mask)
    for n, lesion in enumerate(lesions(tmp_path)):
        assert (lesion.astype(bool) ^ truth(n)).sum() <= 4


def test_smoothed_masks_of_three_classes_are_refused(tmp_path):
    """After ykamikawa/tf-keras-PSPNet#2: ids 0, 2, 6, 7, 10 became 0 to 10."""

    def mask(_: int) -> Image.Image:
        ids = np.zeros((SIDE // 2, SIDE // 2), np.uint8)
        ids[5:40, 5:40], ids[8:20, 8:20], ids[22:36, 22:36] = 2, 6, 10
        return Image.fromarray(ids).resize((SIDE, SIDE), Image.Resampling.BILINEAR)

    write(tmp_path, mask)
    with pytest.raises(UsageError, match="hold the values 0, 2, 6, 10, and on their edges"):
        read_folder(tmp_path)


def test_smoothed_masks_of_three_gray_levels_are_refused(tmp_path):
    """After NVIDIA/DALI#5507: values between 0, 25, 100 and 220 after a resize."""

    def mask(_: int) -> Image.Image:
        ids = np.zeros((SIDE, SIDE), np.uint8)
        ids[10:80, 10:80], ids[30:60, 30:60] = 100, 220
        return Image.fromarray(ids).filter(ImageFilter.BoxBlur(1))

    write(tmp_path, mask)
    with pytest.raises(UsageError, match="without smoothing or antialiasing"):
        read_folder(tmp_path)


@pytest.mark.parametrize(("ending", "options"), [("png", {}), ("webp", {"quality": 60})])
def test_stated_values_with_smoothed_edges_are_divided_half_way(tmp_path, ending, options):
    def mask(n: int) -> Image.Image:
        return Image.fromarray(white(n)).filter(ImageFilter.GaussianBlur(1.5))

    write(tmp_path, mask, ending=ending, **options)
    assert "write a classes.yaml with the line `edges: smoothed`" in origin(tmp_path)
    (tmp_path / "classes.yaml").write_text("0: background\n255: rust\n")
    (issue,) = check(read_folder(tmp_path)).of("error")[:1]
    if ending == "png":
        assert "add the line `edges: smoothed`" in issue.fix
    (tmp_path / "classes.yaml").write_text("0: background\n255: rust\nedges: smoothed\n")
    assert read_folder(tmp_path).classes.lesions == ("rust",)
    for n, lesion in enumerate(lesions(tmp_path)):
        assert (lesion.astype(bool) ^ truth(n)).sum() <= 20


@pytest.mark.parametrize("more", ["128: leaf\n", "'#ff0000': blight\n"])
def test_smoothed_edges_of_more_than_two_values_are_refused(tmp_path, more):
    write(tmp_path, white)
    text = f"0: background\n255: rust\n{more}edges: smoothed\n"
    (tmp_path / "classes.yaml").write_text(text)
    with pytest.raises(DataError, match="states smoothed edges, and the meaning of 3"):
        read_folder(tmp_path)


def test_unknown_value_beside_stated_ones_is_not_repaired(tmp_path):
    write(tmp_path, lambda n: truth(n) + np.uint8(4) * truth(n + 20))
    (tmp_path / "classes.yaml").write_text("0: background\n1: rust\n")
    codes = {issue.code for issue in check(read_folder(tmp_path)).issues}
    assert "unknown-mask-value" in codes


# near and stray values


def test_value_254_and_two_pixels_of_253_are_one_class(tmp_path):
    """After PaddlePaddle/PaddleX#1674: 254 where 1 was expected."""

    def mask(n: int) -> np.ndarray:
        values = truth(n).astype(np.uint8) * 254
        if n == 3:
            values[tuple(np.argwhere(values)[0])] = 253
            values[tuple(np.argwhere(values)[1])] = 253
        return values

    write(tmp_path, mask)
    assert_true(tmp_path)
    assert "the values 0 and 254, and between or near them 253 on 2 pixels" in origin(
        tmp_path
    )


def test_value_254_alone_is_a_lesion(tmp_path):
    assert_true(write(tmp_path, lambda n: truth(n).astype(np.uint8) * 254))


def test_values_one_off_both_ends_are_the_near_ones(tmp_path):
    def mask(n: int) -> np.ndarray:
        return np.where(truth(n), 254, 1).astype(np.uint8) if n % 2 else white(n)

    assert_true(write(tmp_path, mask))


@pytest.mark.parametrize(("low", "high"), [((0, 1), (252, 256)), ((0, 4), (255, 256))])
def test_values_mixed_near_an_end_are_one_class(tmp_path, low, high):
    def mask(n: int) -> np.ndarray:
        rng = np.random.default_rng(n)
        return np.where(
            truth(n), rng.integers(*high, (SIDE, SIDE)), rng.integers(*low, (SIDE, SIDE))
        ).astype(np.uint8)

    assert_true(write(tmp_path, mask))


def test_stray_value_is_ignored_and_said(tmp_path):
    """After divamgupta/image-segmentation-keras#117: a value that is no class."""

    def mask(n: int) -> np.ndarray:
        values = truth(n).astype(np.uint8)
        values[0, 0] = 7 if n == 3 else 0
        return values

    write(tmp_path, mask)
    for n, lesion in enumerate(lesions(tmp_path)):
        expected = truth(n).astype(np.uint8)
        expected[0, 0] = IGNORE if n == 3 else 0
        assert np.array_equal(lesion, expected)
    assert "stray values are ignored: 7 on 1 pixel of 1 mask (`3.png`)" in origin(tmp_path)


def test_one_small_lesion_of_the_set_is_no_stray(tmp_path):
    def mask(n: int) -> np.ndarray:
        values = np.zeros((SIDE, SIDE), np.uint8)
        values[5, 5:8] = n == 3
        return values

    write(tmp_path, mask)
    assert [int((lesion == 1).sum()) for lesion in lesions(tmp_path)] == [0] * 3 + [3] + [
        0
    ] * 4


def test_ignored_border_in_half_of_the_masks_is_ignored(tmp_path):
    def mask(n: int) -> np.ndarray:
        values = truth(n).astype(np.uint8)
        values[:3] = 255 * (n % 2)
        return values

    write(tmp_path, mask)
    for n, lesion in enumerate(lesions(tmp_path)):
        assert (lesion[:3] == (IGNORE if n % 2 else 0)).all()
        assert np.array_equal(lesion[3:], truth(n)[3:])


def test_value_255_that_covers_more_than_the_classes_is_asked_about(tmp_path):
    def mask(n: int) -> np.ndarray:
        values = white(n)
        values[2, :20] = 1
        return values

    write(tmp_path, mask)
    with pytest.raises(UsageError, match="it may be the lesion, or ignored") as caught:
        read_folder(tmp_path)
    assert "1: ?\n    255: ?" in caught.value.fix


def test_unlabeled_ground_of_255_is_ignored(tmp_path):
    def mask(n: int) -> np.ndarray:
        values = np.full((SIDE, SIDE), 255, np.uint8)
        values[10:14, 10:80], values[40:44, 10:80] = 0, 1
        return values * np.uint8(n >= 0)

    for lesion in lesions(write(tmp_path, mask)):
        assert np.bincount(lesion.ravel(), minlength=256)[[0, 1]].tolist() == [280, 280]


# depths


@pytest.mark.parametrize(
    ("dtype", "high", "ending"),
    [
        (np.uint16, 65535, "png"),
        (np.uint16, 1, "png"),
        (np.float32, 1.0, "tif"),
        (np.float32, 255.0, "tif"),
        (np.int32, 1, "tif"),
        (bool, 1, "png"),
        (bool, 1, "tif"),
        (np.uint8, 38, "png"),
    ],
)
def test_two_values_of_any_depth_are_background_and_lesion(tmp_path, dtype, high, ending):
    write(tmp_path, lambda n: truth(n).astype(dtype) * dtype(high), ending=ending)
    assert_true(tmp_path)


def test_masks_of_8_and_16_bits_are_mixed(tmp_path):
    def mask(n: int) -> np.ndarray:
        return white(n) if n % 2 else truth(n).astype(np.uint16) * 65535

    assert_true(write(tmp_path, mask))


@pytest.mark.parametrize("value", [0.25, np.nan, np.inf, -1.0])
def test_numbers_that_are_not_whole_are_refused(tmp_path, value):
    path = tmp_path / "m.tif"
    Image.fromarray(np.full((4, 4), value, np.float32)).save(path)
    with pytest.raises(DataError, match="holds the number"):
        read_mask(path)


# numbered areas


def numbered(count: int) -> np.ndarray:
    values = np.zeros((SIDE, SIDE), np.uint8)
    for i in range(count):
        top, left = i // 4 * 20 + 2, i % 4 * 20 + 2
        values[top : top + 10, left : left + 10] = i + 1
    return values


def test_numbered_lesions_are_one_class(tmp_path):
    write(tmp_path, lambda n: numbered(n + 5))
    for n, lesion in enumerate(lesions(tmp_path)):
        assert np.array_equal(lesion, numbered(n + 5) > 0)
    assert "1 to 12 number single areas, one each, from 1 in every mask of 8" in origin(
        tmp_path
    )


def test_numbers_of_the_whole_set_are_one_class(tmp_path):
    """After wpumacay/robot-colosseum#16: an id per object that differs in every image."""

    def mask(n: int) -> np.ndarray:
        values = numbered(12).astype(np.uint16)
        return np.where(values > 0, values + 1000 * n, 0).astype(np.uint16)

    write(tmp_path, mask)
    for lesion in lesions(tmp_path):
        assert np.array_equal(lesion, numbered(12) > 0)


def test_few_numbers_that_may_be_classes_are_asked_about(tmp_path):
    write(tmp_path, lambda n: numbered(n % 3 + 1))
    with pytest.raises(UsageError, match="may be classes, or number single lesions"):
        read_folder(tmp_path)


@pytest.mark.parametrize("missing", [True, False])
def test_classes_are_not_merged(tmp_path, missing):
    def mask(n: int) -> np.ndarray:
        values = numbered(4)
        if missing:  # every mask lacks one of the classes
            values[values == n % 4 + 1] = 0
        return values

    write(tmp_path, mask)
    manifest = read_folder(tmp_path)
    assert manifest.classes.lesions == ("class 1", "class 2", "class 3", "class 4")
    assert "no file names these classes, and one of them may be the leaf" in origin(
        tmp_path
    )


# alpha channels


def test_alpha_channel_is_the_mask_where_the_color_is_constant(tmp_path):
    rgb = np.full((SIDE, SIDE, 3), 255, np.uint8)
    assert_true(write(tmp_path, lambda n: np.dstack([rgb, white(n)])))
    (coding,) = read_folder(tmp_path).codings.values()
    assert coding.channel == "alpha"


def test_smoothed_alpha_channel_is_divided_half_way(tmp_path):
    rgb = np.zeros((SIDE, SIDE, 3), np.uint8)

    def mask(n: int) -> np.ndarray:
        soft = Image.fromarray(white(n)).filter(ImageFilter.GaussianBlur(1))
        return np.dstack([rgb, np.array(soft)])

    for n, lesion in enumerate(lesions(write(tmp_path, mask))):
        assert (lesion.astype(bool) ^ truth(n)).sum() <= 12


def test_one_color_painted_on_transparency_is_a_lesion(tmp_path):
    write(tmp_path, lambda n: np.dstack([white(n), white(n) * 0, white(n) * 0, white(n)]))
    assert_true(tmp_path)


def test_color_painted_with_a_smoothed_brush_is_a_lesion(tmp_path):
    def mask(n: int) -> np.ndarray:
        soft = np.array(Image.fromarray(white(n)).filter(ImageFilter.GaussianBlur(1)))
        return np.dstack([soft, soft * 0, soft * 0, soft])  # as a canvas in a browser

    for n, lesion in enumerate(lesions(write(tmp_path, mask))):
        assert (lesion.astype(bool) ^ truth(n)).sum() <= 12


def painted(n: int, *, ground: int = 0) -> np.ndarray:
    """Return red and blue on transparent pixels, whose color is ``ground``."""
    rgba = np.full((SIDE, SIDE, 4), ground, np.uint8)
    rgba[..., 3] = 0
    rgba[truth(n)] = (255, 0, 0, 255)
    rgba[70:90, 2:90] = (0, 0, 255, 255)
    return rgba


def test_colors_painted_on_transparency_need_names_and_are_read(tmp_path):
    write(tmp_path, lambda n: painted(n, ground=90))
    with pytest.raises(UsageError, match="are colored; they have 3 colors") as caught:
        read_folder(tmp_path)
    assert '"#000000": background' in caught.value.fix
    (tmp_path / "classes.yaml").write_text(
        '"#000000": background\n"#ff0000": rust\n"#0000ff": blight\n'
    )
    for n, lesion in enumerate(lesions(tmp_path)):
        expected = truth(n).astype(np.uint8)
        expected[70:90, 2:90] = 2
        assert np.array_equal(lesion, expected)


def test_stated_values_are_those_of_the_alpha_channel(tmp_path):
    rgb = np.full((SIDE, SIDE, 3), 255, np.uint8)
    write(tmp_path, lambda n: np.dstack([rgb, white(n)]))
    (tmp_path / "classes.yaml").write_text("0: background\n255: rust\n")
    assert_true(tmp_path)


def test_opaque_alpha_channel_is_dropped(tmp_path):
    assert_true(write(tmp_path, lambda n: Image.fromarray(white(n)).convert("RGBA")))


def test_mask_without_the_alpha_channel_of_the_others_is_an_error(tmp_path):
    rgb = np.full((SIDE, SIDE, 3), 255, np.uint8)
    write(tmp_path, lambda n: np.dstack([rgb, white(n)]) if n else white(n))
    report = check(read_folder(tmp_path))
    (issue,) = [i for i in report.issues if i.code == "unreadable-mask"]
    assert "has no alpha channel, as the other masks have" in issue.text


# compression with loss


@pytest.mark.parametrize(
    ("ending", "options"),
    [
        ("webp", {"quality": 50}),
        ("webp", {"quality": 90}),
        ("avif", {"quality": 50}),
        ("avif", {"quality": 90}),
    ],
)
def test_lossy_gray_masks_of_two_ends_are_divided_half_way(tmp_path, ending, options):
    write(tmp_path, white, ending=ending, **options)
    for n, lesion in enumerate(lesions(tmp_path)):
        assert (lesion.astype(bool) ^ truth(n)).sum() <= 9  # of 900
    assert "compressed with loss; their brightness is read" in origin(tmp_path)


@pytest.mark.parametrize("quality", [30, 60, 75, 95])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpeg_saved_as_png_is_divided_half_way(tmp_path, quality, mode):
    """After ESandML/FCBFormer#6: masks with values near 0 and near 255."""

    def mask(n: int) -> Image.Image:
        path = tmp_path / "once.jpg"
        Image.fromarray(white(n)).convert(mode).save(path, quality=quality)
        return Image.open(path)

    write(tmp_path / "set", mask)
    for n, lesion in enumerate(lesions(tmp_path / "set")):
        assert (lesion.astype(bool) ^ truth(n)).sum() <= 9


@pytest.mark.parametrize(("ending", "quality"), [("webp", 80), ("avif", 60)])
def test_small_values_that_were_compressed_are_refused(tmp_path, ending, quality):
    def mask(n: int) -> np.ndarray:
        return truth(n).astype(np.uint8) * 2

    write(tmp_path, mask, ending=ending, quality=quality)
    with pytest.raises(UsageError, match="were compressed with loss, and hold the values"):
        read_folder(tmp_path)


def test_lossless_webp_is_read(tmp_path):
    write(tmp_path, lambda n: truth(n).astype(np.uint8), ending="webp", lossless=True)
    assert_true(tmp_path)


@pytest.mark.parametrize("ending", ["webp", "avif", "png"])
def test_colored_masks_that_were_compressed_are_refused(tmp_path, ending):
    """After abreheret/PixelAnnotationTool#35: many colors where there was one."""

    def mask(n: int) -> Image.Image:
        rgb = np.zeros((SIDE, SIDE, 3), np.uint8)
        rgb[truth(n)], rgb[70:90] = (200, 30, 0), (0, 60, 220)
        path = tmp_path / "once.jpg"
        Image.fromarray(rgb).save(path, quality=60)
        return Image.open(path)

    options = {} if ending == "png" else {"quality": 60}
    write(tmp_path / "set", mask, ending=ending, **options)
    with pytest.raises(UsageError, match=r"hold \d+ colors"):
        read_folder(tmp_path / "set")


def test_lossy_mask_read_by_itself_is_refused(tmp_path):
    Image.fromarray(white(0)).save(tmp_path / "m.webp", quality=50)
    with pytest.raises(DataError, match="is a lossy WebP") as caught:
        read_mask(tmp_path / "m.webp")
    assert "WebP compression changes ids" in caught.value.needed


@pytest.mark.parametrize("color", [True, False])
def test_photographs_in_place_of_masks_are_refused(tmp_path, color):
    """After hzlsaber/SIDA#25: masks with any values from 0 to 255."""

    def mask(n: int) -> np.ndarray:
        image = np.random.default_rng(n).normal(0, 6, (SIDE, SIDE, 3)) + blotches(n + 50)
        image = image.clip(0, 255).astype(np.uint8)
        return image if color else image[..., 0]

    write(tmp_path, mask)
    with pytest.raises(UsageError, match="photograph"):
        read_folder(tmp_path)


# marks of the plant, and of the ground


def test_inverted_masks_are_asked_about(tmp_path):
    write(tmp_path, lambda n: 255 - white(n))
    with pytest.raises(
        UsageError, match="The value 255 covers more than a third"
    ) as caught:
        read_folder(tmp_path)
    assert "255: background\n    0: lesion" in caught.value.fix
    (tmp_path / "classes.yaml").write_text("255: background\n0: lesion\n")
    assert_true(tmp_path)


def plant(n: int) -> np.ndarray:
    """Return soil with a green plant where ``truth`` is."""
    rng = np.random.default_rng(n)
    image = np.where(truth(n)[..., None], (60, 150, 40), (130, 100, 70))
    return (image + rng.integers(-9, 9, (SIDE, SIDE, 3))).astype(np.uint8)


@pytest.mark.parametrize("high", [1, 255])
@pytest.mark.parametrize("soft", [True, False])
def test_marked_plants_are_asked_about(tmp_path, high, soft):
    def mask(n: int) -> np.ndarray:
        if not soft:
            return truth(n).astype(np.uint8) * high
        return np.array(Image.fromarray(white(n)).filter(ImageFilter.GaussianBlur(1)))

    write(tmp_path, mask, image_of=plant)
    with pytest.raises(UsageError, match="as a plant is and no lesion") as caught:
        read_folder(tmp_path)
    value = 255 if soft else high
    edges = "    edges: smoothed\n" if soft else ""
    lines = f"0: background\n    {value}: leaf\n{edges}    lesion: not annotated"
    assert lines in caught.value.fix
    (tmp_path / "classes.yaml").write_text(lines.replace("    ", ""))
    manifest = read_folder(tmp_path)
    sample = load_sample(manifest.rows[0], manifest)
    assert (sample.lesion == IGNORE).all()
    assert ((sample.leaf == 1) ^ truth(0)).sum() <= 12 * soft


def test_marked_plants_in_avif_are_asked_about(tmp_path):
    write(tmp_path, white, ending="avif", quality=60, image_of=plant)
    with pytest.raises(UsageError, match="as a plant is and no lesion") as caught:
        read_folder(tmp_path)
    lines = "0: background\n    255: leaf\n    edges: smoothed\n    lesion: not annotated"
    assert lines in caught.value.fix
    (tmp_path / "classes.yaml").write_text(lines.replace("    ", ""))
    manifest = read_folder(tmp_path)
    assert np.array_equal(load_sample(manifest.rows[0], manifest).leaf, truth(0))


def test_brown_lesions_on_green_are_not_asked_about(tmp_path):
    def image(n: int) -> np.ndarray:
        return plant(n)[..., [1, 0, 2]]  # green ground, brown squares

    assert_true(write(tmp_path, lambda n: truth(n).astype(np.uint8), image_of=image))


def leaf_and_lesion(n: int) -> np.ndarray:
    values = truth(n).astype(np.uint8)
    top, left = np.argwhere(values)[0]
    values[top + 8 : top + 16, left + 8 : left + 16] = 2
    return values


@pytest.mark.parametrize("levels", [(0, 1, 2), (0, 128, 255), (0, 127, 255)])
def test_leaf_that_the_images_show_is_read(tmp_path, levels):
    def image(n: int) -> np.ndarray:
        brown = (leaf_and_lesion(n) == 2)[..., None]
        return np.where(brown, (140, 80, 20), plant(n)).astype(np.uint8)

    write(
        tmp_path, lambda n: np.array(levels, np.uint8)[leaf_and_lesion(n)], image_of=image
    )
    manifest = read_folder(tmp_path)
    sample = load_sample(manifest.rows[0], manifest)
    assert np.array_equal(sample.lesion, leaf_and_lesion(0) == 2)
    assert np.array_equal(sample.leaf, leaf_and_lesion(0) > 0)
    assert "that it is the leaf is seen in the images" in origin(tmp_path)


def test_leaf_that_the_images_do_not_show_is_asked_for(tmp_path):
    write(tmp_path, leaf_and_lesion)
    with pytest.raises(UsageError, match="leaf and lesion, or two kinds of lesions"):
        read_folder(tmp_path)


def test_three_classes_of_which_one_is_the_plant_are_asked_about(tmp_path):
    def mask(n: int) -> np.ndarray:
        values = leaf_and_lesion(n)
        values[2:5, 2:9] = 3
        return values

    write(tmp_path, mask, image_of=plant)
    with pytest.raises(UsageError, match="The value 1 is greener") as caught:
        read_folder(tmp_path)
    assert "1: leaf\n    2: ?\n    3: ?" in caught.value.fix


def test_index_gives_the_values_of_the_channel(tmp_path):
    rgba = np.dstack([np.full((SIDE, SIDE, 3), 9, np.uint8), white(0)])
    Image.fromarray(rgba).save(tmp_path / "m.png")
    file = MaskFile.inspect(tmp_path / "m.png", as_colors=False, channel="alpha")
    again = MaskFile.from_bytes(file.to_bytes())
    assert again.values.tolist() == [0, 255]
    assert again.counts.tolist() == [SIDE**2 - 900, 900]
