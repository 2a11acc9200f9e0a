import pytest
import torch
from timm.layers.grn import GlobalResponseNorm

from plantseg_next.errors import UsageError
from plantseg_next.experiment import ModelSettings
from plantseg_next.models import encoder as encoder_module
from plantseg_next.models.decoder import Decoder, sine_position
from plantseg_next.models.encoder import Encoder, Origin, ResponseNorm
from plantseg_next.models.segmenter import Scores, Segmenter, build_segmenter
from plantseg_next.structures import ClassMap

CLASSES = ClassMap(("rust", "blight"), ("healthy", "rust", "blight"), has_leaf=True)


@pytest.fixture(scope="module")
def network() -> Segmenter:
    torch.manual_seed(0)
    return build_segmenter(ModelSettings(), CLASSES).eval()


@pytest.mark.parametrize(("h", "w"), [(32, 32), (64, 96), (160, 64)])
def test_scores_fit_pictures_of_any_size(network, h, w):
    with torch.no_grad():
        scores = network(torch.rand(2, 3, h, w)).resized((h, w))
    assert scores.lesion.shape == (2, 3, h, w)
    assert all(torch.isfinite(score).all() for score in scores)
    assert scores.leaf.shape == (2, 2, h, w)
    assert scores.disease.shape == (2, 3)


def test_a_data_set_without_diseases_has_no_disease_scores():
    network = build_segmenter(ModelSettings(), ClassMap(("lesion",)))
    assert network(torch.rand(1, 3, 32, 32)).disease.shape == (1, 0)


@pytest.mark.parametrize("picture", [torch.zeros(1, 3, 64, 64), torch.rand(1, 3, 32, 32)])
def test_tiles_without_any_spread_have_finite_gradients(network, picture):
    """A flat tile has no spread, nor has the single cell of the coarsest stage."""
    sum(s.square().mean() for s in network(picture)).backward()
    slopes = [p.grad for p in network.parameters() if p.grad is not None]
    network.zero_grad()
    assert all(torch.isfinite(slope).all() for slope in slopes)


def test_every_parameter_learns(network):
    scores = network(torch.rand(2, 3, 64, 64))
    sum(s.square().mean() for s in scores).backward()
    still = [n for n, p in network.named_parameters() if p.grad is None]
    network.zero_grad()
    assert not still


def test_there_is_no_batch_normalisation(network):
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
    # Cells of 48 pixels and of 16 have a common centre at pixel 24: cell 0 and cell 1.
    fine = sine_position(3, 3, 32, stride=16, device=cpu).unflatten(0, (3, 3))
    coarse = sine_position(1, 1, 32, stride=48, device=cpu)
    torch.testing.assert_close(fine[1, 1], coarse[0])
    assert fine.abs().max() <= 1
    assert len({tuple(row.tolist()) for row in fine.reshape(9, 32)}) == 9


def test_an_unknown_size_is_refused():
    with pytest.raises(UsageError, match="The encoder size is 'mega'"):
        Encoder("mega")


def test_weights_out_of_reach_are_said_to_be(monkeypatch):
    def unreachable(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(encoder_module.timm, "create_model", unreachable)
    with pytest.raises(UsageError, match="could not be fetched: no route to host"):
        Encoder("atto", weights="permissive")


def test_the_licence_of_the_weights_is_told():
    bound = Origin("convnextv2_atto.fcmae_ft_in1k", "cc-by-nc-4.0")
    assert "no commercial use" in bound.notice
    assert "no commercial use" not in Origin("convnext_atto.d2_in1k", "apache-2.0").notice
    assert Origin().notice == "weights: random start, no licence attached"


@pytest.mark.parametrize("size", list(encoder_module.SIZES))
def test_published_weights_carry_the_licence_we_say(size):
    """timm's own tables, read without the network."""
    v2 = encoder_module.timm.get_pretrained_cfg(f"convnextv2_{size}")
    assert v2.license == "cc-by-nc-4.0" or not v2.has_weights
    free = encoder_module.timm.get_pretrained_cfg(encoder_module.SIZES[size])
    assert free.license == "apache-2.0"


def test_response_normalisation_is_that_of_timm():
    torch.manual_seed(0)
    for last in (True, False):
        theirs = GlobalResponseNorm(8, channels_last=last)
        torch.nn.init.normal_(theirs.weight)
        torch.nn.init.normal_(theirs.bias)
        x = torch.randn(2, 5, 6, 8) if last else torch.randn(2, 8, 5, 6)
        torch.testing.assert_close(ResponseNorm(theirs)(x), theirs(x))


def test_a_network_of_ours_has_no_norm_of_theirs():
    network = build_segmenter(ModelSettings(), CLASSES)
    kinds = [type(m) for m in network.modules()]
    assert kinds.count(ResponseNorm) > 0
    assert GlobalResponseNorm not in kinds


@pytest.mark.parametrize("parts", [("stage_1", "stage_3"), ("decoder", "fine")])
def test_what_is_recomputed_changes_nothing(parts):
    torch.manual_seed(0)
    network = build_segmenter(ModelSettings(dropout=0.3, width=32), CLASSES)
    image = torch.rand(2, 3, 64, 64)
    found = []
    for recomputed in ((), parts):
        network.recompute(recomputed)
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
    whole, stripe = scores.resized((64, 32)), scores.stripe(rows, (64, 32))
    assert torch.equal(stripe.lesion, whole.lesion[:, :, rows])
    assert torch.equal(stripe.leaf, whole.leaf[:, :, rows])


def test_bytes_are_pictures_too():
    network = build_segmenter(ModelSettings(), CLASSES).eval()
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(network(image).lesion, network(image / 255).lesion)
