"""The drawn scenes: seeded, of every kind, and marked as what they show."""

import numpy as np
import pytest
from PIL import Image

from plantseg_next.data import scenes
from plantseg_next.data.image_io import load_sample
from plantseg_next.data.layouts import read_folder
from plantseg_next.data.lesions import LESION_KINDS
from plantseg_next.data.scenes import KINDS, draw_scene, write_scenes
from plantseg_next.data.synthetic import DISEASES
from plantseg_next.errors import OutputError, UsageError
from plantseg_next.structures import IGNORE

SMALL = (96, 96)
WIDE = (64, 104)
SEEDS = range(4)


@pytest.fixture(scope="module")
def drawn():
    """A few scenes of every kind."""
    return {
        kind: [draw_scene(seed, size_hw=SMALL, kind=kind) for seed in SEEDS]
        for kind in KINDS
    }


def every(drawn):
    return [(kind, scene) for kind, some in drawn.items() for scene in some]


def same(one, other):
    parts = ("image", "lesion", "leaf")
    return one.disease == other.disease and all(
        np.array_equal(getattr(one, part), getattr(other, part)) for part in parts
    )


@pytest.mark.parametrize("kind", [*KINDS, None])
def test_scene_of_a_seed_has_the_same_bytes(kind):
    first, again, other = (draw_scene(s, size_hw=WIDE, kind=kind) for s in (3, 3, 4))
    assert same(first, again)
    assert not np.array_equal(first.image, other.image)


def test_scene_without_a_kind_shows_several():
    found = [draw_scene(seed, size_hw=SMALL) for seed in range(20)]
    assert any((scene.leaf == IGNORE).any() for scene in found)
    assert any((scene.lesion > 0).any() for scene in found)
    assert any(not scene.leaf.any() for scene in found)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size_hw", [(32, 32), (32, 70), (70, 32)])
def test_scene_of_every_kind_is_drawn_at_any_size(kind, size_hw):
    for seed in range(2):
        scene = draw_scene(seed, size_hw=size_hw, kind=kind)
        assert scene.image.shape == (*size_hw, 3)
        assert scene.lesion.shape == scene.leaf.shape == size_hw


def test_scene_values_are_in_range(drawn):
    for kind, scene in every(drawn):
        for part in (scene.image, scene.lesion, scene.leaf):
            assert part.dtype == np.uint8
        assert scene.image.std() > 3, kind  # it shows something
        assert set(np.unique(scene.leaf)) <= {0, 1, IGNORE}
        assert scene.disease in DISEASES
        assert set(np.unique(scene.lesion)) <= {0, DISEASES.index(scene.disease)}


def test_scene_lesions_lie_on_leaves(drawn):
    assert any(scene.lesion.any() for _, scene in every(drawn))
    for kind, scene in every(drawn):
        assert (scene.leaf[scene.lesion > 0] == 1).all(), kind


def test_scene_is_healthy_where_it_has_no_lesion(drawn):
    named = [(scene.disease == "healthy", scene.lesion.any()) for _, scene in every(drawn)]
    assert all(healthy != diseased for healthy, diseased in named)
    assert {healthy for healthy, _ in named} == {True, False}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "none"])
def test_scene_shows_leaves(drawn, kind):
    assert sum((scene.leaf == 1).any() for scene in drawn[kind]) >= len(SEEDS) - 1


def test_scene_of_nothing_has_neither_leaf_nor_lesion():
    """Soil, litter, wood, paper, and now and then a hand."""
    for seed in range(20):
        scene = draw_scene(seed, size_hw=SMALL, kind="none")
        assert not scene.leaf.any()
        assert not scene.lesion.any()
        assert scene.disease == "healthy"


def test_scene_ignores_foliage_out_of_focus_alone(monkeypatch):
    """Whether blurred foliage is drawn is heard from what draws it."""
    blurred = []
    draw_ground = scenes.draw_ground

    def heard(rng, size_hw, *, natural):
        blurred.append(natural)
        return draw_ground(rng, size_hw, natural=natural)

    monkeypatch.setattr(scenes, "draw_ground", heard)
    outcomes = set()
    for kind in KINDS:
        for seed in range(5):
            blurred.clear()
            scene = draw_scene(seed, size_hw=(48, 48), kind=kind)
            ignored = scene.leaf == IGNORE
            assert not scene.lesion[ignored].any()
            if any(blurred):
                # What is neither leaf nor skin; a leaf may fill the frame.
                assert ignored.any() or (scene.leaf == 1).mean() > 0.8
            else:
                assert not ignored.any()
            outcomes.add((kind, any(blurred)))
    assert {kind for kind, natural in outcomes if natural} == {"foreground", "hand"}
    assert ("hand", False) in outcomes


def test_scene_skin_is_no_leaf_and_covers_the_leaf(monkeypatch):
    draw_fingers = scenes.draw_fingers
    alphas = []

    def kept(rng, image):
        alphas.append(draw_fingers(rng, image))
        return alphas[-1]

    def left_out(_, image):
        return np.zeros(image.shape[:2], np.float32)

    covered = 0
    for seed in range(8):
        monkeypatch.setattr(scenes, "draw_fingers", left_out)
        bare = draw_scene(seed, size_hw=SMALL, kind="hand")
        monkeypatch.setattr(scenes, "draw_fingers", kept)
        held = draw_scene(seed, size_hw=SMALL, kind="hand")
        skin = alphas[-1] > 0.5
        assert skin.any()
        np.testing.assert_array_equal(held.leaf, np.where(skin, 0, bare.leaf))
        np.testing.assert_array_equal(held.lesion, np.where(skin, 0, bare.lesion))
        covered += int((bare.leaf[skin] == 1).sum())
    assert covered > 500


def test_scene_leaf_above_covers_the_lesions_below():
    """In a canopy: a healthy leaf that lies on a lesion hides it."""
    rng = np.random.default_rng(0)
    canvas = scenes._Canvas(np.full((64, 64, 3), 0.5, np.float32))
    ill, well = (
        scenes._Leaf(
            np.full((64, 64, 3), 0.3, np.float32),
            np.ones((64, 64), np.float32),
            np.full((64, 64), value, np.uint8),
        )
        for value in (2, 0)
    )
    canvas.lay(rng, ill, 0, 0)
    canvas.lay(rng, well, 32, -32)
    assert (canvas.leaf == 1).all()
    assert not canvas.lesion[:32, 32:].any()
    assert canvas.lesion.sum() == 2 * 3 * 32 * 32


@pytest.mark.parametrize(("x", "y"), [(64, 0), (0, 64), (-64, 0), (0, -64), (200, 200)])
def test_scene_leaf_outside_the_frame_changes_nothing(x, y):
    canvas = scenes._Canvas(np.full((64, 64, 3), 0.5, np.float32))
    leaf = scenes._Leaf(
        np.zeros((64, 64, 3), np.float32),
        np.ones((64, 64), np.float32),
        np.ones((64, 64), np.uint8),
    )
    canvas.lay(np.random.default_rng(0), leaf, x, y)
    assert (canvas.image == 0.5).all()
    assert not canvas.leaf.any()
    assert not canvas.lesion.any()


@pytest.mark.parametrize(
    ("arguments", "came", "needed"),
    [
        ({"seed": -1}, "`seed` is -1,", "a seed from 0, and at least 32 rows and columns"),
        (
            {"seed": 0, "size_hw": (31, 64)},
            "`size_hw` is (31, 64).",
            "a seed from 0, and at least 32 rows and columns",
        ),
        ({"seed": 0, "size_hw": (64, 0)}, "`size_hw` is (64, 0).", "at least 32 rows"),
        (
            {"seed": 0, "kind": "hnad"},
            "`kind` is 'hnad'.",
            "one of leaf, soil, canopy, foreground, hand, grass, none",
        ),
        ({"seed": 0, "kind": ""}, "`kind` is ''.", "one of leaf, soil"),
    ],
)
def test_scene_arguments_out_of_range_are_refused(arguments, came, needed):
    with pytest.raises(UsageError) as caught:
        draw_scene(**arguments)
    assert came in str(caught.value)
    assert needed in caught.value.needed


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "new" / "drawn"
    write_scenes(folder, 16, seed=2, size_hw=WIDE)
    return folder


def test_scene_folder_is_read_as_it_was_drawn(written):
    manifest = read_folder(written)
    assert manifest.classes.lesions == LESION_KINDS
    assert manifest.classes.has_leaf
    assert len(manifest) == 16
    ignored = lesions = 0
    for k, row in enumerate(sorted(manifest.rows, key=lambda row: row.image.name)):
        scene = draw_scene(2 * 1_000_003 + k, size_hw=WIDE)
        sample = load_sample(row, manifest)
        np.testing.assert_array_equal(sample.lesion, scene.lesion)
        np.testing.assert_array_equal(sample.leaf, scene.leaf)
        # JPEG changes colors a little, and nothing else.
        difference = np.abs(sample.image.astype(int) - scene.image)
        assert difference.mean() < 8
        # Of foliage that may be leaf or not it is known that it shows no lesion.
        assert not sample.lesion[sample.leaf == IGNORE].any()
        ignored += int((sample.leaf == IGNORE).sum())
        lesions += int((sample.lesion > 0).sum())
    assert ignored > 0
    assert lesions > 0


def test_scene_folder_states_what_its_values_mean(written):
    lines = (written / "classes.yaml").read_text("utf-8").splitlines()
    assert lines[:2] == ["0: background", "1: leaf"]
    assert lines[2:-1] == [f"{i + 2}: {name}" for i, name in enumerate(LESION_KINDS)]
    assert lines[-1] == f"{len(LESION_KINDS) + 2}: no lesion"
    names = {path.stem for path in (written / "images").iterdir()}
    assert names == {path.stem for path in (written / "masks").iterdir()}
    assert "scene_00000" in names
    with Image.open(written / "masks" / "scene_00000.png") as mask:
        assert mask.mode == "L"


def test_scene_folder_of_a_seed_has_the_same_bytes(written, tmp_path):
    write_scenes(tmp_path / "again", 3, seed=2, size_hw=WIDE)
    write_scenes(tmp_path / "other", 3, seed=3, size_hw=WIDE)
    for kind, ending in (("images", "jpg"), ("masks", "png")):
        for k in range(3):
            place = f"{kind}/scene_{k:05}.{ending}"
            bytes_ = (tmp_path / "again" / place).read_bytes()
            assert bytes_ == (written / place).read_bytes()
            if kind == "images":
                assert bytes_ != (tmp_path / "other" / place).read_bytes()


def test_scene_folder_that_is_there_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputError) as caught:
        write_scenes(tmp_path, 2, size_hw=SMALL)
    assert f"`{tmp_path}` is already there." in str(caught.value)
    assert caught.value.needed == "a new folder"
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("n", "changes", "came"),
    [
        (0, {}, "`n` is 0."),
        (1, {"seed": -1}, "`seed` is -1,"),
        (1, {"size_hw": (8, 64)}, "`size_hw` is (8, 64)."),
    ],
)
def test_scene_folder_of_wrong_arguments_leaves_nothing_behind(tmp_path, n, changes, came):
    with pytest.raises(UsageError) as caught:
        write_scenes(tmp_path / "new", n, **changes)
    assert came in str(caught.value)
    assert not (tmp_path / "new").exists()
