import copy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import toy_encoder
from plantseg_next.models.segmenter import Segmenter, build_segmenter
from plantseg_next.settings import ModelSettings
from plantseg_next.structures import ClassMap
from plantseg_next.training.schedule import teacher_decay
from plantseg_next.training.semi_supervised.ema_teacher import EmaTeacher


def student() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5))


def segmenter() -> Segmenter:
    torch.manual_seed(0)
    return build_segmenter(
        ModelSettings(encoder=toy_encoder.NAME, start="random", width=32),
        ClassMap(("rust",), (), True),
    )


def moved(network: nn.Module, by: float) -> nn.Module:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(by)
    return network


def test_teacher_is_running_mean_of_student():
    network = student()
    teacher = EmaTeacher(network, decay=0.9)
    expected = {n: t.clone() for n, t in network.state_dict().items()}
    for update in range(6):
        moved(network, 1.0)
        network(torch.rand(2, 3, 4, 4))  # moves the running mean of the batch norm
        teacher.update(network, steps=10_000)
        decay = teacher_decay(update, steps=10_000, greatest=0.9)
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * tensor
            else:
                expected[name] = tensor.clone()
    for name, tensor in teacher.network.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], msg=name)
    assert teacher.network.state_dict()["1.num_batches_tracked"] == 6


def test_first_update_copies_the_student():
    network = student()
    teacher = EmaTeacher(network, decay=0.999)
    moved(network, 1.0)
    teacher.update(network, steps=100_000)
    for a, b in zip(teacher.network.parameters(), network.parameters(), strict=True):
        assert torch.equal(a, b)


def test_teacher_stays_in_eval_without_gradients():
    settings = ModelSettings(
        encoder=toy_encoder.NAME, start="random", width=32, layers=1, dropout=0.5
    )
    network = build_segmenter(settings, ClassMap(("rust",))).train()
    teacher = EmaTeacher(network, decay=0.9)
    before = copy.deepcopy(teacher.network.state_dict())
    image = torch.rand(1, 3, 64, 64)
    first, second = teacher(image), teacher(image)
    assert torch.equal(first.lesion, second.lesion)  # no dropout
    assert not first.lesion.requires_grad
    assert not any(p.requires_grad for p in teacher.network.parameters())
    for name, tensor in teacher.network.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert network.training


def test_short_run_bounds_the_decay():
    network = student()
    teacher = EmaTeacher(network, decay=0.999)
    for _ in range(200):
        moved(network, 0.0)
        teacher.update(network, steps=200)
    start = moved(copy.deepcopy(network), 1.0)
    teacher = EmaTeacher(start, decay=0.999)
    for _ in range(200):
        teacher.update(network, steps=200)
    for a, b in zip(teacher.network.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("bfloat16", [False, True])
def test_offloaded_teacher_gives_same_predictions(bfloat16):
    network = segmenter()
    resident, offloaded = (
        EmaTeacher(network, decay=0.9, bfloat16=bfloat16, offload_to_cpu=offload)
        for offload in (False, True)
    )
    image = torch.rand(1, 3, 64, 64)
    expected = resident(image)
    assert all(torch.equal(a, b) for a, b in zip(offloaded(image), expected, strict=True))
    with offloaded.on_device(image.device):
        moved(offloaded.network, 1.0)  # the copy on the device does not change
        assert torch.equal(offloaded(image).lesion, expected.lesion)
    assert not torch.equal(offloaded(image).lesion, expected.lesion)


def test_frozen_weights_are_shared():
    network = segmenter()
    network.encoder.requires_grad_(False)
    teacher = EmaTeacher(network, decay=0.9)
    moved(network.decoder, 1.0)
    teacher.update(network, steps=1000)
    for name, mine in teacher.network.named_parameters():
        same = dict(network.named_parameters())[name] is mine
        assert same == name.startswith("encoder.")


def train_process(rank: int, folder: str) -> None:
    """Train on rank-specific data in one of two processes; save the teacher to a file."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    torch.manual_seed(rank)
    network = DistributedDataParallel(nn.Linear(3, 2))
    teacher = EmaTeacher(network.module, decay=0.5)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        network(torch.randn(4, 3)).square().mean().backward()
        optimizer.step()
        teacher.update(network.module, steps=1000)
    torch.save(teacher.network.state_dict(), f"{folder}/teacher_{rank}")
    dist.destroy_process_group()


@pytest.mark.integration
def test_teacher_is_identical_on_every_process(tmp_path):
    mp.spawn(train_process, args=(str(tmp_path),), nprocs=2)
    first, second = (
        torch.load(tmp_path / f"teacher_{rank}", weights_only=True) for rank in (0, 1)
    )
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name])
