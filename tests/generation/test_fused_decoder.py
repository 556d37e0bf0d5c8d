"""The fused decode step: the numbers of `forward`, in one graph, in few launches, without waiting for the device."""

from typing import Any

import pytest
import torch
from adapters import save_adapter
from places import DEMO_MODEL
from reference import TEXT, WINDOW, assert_equal, image_prompt, randomise

from benchmarks.decode_step import LaunchCounter, count, narrow_model
from gemma3_core import Gemma3ForCausalLM, Gemma3ForConditionalGeneration, Gemma3TextConfig, TorchAoConfig
from gemma3_core.generation.fused_decoder import FusedDecoder, why_not_fused
from gemma3_core.generation.loop import decode_step, prefill
from gemma3_core.int4.linear import Int4Linear, quantize_weight
from gemma3_core.int4.quantize import sharing_copy
from gemma3_core.kernels import cpu as cpu_kernels
from gemma3_core.nn.cache import KVCache
from gemma3_core.nn.slots import SlotCache

ROWS = (3, WINDOW - 1, 2 * WINDOW + 3)
ROUNDED = 2e-2  # as for rows decoded together
WAITING = {"_local_scalar_dense", "item", "nonzero", "is_nonzero", "_assert_async", "masked_select", "multinomial"}


def text_model(**changes: Any) -> Gemma3ForCausalLM:
    model = Gemma3ForCausalLM(Gemma3TextConfig(**{**TEXT, **changes}))
    randomise(model)
    return model.eval()


def both_steps(model: Any, steps: int = 2 * WINDOW) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [steps, rows, vocabulary] of the same tokens: row by row through `forward`, and fused."""
    config = model.text_config
    caches = [[KVCache(config), KVCache(config)] for _ in ROWS]
    for number, (length, row) in enumerate(zip(ROWS, caches, strict=True)):
        for cache in row:
            prefill(model, cache, input_ids=image_prompt(f"t{length}", seed=number)[0])
    tokens = torch.randint(4, config.vocab_size - 4, (steps, len(ROWS)), generator=torch.Generator().manual_seed(0))
    plain = []
    for step in tokens:
        rows = zip((row[0] for row in caches), step.split(1), strict=True)
        plain.append(torch.cat([decode_step(model, cache, one, torch.tensor([cache.length])) for cache, one in rows]))
    store = SlotCache(config, len(ROWS) + 1, 8 * WINDOW, model.dtype, "cpu")
    for row in caches:
        store.admit(row[1])
    fused, lengths = FusedDecoder(model), torch.tensor([row[1].length for row in caches])
    return torch.stack(plain), torch.stack([fused(token, lengths + n, store) for n, token in enumerate(tokens)])


@pytest.mark.parametrize(
    "changes",
    [{}, {"attention_bias": True}, {"final_logit_softcapping": 5.0}, {"num_key_value_heads": 1}],
    ids=["as published", "bias", "softcapping", "one KV head"],
)
def test_logits_in_float32(changes):
    plain, fused = both_steps(text_model(**changes))
    assert_equal(fused, plain)


def test_logits_of_a_model_that_sees(reference_folder):
    plain, fused = both_steps(Gemma3ForConditionalGeneration.from_pretrained(reference_folder))
    assert_equal(fused, plain)


@pytest.mark.parametrize("int4", [False, True])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_logits_in_bfloat16_and_int4_differ_by_rounding_alone(dtype, int4):
    """Of a trained model: attention as sharp as that of the random ones makes much of the last bit."""
    config = TorchAoConfig(32) if int4 else None
    model = Gemma3ForConditionalGeneration.from_pretrained(DEMO_MODEL, dtype=dtype, quantization_config=config)
    assert why_not_fused(model) is None
    plain, fused = both_steps(model)
    assert (fused.float() - plain.float()).abs().max() <= ROUNDED * plain.float().abs().max()


def test_a_model_keeps_its_names_and_numbers_and_takes_no_more_memory():
    model = text_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    prompt = image_prompt("t9")[0]
    logits = model(input_ids=prompt).logits
    step = FusedDecoder(model)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert torch.equal(model(input_ids=prompt).logits, logits)
    attention, fused = model.model.layers[0].self_attn, step._layers[0].qkv.weight
    parts = (attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight)
    assert {part.untyped_storage().data_ptr() for part in parts} == {fused.untyped_storage().data_ptr()}


def test_the_step_traces_as_one_graph():
    model = text_model()
    store = SlotCache(model.config, 2, 4 * WINDOW, torch.float32, "cpu")
    step = FusedDecoder(model)
    given = torch.tensor([5, 6]), torch.tensor([0, 3])
    expected = step(*given, store)
    torch.compiler.reset()
    compiled = torch.compile(step.__call__, fullgraph=True, dynamic=False, backend="eager")
    assert_equal(compiled(*given, store), expected)
    torch.compiler.reset()


def test_the_step_can_be_exported():
    model = text_model()

    class Step(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.step = FusedDecoder(model)
            self.store = SlotCache(model.config, 2, 4 * WINDOW, torch.float32, "cpu")

        def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
            return self.step(tokens, lengths, self.store)

    step, given = Step(), (torch.tensor([5, 6]), torch.tensor([0, 3]))
    program = torch.export.export(step, given)
    assert_equal(program.module()(*given), step(*given))


def test_nothing_in_it_waits_for_the_device():
    model = text_model()
    store = SlotCache(model.config, 2, 4 * WINDOW, torch.float32, "cpu")
    step = FusedDecoder(model)
    with LaunchCounter() as counter:
        step(torch.tensor([5, 6]), torch.tensor([0, 3]), store)
    assert counter.launches
    assert not counter.launches.keys() & WAITING
    with LaunchCounter() as counter:
        torch.tensor([5]).item()
    assert counter.launches.keys() & WAITING, "the check finds nothing"


def test_launches_at_the_depth_of_the_4b_model(monkeypatch):
    monkeypatch.setattr(cpu_kernels, "library_for", lambda *_: None)  # CUDA launches torch's operations
    plain, fused = count(narrow_model())
    assert fused.total() < 400 < plain.total()


def test_what_can_not_be_fused_is_told():
    model = text_model()
    assert why_not_fused(model) is None
    assert why_not_fused(model.model) == "it has no head"
    few = text_model(num_key_value_heads=2, num_attention_heads=4, head_dim=32)
    few.model.layers[1].self_attn.q_proj = Int4Linear.from_weight(quantize_weight(torch.randn(128, 64), 32), None)
    assert why_not_fused(few) == "weights that would become one are of several types"  # as in GGUF files
    model.model.layers[0].mlp.up_proj = torch.nn.Linear(4, 4)
    assert why_not_fused(model) == "layers.0.mlp.up_proj is a Linear"


def test_an_adapter_of_the_embedding_alone_is_not_left_out(tmp_path):
    model = text_model()
    model.save_pretrained(tmp_path / "base")
    adapter = save_adapter(text_model(), tmp_path / "adapter", target_modules=["embed_tokens"], r=2)
    model.load_adapter(adapter)
    assert why_not_fused(model) == "embed_tokens is a AdaptedEmbedding"


def test_a_model_that_shares_int4_weights_follows_when_they_are_fused():
    model = Gemma3ForConditionalGeneration.from_pretrained(DEMO_MODEL, quantization_config=TorchAoConfig(32))
    shares = sharing_copy(model)
    fused = FusedDecoder(model)
    for own, other in zip(model.decoder.layers, shares.decoder.layers, strict=True):
        assert own.self_attn.q_proj.qdata.data_ptr() == other.self_attn.q_proj.qdata.data_ptr()
    whole = fused._layers[0].qkv.qdata
    assert whole.data_ptr() == shares.decoder.layers[0].self_attn.q_proj.qdata.data_ptr()
