import io

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from plantseg_next.models.tensor_files import DTYPES, write_tensors

SHAPES = st.lists(st.integers(0, 4), max_size=4)


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
        st.tuples(SHAPES, st.sampled_from(list(DTYPES))),
    ),
    st.dictionaries(st.text(), st.text()),
)
def test_written_tensors_are_read_by_safetensors(shapes, metadata):
    tensors = {
        name: torch.rand(shape).mul(9).to(dtype) for name, (shape, dtype) in shapes.items()
    }
    file = io.BytesIO()
    n_bytes = write_tensors(file.write, tensors, metadata)
    assert n_bytes == len(file.getvalue())
    loaded = safetensors.torch.load(file.getvalue())
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


def test_tensors_of_any_memory_layout_are_written():
    tensor = torch.arange(24.0).reshape(1, 2, 3, 4)
    tensors = {"last": tensor.to(memory_format=torch.channels_last), "part": tensor[..., 1]}
    file = io.BytesIO()
    write_tensors(file.write, tensors)
    loaded = safetensors.torch.load(file.getvalue())
    assert torch.equal(loaded["last"], tensor)
    assert torch.equal(loaded["part"], tensor[..., 1])


def test_tensor_of_an_unsupported_type_is_refused():
    with pytest.raises(KeyError, match="complex"):
        write_tensors(io.BytesIO().write, {"a": torch.zeros(1, dtype=torch.complex64)})
