"""Tensors to a safetensors file, one after the other.

The library of that format builds the whole file in memory first, which is as much again as
the tensors take, at the moment when memory is shortest. Reading is left to the library.
"""

import hashlib
import json
from collections.abc import Callable, Mapping

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
"""Their names in the format."""


def write_tensors(
    write: Callable[[bytes | memoryview], object],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
) -> int:
    """Write tensors from any device, in order; return the number of bytes.

    Args:
        write: Takes bytes: of a file, or of a digest.
        tensors: By name.
        metadata: Text that the head of the file carries.

    Raises:
        KeyError: If the format does not know the type of a tensor.

    Source:
        The format: 8 bytes with the length of the head, the head as JSON, the numbers
        (https://github.com/huggingface/safetensors, "Format").
    """
    head: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        head[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # numbers begin at a multiple of eight
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
