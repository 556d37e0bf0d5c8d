"""A decoder layer in one call of our CPU kernels: the same as its parts one by one, and only where these are ours."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from reference import assert_equal

from gemma3_core.config.gemma3 import GLOBAL, LOCAL, Gemma3TextConfig
from gemma3_core.generation.loop import decode_step, prefill
from gemma3_core.int4.quantize import TorchAoConfig, quantized
from gemma3_core.kernels import cpu as cpu_kernels
from gemma3_core.models.text import Gemma3ForCausalLM
from gemma3_core.nn import cpu_step, layers
from gemma3_core.nn.cache import KVCache, RowCaches
from gemma3_core.nn.layers import RMSNorm

WINDOW = 8
BOUND = {torch.float32: 1e-5, torch.bfloat16: 3e-2}

pytestmark = pytest.mark.cpu_kernels


@pytest.fixture(scope="module")
def models() -> dict[tuple[bool, torch.dtype], Gemma3ForCausalLM]:
    """By whether the weights are int4, and by type; local and global layers, several heads for one of the keys."""
    config = Gemma3TextConfig(
        vocab_size=192, hidden_size=64, intermediate_size=192, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, sliding_window=WINDOW, layer_types=[LOCAL, GLOBAL, LOCAL],
    )  # fmt: skip
    torch.manual_seed(0)
    model = Gemma3ForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        parameter.data.normal_(std=0.5 if name.endswith("norm.weight") else 0.2)
    made = {}
    for dtype in (torch.float32, torch.bfloat16):
        whole = Gemma3ForCausalLM(config).eval()
        whole.load_state_dict(model.state_dict(), strict=False)
        made[False, dtype] = whole.to(dtype)
        made[True, dtype] = quantized(made[False, dtype], TorchAoConfig(32))
    return made


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each call had."""
    rows: list[int] = []
    real = layers.read_token

    def counted(*given: Any) -> torch.Tensor | None:
        out = real(*given)
        if out is not None:
            rows.append(len(out))
        return out

    monkeypatch.setattr(layers, "read_token", counted)
    return rows


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> Callable[..., torch.Tensor]:
    """Runs a function without the call."""

    def run(function: Callable[..., torch.Tensor], *given: Any) -> torch.Tensor:
        with monkeypatch.context() as patched:
            patched.setattr(layers, "read_token", lambda *_: None)
            return function(*given)

    return run


def ids(count: int, rows: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randint(192, (rows, count), generator=torch.Generator().manual_seed(seed))


def decoded(model: Any, tokens: torch.Tensor, known: int) -> torch.Tensor:
    """Logits [T, B, vocabulary] of tokens [B, known + T], the first `known` of which are read at once."""
    cache = KVCache(model.config, reserve=4)  # it must grow
    prefill(model, cache, input_ids=tokens[:, :known])
    new = [decode_step(model, cache, one, torch.tensor([cache.length])) for one in tokens[:, known:].T]
    return torch.stack(new)


@pytest.mark.usefixtures("kernel_level")
@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("int4", [False, True])
def test_tokens_get_the_logits_that_they_get_part_by_part(models, calls, one_by_one, int4, dtype):
    """On both sides of where the local layers' ring closes, in a batch of two."""
    model, tokens = models[int4, dtype], ids(2 * WINDOW + 4, rows=2)
    ours = decoded(model, tokens, 3)
    assert calls == [2] * 3 * (2 * WINDOW + 1)
    parts = one_by_one(decoded, model, tokens, 3)
    assert_equal(ours.float(), parts.float(), 5e-4 if int4 and dtype == torch.float32 else BOUND[dtype])
    if dtype == torch.float32:
        assert torch.equal(ours.argmax(-1), parts.argmax(-1))


def test_in_bfloat16_it_is_closer_to_float32(models, one_by_one):
    exact, model = models[False, torch.float32], models[False, torch.bfloat16]
    rounded = Gemma3ForCausalLM(model.config).eval()
    rounded.load_state_dict(model.state_dict(), strict=False)
    tokens = ids(40)
    assert exact.dtype == rounded.dtype == torch.float32
    true = decoded(rounded, tokens, 3)
    ours, parts = decoded(model, tokens, 3).float(), one_by_one(decoded, model, tokens, 3).float()
    assert (ours - true).norm() < (parts - true).norm()


@pytest.mark.usefixtures("kernel_level")
@pytest.mark.parametrize("int4", [False, True])
def test_a_row_does_not_depend_on_the_others_nor_on_the_number_of_threads(models, calls, monkeypatch, int4):
    """Rows of different lengths, with caches of their own, so large that each part of the work is worth several
    threads; a row with NaN spoils no other."""
    config = Gemma3TextConfig.from_dict(
        {**models[False, torch.float32].config.to_dict(), "hidden_size": 256, "intermediate_size": 448}
    )
    model = Gemma3ForCausalLM(config).eval()
    model = quantized(model, TorchAoConfig(32)) if int4 else model
    lengths, told = (1, 5, 300), []
    for threads, together in ((1, True), (3, True), (1, False)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        rows = [KVCache(model.config) for _ in lengths]
        for cache, length in zip(rows, lengths, strict=True):
            prefill(model, cache, input_ids=ids(length, seed=length))
        calls.clear()
        if together:
            out = decode_step(model, RowCaches(rows), torch.tensor([7, 8, 9]), torch.tensor(lengths))
        else:
            steps = zip(rows, (7, 8, 9), lengths, strict=True)
            out = torch.cat([decode_step(model, c, torch.tensor([t]), torch.tensor([n])) for c, t, n in steps])
        assert len(calls) == (3 if together else 9)
        told.append(out)
    assert torch.equal(told[0], told[1])
    assert torch.equal(told[0], told[2])
    rows[1].stored(1)[0][..., 2, 3] = float("nan")
    out = decode_step(model, RowCaches(rows), torch.tensor([7, 8, 9]), torch.tensor(lengths) + 1)
    assert out.isnan().all(dim=-1).tolist() == [False, True, False]


@pytest.mark.usefixtures("kernel_level")
@pytest.mark.parametrize("rows", [9, 33, 64])
def test_many_rows_of_int4_weights_go_through_in_one_call(models, calls, rows):
    model, lengths = models[True, torch.float32], [1 + n % 20 for n in range(rows)]
    caches = [KVCache(model.config) for _ in lengths]
    for cache, length in zip(caches, lengths, strict=True):
        prefill(model, cache, input_ids=ids(length, seed=length))
    new = ids(rows)[0]
    calls.clear()
    out = decode_step(model, RowCaches(caches), new, torch.tensor(lengths))
    assert calls == [rows] * 3
    for number in (0, 8, rows - 1):
        alone = KVCache(model.config)
        prefill(model, alone, input_ids=ids(lengths[number], seed=lengths[number]))
        step = decode_step(model, alone, new[number : number + 1], torch.tensor(lengths[number : number + 1]))
        assert torch.equal(out[number : number + 1], step)


class Wrapped(torch.nn.Module):
    """Somebody's block around one of ours; it has none of its names."""

    def __init__(self, inner: torch.nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, *given: Any) -> Any:
        return self.inner(*given)


def test_where_the_parts_are_not_ours_alone_they_are_called(models, calls, monkeypatch):
    model, seen = models[False, torch.float32], []
    tokens = ids(6)
    plain = decoded(model, tokens, 4)
    layer = model.model.layers[0]

    def called() -> int:
        calls.clear()
        assert_equal(decoded(model, tokens, 4), plain)
        return len(calls)

    assert called() == 3 * 2
    for module in (layer.self_attn, layer.mlp.gate_proj, layer.self_attn.q_norm):
        hook = module.register_forward_hook(lambda *_: seen.append(1))
        assert called() == 2 * 2
        hook.remove()
    assert len(seen) == 3 * 3  # the prompt's pass, and two tokens
    with monkeypatch.context() as patched:
        patched.setattr(layer.mlp, "forward", layer.mlp.forward)
        assert called() == 2 * 2
    for norm in (type("Own", (RMSNorm,), {})(64, 1e-6), RMSNorm(64, 1e-5)):
        norm.load_state_dict(layer.input_layernorm.state_dict())
        with monkeypatch.context() as patched:
            patched.setitem(layer._modules, "input_layernorm", norm)
            calls.clear()
            decoded(model, tokens, 4)
            assert len(calls) == 2 * 2
    for name in ("self_attn", "mlp"):
        with monkeypatch.context() as patched:
            patched.setitem(layer._modules, name, Wrapped(layer._modules[name]))
            assert called() == 2 * 2
    wrapped = torch.nn.Sequential(layer.self_attn.o_proj)
    with monkeypatch.context() as patched:
        patched.setitem(layer.self_attn._modules, "o_proj", wrapped)
        assert called() == 2 * 2
    with monkeypatch.context() as patched:
        patched.setattr(cpu_kernels, "library", lambda: None)
        assert called() == 0
    assert called() == 3 * 2


def _new_parameter(layer: Any) -> None:
    layer.mlp.gate_proj.weight = torch.nn.Parameter(layer.mlp.gate_proj.weight.detach() * 2)


def _new_data(layer: Any) -> None:
    layer.self_attn.k_norm.weight.data = layer.self_attn.k_norm.weight.data + 1


def _new_state(layer: Any) -> None:
    layer.load_state_dict({name: tensor * 1.5 for name, tensor in layer.state_dict().items()}, assign=True)


def _new_in_place(layer: Any) -> None:
    with torch.no_grad():
        layer.mlp.gate_proj.weight.mul_(2)


def _new_module(layer: Any) -> None:
    layer.mlp.gate_proj = copy.deepcopy(layer.mlp.gate_proj)
    _new_in_place(layer)


def _parametrized(layer: Any) -> None:
    torch.nn.utils.parametrize.register_parametrization(layer.mlp.down_proj, "weight", torch.nn.Tanh())


def _with_bias(layer: Any) -> None:
    layer.self_attn.v_proj.bias = torch.nn.Parameter(torch.ones(layer.self_attn.v_proj.out_features))


def _other_eps(layer: Any) -> None:
    layer.input_layernorm.eps = 1.0


CHANGES = (
    _new_parameter, _new_data, _new_state, _new_in_place, _new_module, _parametrized, _with_bias, _other_eps,
)  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_layer_is_described_once_until_a_part_changes(models, one_by_one, monkeypatch, change):
    model, tokens, described = copy.deepcopy(models[False, torch.float32]), ids(6), []
    real = cpu_step._described
    monkeypatch.setattr(cpu_step, "_described", lambda *given: described.append(1) or real(*given))
    before = decoded(model, tokens, 2)
    decoded(model, tokens, 2)
    assert len(described) == 3  # once a layer
    change(model.model.layers[1])
    ours = decoded(model, tokens, 2)
    assert_equal(ours, one_by_one(decoded, model, tokens, 2))
    assert (ours - before).abs().max() > 1e-3
    assert len(described) <= 4  # that layer's once more, at most


def test_int4_weights_that_are_packed_anew_are_described_anew(models, one_by_one):
    model, tokens = copy.deepcopy(models[True, torch.float32]), ids(6)
    before, linear = decoded(model, tokens, 2), model.model.layers[0].mlp.down_proj
    linear.pack(model.model.layers[1].mlp.down_proj.int4_weight())
    ours = decoded(model, tokens, 2)
    assert_equal(ours, one_by_one(decoded, model, tokens, 2), 5e-4)
    assert (ours - before).abs().max() > 1e-2


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_has_its_own_weights(models, calls, copied):
    model, tokens = models[False, torch.float32], ids(6)
    before = decoded(model, tokens, 2)
    other = copied(model)
    for parameter in other.model.layers.parameters():
        parameter.data.mul_(2)
    calls.clear()
    doubled = decoded(other, tokens, 2)
    assert (doubled - before).abs().max() > 1e-2
    assert torch.equal(decoded(model, tokens, 2), before)
    assert len(calls) == 2 * 3 * 4


def test_weights_that_a_move_replaces_are_given_back(models):
    model = copy.deepcopy(models[True, torch.float32])
    decoded(model, ids(6), 2)
    before = weakref.ref(model.model.layers[0].mlp.gate_proj.qdata)
    model._apply(torch.clone)
    gc.collect()
    assert before() is None


def test_another_type_is_another_description(models, one_by_one):
    model, tokens = copy.deepcopy(models[False, torch.float32]), ids(6)
    exact = decoded(model, tokens, 2)
    rounded = decoded(model.to(torch.bfloat16), tokens, 2)
    assert_equal(rounded.float(), one_by_one(decoded, model, tokens, 2).float(), BOUND[torch.bfloat16])
    assert_equal(decoded(model.float(), tokens, 2), exact, BOUND[torch.bfloat16])


def test_weights_padding_and_many_rows_go_part_by_part(models, calls):
    model = models[False, torch.float32]
    cache = KVCache(model.config)
    prefill(model, cache, input_ids=ids(5))
    with torch.inference_mode():
        out = model(input_ids=ids(1), past_key_values=cache, output_attentions=True)
        assert [weights.shape for weights in out.attentions] == [(1, 4, 1, 6)] * 3
        mask = torch.ones(2, 6, dtype=torch.long)
        mask[0, :2] = 0
        padded = KVCache(model.config)
        model(input_ids=ids(5, rows=2), attention_mask=mask[:, :5], past_key_values=padded)
        model(input_ids=ids(1, rows=2), attention_mask=mask, past_key_values=padded)
    decoded(model, ids(5, rows=cpu_kernels.FEW_ROWS + 1), 4)
    decoded(models[True, torch.float32], ids(5, rows=65), 4)
    with torch.no_grad():  # outside inference mode a gradient may be wanted
        model(input_ids=ids(1), past_key_values=cache)
    assert calls == []
