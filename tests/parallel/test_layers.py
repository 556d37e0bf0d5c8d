"""What several processes can share of a model."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from reference import TEXT, randomise

from gemma3_core.config.gemma3 import Gemma3TextConfig
from gemma3_core.errors import UnsupportedOptionError
from gemma3_core.models.multimodal import Gemma3ForConditionalGeneration
from gemma3_core.models.text import Gemma3ForCausalLM
from gemma3_core.nn.layers import DecoderLayer
from gemma3_core.parallel.layers import check_shares, tensor_parallel


class Sums:
    """Adds up what two threads bring, which stand for processes."""

    def __init__(self):
        self._met, self._parts = threading.Barrier(2, timeout=60), {}

    def add_up(self, rank, x):
        self._parts[rank] = x.clone()
        self._met.wait()
        x.copy_(self._parts[0] + self._parts[1])
        self._met.wait()


def test_two_shares_give_the_logits_and_tokens_of_the_whole_model(sharp_weights):
    ids, sums = torch.arange(3, 43)[None], Sums()

    @torch.inference_mode()
    def results(rank=None):
        model = Gemma3ForConditionalGeneration.from_pretrained(sharp_weights.both)
        if rank is not None:
            tensor_parallel(model, rank, 2, partial(sums.add_up, rank))
        return model(input_ids=ids).logits, model.generate(input_ids=ids, max_new_tokens=8, do_sample=False)

    expected, written = results()
    with ThreadPoolExecutor(2) as pool:
        for logits, tokens in pool.map(results, range(2)):
            assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()
            assert torch.equal(tokens, written)


def test_what_cannot_be_shared_out_evenly_is_refused(sharp_weights):
    model = Gemma3ForConditionalGeneration.from_pretrained(sharp_weights.both)
    with pytest.raises(UnsupportedOptionError, match="4 attention heads can't be shared out evenly over 3 devices"):
        check_shares(model, 3)
    with pytest.raises(UnsupportedOptionError, match="2 key and value heads"):
        check_shares(model, 4)
    layer = next(module for module in model.modules() if isinstance(module, DecoderLayer))
    layer.mlp.down_proj = torch.nn.Identity()
    with pytest.raises(UnsupportedOptionError, match="Only plain weights are shared out over devices, got Identity"):
        check_shares(model, 2)


def test_a_bias_is_added_once():
    config = Gemma3TextConfig.from_dict({**TEXT, "vocab_size": 50, "attention_bias": True})
    whole = Gemma3ForCausalLM(config)
    randomise(whole)
    layer = whole.decoder.layers[0].self_attn
    x, attended = torch.randn(1, 3, config.hidden_size), torch.randn(1, 3, layer.o_proj.in_features)
    total = torch.zeros(1, 3, config.hidden_size)
    for rank in range(2):
        share = copy.deepcopy(whole)
        tensor_parallel(share, rank, 2, lambda _: None)
        attention = share.decoder.layers[0].self_attn
        assert torch.equal(attention.q_proj(x), layer.q_proj(x).chunk(2, dim=-1)[rank])
        total += attention.o_proj(attended.chunk(2, dim=-1)[rank])
    assert torch.allclose(total, layer.o_proj(attended), atol=1e-5)
