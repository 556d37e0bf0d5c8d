"""Values of a wrong type or out of range, as programs pass them by mistake: typed errors that name them."""

import pytest
import torch

from gemma3_core.errors import Gemma3Error
from gemma3_core.text import Gemma3ForCausalLM

IDS = torch.tensor([[2, 5, 9]])


@pytest.fixture(scope="module")
def model(reference_text_folder):
    return Gemma3ForCausalLM.from_pretrained(reference_text_folder)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"input_ids": torch.tensor([[5000, 3]])}, "5000"),
        ({"input_ids": torch.tensor([[-7, 3]])}, "-7"),
        ({"input_ids": IDS, "labels": [[2, 5, 9]]}, "labels must be a tensor"),
        ({"input_ids": IDS, "labels": torch.tensor([[2, 5, 5000]])}, "labels hold 5000"),
        ({"input_ids": IDS, "logits_to_keep": "x"}, "logits_to_keep"),
        ({"input_ids": IDS, "logits_to_keep": -1}, "logits_to_keep"),
        ({"inputs_embeds": torch.zeros(1, 2, 25)}, "25 wide"),
    ],
)
def test_forward(model, given, said):
    with pytest.raises(Gemma3Error, match=said):
        model(**given)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"streamer": "x"}, "streamer must have put"),
        ({"max_length": "9"}, "max_length must be a whole number, 1 or more, got '9'"),
        ({"max_length": 2.5}, "max_length must be a whole number, 1 or more, got 2.5"),
        ({"max_new_tokens": "5"}, "got '5'"),
        ({"max_new_tokens": True}, "got True"),
        ({"max_new_tokens": 2, "cache_implementation": "static", "max_cache_len": "x"}, "max_cache_len"),
    ],
)
def test_generate(model, option, said):
    with pytest.raises(Gemma3Error, match=said):
        model.generate(IDS, **option)
