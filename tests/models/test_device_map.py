"""device_map: every way to name one device, and that a map over several is refused; nothing here needs a GPU."""

import pytest
import torch
from reference import text_batch

from gemma3_core import TorchAoConfig
from gemma3_core.errors import UnsupportedOptionError
from gemma3_core.models.device_map import mapped_device
from gemma3_core.models.text import Gemma3ForCausalLM

CPU = torch.device("cpu")


@pytest.mark.parametrize("device_map", ["cpu", CPU, {"": "cpu"}, {"": CPU}, None], ids=str)
def test_one_device_holds_the_whole_model(weights, device_map):
    model = Gemma3ForCausalLM.from_pretrained(weights.text, device_map=device_map)
    assert {parameter.device for parameter in model.parameters()} == {CPU}
    assert getattr(model, "hf_device_map", None) == (None if device_map is None else {"": CPU})
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("device_map", "words"),
    [
        ({"model.embed_tokens": "cpu", "model.layers": "cpu:0"}, ["model.embed_tokens, model.layers", "one device"]),
        ({"": "cpu", "model.layers.1": "cpu:0"}, ["model.layers.1", "one device"]),
        ({"model": "cpu", "lm_head": "cpu"}, ["model, lm_head", "one device"]),
        ({"": "disk"}, ["disk", "cpu"]),
        ({"": "sofa"}, ["sofa"]),
        ({"": None}, ["None"]),
        ({0: "cpu"}, ["one device", "0"]),
        ({}, ["one device"]),
        ("balanced", ["balanced", "auto"]),
        (True, ["True"]),
    ],
    ids=str,
)
def test_a_map_over_several_devices_is_refused(weights, device_map, words):
    with pytest.raises(UnsupportedOptionError) as error:
        Gemma3ForCausalLM.from_pretrained(weights.text, device_map=device_map)
    assert all(word in str(error.value) for word in words), error.value


def test_numbers_and_auto_name_cuda_devices_where_there_are_any(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    first, second = (torch.device("cuda", number) for number in range(2))
    for device_map, device in (("auto", first), (0, first), (1, second), ({"": 1}, second), ("cuda:1", second)):
        assert mapped_device(device_map) == device
    with pytest.raises(UnsupportedOptionError, match="CUDA device 2, but this machine has 2"):
        mapped_device(2)


@torch.no_grad()
def test_int4_weights_of_a_mapped_model_are_those_of_an_unmapped_one(weights):
    config = TorchAoConfig("int4_weight_only", group_size=32)
    one, two = (
        Gemma3ForCausalLM.from_pretrained(weights.text, quantization_config=config, device_map=m)
        for m in (None, {"": "cpu"})
    )
    assert torch.equal(one(**text_batch()).logits, two(**text_batch()).logits)
