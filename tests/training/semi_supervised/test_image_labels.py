import copy
import math
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import toy_encoder
from plantseg_next.models.segmenter import build_segmenter
from plantseg_next.settings import ImageLabelSettings, ModelSettings
from plantseg_next.structures import IGNORE, ClassMap
from plantseg_next.training.callbacks.diagnostics import unreliable_cam_seeds
from plantseg_next.training.semi_supervised import image_labels
from plantseg_next.training.semi_supervised.ema_teacher import EmaTeacher
from plantseg_next.training.semi_supervised.image_labels import (
    ImageLabelSupervision,
    cam_seed_classes,
)

CLASSES = ClassMap(("rust", "mildew"), ("healthy", "mildew", "odd", "rust"), has_leaf=True)
HEALTHY, MILDEW, ODD, RUST = range(4)
NAMES = ImageLabelSettings(fraction=0.5)


def seeds_of(activation, disease, *, leaf=None, inside=None):
    activation = torch.as_tensor(activation, dtype=torch.float32).view(1, -1, 10)
    everywhere = torch.ones_like(activation, dtype=torch.bool)
    return ImageLabelSupervision(NAMES, CLASSES).cam_seeds(
        activation,
        everywhere if leaf is None else leaf,
        everywhere if inside is None else inside,
        torch.tensor([disease], dtype=torch.uint8),
    )[0]


def test_seed_class_is_the_lesion_of_the_same_name():
    assert cam_seed_classes(CLASSES) == (0, 2, IGNORE, 1)
    one = ClassMap(("lesion",), ("Healthy_leaf", "scab"), has_leaf=False)
    assert cam_seed_classes(one) == (0, 1)


def test_seeds_high_is_lesion_low_is_none_between_is_ignored():
    found = seeds_of(range(100), MILDEW).flatten()
    assert (found[:50] == 0).all()
    assert (found[50:94] == IGNORE).all()
    assert (found[95:] == 2).all()


def test_seeds_off_leaf_are_none_and_outside_image_ignored():
    leaf = torch.zeros(1, 10, 10, dtype=torch.bool)
    leaf[:, :5] = True
    inside = torch.ones_like(leaf)
    inside[:, 9] = False
    found = seeds_of(range(100), RUST, leaf=leaf, inside=inside)
    assert (found[5:9] == 0).all()
    assert (found[9] == IGNORE).all()
    assert (found[4, 8:] == 1).all()  # the highest twentieth of the leaf


def test_contrast_is_healthy_or_all_others():
    assert ImageLabelSupervision(NAMES, CLASSES).contrast_weights(
        torch.device("cpu")
    ).tolist() == [1, 0, 0, 0]
    ill = ClassMap(("rust",), ("rust", "scab"))
    assert ImageLabelSupervision(NAMES, ill).contrast_weights(
        torch.device("cpu")
    ).tolist() == [0.5, 0.5]


def test_healthy_tile_is_seeded_as_none_everywhere():
    assert (seeds_of(range(100), HEALTHY) == 0).all()


@pytest.mark.parametrize("disease", [ODD, IGNORE])
def test_unknown_label_gives_no_seeds(disease):
    assert (seeds_of(range(100), disease) == IGNORE).all()


@pytest.mark.parametrize(
    ("disease", "predicted", "contradicted"),
    [
        (HEALTHY, 0, []),
        (HEALTHY, 2, range(100)),
        (RUST, 0, range(25, 50)),  # on the leaf, which is the first half, the upper half
        (RUST, 1, []),
        (ODD, 0, []),
        (IGNORE, 2, []),
    ],
)
def test_contradicts_label_by_disease_and_prediction(disease, predicted, contradicted):
    activation = torch.arange(100.0).view(1, 10, 10)
    label = torch.full((1, 10, 10), predicted, dtype=torch.uint8)
    found = ImageLabelSupervision(NAMES, CLASSES).contradicts_label(
        label, activation, activation < 50, torch.tensor([disease], dtype=torch.uint8)
    )
    assert found.flatten().nonzero().flatten().tolist() == list(contradicted)


def test_contradicts_label_is_false_without_leaf():
    label = torch.zeros(1, 10, 10, dtype=torch.uint8)
    found = ImageLabelSupervision(NAMES, CLASSES).contradicts_label(
        label, torch.rand(1, 10, 10), label > 0, torch.tensor([RUST], dtype=torch.uint8)
    )
    assert not found.any()


def test_constant_activation_or_no_leaf_gives_no_seeds():
    assert (seeds_of([0.0] * 100, RUST) == IGNORE).all()
    leaf = torch.zeros(1, 10, 10, dtype=torch.bool)
    assert (seeds_of(range(100), RUST, leaf=leaf) == IGNORE).all()


@given(st.integers(0, 2**31), st.floats(0.6, 0.99), st.floats(0, 0.5))
def test_number_of_seeds_follows_the_quantiles(seed, high, low):
    generator = torch.Generator().manual_seed(seed)
    activation = torch.rand(400, generator=generator)
    with patch.multiple(image_labels, HIGH=high, LOW=low):
        found = seeds_of(activation, RUST)
    assert (found == 1).float().mean() == pytest.approx(1 - high, abs=0.01)
    assert (found == 0).float().mean() == pytest.approx(low, abs=0.01)


def test_precision_and_recall_are_counted_and_imprecise_disease_excluded():
    weak = ImageLabelSupervision(NAMES, CLASSES)
    # nothing is measured yet
    assert weak.reliable_classes()[:4].tolist() == [True, False, False, False]
    lesion = torch.zeros(2, 4, 4, dtype=torch.uint8)
    lesion[0, 0] = 1  # four pixels of rust
    lesion[1, 0] = 2  # and of mildew
    seeds = torch.zeros_like(lesion)
    seeds[0, 0, :3] = 1
    seeds[0, 1, :1] = 1  # three of four are right
    seeds[1, 3] = 2
    seeds[1, 0, :1] = 2  # one of five is right
    metrics = weak.update_precision(
        seeds, lesion, torch.tensor([RUST, MILDEW], dtype=torch.uint8)
    )
    assert metrics == pytest.approx(
        {
            "cam_seed_precision/mildew": 1 / 5,
            "cam_seed_recall/mildew": 1 / 4,
            "cam_seed_precision/rust": 3 / 4,
            "cam_seed_recall/rust": 3 / 4,
        }
    )
    trusted = weak.reliable_classes()
    assert trusted[RUST]
    assert not trusted[MILDEW]
    assert trusted[HEALTHY]
    assert not trusted[ODD]  # has no seed class
    (event,) = unreliable_cam_seeds(metrics, 0.5)
    assert event.text.startswith("CAM seeds of `mildew` are lesion in 20%")
    (event,) = unreliable_cam_seeds(
        {"cam_seed_precision/rust": math.nan, "cam_seed_precision/rot": 0.5}, 0.5
    )
    assert event.kind == "cam-seeds-unmeasured"
    assert "how precise the CAM seeds of `rust` are; they are not used" in event.text
    again = ImageLabelSupervision(NAMES, CLASSES)
    again.load_state_dict(weak.state_dict())
    assert torch.equal(again.reliable_classes(), trusted)


def test_layer_cam_equals_written_out_formula():
    """The gradient is computed numerically."""
    torch.manual_seed(0)
    network = build_segmenter(
        ModelSettings(encoder=toy_encoder.NAME, start="random", width=32, layers=1), CLASSES
    ).eval()
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        stages = network.encoder((image - network.mean) / network.std)
        stages = [s.double().contiguous() for s in stages]
    summary, head = (
        copy.deepcopy(part).double()
        for part in (network.global_stats, network.disease_head)
    )

    def score(*stages):
        logits = head(summary(*stages))[0]
        return logits[RUST] - logits[HEALTHY]

    maps = []
    for i, stage in enumerate(stages[:3]):
        leaf = [s.clone().requires_grad_() for s in stages]
        (gradient,) = torch.autograd.grad(score(*leaf), leaf[i])
        for index in torch.randperm(stage.numel())[:40].tolist():
            ends = []
            for step in (1e-5, -1e-5):
                moved = [s.clone() for s in stages]
                moved[i].view(-1)[index] += step
                ends.append(float(score(*moved).detach()))
            numeric = (ends[0] - ends[1]) / 2e-5
            assert numeric == pytest.approx(float(gradient.view(-1)[index]), abs=1e-6)
        map_ = (gradient.clamp_min(0) * stage).sum(1, keepdim=True).clamp_min(0)
        maps.append(
            torch.nn.functional.interpolate(map_ / map_.max(), (16, 16), mode="bilinear")
        )
    contrast = ImageLabelSupervision(NAMES, CLASSES).contrast_weights(image.device)
    found = network.layer_cam(image, torch.tensor([RUST]), contrast)
    assert torch.allclose(found.double(), torch.cat(maps, 1).mean(1), atol=1e-4)
    assert not network.layer_cam(image, torch.tensor([IGNORE]), contrast).any()


@pytest.mark.parametrize("bfloat16", [False, True])
def test_offloaded_teacher_gives_same_layer_cam(bfloat16):
    torch.manual_seed(0)
    network = build_segmenter(
        ModelSettings(encoder=toy_encoder.NAME, start="random", width=32, layers=1), CLASSES
    )
    image = torch.rand(2, 3, 64, 64)
    disease = torch.tensor([RUST, IGNORE], dtype=torch.uint8)
    resident, offloaded = (
        EmaTeacher(network, decay=0.9, bfloat16=bfloat16, offload_to_cpu=offload)
        for offload in (False, True)
    )
    contrast = torch.full((4,), 0.25)
    assert torch.equal(
        resident.layer_cam(image, disease, contrast),
        offloaded.layer_cam(image, disease, contrast),
    )
