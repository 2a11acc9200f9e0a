"""The report: sums over images, unknown annotations, subsets and output files."""

import csv
import json
import math
from pathlib import Path

import jaxtyping
import numpy as np
import pytest

from plantseg_next.errors import DataError, OutputError
from plantseg_next.evaluation import report as report_module
from plantseg_next.evaluation.grouped import Metric
from plantseg_next.evaluation.metrics import Confusion, Overlap
from plantseg_next.evaluation.report import EvalItem, evaluate
from plantseg_next.evaluation.severity_agreement import severity_agreement
from plantseg_next.structures import ClassMap, Prediction, Sample, SkippedImage

CLASSES = ClassMap(("rust", "blight", "scab"), ("healthy", "rust"), True)


def plain_severity(lesion, leaf):
    if leaf is None or not (leaf == 1).any():
        return None
    return 100.0 * ((lesion > 0) & (lesion < 255) & (leaf == 1)).sum() / (leaf == 1).sum()


def make_image(seed, *, group=None, leaf=True, lesions=True, head=True, source="field"):
    rng = np.random.default_rng(seed)
    truth = np.zeros((24, 20), np.uint8)
    truth[4:20, 3 : 5 + seed % 12] = 1 + seed % 2
    predicted = truth.copy()
    predicted[rng.random(truth.shape) < 0.05] = 1
    on_leaf = np.ones(truth.shape, np.uint8)
    on_leaf[:2] = 0
    probability = np.where(on_leaf, 0.9, 0.1).astype(np.float16)
    unknown = np.full(truth.shape, 255, np.uint8)
    return EvalItem(
        Sample(
            key=f"{source}/{seed}",
            image=np.zeros((24, 20, 3), np.uint8),
            lesion=truth if lesions else unknown,
            leaf=on_leaf if leaf else unknown,
            disease=1 if head else 255,
        ),
        Prediction(
            predicted,
            (predicted > 0).astype(np.float16),
            probability if leaf else None,
            (0.3, 0.7) if seed % 3 else (0.6, 0.4),
        ),
        source=source,
        group=group or f"leaf {seed}",
        disease="rust",
    )


def report_of(items, source_domain=()):
    return evaluate(items, CLASSES, severity=plain_severity, source_domain=source_domain)


def test_report_scores_equal_those_of_all_pixels_together():
    items = [make_image(i) for i in range(8)]
    report = report_of(iter(items))
    truth = np.concatenate([item.sample.lesion for item in items])
    predicted = np.concatenate([item.prediction.lesion for item in items])
    whole = Sample("all", np.zeros((*truth.shape, 3), np.uint8), truth, truth)
    prediction = Prediction(predicted, np.zeros(truth.shape, np.float16), None)
    confusion, overlap = Confusion(4), Overlap(4)
    for metric in (confusion, overlap):
        metric.update(whole, prediction)
    np.testing.assert_array_equal(report.confusion, confusion.counts)
    scores = overlap.compute()
    for name in (
        "mean_iou", "mean_accuracy", "disease_miou", "lesion_dice", "lesion_iou",
        "lesion_precision", "lesion_recall",
    ):  # fmt: skip
        estimate = getattr(report, name)
        assert estimate.value == pytest.approx(float(scores[name])), name
        assert estimate.low <= estimate.value <= estimate.high, name
        assert estimate.n_groups == 8
    assert [row.name for row in report.classes] == ["no lesion", *CLASSES.lesions]
    assert math.isnan(report.classes[3].iou)
    assert report.disease_accuracy.value == pytest.approx(5 / 8)
    assert report.leaf_iou.value == report.leaf_boundary_f1.value == 1.0
    assert 0 < report.lesion_boundary_f1.value <= 1


def test_report_severity_equals_severity_agreement():
    items = [make_image(i) for i in range(8)]
    report = report_of(items)
    truth, predicted = (
        np.array([getattr(row, name) for row in report.images])
        for name in ("severity_truth", "severity_predicted")
    )
    assert report.severity.agreement == severity_agreement(truth, predicted)
    rho_c = report.severity.rho_c
    assert rho_c.low <= rho_c.value <= rho_c.high
    assert truth[3] == plain_severity(items[3].sample.lesion, items[3].sample.leaf)


def test_report_interval_of_one_group_is_undefined():
    report = report_of(make_image(i, group="one leaf") for i in range(4))
    assert (report.n_images, report.n_groups) == (4, 1)
    assert math.isnan(report.lesion_dice.low)
    assert not math.isnan(report.lesion_dice.value)


def test_report_excludes_unknown_annotations():
    known = [make_image(i) for i in range(4)]
    alone = report_of(known)
    mixed = report_of(
        [*known, make_image(5, lesions=False), make_image(6, leaf=False, head=False)]
    )
    assert mixed.n_lesion_images == mixed.n_leaf_images == 5
    assert math.isnan(mixed.images[4].lesion_dice)
    assert math.isnan(mixed.images[4].severity_truth)
    assert mixed.severity == alone.severity
    assert mixed.disease_accuracy.n_groups == 5


def test_report_severity_excludes_ignored_pixels_of_the_prediction():
    item = make_image(4)
    item.sample.lesion[:, 10:] = 255
    item.sample.leaf[:, 10:] = 255
    item.prediction.lesion[:, 10:] = 1
    row = report_of([item]).images[0]
    seen = item.prediction.lesion[:, :10]
    expected = 100 * (seen[2:] > 0).sum() / seen[2:].size
    assert row.severity_predicted == pytest.approx(expected)


def test_report_without_a_leaf_head_states_missing_severity():
    items = [make_image(i) for i in range(3)]
    without_leaf = [
        EvalItem(
            item.sample,
            Prediction(item.prediction.lesion, item.prediction.lesion_probability, None),
            item.source,
            item.group,
        )
        for item in items
    ]
    report = report_of(without_leaf)
    assert (report.severity.agreement.n, report.severity.n_without) == (0, 3)
    assert report.leaf_dice.n_groups == report.disease_accuracy.n_groups == 0
    assert "0 images; 3 more have a true severity but no predicted one" in (
        report.to_text()
    )
    assert report.diseases == ()


def test_report_has_rows_of_sources_and_diseases():
    report = report_of(
        [make_image(0), make_image(1), make_image(2, source="glasshouse", leaf=False)]
    )
    assert [(row.name, row.n_images) for row in report.sources] == [
        ("field", 2),
        ("glasshouse", 1),
    ]
    assert [(row.name, row.n_images) for row in report.diseases] == [("rust", 3)]
    assert report.diseases[0].lesion_dice == report.lesion_dice


def test_report_target_domain_is_a_ratio_of_means():
    """The ratio is computed by hand; it needs data sets of both domains."""
    items = [make_image(i) for i in range(6)]
    items += [make_image(i, source=f"crop {i % 2}") for i in range(6, 12)]
    report = report_of(items, source_domain={"field", "elsewhere"})
    dice = {row.name: row.lesion_dice.value for row in report.sources}
    expected = (dice["crop 0"] + dice["crop 1"]) / 2 / dice["field"]
    assert report.target_domain.value == pytest.approx(expected)
    assert report.target_domain.low < expected < report.target_domain.high
    assert "Dice over source Dice" in report.to_text()
    for source_domain in ((), {"field", "crop 0", "crop 1"}):
        report = report_of(items, source_domain=source_domain)
        assert math.isnan(report.target_domain.value)
        assert "source Dice" not in report.to_text()


def test_report_json_has_null_for_undefined():
    report = report_of([make_image(0)])
    tree = json.loads(report.to_json(), parse_constant=pytest.fail)
    assert tree["lesion_dice"]["low"] is None
    assert tree["classes"][3]["iou"] is None
    assert tree["confusion"] == report.confusion.tolist()
    assert tree["images"][0]["key"] == "field/0"


def test_report_text_is_aligned_and_has_footnotes():
    text = report_of([make_image(i) for i in range(5)]).to_text()
    assert "5 images in 5 groups; lesions known in 5, leaf in 5" in text
    assert "In neither truth nor prediction: scab" in text
    assert "0 for a class that is predicted but absent from the truth" in text
    assert "nan" not in text
    assert max(map(len, text.splitlines())) <= 88
    table = text[text.index("Class  ") :].split("\n\n")[0].splitlines()
    assert len({len(line) for line in table}) == 1


def test_report_of_no_images_is_empty():
    report = report_of([])
    assert report.n_images == 0
    assert math.isnan(report.mean_iou.value)
    assert "0 images" in report.to_text()
    json.loads(report.to_json())


def test_report_write_creates_three_files(tmp_path: Path):
    report_of([make_image(0), make_image(1, leaf=False)]).write(tmp_path / "new" / "report")
    folder = tmp_path / "new" / "report"
    assert sorted(p.name for p in folder.iterdir()) == [
        "images.csv", "report.json", "report.txt",
    ]  # fmt: skip
    with (folder / "images.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["key"] for row in rows] == ["field/0", "field/1"]
    assert rows[1]["severity_truth"] == ""
    assert 0 <= float(rows[1]["lesion_dice"]) <= 1


def test_report_in_an_unwritable_folder_is_refused(tmp_path: Path):
    (tmp_path / "report").write_text("in the way")
    with pytest.raises(OutputError, match="report` cannot be written"):
        report_of([make_image(0)]).write(tmp_path / "report")


def test_report_error_of_an_unknown_class_states_the_image():
    item = make_image(2)
    item.prediction.lesion[0, 0] = 9
    with pytest.raises(DataError, match=r"`field/2`: The prediction holds .* \[9\]"):
        report_of([item])


def test_report_error_of_an_unknown_leaf_value_states_the_image():
    item = make_image(2)
    item.sample.leaf[0, 0] = 2
    with pytest.raises(DataError, match=r"`field/2`: The true mask holds .* \[2\]"):
        report_of([item])


def test_report_of_a_prediction_of_another_size_is_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    small = np.zeros((3, 3), np.uint8)
    item = EvalItem(
        make_image(1).sample, Prediction(small, small.astype(np.float16), None), "a", "b"
    )
    with pytest.raises(ValueError, match="never resize the truth"):
        report_of([item])


@pytest.mark.parametrize(("n", "warns"), [(1, True), (9, True), (10, False)])
def test_report_of_few_groups_has_a_warning(n, warns):
    text = report_of([make_image(i) for i in range(n)]).to_text()
    assert ("Too few groups for conclusions about other images" in text) is warns


REFERENCE = {
    "mean_iou": (0.872688768489852, 0.8220670202388247, 0.8970344864511488),
    "mean_accuracy": (0.9638480392156863, 0.9589520838264549, 0.9668405541712111),
    "disease_miou": (0.8320110939112487, 0.7571760613561357, 0.8671454027946596),
    "lesion_dice": (0.9227600411946447, 0.884552046503266, 0.9452638642896705),
    "lesion_iou": (0.8565965583173997, 0.7930016311118532, 0.8962088660923373),
    "lesion_precision": (0.8565965583173997, 0.7930016311118532, 0.8962088660923373),
    "lesion_recall": (1.0, 1.0, 1.0),
    "lesion_boundary_f1": (0.8454258675078865, 0.8187604302985917, 0.8715953307392996),
    "leaf_iou": (1.0, 1.0, 1.0),
    "leaf_dice": (1.0, 1.0, 1.0),
    "leaf_boundary_f1": (1.0, 1.0, 1.0),
    "disease_accuracy": (0.6, 0.2222222222222222, 0.9090909090909091),
    "target_domain": (1.0366708970676641, 0.8002711323763956, 1.0747550650713564),
}
"""Value and interval of every score, from the report before its metrics were objects."""


def test_report_equals_a_stored_reference():
    items = [
        make_image(
            i,
            group=f"leaf {i % 5}" if i < 8 else f"plot {i % 3}",
            source="field" if i < 8 else "crop",
            leaf=i != 6,
            lesions=i != 9,
            head=i % 4 != 1,
        )
        for i in range(14)
    ]
    report = report_of(items, source_domain={"field"})
    assert report.estimates.keys() == REFERENCE.keys()
    for name, expected in REFERENCE.items():
        estimate = getattr(report, name)
        values = (estimate.value, estimate.low, estimate.high)
        assert values == pytest.approx(expected, rel=1e-12), name
        assert estimate.n_groups == 8
    assert (report.n_images, report.n_lesion_images, report.n_leaf_images) == (14, 13, 13)
    severity = report.severity
    assert (severity.agreement.n, severity.n_without) == (12, 0)
    values = (severity.rho_c.value, severity.rho_c.low, severity.rho_c.high)
    expected = (0.9617368224477311, 0.8759324857100041, 0.9742023994802336)
    assert values == pytest.approx(expected, rel=1e-12)
    crop, field = report.sources
    assert (crop.n_images, field.n_images) == (5, 8)
    assert crop.lesion_dice.low == pytest.approx(0.7272727272727273, rel=1e-12)
    assert field.lesion_iou.high == pytest.approx(0.8549618320610687, rel=1e-12)
    (rust,) = report.diseases
    assert rust.lesion_dice == report.lesion_dice
    assert report.confusion.sum() == 6240
    assert [row.truth_px for row in report.classes] == [4896, 704, 640, 0]


def test_report_lists_skipped_images_and_scores_the_rest():
    items = [make_image(i) for i in range(3)]
    broken = SkippedImage("field/9", "`9.png` cannot be read.")
    report = report_of([items[0], broken, *items[1:]])
    assert report.skipped == (broken,)
    assert report.estimates == report_of(items).estimates
    assert "In no score, because unreadable (1): field/9" in report.to_text()
    assert json.loads(report.to_json())["skipped"] == [broken._asdict()]
    assert "unreadable" not in report_of(items).to_text()


def test_report_shows_a_score_without_a_label_under_its_name(monkeypatch):
    class Coverage(Metric):
        def __init__(self):
            self.n_images, self.counts = 0, np.zeros(2, np.int64)

        def update(self, truth, prediction):
            self.n_images += 1
            self.counts += [(prediction.lesion > 0).sum(), truth.lesion.size]

        def compute(self):
            return {"lesion_fraction": np.asarray(self.counts[0] / self.counts[1])}

    real = report_module.report_metrics
    monkeypatch.setattr(
        report_module, "report_metrics", lambda n: real(n) | {"coverage": Coverage()}
    )
    report = report_of([make_image(i) for i in range(5)])
    assert 0 < report.lesion_fraction.low < report.lesion_fraction.high < 1
    assert "Further scores" in report.to_text()
    assert "\n  lesion fraction " in report.to_text()
    assert "lesion_fraction" in json.loads(report.to_json())


def test_report_without_a_score_of_that_name_raises_attribute_error():
    with pytest.raises(AttributeError, match="a report has no 'lesion_dise'"):
        _ = report_of([make_image(0)]).lesion_dise
