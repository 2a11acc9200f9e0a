import pytest
import torch

from plantseg_next.models.decoder import Decoder, sine_position
from plantseg_next.models.segmenter import Scores, Segmenter, build_segmenter
from plantseg_next.settings import ModelSettings
from plantseg_next.structures import ClassMap

CLASSES = ClassMap(("rust", "blight"), ("healthy", "rust", "blight"), has_leaf=True)


@pytest.fixture(scope="module", params=["convnextv2_atto", "test_efficientnet"])
def network(request) -> Segmenter:
    torch.manual_seed(0)
    return build_segmenter(
        ModelSettings(encoder=request.param, start="random"), CLASSES
    ).eval()


@pytest.mark.parametrize(("h", "w"), [(32, 32), (64, 96), (160, 64)])
def test_scores_fit_images_of_any_size(network, h, w):
    with torch.no_grad():
        scores = network(torch.rand(2, 3, h, w)).resized((h, w))
    assert scores.lesion.shape == (2, 3, h, w)
    assert all(torch.isfinite(score).all() for score in scores)
    assert scores.leaf.shape == (2, 2, h, w)
    assert scores.disease.shape == (2, 3)


def test_a_data_set_without_diseases_has_no_disease_scores():
    network = build_segmenter(
        ModelSettings(encoder="test_convnext", start="random"), ClassMap(("lesion",))
    )
    assert network(torch.rand(1, 3, 32, 32)).disease.shape == (1, 0)


@pytest.mark.parametrize("image", [torch.zeros(1, 3, 64, 64), torch.rand(1, 3, 32, 32)])
def test_tiles_without_any_spread_have_finite_gradients(network, image):
    """A flat tile has no spread, nor has the single cell of the coarsest stage."""
    sum(s.square().mean() for s in network(image)).backward()
    slopes = [p.grad for p in network.parameters() if p.grad is not None]
    network.zero_grad()
    assert all(torch.isfinite(slope).all() for slope in slopes)


def test_every_parameter_learns(network):
    scores = network(torch.rand(2, 3, 64, 64))
    sum(s.square().mean() for s in scores).backward()
    still = [n for n, p in network.named_parameters() if p.grad is None]
    network.zero_grad()
    assert not still


def test_there_is_no_batch_normalization(network):
    kinds = {type(m).__name__ for m in network.modules()}
    assert not [kind for kind in kinds if "BatchNorm" in kind]


def test_tiles_of_a_batch_do_not_mix(network):
    one, two = torch.rand(2, 1, 3, 64, 64)
    with torch.no_grad():
        alone = network(one).lesion
        beside = network(torch.cat([one, two])).lesion[:1]
    torch.testing.assert_close(alone, beside, atol=1e-5, rtol=1e-4)


def test_dropout_makes_passes_differ_for_monte_carlo(network):
    x = torch.rand(1, 3, 64, 64)
    dropouts = [m for m in network.modules() if type(m).__name__.startswith("Dropout")]
    live = [m for m in dropouts if m.p > 0]
    assert live
    with torch.no_grad():
        assert torch.equal(network(x).lesion, network(x).lesion)
        for module in live:
            module.train()
        differ = not torch.equal(network(x).lesion, network(x).lesion)
    network.eval()
    assert differ


def test_attention_carries_what_is_far_away():
    """Beyond what GroupNorm's means already carry: the tokens themselves change."""
    torch.manual_seed(0)
    decoder = Decoder((8, 8, 8, 8), width=32, layers=1).eval()
    p4, p5 = torch.rand(1, 32, 8, 8), torch.rand(1, 32, 4, 4)
    changed = p4.clone()
    changed[..., 7, 7] += 1
    with torch.no_grad():
        before, after = decoder._attend(p4, p5), decoder._attend(changed, p5)
    assert not torch.equal(before[0][..., 0, 0], after[0][..., 0, 0])
    assert not torch.equal(before[1][..., 0, 0], after[1][..., 0, 0])  # across scales


def test_a_position_is_that_of_the_cell_in_pixels():
    cpu = torch.device("cpu")
    # Cells of 48 pixels and of 16 have a common center at pixel 24: cell 0 and cell 1.
    fine = sine_position(3, 3, 32, stride=16, device=cpu).unflatten(0, (3, 3))
    coarse = sine_position(1, 1, 32, stride=48, device=cpu)
    torch.testing.assert_close(fine[1, 1], coarse[0])
    assert fine.abs().max() <= 1
    assert len({tuple(row.tolist()) for row in fine.reshape(9, 32)}) == 9


@pytest.mark.parametrize("parts", [("stage_1", "stage_3"), ("decoder", "fine")])
@pytest.mark.parametrize("encoder", ["convnextv2_atto", "test_efficientnet"])
def test_what_is_recomputed_changes_nothing(encoder, parts):
    torch.manual_seed(0)
    network = build_segmenter(
        ModelSettings(encoder=encoder, start="random", dropout=0.3, width=32), CLASSES
    )
    image = torch.rand(2, 3, 64, 64)
    found = []
    for recomputed in ((), parts):
        network.set_checkpointing(recomputed)
        network.zero_grad()
        torch.manual_seed(1)
        scores = network(image)
        sum(s.square().mean() for s in scores).backward()
        found.append({n: p.grad.clone() for n, p in network.named_parameters()})
    for name, expected in found[0].items():
        torch.testing.assert_close(found[1][name], expected, msg=name)


@pytest.mark.parametrize("rows", [slice(0, 16), slice(24, 40), slice(48, 64), slice(5, 7)])
def test_a_stripe_is_a_part_of_the_whole(rows):
    scores = Scores(torch.randn(2, 3, 32, 16), torch.randn(2, 2, 32, 16), torch.zeros(2, 0))
    whole, stripe = scores.resized((64, 32)), scores.row_slice(rows, (64, 32))
    assert torch.equal(stripe.lesion, whole.lesion[:, :, rows])
    assert torch.equal(stripe.leaf, whole.leaf[:, :, rows])


def test_bytes_are_images_too():
    network = build_segmenter(
        ModelSettings(encoder="test_convnext", start="random"), CLASSES
    ).eval()
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(network(image).lesion, network(image / 255).lesion)


def test_segmenter_normalizes_as_the_weights_of_the_encoder_expect():
    """EfficientNet-Lite's weights were trained on images in [-1, 1], ConvNeXt-V2's not."""
    lite, v2 = (
        build_segmenter(ModelSettings(encoder=name), CLASSES, fetch=False)
        for name in ("tf_efficientnet_lite1", "convnextv2_atto")
    )
    image = torch.tensor([0.0, 0.5, 1.0]).view(1, 1, 1, 3).expand(1, 3, 1, 3)
    expected = torch.tensor([-1.0, 0.0, 1.0]).expand(1, 3, 1, 3)
    torch.testing.assert_close(lite._normalized(image), expected)
    torch.testing.assert_close(v2.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))
    torch.testing.assert_close(v2.std.flatten(), torch.tensor([0.229, 0.224, 0.225]))
