"""Write tensors in the safetensors format one by one, to a file or a digest.

The library writes to files only, and its older versions build the whole file in memory
first, which doubles the memory of the tensors. Files are read with the library, after
their header has been checked here.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Names of the types in the format."""
MAX_HEADER_BYTES = 100_000_000
"""Longest header, as in the library."""


def write_tensors(
    write: Callable[[bytes | memoryview], object],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
) -> int:
    """Write tensors from any device, in order; return the number of bytes.

    Args:
        write: Method of a file or of a digest that takes bytes.
        tensors: By name.
        metadata: Text for the header of the file.

    Raises:
        KeyError: If the format does not support the type of a tensor.

    Source:
        The format: 8 bytes with the length of the header, the header as JSON, the values
        (https://github.com/huggingface/safetensors, "Format").
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # values begin at a multiple of eight
    write(len(text).to_bytes(8, "little"))
    write(text)
    for tensor in tensors.values():
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        write(flat.view(torch.uint8).numpy().data)
    return 8 + len(text) + end


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the file that ``write_tensors`` would write."""
    digest = hashlib.sha256()
    write_tensors(digest.update, tensors)
    return digest.hexdigest()


class TensorFileError(ValueError):
    """A file that is not in the safetensors format, or not whole; a clause for messages."""


def read_header(path: Path) -> dict[str, Any]:
    """Return the header of a file, whose tensors then have the length that it states.

    Nothing but the header is read, so a false size costs no memory.

    Raises:
        TensorFileError: If the header is damaged, or states another length of the file.
        OSError: If the file cannot be read.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        first = file.read(8)
        n = int.from_bytes(first, "little")
        if first == b"version ":
            raise TensorFileError("it is a pointer of Git LFS, not the file that it names")
        if size < 8 or n > min(size - 8, MAX_HEADER_BYTES):
            raise TensorFileError("it does not begin with a header")
        text = file.read(n)
    try:
        header: dict[str, Any] = json.loads(text)
        end = max((_end_of(tensor) for tensor in _tensors(header).values()), default=0)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise TensorFileError("its header is not that of tensors") from error
    if 8 + n + end != size:
        raise TensorFileError(
            f"it has {size:,} bytes, and its header states {8 + n + end:,}"
        )
    return header


def shapes(header: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of a header."""
    return {name: tuple(tensor["shape"]) for name, tensor in _tensors(header).items()}


def _tensors(header: Mapping[str, Any]) -> dict[str, Any]:
    return {name: entry for name, entry in header.items() if name != "__metadata__"}


def _end_of(tensor: Mapping[str, Any]) -> int:
    """Return where the values of a tensor of a header end.

    Raises:
        ValueError: If they have another length than its shape and type.
    """
    begin, end = tensor["data_offsets"]
    sides = tensor["shape"]
    if not all(type(n) is int and n >= 0 for n in (begin, end, *sides)):
        raise ValueError("a number that is not a whole one")
    itemsize = {name: dtype.itemsize for dtype, name in DTYPES.items()}[tensor["dtype"]]
    if end - begin != math.prod(sides) * itemsize:
        raise ValueError("a length that is not that of its shape")
    return int(end)
