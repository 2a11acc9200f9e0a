"""Models of the toy encoder on disk, and what networks score."""

import torch

import toy_encoder
from plantseg_next.models.bundle import ModelCard, write_bundle
from plantseg_next.models.segmenter import build_segmenter
from plantseg_next.models.start import starting_network, with_start
from plantseg_next.settings import ModelSettings

SHAPE = {"encoder": toy_encoder.NAME, "width": 32, "layers": 1}


def write_model(folder, classes, **changes):
    """Write a model whose every weight tells, heads included; return its network."""
    torch.manual_seed(3)
    settings = ModelSettings(**(SHAPE | {"start": "random"} | changes))
    network = build_segmenter(settings, classes).eval()
    with torch.no_grad():
        for head in (network.lesion_head, network.class_bias_from_global):
            head.weight.normal_(0, 0.5)
            head.bias.normal_()
    card = ModelCard(classes, settings, 64, None, "a.b", "cc-by-nc-4.0", "ab" * 32)
    write_bundle(folder, network, card)
    return network


def started(folder, classes, **changes):
    torch.manual_seed(4)  # nothing comes from the seed that made the first model
    settings = with_start(ModelSettings(start=str(folder), **changes))
    network, source = starting_network(settings, classes)
    return network.eval(), source


def scores(network, size=64):
    image = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return network(image)


def any_lesion(network):
    """Return the probability that a pixel is of any lesion, whatever its class."""
    return scores(network).lesion.softmax(1)[:, 1:].sum(1)
