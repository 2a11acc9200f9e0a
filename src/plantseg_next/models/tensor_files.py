"""Write tensors in the safetensors format one by one, to a file or a digest.

The library writes to files only, and its older versions build the whole file in memory
first, which doubles the memory of the tensors. Files are read with the library.
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
"""Names of the types in the format."""


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
