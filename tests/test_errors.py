import pytest
import torch

from plantseg_next.errors import DataError, is_out_of_memory


class error(Exception):  # noqa: N801, N818 - as OpenCV calls it
    """An error of a library of its own kind."""


@pytest.mark.parametrize(
    "raised",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] can't allocate memory: 8 bytes"),
        RuntimeError("could not create a primitive"),
        OSError(12, "Cannot allocate memory"),
        ImportError("libtorch.so: failed to map segment from shared object"),
        error("OpenCV(4.10.0) Insufficient memory (Failed to allocate 8 bytes)"),
    ],
)
def test_memory_that_ran_out_is_recognized(raised):
    assert is_out_of_memory(raised)


@pytest.mark.parametrize(
    "raised",
    [
        RuntimeError("size mismatch"),
        ImportError("No module named memory"),
        OSError(28, "No space left on device"),
        DataError("`out of memory.jpg` is empty.", needed="an image", fix="restore it"),
    ],
)
def test_other_errors_are_not(raised):
    assert not is_out_of_memory(raised)
