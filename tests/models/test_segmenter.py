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
def test_scores_resized_have_the_size_of_the_image(network, h, w):
    with torch.no_grad():
        scores = network(torch.rand(2, 3, h, w)).resized((h, w))
    assert scores.lesion.shape == (2, 3, h, w)
    assert all(torch.isfinite(score).all() for score in scores)
    assert scores.leaf.shape == (2, 2, h, w)
    assert scores.disease.shape == (2, 3)


def test_segmenter_without_diseases_has_no_disease_scores():
    network = build_segmenter(
        ModelSettings(encoder="test_convnext", start="random"), ClassMap(("lesion",))
    )
    assert network(torch.rand(1, 3, 32, 32)).disease.shape == (1, 0)


@pytest.mark.parametrize("image", [torch.zeros(1, 3, 64, 64), torch.rand(1, 3, 32, 32)])
def test_gradients_of_constant_tiles_are_finite(network, image):
    """The deviation of a constant tile is zero, and so is that of a single cell."""
    sum(s.square().mean() for s in network(image)).backward()
    grads = [p.grad for p in network.parameters() if p.grad is not None]
    network.zero_grad()
    assert all(torch.isfinite(grad).all() for grad in grads)


def test_every_parameter_has_a_gradient(network):
    scores = network(torch.rand(2, 3, 64, 64))
    sum(s.square().mean() for s in scores).backward()
    without = [n for n, p in network.named_parameters() if p.grad is None]
    network.zero_grad()
    assert not without


def test_random_start_has_no_batch_normalization(network):
    kinds = {type(m).__name__ for m in network.modules()}
    assert not [kind for kind in kinds if "BatchNorm" in kind]


def test_scores_of_a_tile_do_not_depend_on_the_batch(network):
    one, two = torch.rand(2, 1, 3, 64, 64)
    with torch.no_grad():
        alone = network(one).lesion
        beside = network(torch.cat([one, two])).lesion[:1]
    torch.testing.assert_close(alone, beside, atol=1e-5, rtol=1e-4)


def test_monte_carlo_dropout_passes_differ(network):
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


def test_attention_reaches_distant_cells():
    """Measured before GroupNorm, whose means depend on all cells anyway."""
    torch.manual_seed(0)
    decoder = Decoder((8, 8, 8, 8), width=32, layers=1).eval()
    p4, p5 = torch.rand(1, 32, 8, 8), torch.rand(1, 32, 4, 4)
    changed = p4.clone()
    changed[..., 7, 7] += 1
    with torch.no_grad():
        before, after = decoder._attend(p4, p5), decoder._attend(changed, p5)
    assert not torch.equal(before[0][..., 0, 0], after[0][..., 0, 0])
    assert not torch.equal(before[1][..., 0, 0], after[1][..., 0, 0])  # across scales


def test_sine_position_is_that_of_the_cell_in_pixels():
    cpu = torch.device("cpu")
    # Cells of 48 pixels and of 16 have a common center at pixel 24: cell 0 and cell 1.
    fine = sine_position(3, 3, 32, stride=16, device=cpu).unflatten(0, (3, 3))
    coarse = sine_position(1, 1, 32, stride=48, device=cpu)
    torch.testing.assert_close(fine[1, 1], coarse[0])
    assert fine.abs().max() <= 1
    assert len({tuple(row.tolist()) for row in fine.reshape(9, 32)}) == 9


@pytest.mark.parametrize("parts", [("stage_1", "stage_3"), ("decoder", "fine")])
@pytest.mark.parametrize("encoder", ["convnextv2_atto", "test_efficientnet"])
def test_checkpointing_changes_no_gradient(encoder, parts):
    torch.manual_seed(0)
    network = build_segmenter(
        ModelSettings(encoder=encoder, start="random", dropout=0.3, width=32), CLASSES
    )
    image = torch.rand(2, 3, 64, 64)
    grads = []
    for recomputed in ((), parts):
        network.set_checkpointing(recomputed)
        network.zero_grad()
        torch.manual_seed(1)
        scores = network(image)
        sum(s.square().mean() for s in scores).backward()
        grads.append({n: p.grad.clone() for n, p in network.named_parameters()})
    for name, expected in grads[0].items():
        torch.testing.assert_close(grads[1][name], expected, msg=name)


@pytest.mark.parametrize("rows", [slice(0, 16), slice(24, 40), slice(48, 64), slice(5, 7)])
def test_row_slice_equals_rows_of_the_whole(rows):
    scores = Scores(torch.randn(2, 3, 32, 16), torch.randn(2, 2, 32, 16), torch.zeros(2, 0))
    whole, rows_only = scores.resized((64, 32)), scores.row_slice(rows, (64, 32))
    assert torch.equal(rows_only.lesion, whole.lesion[:, :, rows])
    assert torch.equal(rows_only.leaf, whole.leaf[:, :, rows])


def test_segmenter_on_bytes_equals_floats():
    network = build_segmenter(
        ModelSettings(encoder="test_convnext", start="random"), CLASSES
    ).eval()
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(network(image).lesion, network(image / 255).lesion)


def test_segmenter_normalizes_as_the_encoder_weights_require():
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
