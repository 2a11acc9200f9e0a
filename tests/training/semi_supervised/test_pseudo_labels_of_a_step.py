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
from plantseg_next.training.semi_supervised.pseudo_labeled_batch import PseudoLabeledBatch
from plantseg_next.training.semi_supervised.pseudo_labels import PseudoLabeler, dropout_on
from plantseg_next.training.step import learn, unsup_loss, unsup_stats

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


def drawn(n=2, size=64, n_strong=1, seed=0):
    chance = torch.Generator().manual_seed(seed)
    image = torch.rand(n, 3, size, size, generator=chance)
    inside = torch.ones(n, size, size, dtype=torch.bool)
    inside[:, :5] = False
    return TrainBatch(
        Batch(
            image=torch.rand(n, 3, size, size, generator=chance),
            lesion=torch.randint(0, 3, (n, size, size), generator=chance),
            leaf=torch.ones(n, size, size, dtype=torch.long),
            disease=torch.full((n,), IGNORE),
            keys=("labeled",) * n,
        ),
        UnlabeledBatch(
            image,
            torch.stack([image] * n_strong),
            inside,
            torch.full((n,), IGNORE),
            ("unlabeled",) * n,
        ),
    )


def make_pseudo_labeler(student=None, **changes):
    settings = SemiSettings(**(PLAIN | changes))
    return PseudoLabeler(EmaTeacher(student or network(), decay=0.9), settings, CLASSES)


class Stub:
    """A teacher that says one thing of every pixel."""

    def __init__(self, lesion):
        self.lesion = torch.tensor(lesion)

    def on_device(self, _device):
        return nullcontext()

    def __call__(self, image):
        b, _, h, w = image.shape
        lesion = self.lesion.view(1, 3, 1, 1).expand(b, 3, h // 2, w // 2)
        leaf = torch.tensor([-9.0, 9.0]).view(1, 2, 1, 1).expand(b, 2, h // 2, w // 2)
        return Scores(lesion, leaf, lesion.new_zeros(b, 0))


def test_a_sure_teacher_becomes_a_label_and_a_doubtful_one_is_ignored():
    pseudo_labeler = make_pseudo_labeler()
    one = drawn()
    pseudo_labeler.teacher = Stub([0.0, 9.0, 0.0])
    sure = pseudo_labeler.make_targets([one])[0]
    inside = one.unlabeled.valid
    assert (sure.lesion[inside] == 1).all()
    assert (sure.leaf[inside] == 1).all()
    assert (sure.lesion[~inside] == IGNORE).all()
    pseudo_labeler.teacher = Stub([0.0, 0.5, 0.0])
    doubtful = pseudo_labeler.make_targets([one])[0]
    assert (doubtful.lesion == IGNORE).all()


def test_lessons_wait_until_the_teacher_finds_a_lesion():
    pseudo_labeler = make_pseudo_labeler(warmup_fraction=0.2, rampup_fraction=0.5)
    batch = [drawn()]
    pseudo_labeler.teacher = Stub([9.0, 0.0, 0.0])
    for step in range(100):
        pseudo_labeler.begin_step(step, 100, batch, profile=False)
        assert pseudo_labeler.weight is None
    pseudo_labeler.teacher = Stub([0.0, 9.0, 0.0])
    pseudo_labeler.begin_step(10, 100, batch, profile=False)
    assert pseudo_labeler.weight is None  # too early in the run
    pseudo_labeler.begin_step(20, 100, batch, profile=False)
    assert pseudo_labeler.weight == pytest.approx(0.0067, abs=1e-4)
    pseudo_labeler.begin_step(70, 100, batch, profile=False)
    assert pseudo_labeler.weight == pytest.approx(1.0)


def test_a_lesion_may_be_found_at_a_point():
    one = drawn()
    nothing = torch.full_like(one.labeled.lesion, IGNORE)
    pseudo_labeler = make_pseudo_labeler()
    pseudo_labeler.teacher = Stub([0.0, 9.0, 0.0])
    for points, begins in ((nothing, False), (one.labeled.lesion, True)):
        labeled = replace(one.labeled, lesion=nothing, sparse_target=points)
        pseudo_labeler.begin_step(0, 100, [one._replace(labeled=labeled)], profile=False)
        assert (pseudo_labeler.weight is not None) is begins


def test_a_weight_of_zero_keeps_the_teacher_and_asks_it_nothing():
    pseudo_labeler = make_pseudo_labeler(consistency_weight=0.0)
    for rehearsal in (False, True):
        pseudo_labeler.begin_step(50, 100, [drawn()], profile=rehearsal)
        assert pseudo_labeler.weight is None


def test_a_rehearsal_costs_a_lesson_and_teaches_nothing():
    student = network()
    pseudo_labeler = make_pseudo_labeler(student, warmup_fraction=1.0)
    batch = [drawn()]
    weights = LossSettings()
    learn(student, batch, weights, lambda loss: loss.backward())
    alone = {n: p.grad.clone() for n, p in student.named_parameters() if p.grad is not None}
    student.zero_grad()
    pseudo_labeler.begin_step(0, 100, batch, profile=True)
    parts = learn(student, batch, weights, lambda loss: loss.backward(), pseudo_labeler)
    assert "unsup_lesion" in parts
    for name, parameter in student.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, alone[name])


@pytest.mark.parametrize("method", ["mean_teacher", "weak_to_strong"])
@pytest.mark.parametrize("n_strong", [1, 2])
def test_lessons_in_micro_batches_give_the_gradient_of_the_large_batch(method, n_strong):
    student = network()
    found = []
    for batches in ([drawn(4, n_strong=n_strong)], halves(drawn(4, n_strong=n_strong))):
        pseudo_labeler = make_pseudo_labeler(
            student, method=method, threshold=0.4, cut_mix=0.8
        )
        pseudo_labeler.weight = 1.0
        student.zero_grad()
        torch.manual_seed(0)  # the same boxes
        learn(
            student, batches, LossSettings(), lambda loss: loss.backward(), pseudo_labeler
        )
        found.append(student.lesion_head.weight.grad.clone())
    assert (found[0] - found[1]).norm() < 1e-3 * found[0].norm()


def halves(one):
    labeled, views = one
    return [
        TrainBatch(labeled.select(these), views.select(these))
        for these in (slice(2), slice(2, 4))
    ]


def unsup(scores, pseudo_labeled):
    return unsup_loss(unsup_stats(scores, pseudo_labeled), 1.0).total


def test_what_is_not_believed_has_no_gradient():
    logits = torch.randn(1, 3, 8, 8, requires_grad=True)
    leaf = torch.randn(1, 2, 8, 8, requires_grad=True)
    label = torch.full((1, 8, 8), IGNORE)
    label[0, :2] = 1
    pseudo_labeled = PseudoLabeledBatch(
        torch.zeros(1, 3, 8, 8),
        label,
        torch.full((1, 8, 8), IGNORE),
        torch.ones(1, 8, 8, dtype=torch.bool),
    )
    scores = Scores(logits, leaf, torch.zeros(1, 0))
    for said in (None, scores):  # weak to strong, mean teacher
        logits.grad = leaf.grad = None
        shifted = said and Scores(
            logits.detach() + 1.0 * logits.detach(), leaf, said.disease
        )
        with_scores = PseudoLabeledBatch(
            pseudo_labeled.image,
            pseudo_labeled.lesion,
            pseudo_labeled.leaf,
            pseudo_labeled.valid,
            shifted,
        )
        unsup(scores, with_scores).backward()
        assert logits.grad[0, :, :2].any()
        assert not logits.grad[0, :, 2:].any()
        assert leaf.grad is None or not leaf.grad.any()


def named(diseases, **changes):
    """Lessons on tiles with names, by a teacher who looks at the upper left corner."""
    classes = ClassMap(CLASSES.lesions, ("healthy", CLASSES.lesions[0]), has_leaf=True)
    settings = SemiSettings(**(PLAIN | changes))
    weak = ImageLabelSupervision(ImageLabelSettings(fraction=0.5), classes)
    right = torch.ones(1, 4, 4, dtype=torch.uint8)
    weak.update_precision(
        right, right, torch.tensor([1], dtype=torch.uint8)
    )  # its seeds are trusted
    pseudo_labeler = PseudoLabeler(
        EmaTeacher(network(), decay=0.9), settings, classes, weak
    )

    class Seer(Stub):
        def layer_cam(self, image, _disease, _against):
            found = torch.zeros(len(image), 16, 16)
            found[:, :4, :4] = torch.linspace(1, 2, 16).view(4, 4)
            return found

    pseudo_labeler.teacher = Seer([0.0, 0.1, 0.0])
    labeled, views = drawn(len(diseases))
    views = replace(views, disease=torch.tensor(diseases, dtype=torch.uint8))
    return pseudo_labeler, TrainBatch(labeled, views)


def test_names_become_seeds_where_the_teacher_is_not_sure():
    pseudo_labeler, one = named([1, 0, IGNORE])
    (pseudo_labeled,) = pseudo_labeler.make_targets([one])
    assert pseudo_labeled.disease.tolist() == [1, 0, IGNORE]
    ill, healthy, unnamed = pseudo_labeled.cam_seed
    assert (ill[:16, :16] == 1).any()
    assert not (ill[32:, 32:] == 1).any()
    assert (healthy[5:] == 0).all()
    assert (unnamed == IGNORE).all()
    pseudo_labeler.teacher.lesion = torch.tensor([9.0, 0.0, 0.0])  # sure that there is none
    (denied,) = pseudo_labeler.make_targets([one])
    assert not (denied.cam_seed == 1).any()


def test_a_name_that_no_mask_has_judged_gives_no_seed():
    pseudo_labeler, one = named([1, 0])
    pseudo_labeler.image_labels = ImageLabelSupervision(
        pseudo_labeler.image_labels.settings, pseudo_labeler._classes
    )
    (pseudo_labeled,) = pseudo_labeler.make_targets([one])
    ill, healthy = pseudo_labeled.cam_seed
    assert (ill == IGNORE).all()
    assert (healthy[5:] == 0).all()


def test_a_name_denies_what_the_teacher_says():
    pseudo_labeler, one = named([1, 0, IGNORE])
    inside = one.unlabeled.valid[0]
    pseudo_labeler.teacher.lesion = torch.tensor([9.0, 0.0, 0.0])  # no lesion anywhere
    (pseudo_labeled,) = pseudo_labeler.make_targets([one])
    ill, healthy, unnamed = pseudo_labeled.lesion
    assert (ill[32:, 32:] == 0).all()  # where none is suspected, the teacher is believed
    assert (ill[5:12, :12] == IGNORE).all()
    assert not (pseudo_labeled.cam_seed[0] == 1).any()  # of the two nobody is
    assert (healthy[inside] == 0).all()
    assert (unnamed[inside] == 0).all()
    pseudo_labeler.teacher.lesion = torch.tensor([0.0, 9.0, 0.0])  # a lesion everywhere
    (pseudo_labeled,) = pseudo_labeler.make_targets([one])
    ill, healthy, unnamed = pseudo_labeled.lesion
    assert (ill[inside] == 1).all()
    assert (healthy == IGNORE).all()
    assert (pseudo_labeled.cam_seed[1][inside] == 0).all()
    assert (unnamed[inside] == 1).all()


def test_seeds_lie_where_the_teacher_finds_a_lesion_likeliest():
    pseudo_labeler, one = named([1])

    class Torn(Stub):
        def layer_cam(self, image, _disease, _against):
            return torch.ones(len(image), 16, 16)

        def __call__(self, image):
            scores = super().__call__(image)
            lesion = scores.lesion.clone()
            lesion[:, 1, 20:26, 20:26] += 0.8  # at stride 2, and still unlikely
            lesion[:, 0] += 0.3 * torch.rand(lesion.shape[2:])
            return scores._replace(lesion=lesion)

    pseudo_labeler.teacher = Torn([2.0, 0.0, 0.0])
    (pseudo_labeled,) = pseudo_labeler.make_targets([one])
    found = pseudo_labeled.cam_seed[0] == 1
    assert (pseudo_labeled.lesion == IGNORE).all()
    assert found[38:54, 38:54].sum() > 0.6 * found.sum()


def test_a_tile_that_got_a_box_has_no_name_and_keeps_its_seeds_in_place():
    pseudo_labeler, one = named([1, 0], cut_mix=1.0)
    torch.manual_seed(0)
    (pseudo_labeled,) = pseudo_labeler.make_targets([one])
    assert pseudo_labeled.disease.tolist() == [IGNORE, IGNORE]
    mixed = (pseudo_labeled.image != one.unlabeled.strong[0]).any(1)
    plain, _ = named([1, 0])
    whole = plain.make_targets([one])[0].cam_seed
    assert torch.equal(pseudo_labeled.cam_seed, torch.where(mixed, whole.roll(1, 0), whole))


def test_the_loss_of_names_and_seeds():
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
    stats = unsup_stats(scores, pseudo_labeled)
    found = unsup_loss(stats, 1.0, disease_weight=0.3, cam_seed_weight=0.5)
    entropy = torch.nn.functional.cross_entropy
    name = entropy(scores.disease[:1], torch.tensor([3]))
    pixels = -scores.lesion.log_softmax(1)
    seeds = (pixels[0, 2, 0, :3].mean() + pixels[1, 0, :5].mean()) / 2
    none = unsup_loss(stats, 1.0).total
    assert found.parts["unsup_disease"] == pytest.approx(float(name))
    assert found.parts["unsup_cam_seeds"] == pytest.approx(float(seeds))
    assert found.total - none == pytest.approx(float(0.3 * name + 0.5 * seeds), rel=1e-5)
    striped = unsup_stats(scores, pseudo_labeled, loss_chunk_rows=4)
    again = unsup_loss(striped, 1.0, disease_weight=0.3, cam_seed_weight=0.5)
    assert again.total == pytest.approx(float(found.total), rel=1e-5)
    lesions = torch.tensor([0.0, 1.5, 1.5]).view(3, 1, 1)
    common = scores._replace(lesion=scores.lesion + lesions)
    asked, expected = (
        unsup_loss(stats, 1.0, cam_seed_weight=0.5).parts["unsup_cam_seeds"]
        for stats in (
            unsup_stats(scores, pseudo_labeled, log_prior_odds=torch.tensor(1.5)),
            unsup_stats(common, pseudo_labeled),
        )
    )
    assert asked == pytest.approx(float(expected))


def test_names_teach_only_once_lessons_have_begun():
    pseudo_labeler, one = named([1, 0], warmup_fraction=0.2)
    pseudo_labeler.teacher.lesion = torch.tensor([0.0, 9.0, 0.0])
    pseudo_labeler.begin_step(0, 100, [one], profile=True)
    assert (
        pseudo_labeler.weight,
        pseudo_labeler.disease_weight,
        pseudo_labeler.cam_seed_weight,
    ) == (
        0.0,
        0.0,
        0.0,
    )
    pseudo_labeler.begin_step(35, 100, [one], profile=False)
    assert pseudo_labeler.disease_weight == 1.0
    assert pseudo_labeler.cam_seed_weight == pytest.approx(0.25)
    pseudo_labeler.begin_step(80, 100, [one], profile=False)
    assert pseudo_labeler.cam_seed_weight == 0.0


def test_an_audit_says_how_right_seeds_are():
    pseudo_labeler, one = named([1])
    labeled = one.labeled
    hidden = replace(
        labeled, lesion=labeled.lesion.byte(), disease=torch.tensor([1]).byte()
    )
    metrics = pseudo_labeler.evaluate(network(), hidden)
    seen = metrics[f"cam_seed_precision/{CLASSES.lesions[0]}"]
    assert 0 <= seen <= 1
    kept = pseudo_labeler.light_state_dict()["weak"]["counts"]
    assert kept[1, 0] > 0


def test_two_views_see_complementary_channels():
    torch.manual_seed(0)
    stage = torch.ones(8, 100, 2, 2)
    first, second = drop_complementary_channels(stage).chunk(2)
    assert torch.equal(first + second, torch.full_like(first, 2.0))
    whole = (first == 1).flatten(1).all(1)
    assert 0 < whole.sum() < 4
    assert set(first[~whole].unique().tolist()) == {0.0, 2.0}


def test_dropout_is_on_for_a_while_only():
    net = network(dropout=0.5).eval()
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        still = net(image).lesion
        with dropout_on(net):
            assert not torch.equal(net(image).lesion, net(image).lesion)
        assert torch.equal(net(image).lesion, still)
    assert not net.training


def test_the_dropout_gate_asks_for_passes():
    student = network(dropout=0.5)
    pseudo_labeler = make_pseudo_labeler(
        student, confidence=("dropout", "probability"), threshold=0.4
    )
    one = drawn()
    pseudo_labeler.begin_step(0, 100, [one], profile=False)  # learns its ranks
    pseudo_labeled = pseudo_labeler.make_targets([one])[0]
    assert (pseudo_labeled.lesion != IGNORE).any()


def test_a_micro_batch_of_one_tile_has_partners_to_mix_with():
    pseudo_labeler = make_pseudo_labeler(threshold=0.4, cut_mix=1.0)
    pseudo_labeler.teacher = Stub([0.0, 9.0, 0.0])
    both = halves(drawn(4))
    pseudo_labeled = pseudo_labeler.make_targets(both)
    assert len(pseudo_labeled) == 2
    images = torch.cat([t.image for t in pseudo_labeled])
    own = torch.cat([one.unlabeled.strong[0] for one in both])
    changed = (images != own).any(1)  # (b, h, w)
    assert changed.flatten(1).any(1).all()
    assert torch.equal(
        images.movedim(1, -1)[changed], own.roll(1, 0).movedim(1, -1)[changed]
    )


def test_lessons_go_on_from_a_checkpoint():
    changes = {
        "confidence": ("entropy", "energy"),
        "warmup_fraction": 0.2,
        "rampup_fraction": 0.5,
        "adaptive_threshold": True,
    }
    student = network()
    pseudo_labeler = make_pseudo_labeler(student, threshold=0.4, **changes)
    for step in range(20, 23):
        batch = [drawn(seed=step)]
        pseudo_labeler.begin_step(step, 100, batch, profile=False)
        pseudo_labeler.make_targets(batch)
        pseudo_labeler.teacher.update(network(), steps=100)
    file = io.BytesIO()
    torch.save(pseudo_labeler.state_dict(), file)
    file.seek(0)
    again = make_pseudo_labeler(network(), threshold=0.4, **changes)
    again.load_state_dict(torch.load(file, weights_only=True))
    for step in range(23, 45):
        batch = [drawn(seed=step)]
        for one in (pseudo_labeler, again):
            one.begin_step(step, 100, batch, profile=False)
        assert again.weight == pseudo_labeler.weight
        first, second = pseudo_labeler.make_targets(batch)[0], again.make_targets(batch)[0]
        assert torch.equal(first.lesion, second.lesion)
        assert (first.lesion != IGNORE).any()
        for one in (pseudo_labeler, again):
            one.teacher.update(student, steps=100)
    assert pseudo_labeler.evaluate(student, batch[0].labeled) == pytest.approx(
        again.evaluate(student, batch[0].labeled), nan_ok=True
    )


@pytest.mark.parametrize("confidence", [("probability",), ("entropy",)])
def test_how_a_step_is_parted_changes_no_pseudo_label(confidence):
    """A plan for little memory must not change what is learned."""
    step = drawn(n=4)
    pseudo_labeled = []
    for size in (1, 4):
        pseudo_labeler = make_pseudo_labeler(
            confidence=confidence, threshold=0.5, adaptive_threshold=True
        )
        parts = to_micro_batches(step, size)
        for done in range(3):
            pseudo_labeler.begin_step(done, 10, parts, profile=True)
            tiles = PseudoLabeledBatch.joined(pseudo_labeler.make_targets(parts))
        pseudo_labeled.append(
            (tiles.lesion, tiles.leaf, pseudo_labeler.light_state_dict()["begun"])
        )
    for one, other in zip(*pseudo_labeled, strict=True):
        same = one == other
        # Less than a pixel in a thousand lies within rounding of a threshold.
        assert same if isinstance(same, bool) else same.float().mean() > 0.999
    assert (pseudo_labeled[0][0] != IGNORE).any()
