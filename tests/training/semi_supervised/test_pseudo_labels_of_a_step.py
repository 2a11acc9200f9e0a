import io
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

import toy_encoder
from plantseg_next.data.dataset import TrainBatch, to_micro_batches
from plantseg_next.models.segmenter import (
    Scores,
    build_segmenter,
    drop_complementary_channels,
)
from plantseg_next.settings import (
    ImageLabelSettings,
    LossSettings,
    ModelSettings,
    SemiSettings,
)
from plantseg_next.structures import IGNORE, Batch, ClassMap, UnlabeledBatch
from plantseg_next.training.semi_supervised.ema_teacher import EmaTeacher
from plantseg_next.training.semi_supervised.image_labels import ImageLabelSupervision
from plantseg_next.training.semi_supervised.pseudo_label_metrics import pseudo_label_metrics
from plantseg_next.training.semi_supervised.pseudo_labeled_batch import PseudoLabeledBatch
from plantseg_next.training.semi_supervised.pseudo_labels import PseudoLabeler
from plantseg_next.training.step import count_labels, train_step, unsupervised_losses
from plantseg_next.uncertainty.confidence import dropout_on

CLASSES = ClassMap(("rust", "blight"), (), has_leaf=True)
PLAIN = {
    "cut_mix": 0.0,
    "adaptive_threshold": False,
    "warmup_fraction": 0.0,
    "rampup_fraction": 0.0,
}


def network(dropout=0.0):
    torch.manual_seed(0)
    return build_segmenter(
        ModelSettings(
            encoder=toy_encoder.NAME, start="random", width=32, layers=1, dropout=dropout
        ),
        CLASSES,
    )


def make_batch(n=2, size=64, n_strong=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(n, 3, size, size, generator=generator)
    valid = torch.ones(n, size, size, dtype=torch.bool)
    valid[:, :5] = False
    return TrainBatch(
        Batch(
            image=torch.rand(n, 3, size, size, generator=generator),
            lesion=torch.randint(0, 3, (n, size, size), generator=generator),
            leaf=torch.ones(n, size, size, dtype=torch.long),
            disease=torch.full((n,), IGNORE),
            keys=("labeled",) * n,
        ),
        UnlabeledBatch(
            image,
            torch.stack([image] * n_strong),
            valid,
            torch.full((n,), IGNORE),
            ("unlabeled",) * n,
        ),
    )


def make_pseudo_labeler(student=None, **changes):
    settings = SemiSettings(**(PLAIN | changes))
    return PseudoLabeler(EmaTeacher(student or network(), decay=0.9), settings, CLASSES)


class Stub(EmaTeacher):
    """A teacher with the same prediction for every pixel."""

    def __init__(self, lesion):
        self.lesion = torch.tensor(lesion)

    def on_device(self, _device):
        return nullcontext()

    def __call__(self, image):
        b, _, h, w = image.shape
        lesion = self.lesion.view(1, 3, 1, 1).expand(b, 3, h // 2, w // 2)
        leaf = torch.tensor([-9.0, 9.0]).view(1, 2, 1, 1).expand(b, 2, h // 2, w // 2)
        return Scores(lesion, leaf, lesion.new_zeros(b, 0))


def test_confident_prediction_becomes_label_and_uncertain_is_ignored():
    pseudo_labeler = make_pseudo_labeler()
    one = make_batch()
    pseudo_labeler.teacher = Stub([0.0, 9.0, 0.0])
    confident = pseudo_labeler.make_targets([one])[0]
    inside = one.unlabeled.valid
    assert (confident.lesion[inside] == 1).all()
    assert (confident.leaf[inside] == 1).all()
    assert (confident.lesion[~inside] == IGNORE).all()
    pseudo_labeler.teacher = Stub([0.0, 0.5, 0.0])
    uncertain = pseudo_labeler.make_targets([one])[0]
    assert (uncertain.lesion == IGNORE).all()


def weights_at(pseudo_labeler, step, micro_batches, *, profile=False, steps=100):
    return pseudo_labeler.weights(step, steps, micro_batches, profile=profile)


def step_of(student, micro_batches, pseudo_labeler=None, unsup=None):
    """Take the gradients of a step, as the engine does; return its losses."""
    targets = [] if unsup is None else pseudo_labeler.make_targets(micro_batches)
    return train_step(
        student,
        [part.labeled for part in micro_batches],
        LossSettings(),
        lambda loss: loss.backward(),
        pseudo_labeled=targets,
        unsup=unsup,
        complementary_dropout=unsup is not None
        and pseudo_labeler.settings.strong_views > 1,
    )


def test_unsup_loss_starts_when_the_teacher_finds_a_lesion():
    pseudo_labeler = make_pseudo_labeler(warmup_fraction=0.2, rampup_fraction=0.5)
    batch = [make_batch()]
    pseudo_labeler.teacher = Stub([9.0, 0.0, 0.0])
    for step in range(100):
        assert weights_at(pseudo_labeler, step, batch) is None
    pseudo_labeler.teacher = Stub([0.0, 9.0, 0.0])
    assert weights_at(pseudo_labeler, 10, batch) is None  # too early in the run
    found = weights_at(pseudo_labeler, 20, batch)
    assert found.consistency == pytest.approx(0.0067, abs=1e-4)
    assert weights_at(pseudo_labeler, 70, batch).consistency == pytest.approx(1.0)


def test_unsup_loss_starts_with_a_lesion_found_at_a_point():
    one = make_batch()
    nothing = torch.full_like(one.labeled.lesion, IGNORE)
    pseudo_labeler = make_pseudo_labeler()
    pseudo_labeler.teacher = Stub([0.0, 9.0, 0.0])
    for points, begins in ((nothing, False), (one.labeled.lesion, True)):
        labeled = replace(one.labeled, lesion=nothing, sparse_target=points)
        found = weights_at(pseudo_labeler, 0, [one._replace(labeled=labeled)])
        assert (found is not None) is begins


def test_zero_consistency_weight_never_starts_unsup_loss():
    pseudo_labeler = make_pseudo_labeler(consistency_weight=0.0)
    for profile in (False, True):
        assert weights_at(pseudo_labeler, 50, [make_batch()], profile=profile) is None


def test_profile_step_computes_unsup_loss_without_gradient():
    student = network()
    pseudo_labeler = make_pseudo_labeler(student, warmup_fraction=1.0)
    batch = [make_batch()]
    step_of(student, batch)
    alone = {n: p.grad.clone() for n, p in student.named_parameters() if p.grad is not None}
    student.zero_grad()
    unsup = weights_at(pseudo_labeler, 0, batch, profile=True)
    assert unsup == (0.0, 0.0, 0.0)
    assert "unsup_lesion" in step_of(student, batch, pseudo_labeler, unsup)
    for name, parameter in student.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, alone[name])


@pytest.mark.parametrize("method", ["mean_teacher", "weak_to_strong"])
@pytest.mark.parametrize("n_strong", [1, 2])
def test_targets_do_not_depend_on_the_micro_batch(method, n_strong):
    found = []
    for batches in (
        [make_batch(4, n_strong=n_strong)],
        in_halves(make_batch(4, n_strong=n_strong)),
    ):
        pseudo_labeler = make_pseudo_labeler(method=method, threshold=0.4, cut_mix=0.8)
        torch.manual_seed(0)  # the same boxes
        parts = pseudo_labeler.make_targets(batches)
        views = [
            [part.select(slice(i * n, (i + 1) * n)) for i in range(n_strong)]
            for part in parts
            for n in [len(part.lesion) // n_strong]
        ]
        whole = [PseudoLabeledBatch.joined(of_view) for of_view in zip(*views, strict=True)]
        found.append(PseudoLabeledBatch.joined(whole))
    first, second = found
    assert (first.lesion == second.lesion).float().mean() > 0.999
    assert (first.leaf == second.leaf).float().mean() > 0.999
    assert torch.equal(first.image, second.image)
    assert (first.lesion != IGNORE).any()


def in_halves(one):
    labeled, views = one
    return [
        TrainBatch(labeled.select(these), views.select(these))
        for these in (slice(2), slice(2, 4))
    ]


def with_image_labels(diseases, **changes):
    """A pseudo-labeler with image-level labels, whose CAM is in the upper left corner."""
    classes = ClassMap(CLASSES.lesions, ("healthy", CLASSES.lesions[0]), has_leaf=True)
    settings = SemiSettings(**(PLAIN | changes))
    weak = ImageLabelSupervision(ImageLabelSettings(fraction=0.5), classes)
    right = torch.ones(1, 4, 4, dtype=torch.uint8)
    weak.update_precision(
        right, right, torch.tensor([1], dtype=torch.uint8)
    )  # its seeds are reliable
    pseudo_labeler = PseudoLabeler(
        EmaTeacher(network(), decay=0.9), settings, classes, weak
    )

    class CamStub(Stub):
        def layer_cam(self, image, _disease, _against):
            found = torch.zeros(len(image), 16, 16)
            found[:, :4, :4] = torch.linspace(1, 2, 16).view(4, 4)
            return found

    pseudo_labeler.teacher = CamStub([0.0, 0.1, 0.0])
    labeled, views = make_batch(len(diseases))
    views = replace(views, disease=torch.tensor(diseases, dtype=torch.uint8))
    return pseudo_labeler, TrainBatch(labeled, views)


def test_image_labels_become_seeds_where_teacher_is_uncertain():
    pseudo_labeler, one = with_image_labels([1, 0, IGNORE])
    (pseudo_labeled,) = pseudo_labeler.make_targets([one])
    assert pseudo_labeled.disease.tolist() == [1, 0, IGNORE]
    diseased, healthy, unlabeled = pseudo_labeled.cam_seed
    assert (diseased[:16, :16] == 1).any()
    assert not (diseased[32:, 32:] == 1).any()
    assert (healthy[5:] == 0).all()
    assert (unlabeled == IGNORE).all()
    pseudo_labeler.teacher.lesion = torch.tensor([9.0, 0.0, 0.0])  # certain of "no lesion"
    (denied,) = pseudo_labeler.make_targets([one])
    assert not (denied.cam_seed == 1).any()


def test_disease_with_unmeasured_seeds_gives_no_seed():
    pseudo_labeler, one = with_image_labels([1, 0])
    pseudo_labeler.image_labels = ImageLabelSupervision(
        pseudo_labeler.image_labels.settings, pseudo_labeler.classes
    )
    (pseudo_labeled,) = pseudo_labeler.make_targets([one])
    diseased, healthy = pseudo_labeled.cam_seed
    assert (diseased == IGNORE).all()
    assert (healthy[5:] == 0).all()


def test_contradicted_predictions_are_ignored():
    pseudo_labeler, one = with_image_labels([1, 0, IGNORE])
    inside = one.unlabeled.valid[0]
    pseudo_labeler.teacher.lesion = torch.tensor([9.0, 0.0, 0.0])  # no lesion anywhere
    (pseudo_labeled,) = pseudo_labeler.make_targets([one])
    diseased, healthy, unlabeled = pseudo_labeled.lesion
    assert (diseased[32:, 32:] == 0).all()  # where the CAM is low, the label is kept
    assert (diseased[5:12, :12] == IGNORE).all()
    assert not (pseudo_labeled.cam_seed[0] == 1).any()  # neither source gives a label
    assert (healthy[inside] == 0).all()
    assert (unlabeled[inside] == 0).all()
    pseudo_labeler.teacher.lesion = torch.tensor([0.0, 9.0, 0.0])  # a lesion everywhere
    (pseudo_labeled,) = pseudo_labeler.make_targets([one])
    diseased, healthy, unlabeled = pseudo_labeled.lesion
    assert (diseased[inside] == 1).all()
    assert (healthy == IGNORE).all()
    assert (pseudo_labeled.cam_seed[1][inside] == 0).all()
    assert (unlabeled[inside] == 1).all()


def test_seeds_lie_where_teacher_lesion_probability_is_highest():
    pseudo_labeler, one = with_image_labels([1])

    class UncertainStub(Stub):
        def layer_cam(self, image, _disease, _against):
            return torch.ones(len(image), 16, 16)

        def __call__(self, image):
            scores = super().__call__(image)
            lesion = scores.lesion.clone()
            lesion[:, 1, 20:26, 20:26] += 0.8  # at stride 2, and still unlikely
            lesion[:, 0] += 0.3 * torch.rand(lesion.shape[2:])
            return scores._replace(lesion=lesion)

    pseudo_labeler.teacher = UncertainStub([2.0, 0.0, 0.0])
    (pseudo_labeled,) = pseudo_labeler.make_targets([one])
    found = pseudo_labeled.cam_seed[0] == 1
    assert (pseudo_labeled.lesion == IGNORE).all()
    assert found[38:54, 38:54].sum() > 0.6 * found.sum()


def test_mixed_tile_loses_image_label_and_mixes_seeds():
    pseudo_labeler, one = with_image_labels([1, 0], cut_mix=1.0)
    torch.manual_seed(0)
    (pseudo_labeled,) = pseudo_labeler.make_targets([one])
    assert pseudo_labeled.disease.tolist() == [IGNORE, IGNORE]
    mixed = (pseudo_labeled.image != one.unlabeled.strong[0]).any(1)
    plain, _ = with_image_labels([1, 0])
    whole = plain.make_targets([one])[0].cam_seed
    assert torch.equal(pseudo_labeled.cam_seed, torch.where(mixed, whole.roll(1, 0), whole))


def test_unsup_loss_of_image_labels_and_seeds():
    torch.manual_seed(0)
    scores = Scores(torch.randn(2, 3, 8, 8), torch.randn(2, 2, 8, 8), torch.randn(2, 4))
    nothing = torch.full((2, 8, 8), IGNORE)
    seed = nothing.clone()
    seed[0, 0, :3], seed[1, :5] = 2, 0
    pseudo_labeled = PseudoLabeledBatch(
        torch.zeros(2, 3, 8, 8),
        nothing,
        nothing,
        torch.ones(2, 8, 8, dtype=torch.bool),
        disease=torch.tensor([3, IGNORE]),
        cam_seed=seed,
    )
    counts = count_labels([pseudo_labeled])
    found = unsupervised_losses(scores, pseudo_labeled, counts)
    entropy = torch.nn.functional.cross_entropy
    disease = entropy(scores.disease[:1], torch.tensor([3]))
    pixels = -scores.lesion.log_softmax(1)
    seeds = (pixels[0, 2, 0, :3].mean() + pixels[1, 0, :5].mean()) / 2
    assert float(found["unsup_disease"]) == pytest.approx(float(disease))
    assert float(found["unsup_cam_seeds"]) == pytest.approx(float(seeds))
    chunked = unsupervised_losses(scores, pseudo_labeled, counts, None, 4)
    assert float(chunked["unsup_cam_seeds"]) == pytest.approx(float(seeds), rel=1e-5)
    lesions = torch.tensor([0.0, 1.5, 1.5]).view(3, 1, 1)
    common = scores._replace(lesion=scores.lesion + lesions)
    adjusted, expected = (
        unsupervised_losses(given, pseudo_labeled, counts, odds)["unsup_cam_seeds"]
        for given, odds in ((scores, torch.tensor(1.5)), (common, None))
    )
    assert float(adjusted) == pytest.approx(float(expected))


def test_image_label_weights_start_with_unsup_loss():
    pseudo_labeler, one = with_image_labels([1, 0], warmup_fraction=0.2)
    pseudo_labeler.teacher.lesion = torch.tensor([0.0, 9.0, 0.0])
    assert weights_at(pseudo_labeler, 0, [one], profile=True) == (0.0, 0.0, 0.0)
    found = weights_at(pseudo_labeler, 35, [one])
    assert found.disease == 1.0
    assert found.cam_seeds == pytest.approx(0.25)
    assert weights_at(pseudo_labeler, 80, [one]).cam_seeds == 0.0


def test_evaluate_measures_seed_precision():
    pseudo_labeler, one = with_image_labels([1])
    labeled = one.labeled
    hidden = replace(
        labeled, lesion=labeled.lesion.byte(), disease=torch.tensor([1]).byte()
    )
    metrics = pseudo_label_metrics(pseudo_labeler, network(), hidden)
    seen = metrics[f"cam_seed_precision/{CLASSES.lesions[0]}"]
    assert 0 <= seen <= 1
    kept = pseudo_labeler.state_dict()["image_labels"]["counts"]
    assert kept[1, 0] > 0


def test_two_views_get_complementary_channels():
    torch.manual_seed(0)
    stage = torch.ones(8, 100, 2, 2)
    first, second = drop_complementary_channels(stage).chunk(2)
    assert torch.equal(first + second, torch.full_like(first, 2.0))
    whole = (first == 1).flatten(1).all(1)
    assert 0 < whole.sum() < 4
    assert set(first[~whole].unique().tolist()) == {0.0, 2.0}


def test_dropout_on_is_limited_to_its_context():
    net = network(dropout=0.5).eval()
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        still = net(image).lesion
        with dropout_on(net):
            assert not torch.equal(net(image).lesion, net(image).lesion)
        assert torch.equal(net(image).lesion, still)
    assert not net.training


def test_dropout_confidence_gives_pseudo_labels():
    student = network(dropout=0.5)
    pseudo_labeler = make_pseudo_labeler(
        student, confidence=("dropout", "probability"), threshold=0.4
    )
    one = make_batch()
    pseudo_labeler.weights(0, 100, [one], profile=False)  # calibrates its ranks
    pseudo_labeled = pseudo_labeler.make_targets([one])[0]
    assert (pseudo_labeled.lesion != IGNORE).any()


def test_tiles_are_mixed_across_micro_batches():
    pseudo_labeler = make_pseudo_labeler(threshold=0.4, cut_mix=1.0)
    pseudo_labeler.teacher = Stub([0.0, 9.0, 0.0])
    both = in_halves(make_batch(4))
    pseudo_labeled = pseudo_labeler.make_targets(both)
    assert len(pseudo_labeled) == 2
    images = torch.cat([t.image for t in pseudo_labeled])
    own = torch.cat([one.unlabeled.strong[0] for one in both])
    changed = (images != own).any(1)  # (b, h, w)
    assert changed.flatten(1).any(1).all()
    assert torch.equal(
        images.movedim(1, -1)[changed], own.roll(1, 0).movedim(1, -1)[changed]
    )


def test_resume_of_pseudo_labeler_is_identical():
    changes = {
        "confidence": ("entropy", "energy"),
        "warmup_fraction": 0.2,
        "rampup_fraction": 0.5,
        "adaptive_threshold": True,
    }
    student = network()
    pseudo_labeler = make_pseudo_labeler(student, threshold=0.4, **changes)
    for step in range(20, 23):
        batch = [make_batch(seed=step)]
        pseudo_labeler.weights(step, 100, batch, profile=False)
        pseudo_labeler.make_targets(batch)
        pseudo_labeler.teacher.update(network(), steps=100)
    file = io.BytesIO()
    torch.save([pseudo_labeler.state_dict(), pseudo_labeler.teacher.state_dict()], file)
    file.seek(0)
    again = make_pseudo_labeler(network(), threshold=0.4, **changes)
    labels, teacher = torch.load(file, weights_only=True)
    again.load_state_dict(labels)
    again.teacher.load_state_dict(teacher)
    for step in range(23, 45):
        batch = [make_batch(seed=step)]
        assert weights_at(again, step, batch) == weights_at(pseudo_labeler, step, batch)
        first, second = pseudo_labeler.make_targets(batch)[0], again.make_targets(batch)[0]
        assert torch.equal(first.lesion, second.lesion)
        assert (first.lesion != IGNORE).any()
        for one in (pseudo_labeler, again):
            one.teacher.update(student, steps=100)
    assert pseudo_label_metrics(pseudo_labeler, student, batch[0].labeled) == pytest.approx(
        pseudo_label_metrics(again, student, batch[0].labeled), nan_ok=True
    )


@pytest.mark.parametrize("confidence", [("probability",), ("entropy",)])
def test_pseudo_labels_are_independent_of_micro_batch_size(confidence):
    """A memory plan must not change what is learned."""
    step = make_batch(n=4)
    pseudo_labeled = []
    for size in (1, 4):
        pseudo_labeler = make_pseudo_labeler(
            confidence=confidence, threshold=0.5, adaptive_threshold=True
        )
        parts = to_micro_batches(step, size)
        for done in range(3):
            pseudo_labeler.weights(done, 10, parts, profile=True)
            tiles = PseudoLabeledBatch.joined(pseudo_labeler.make_targets(parts))
        pseudo_labeled.append(
            (tiles.lesion, tiles.leaf, pseudo_labeler.state_dict()["started"])
        )
    for one, other in zip(*pseudo_labeled, strict=True):
        same = one == other
        # Less than a pixel in a thousand lies within rounding of a threshold.
        assert same if isinstance(same, bool) else same.float().mean() > 0.999
    assert (pseudo_labeled[0][0] != IGNORE).any()
