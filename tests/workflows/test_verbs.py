"""Every command on synthetic leaves, and its errors."""

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import TINY
from plantseg_next import api
from plantseg_next.data.manifest import Manifest
from plantseg_next.errors import DataError, OutputError, UsageError
from plantseg_next.files import sha256_of
from plantseg_next.models.bundle import (
    CARD,
    read_bundle,
    read_card,
    read_images,
    read_weights,
)
from plantseg_next.models.pretrained import PACKAGED
from plantseg_next.models.start import (
    STARTER_FOLDER,
    STARTERS,
    find_model,
    holds_model,
    start_folder,
    starting_network,
    with_start,
)
from plantseg_next.structures import ClassMap
from plantseg_next.synthetic.folders import write_drawn_folder
from plantseg_next.synthetic.leaves import draw_leaf
from plantseg_next.training.callbacks.callback import Callback
from plantseg_next.workflows import demo as demo_workflow
from plantseg_next.workflows.evaluate import images_of_run

pytestmark = pytest.mark.integration


class Recorder(Callback):
    def __init__(self):
        self.events = []

    def on_event(self, step, event):
        self.events.append((step, event.kind))


@pytest.mark.curves
def test_train_writes_the_files_of_a_run(drawn_folder, tmp_path):
    recorder = Recorder()
    trained = api.train(drawn_folder, tmp_path / "run", TINY, callbacks=[recorder])
    folder = trained.folder
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "settings.yaml", "manifest.json", "run.json", "history.csv",
        "resources.csv", "progress.json", "summary.txt", "curves.png",
        "checkpoints", "best", "last", ".lock", "start.json",
    } | ({"events.jsonl"} if recorder.events else set())  # fmt: skip
    assert trained.summary.steps == 6
    splits = {row.split for row in Manifest.read(folder / "manifest.json").rows}
    assert splits == {"train", "val", "test"}
    assert api.check(drawn_folder).spoils_training is False


def test_train_into_a_folder_with_other_files_is_refused_before_it_reads(
    drawn_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr("plantseg_next.workflows.train.build_manifest", None)
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(OutputError, match=r"already holds thesis\.txt") as caught:
        api.train(drawn_folder, tmp_path, TINY)
    assert caught.value.exit_code == 2
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_train_into_a_folder_whose_name_is_not_utf8_is_refused(drawn_folder, tmp_path):
    out = Path(os.fsdecode(os.fsencode(tmp_path) + b"/o\xff"))
    with pytest.raises(
        DataError, match=r"/o\\xff` has a name that is not UTF-8"
    ) as refused:
        api.train(drawn_folder, out, TINY)
    assert refused.value.fix == "choose another --out"
    assert not out.exists()


def test_evaluate_uses_the_test_images_of_the_run(finished_run):
    report = api.evaluate(finished_run)
    test = Manifest.read(finished_run / "manifest.json").split("test")
    assert report.n_images == len(test)
    assert {row.key for row in report.images} == {row.key for row in test.rows}


def test_evaluate_on_training_images_is_refused(finished_run, drawn_folder):
    report = api.evaluate(finished_run, drawn_folder)
    assert report.n_images == len(
        Manifest.read(finished_run / "manifest.json").split("test")
    )
    with pytest.raises(UsageError, match="of these images were used to train"):
        api.evaluate(finished_run, drawn_folder, split="all")


def test_evaluate_on_copied_training_images_is_refused(
    finished_run, drawn_folder, tmp_path
):
    import shutil

    shutil.copytree(drawn_folder, tmp_path / "copied")
    with pytest.raises(UsageError, match="of these images were used to train"):
        api.evaluate(finished_run, tmp_path / "copied", split="all")


def make_other_data(folder):
    rng = np.random.default_rng(0)
    for i in range(3):
        image = rng.integers(0, 256, (80, 70, 3), np.uint8)
        mask = np.zeros((80, 70), np.uint8)
        mask[20:40, 20:40] = 1
        for kind, pixels in (("images", image), ("masks", mask)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / kind / f"leaf {i} 葉.png")
    return folder


def test_evaluate_on_other_class_names_merges_to_any_lesion(finished_run, tmp_path):
    """Its classes have other names, so lesions are evaluated without their class."""
    report = api.evaluate(finished_run, make_other_data(tmp_path / "other"), split="all")
    assert [row.name for row in report.classes] == ["no lesion", "any lesion"]
    assert report.n_images == 3


def test_predict_writes_tables_masks_and_overlays(finished_run, tmp_path):
    images = make_other_data(tmp_path / "new") / "images"
    (images / "broken.jpg").write_bytes(b"this is no image")
    seen = []
    table = api.predict(
        finished_run,
        images,
        tmp_path / "out",
        progress=lambda *call: seen.append(call),
    )
    assert len(table.rows) == 3
    ((name, reason),) = table.skipped
    assert name == "broken.jpg"
    assert "broken.jpg" in reason
    with (tmp_path / "out" / "severity.csv").open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [row["image"] for row in table] == [f"leaf {i} 葉.png" for i in range(3)]
    for row in table:
        assert (tmp_path / "out" / row["mask"]).exists()
        assert (tmp_path / "out" / row["overlay"]).exists()
        assert row["denominator"] in {"leaf", "image"}
        assert row["min_lesion_px"] == "20"
        assert row["scale"] == "1"
    assert len(json.loads((tmp_path / "out" / "records.json").read_text("utf-8"))["images"])
    assert seen[-1] == ("measuring", 4, 4)
    with pytest.raises(OutputError, match="already holds"):
        api.predict(finished_run, images, tmp_path / "out")


def test_predict_of_one_broken_image_leaves_no_folder(finished_run, tmp_path):
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"\xff\xd8\xff")
    with pytest.raises(DataError, match=r"broken\.jpg"):
        api.predict(finished_run, path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("mode", ["CMYK", "RGBA", "L", "P", "1", "I;16"])
def test_predict_reads_every_image_mode(finished_run, tmp_path, mode):
    image = Image.fromarray(
        np.random.default_rng(0).integers(0, 255, (50, 60, 3), np.uint8)
    )
    if mode == "I;16":
        image = Image.fromarray(np.full((50, 60), 3000, np.uint16))
    else:
        image = image.convert(mode)
    path = tmp_path / ("a.tif" if mode in {"CMYK", "I;16"} else "a.png")
    image.save(path)
    (row,) = api.predict(finished_run, path, tmp_path / "out").rows
    assert (row["height"], row["width"]) == (50, 60)


def test_predict_measures_an_image_of_one_pixel(finished_run, tmp_path):
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    (row,) = api.predict(finished_run, tmp_path / "dot.png", tmp_path / "out").rows
    assert (row["height"], row["width"]) == (1, 1)
    assert "hardly any green: a plant?" in row["notes"]


def test_evaluate_of_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(UsageError, match="holds no trained model"):
        api.evaluate(tmp_path)


def test_train_without_masks_is_refused(tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    with pytest.raises(UsageError, match="no image with a mask in its train split"):
        api.train(tmp_path, tmp_path / "run", TINY)
    assert not (tmp_path / "run").exists()


def test_train_into_a_file_is_refused(drawn_folder, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OutputError, match="cannot be written: File exists"):
        api.train(drawn_folder, tmp_path / "out", TINY)
    assert (tmp_path / "out").read_text() == "mine"


def test_predict_into_a_data_set_is_refused(finished_run, drawn_folder):
    before = sorted(p.name for p in (drawn_folder / "masks").iterdir())
    with pytest.raises(OutputError, match=r"already holds classes\.yaml, images"):
        api.predict(finished_run, drawn_folder / "images", drawn_folder)
    assert sorted(p.name for p in (drawn_folder / "masks").iterdir()) == before


def test_predict_reads_the_images_of_a_manifest(finished_run, tmp_path):
    rows = Manifest.read(finished_run / "manifest.json").split("test").rows
    manifest = Manifest.read(finished_run / "manifest.json").only(rows[:2])
    (tmp_path / "some").mkdir()
    manifest.write(tmp_path / "some" / "manifest.json")
    table = api.predict(finished_run, tmp_path / "some", tmp_path / "out")
    assert [row["image"] for row in table.rows] == [
        f"{row.key}{row.image.suffix}" for row in rows[:2]
    ]


def test_train_with_leaf_masks_only_is_refused(tmp_path):
    data = make_other_data(tmp_path / "leaf only")
    (data / "classes.yaml").write_text("0: background\n1: leaf\n")
    with pytest.raises(UsageError, match="name no lesion class"):
        api.train(data, tmp_path / "run", TINY)


@pytest.mark.parametrize("data", ["in place", "copied"])
def test_evaluate_of_a_moved_model_is_as_in_its_run(
    finished_run, drawn_folder, tmp_path, data
):
    """The model lists the images of its run: test images stay test images."""
    model = shutil.copytree(finished_run / "best", tmp_path / "model")
    if data == "copied":
        drawn_folder = shutil.copytree(drawn_folder, tmp_path / "leaves")
        (drawn_folder / "index.csv").unlink()
    expected = api.evaluate(finished_run, drawn_folder)
    report = api.evaluate(model, drawn_folder)
    assert report.n_images == expected.n_images > 0
    assert report.to_json() == expected.to_json()
    for split in ("train", "val"):
        keys = [
            {row.key for row in api.evaluate(m, drawn_folder, split=split).images}
            for m in (finished_run, model)
        ]
        assert keys[0] == keys[1] != set()
    with pytest.raises(UsageError, match="of these images were used to train"):
        api.evaluate(model, drawn_folder, split="all")


@pytest.mark.parametrize("stated", [False, True])
def test_evaluate_says_which_images_the_run_leaves_out(
    finished_run, drawn_folder, tmp_path, stated
):
    """Other images of the same names, of which only a stated split says what they are."""
    other = tmp_path / drawn_folder.name
    write_drawn_folder(other, 40, seed=2, size_hw=(96, 96))
    rows = list(csv.DictReader((drawn_folder / "index.csv").read_text().splitlines()))
    names = [column for column in rows[0] if stated or column != "split"]
    with (other / "index.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, names, extrasaction="ignore")
        table.writeheader()
        table.writerows(row | {"split": "test"} for row in rows)
    report = api.evaluate(finished_run, other)
    if stated:
        assert report.n_images == 40
        assert report.notes == ()
        return
    n = 40 - report.n_images
    assert 0 < n < 40
    (note,) = report.notes
    assert note == (
        f"{n} of 40 images with masks are left out: the model's run has a data set and a "
        "group of the same names in another split. If these are other plants, rename the "
        "folder, or state the `split` of each image in index.csv."
    )
    assert note in report.to_text()
    assert json.loads(report.to_json())["notes"] == [note]


def test_evaluate_on_images_learned_from_without_masks_is_refused(
    finished_semi_run, drawn_folder, tmp_path
):
    images = read_images(finished_semi_run / "best")
    digests = {image.digest for image in images if image.split == "unlabeled"}
    data = shutil.copytree(drawn_folder, tmp_path / "leaves")
    kept = [p for p in (data / "images").iterdir() if sha256_of(p)[:16] in digests]
    for folder in ("images", "masks"):
        for path in (data / folder).iterdir():
            if path.stem not in {p.stem for p in kept}:
                path.unlink()
    (data / "index.csv").unlink()
    n = len(kept)
    assert n > 0
    with pytest.raises(UsageError, match=f"{n} of these images were used to train"):
        api.evaluate(finished_semi_run, data, split="all")
    with pytest.raises(UsageError, match="no image with a mask in its test split"):
        api.evaluate(finished_semi_run, data)


def test_supervised_run_does_not_list_images_without_a_mask(drawn_folder, tmp_path):
    data = shutil.copytree(drawn_folder, tmp_path / "leaves")
    bare = sorted((data / "masks").iterdir())[:5]
    for path in bare:
        path.unlink()
    (data / "index.csv").unlink()
    settings = TINY.with_settings(["semi.method=supervised", "training.steps=1"])
    api.train(data, tmp_path / "run", settings)
    assert len(read_images(tmp_path / "run" / "best")) == 35


def test_model_states_versions_normalization_and_number_of_images(finished_run):
    card = read_card(finished_run / "best")
    assert card.versions.keys() == {"plantseg-next", "torch", "timm"}
    assert card.versions["torch"].startswith("2.")
    assert card.n_val_images == TINY.training.validation_images
    assert card.normalization.mean == pytest.approx(
        read_bundle(finished_run / "best")[0].mean.flatten().tolist()
    )
    manifest = Manifest.read(finished_run / "manifest.json")
    assert read_images(finished_run / "best") == images_of_run(manifest)


def as_format_3(model):
    """Make a model as it was written before models listed their images."""
    card = read_card(model)
    (model / card.images).unlink()
    tree = json.loads((model / CARD).read_text("utf-8"))
    for name in (
        "n_val_images", "threshold", "calibration", "normalization", "versions", "code",
        "written", "images_sha256", "card_sha256",
    ):  # fmt: skip
        del tree[name]
    (model / CARD).write_text(json.dumps(tree | {"format": 3}))


def test_evaluate_of_a_model_of_format_3_in_its_run_is_as_of_format_4(
    finished_run, drawn_folder, tmp_path
):
    run = shutil.copytree(finished_run, tmp_path / "run")
    as_format_3(run / "best")
    expected = api.evaluate(finished_run, drawn_folder).to_json()
    assert api.evaluate(run, drawn_folder).to_json() == expected
    with pytest.raises(UsageError, match="of these images were used to train"):
        api.evaluate(run, drawn_folder, split="all")


def test_evaluate_of_a_moved_model_of_format_3_on_its_data_is_refused(
    finished_run, drawn_folder, tmp_path
):
    shutil.copytree(finished_run / "best", tmp_path / "model")
    as_format_3(tmp_path / "model")
    stated = drawn_folder / "index.csv"
    shutil.copytree(drawn_folder / "images", tmp_path / "leaves" / "images")
    shutil.copytree(drawn_folder / "masks", tmp_path / "leaves" / "masks")
    shutil.copy(drawn_folder / "classes.yaml", tmp_path / "leaves")
    assert stated.exists()
    with pytest.raises(UsageError, match="has been moved away from its run"):
        api.evaluate(tmp_path / "model", tmp_path / "leaves")


def test_evaluate_of_a_moved_model_without_data_is_refused(finished_run, tmp_path):
    shutil.copytree(finished_run / "best", tmp_path / "model")
    with pytest.raises(UsageError, match="does not state where its images are"):
        api.evaluate(tmp_path / "model")


def test_demo_starts_from_a_model_with_a_free_license():
    """The demo itself is tested with other settings, which take less time."""
    model = with_start(demo_workflow.refine().model)
    _, source = starting_network(model, ClassMap(("rust",)))
    assert source.license == "apache-2.0"


def test_demo_writes_results_before_and_after_training(tmp_path, monkeypatch):
    calls = []

    def quick(*arguments):
        calls.append(arguments)
        return TINY

    monkeypatch.setattr("plantseg_next.workflows.demo.refine", quick)
    lines, measured = [], []
    done = api.demo(
        tmp_path / "demo",
        leaves=40,
        log=lines.append,
        on_measured=lambda *results: measured.append(results),
    )
    for name, table, report in (
        ("before", done.measured, done.before),
        ("after", done.refined, done.after),
    ):
        assert (tmp_path / "demo" / name / "severity.csv").exists()
        assert (tmp_path / "demo" / name / "report" / "report.txt").exists()
        assert len(table.rows) == report.n_images > 0
    assert measured == [(done.measured, done.before)]
    # The starter segments them without training; six steps from random weights do not.
    assert done.before.leaf_iou.value > 0.8
    assert done.before.lesion_dice.value > done.after.lesion_dice.value
    ((steps, fraction),) = calls
    assert steps == 200
    n_train = done.trained.n_train
    assert fraction == pytest.approx(min(1.0, demo_workflow.DEMO_MASKS / n_train))
    assert lines[0] == "drawing 40 leaves with exact masks"
    with pytest.raises(OutputError, match="already holds"):
        api.demo(tmp_path / "demo")
    with pytest.raises(UsageError, match="leaves is 39") as caught:
        api.demo(tmp_path / "small", leaves=39)
    assert caught.value.needed == "a whole number of at least 40"


@pytest.mark.slow
def test_demo_refines_the_starter(tmp_path):
    """What `make demo` shows, at its own settings."""
    done = api.demo(tmp_path / "demo")
    assert done.after.severity.rho_c.value >= 0.9
    assert done.after.severity.rho_c.value > done.before.severity.rho_c.value
    assert done.after.lesion_dice.value > max(0.85, done.before.lesion_dice.value)
    assert done.after.leaf_iou.value > done.before.leaf_iou.value


# The starter model ------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "license_"),
    [
        ("starter", "apache-2.0"),
        ("starter-field", "apache-2.0; plant photographs CC BY-SA 4.0"),
    ],
)
def test_starter_card_states_its_license_and_what_it_marks(name, license_):
    card = read_card(STARTERS[name])
    assert card.weights_license == license_
    assert ("peanut_field" in card.sources) == (name == "starter-field")
    assert card.weights_sha256 == PACKAGED[card.model.encoder].sha256
    assert card.classes == ClassMap(("lesion",), (), has_leaf=True)
    assert card.sources


@pytest.mark.parametrize("folder", STARTERS.values())
def test_starter_is_small_and_finite(folder):
    card = read_card(folder)
    size = (folder / card.weights).stat().st_size
    assert size < 9_000_000
    state, _ = read_weights(folder)
    assert {t.dtype for t in state.values() if t.is_floating_point()} == {torch.float16}
    assert all(t.isfinite().all() for t in state.values())
    network, _ = read_bundle(folder)
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def test_packaged_model_is_found_by_name_unless_a_folder_has_that_name(
    finished_run, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name, folder in STARTERS.items():
        assert find_model(Path(name)) == folder
        assert holds_model(Path(name))
    Path("starter").mkdir()
    assert not holds_model(Path("starter"))  # images may be in it
    shutil.copytree(finished_run / "best", "starter-field")
    for find in (find_model, lambda path: start_folder(str(path))):
        with pytest.raises(UsageError, match="is a model in the package, and") as both:
            find(Path("starter-field"))
    assert str(Path("starter-field").resolve()) in both.value.fix
    assert find_model(Path("starter-field").resolve()).is_absolute()
    for find in (find_model, lambda path: start_folder(str(path))):
        with pytest.raises(UsageError) as caught:
            find(Path("starter_fields"))
        assert caught.value.fix == "did you mean starter-field?"
    with pytest.raises(UsageError, match="holds no trained model") as caught:
        find_model(Path("starters"))
    assert "or one of starter, starter-field" in caught.value.needed


@pytest.mark.parametrize(("disease", "seed"), [("blight", 1), ("leaf miner", 1)])
def test_starter_segments_a_synthetic_diseased_leaf(tmp_path, disease, seed):
    leaf = draw_leaf(
        seed, size_hw=(192, 192), disease=disease, age_days=20.0, natural_ground=False
    )
    Image.fromarray(leaf.image).save(tmp_path / "leaf.png")
    (row,) = api.predict(None, tmp_path / "leaf.png", tmp_path / "out").rows
    with Image.open(tmp_path / "out" / row["mask"]) as image:
        lesion = np.array(image) > 0
    with Image.open(tmp_path / "out" / row["leaf_mask"]) as image:
        marked = np.array(image) > 0
    for predicted, drawn in ((lesion, leaf.lesion > 0), (marked, leaf.leaf > 0)):
        assert (predicted & drawn).sum() / (predicted | drawn).sum() > 0.8
    truth = 100 * (leaf.lesion > 0).sum() / leaf.leaf.sum()
    assert row["severity_pct"] == pytest.approx(truth, rel=0.2)
    assert row["denominator"] == "leaf"
    assert row["model"] == read_card(STARTER_FOLDER).sha256[:12]


def test_starter_segments_little_on_a_synthetic_healthy_leaf(tmp_path):
    leaf = draw_leaf(1, size_hw=(192, 192), disease="healthy", natural_ground=False)
    Image.fromarray(leaf.image).save(tmp_path / "leaf.png")
    (row,) = api.predict(None, tmp_path / "leaf.png", tmp_path / "out").rows
    assert row["severity_pct"] < 1


def test_predict_with_a_model_uses_that_model(finished_run, drawn_folder, tmp_path):
    images = drawn_folder / "images"
    path = next(iter(sorted(images.iterdir())))
    (row,) = api.predict(finished_run, path, tmp_path / "out").rows
    digest = read_card(finished_run / "best").sha256
    assert row["model"] == digest[:12] != read_card(STARTER_FOLDER).sha256[:12]


def test_predict_states_scale_and_min_lesion_px_of_a_large_image(finished_run, tmp_path):
    """In pixels of the image itself; the model sees a reduced image."""
    long_side_px = read_card(finished_run / "best").long_side_px
    assert long_side_px == 1024
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for name, size in (("large", (30, 2048, 3)), ("small", (30, 1024, 3))):
        image = Image.fromarray(rng.integers(0, 256, size, np.uint8))
        image.save(tmp_path / "images" / f"{name}.png")
    api.predict(finished_run, tmp_path / "images", tmp_path / "out", min_lesion_px=7)
    with (tmp_path / "out" / "severity.csv").open(encoding="utf-8") as file:
        large, small = csv.DictReader(file)
    assert (large["scale"], large["min_lesion_px"]) == ("0.5", "28")
    assert (small["scale"], small["min_lesion_px"]) == ("1", "7")
    tree = json.loads((tmp_path / "out" / "records.json").read_text("utf-8"))
    assert [record["scale"] for record in tree["images"]] == [0.5, 1.0]
    with (tmp_path / "out" / "lesions.csv").open(encoding="utf-8") as file:
        areas = [int(r["area_px"]) for r in csv.DictReader(file) if "large" in r["image"]]
    assert all(area >= 28 for area in areas)


def test_predict_skips_broken_links_and_escapes_odd_names(finished_run, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    odd = os.fsdecode(b"odd \xff.png")
    for name in ("a.png", odd):
        Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(folder / name)
    (folder / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (folder / "round.jpg").symlink_to(folder / "round.jpg")
    table = api.predict(finished_run, folder, tmp_path / "out")
    assert [row["image"] for row in table.rows] == ["a.png", "odd \\xff.png"]
    assert [name for name, _ in table.skipped] == ["gone.jpg", "round.jpg"]
    assert (tmp_path / "out" / "severity.csv").is_file()


def test_evaluate_of_a_packaged_model_on_its_data_set_is_refused(tmp_path):
    data = make_other_data(tmp_path / "coffee")
    for split in ("test", "all"):
        with pytest.raises(UsageError, match="learned from a data set called coffee"):
            api.evaluate(STARTER_FOLDER, data, split=split)
    index = "name,split\n" + "".join(
        f"leaf {i} 葉,{s}\n" for i, s in enumerate(("train", "val", "test"))
    )
    (data / "index.csv").write_text(index, "utf-8")
    assert api.evaluate(STARTER_FOLDER, data).n_images == 1
    with pytest.raises(UsageError, match="learned from a data set called coffee"):
        api.evaluate(STARTER_FOLDER, data, split="all")


def test_report_of_any_lesion_has_no_disease_iou(finished_run, tmp_path):
    other = api.evaluate(finished_run, make_other_data(tmp_path / "other"), split="all")
    assert "disease mIoU" not in other.to_text().split("How to read")[0]
    own = api.evaluate(finished_run)
    assert "disease mIoU" in own.to_text().split("How to read")[0]


def test_verbs_take_strings_as_paths(drawn_folder, tmp_path):
    data, run = str(drawn_folder), str(tmp_path / "run")
    assert not api.check(data).spoils_training
    api.train(data, run, TINY.with_settings(["training.steps=1"]))
    assert api.evaluate(run).n_images == api.evaluate(run, data).n_images
    found = api.predict(run, f"{data}/images", str(tmp_path / "out"))
    assert len(found.rows) == 40
    found = api.pseudo_label(run, f"{data}/images", str(tmp_path / "labels"))
    assert len(found.rows) == 40
    sources = api.DataSources([data], unlabeled=[f"{data}/images"])
    assert api.check(sources).sources
    assert find_model(run).name == "best"
    assert holds_model("starter")
