"""Named inputs behave like transformers' BatchFeature."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from gemma3_core.errors import PromptError, UnsupportedOptionError
from gemma3_core.model_inputs import ModelInputs


def both(data: dict[str, Any], tensor_type: str | None = None) -> tuple[ModelInputs, Any]:
    from transformers import BatchFeature

    return ModelInputs(data, tensor_type), BatchFeature(dict(data), tensor_type)


def test_keys_attributes_items_and_stars():
    inputs = ModelInputs({"input_ids": [[1]]}, pixel_values=torch.ones(1))
    assert isinstance(inputs, Mapping)
    assert inputs.input_ids is inputs["input_ids"] is inputs.data["input_ids"]
    assert list(inputs.keys()) == [name for name, _ in inputs.items()] == ["input_ids", "pixel_values"]
    assert "input_ids" in inputs
    assert dict(**inputs) == {"input_ids": [[1]], "pixel_values": inputs.pixel_values}
    inputs.data["more"] = 1
    assert inputs.pop("more") == 1
    with pytest.raises(AttributeError, match="no 'labels' here, only input_ids, pixel_values"):
        _ = inputs.labels
    with pytest.raises(KeyError):
        _ = inputs["labels"]
    with pytest.raises(KeyError, match="names"):
        _ = inputs[0]


VALUES: dict[str, Any] = {
    "numbers": [1, 2],
    "rows": [[1, 2], [3, 4]],
    "real": [[0.5], [1.5]],
    "arrays": [np.ones((3, 2, 2), np.float32)] * 2,
    "tensors": [torch.ones(3, 2), torch.zeros(3, 2)],
    "array": np.arange(3),
    "tensor": torch.arange(3),
}


@pytest.mark.parametrize("name", list(VALUES))
@pytest.mark.parametrize("kind", ["pt", "np"])
def test_lists_become_tensors_and_arrays_as_in_the_reference(name, kind):
    ours, theirs = both({name: VALUES[name]}, kind)
    assert type(ours[name]) is type(theirs[name])
    assert ours[name].dtype == theirs[name].dtype
    assert ours[name].tolist() == theirs[name].tolist()


def test_moving_touches_floats_and_whole_numbers_as_in_the_reference():
    data = {"input_ids": torch.ones(1, 2, dtype=torch.int64), "pixel_values": torch.ones(1, 2), "other": "text",
            "list": [torch.ones(1), torch.ones(1, dtype=torch.int64)]}  # fmt: skip
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((torch.bfloat16,), {}), (("meta",), {}), (("meta", torch.float16), {}), ((torch.device("meta"),), {}),
        ((), {"device": "meta", "dtype": torch.bfloat16}), ((), {"dtype": torch.float64}),
        (("cpu",), {"dtype": torch.bfloat16, "non_blocking": True}), ((), {}),
    ]  # fmt: skip
    for args, kwargs in calls:
        ours, theirs = both(data)
        assert ours.to(*args, **kwargs) is ours
        if args or kwargs:  # without either, torch itself refuses there
            theirs.to(*args, **kwargs)
        expected = [theirs["input_ids"], theirs["pixel_values"], *theirs["list"]]
        for mine, other in zip([ours.input_ids, ours.pixel_values, *ours["list"]], expected, strict=True):
            assert (mine.device, mine.dtype) == (other.device, other.dtype), (args, kwargs)
        assert ours.other == "text"


@pytest.mark.parametrize(("args", "named"), [
    (("toaster",), "toaster"), ((1.5,), "float"), (("cpu", "float"), "dtype"), ((torch.ones(1),), "Tensor"),
])  # fmt: skip
def test_what_is_neither_device_nor_dtype_is_a_typed_error(args, named):
    with pytest.raises(UnsupportedOptionError, match=named):
        ModelInputs(input_ids=torch.ones(1)).to(*args)


def test_unequal_rows_are_typed_errors():
    with pytest.raises(PromptError, match="different lengths"):
        ModelInputs({"input_ids": [[1], [2, 3]]}, "pt")
    with pytest.raises(PromptError, match=r"different shapes \(\[3, 1, 1\] and \[3, 2, 2\]\)"):
        ModelInputs({"pixel_values": [np.ones((3, 2, 2)), np.ones((3, 1, 1))]}, "pt")
    with pytest.raises(UnsupportedOptionError, match="'tf'"):
        ModelInputs({"input_ids": [[1]]}, "tf")
