"""Attention of chosen rows against transformers' eager attention, what it costs, and rollout."""

import json
import weakref

import pytest
import torch
from places import DEMO_MODEL
from reference import SOFT, WINDOW, assert_equal, image_prompt, left_padded, pixels
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Gemma3ForCausalLM as ReferenceCausalLM
from transformers import Gemma3ForConditionalGeneration as ReferenceModel

from gemma3_core.config.gemma3 import GLOBAL, LOCAL, Gemma3Config
from gemma3_core.errors import AttentionError, PromptError, UnsupportedOptionError
from gemma3_core.inspection import attention as attention_maps
from gemma3_core.inspection.attention import ROLLOUT_MAX_TOKENS, replay, rollout, with_answer
from gemma3_core.int4.linear import Int4Linear
from gemma3_core.int4.quantize import TorchAoConfig
from gemma3_core.models.multimodal import Gemma3ForConditionalGeneration
from gemma3_core.models.text import Gemma3ForCausalLM
from gemma3_core.nn import layers

LAYOUTS = {
    "text": "t9",
    "text beyond the window": f"t{3 * WINDOW}",
    "image in the middle": "t7 i t11",
    "several images in several turns, beyond the window": "t20 i t30 i t5 i t40",
    "image and its crops": "t4 i i i i t6",
}


@pytest.fixture(scope="module")
def theirs(reference_folder):
    return ReferenceModel.from_pretrained(reference_folder, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def ours(reference_folder):
    return Gemma3ForConditionalGeneration.from_pretrained(reference_folder)


def turn_of(layout: str, seed: int = 0) -> dict[str, torch.Tensor]:
    input_ids, token_type_ids = image_prompt(layout, seed)
    turn = {"input_ids": input_ids, "token_type_ids": token_type_ids}
    if "i" in layout.split():
        turn["pixel_values"] = pixels(layout.split().count("i"), seed)
    return turn


def some_rows(turn: dict[str, torch.Tensor]) -> list[int]:
    """The last, the first, and some of each sort between, soft tokens included; in no order."""
    total = turn["input_ids"].shape[1]
    return [total - 1, 0, total // 2, total // 3, total - 2]


@torch.no_grad()
def all_weights(model: ReferenceModel | ReferenceCausalLM, **inputs: torch.Tensor) -> torch.Tensor:
    """transformers' own attentions [layers, B, H, T, S]."""
    return torch.stack(model(**inputs, output_attentions=True).attentions)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_rows_are_those_of_transformers_eager_attention(ours, theirs, layout):
    turn = turn_of(layout)
    rows = some_rows(turn)
    mine = replay(ours, turn, rows, with_logits=True)
    expected = all_weights(theirs, **turn)[:, 0][:, :, rows]
    config = ours.text_config
    assert mine.weights.shape == (config.num_hidden_layers, config.num_attention_heads, 5, turn["input_ids"].shape[1])
    for kind in (LOCAL, GLOBAL):
        of_kind = [i for i in range(config.num_hidden_layers) if config.layer_type(i) == kind]
        assert_equal(mine.weights[of_kind], expected[of_kind])
    with torch.no_grad():
        assert_equal(mine.logits, theirs(**turn).logits[0, rows])


@pytest.mark.parametrize(("layout", "chunk_size"), [("t20 i t30 i t5 i t4", 20), ("t4 i i i t6", 50), ("t2 i t3", 1)])
def test_a_long_turn_is_read_in_chunks_with_the_same_result(ours, layout, chunk_size):
    turn = turn_of(layout)
    rows = some_rows(turn)
    whole, parts = (replay(ours, turn, rows, with_logits=True, chunk_size=size) for size in (10_000, chunk_size))
    assert_equal(parts.weights, whole.weights)
    assert_equal(parts.logits, whole.logits)


@pytest.mark.parametrize("chunk_size", [10_000, 20])
def test_left_padded_rows_are_those_of_the_padded_batch(ours, theirs, chunk_size):
    turns = [turn_of("t5", 1), turn_of(f"t9 i t{WINDOW} i t4", 2)]
    input_ids, mask = left_padded([turn["input_ids"] for turn in turns])
    batch = {"input_ids": input_ids, "attention_mask": mask, "token_type_ids": (input_ids == SOFT).long()}
    batch["pixel_values"] = turns[1]["pixel_values"]
    expected = all_weights(theirs, **batch)
    total = input_ids.shape[1]
    rows = [total - 1, total - 4]
    for number, turn in enumerate(turns):
        padded = {name: batch[name][number : number + 1] for name in ("input_ids", "attention_mask", "token_type_ids")}
        padded |= {"pixel_values": turn["pixel_values"]} if "pixel_values" in turn else {}
        mine = replay(ours, padded, rows, chunk_size=chunk_size).weights
        assert_equal(mine, expected[:, number][:, :, rows])
        assert mine[..., mask[number] == 0].abs().max() == 0 if (mask[number] == 0).any() else number == 1


def test_rows_of_a_text_only_model(reference_text_folder):
    theirs = ReferenceCausalLM.from_pretrained(reference_text_folder, attn_implementation="eager").eval()
    mine = Gemma3ForCausalLM.from_pretrained(reference_text_folder)
    turn = turn_of(f"t{2 * WINDOW + 5}")
    rows = some_rows(turn)
    expected = all_weights(theirs, input_ids=turn["input_ids"])[:, 0][:, :, rows]
    assert_equal(replay(mine, turn, rows).weights, expected)
    assert_equal(replay(mine, turn, rows, chunk_size=13).weights, expected)
    with pytest.raises(PromptError, match="text only"):
        replay(mine, turn_of("i t4"), [0])


def test_bfloat16_is_as_near_to_float32_as_transformers_in_bfloat16(reference_folder, theirs):
    turn = turn_of("t20 i t30 i t5")
    rows = some_rows(turn)
    exact = all_weights(theirs, **turn)[:, 0][:, :, rows]
    narrow = {**turn, "pixel_values": turn["pixel_values"].bfloat16()}
    mine = replay(Gemma3ForConditionalGeneration.from_pretrained(reference_folder, dtype="bfloat16"), narrow, rows)
    other = ReferenceModel.from_pretrained(reference_folder, attn_implementation="eager", dtype=torch.bfloat16).eval()
    error, their_error = (
        (weights.float() - exact).abs().max().item()
        for weights in (mine.weights, all_weights(other, **narrow)[:, 0][:, :, rows])
    )
    assert mine.weights.dtype == torch.bfloat16
    assert error <= 1.2 * their_error, (error, their_error)
    assert their_error < 0.05


def test_int4_rows_are_those_of_the_whole_tensor():
    model = Gemma3ForConditionalGeneration.from_pretrained(
        DEMO_MODEL, dtype="float32", quantization_config=TorchAoConfig(128)
    )
    # Two pictures: from 128 rows on the CPU multiplies int4 weights in float32, and rounding stays small.
    ids = torch.tensor([[2, 20, 21, 11, *[13] * 64, 12, 22, 11, *[13] * 64, 12, 23, 24]])
    turn = {"input_ids": ids, "token_type_ids": (ids == 13).long()}
    turn["pixel_values"] = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    rows = [ids.shape[1] - 1, 40]
    mine = replay(model, turn, rows).weights
    with torch.no_grad():
        expected = torch.stack(model(**turn, output_attentions=True).attentions)[:, 0][:, :, rows]
    assert_equal(mine, expected)
    assert any(isinstance(module, Int4Linear) for module in model.decoder.modules())


class Watch(TorchDispatchMode):
    """Sees every operator: the largest result, the fused attention, and memory alive at once (storages made here)."""

    def __init__(self) -> None:
        super().__init__()
        self.largest, self.fused, self.alive, self.peak = 0, 0, 0, 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        with self:  # in inference mode operators that are made of others arrive whole
            result = func.decompose(*args, **kwargs) if func.namespace == "aten" else NotImplemented
        if result is not NotImplemented:
            return result
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        result = func(*args, **kwargs)
        self.fused += "scaled_dot_product_flash" in str(func)
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in given:  # no view
                self.largest = max(self.largest, tensor.numel())
                self._count(tensor)
        return result

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        size, key = storage.nbytes(), storage._cdata
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.alive -= size


def test_the_whole_attention_tensor_is_never_built(ours):
    turn = turn_of("t20 i t30 i t5 i t140")
    total, heads = turn["input_ids"].shape[1], ours.text_config.num_attention_heads
    soft = ours.get_image_features(turn.pop("pixel_values")).pooler_output.detach()
    turn["soft_tokens"] = soft
    with Watch() as watch:
        replay(ours, turn, [total - 1, total - 2])
    assert watch.fused == ours.text_config.num_hidden_layers, "each layer takes the fused path"
    assert watch.largest < heads * total * total / 2
    with Watch() as open_form, torch.no_grad():
        ours(**turn, output_attentions=True, use_cache=False)
    assert open_form.largest >= heads * total * total, "or the bound above would hold for anything"


@pytest.mark.parametrize("widens", [True, False], ids=["CPU that widens bfloat16", "GPU, or CPU with tiles"])
def test_a_4b_model_with_4_crops_needs_less_than_200_mb_beyond_it(shared_data, monkeypatch, widens):
    """Counted on tensors of the published shapes that have no memory: what is alive at once beside the weights."""
    monkeypatch.setattr(layers, "multiplies_bfloat16_fast", lambda: not widens)
    config = Gemma3Config.from_dict(json.loads((shared_data / "configs" / "gemma-3-4b-it.config.json").read_text()))
    tiles, rows = 5, [1400, 1401, 1402]
    total = tiles * (config.mm_tokens_per_image + 4) + 180
    config = config.replace(vision_config=config.vision_config.replace(num_hidden_layers=2))  # one is as large as 27
    with FakeTensorMode(allow_non_fake_inputs=True):
        torch.set_default_dtype(torch.bfloat16)  # tensors without memory can't be converted later
        try:
            model = Gemma3ForConditionalGeneration(config)
        finally:
            torch.set_default_dtype(torch.float32)
        turn = torch.zeros(1, total, config.text_config.hidden_size, dtype=torch.bfloat16)
        with Watch() as decoder, torch.inference_mode():
            reader = attention_maps._RowReader(rows)
            weights = model.decoder(inputs_embeds=turn, output_attentions=reader, use_cache=False).attentions
        with Watch() as encoder, torch.inference_mode():
            model.get_image_features(torch.zeros(1, 3, 896, 896, dtype=torch.bfloat16))
    assert decoder.fused == config.text_config.num_hidden_layers
    assert sum(layer.nbytes for layer in weights) < 3e6
    soft_tokens = tiles * config.mm_tokens_per_image * config.text_config.hidden_size * 2
    # The turn's embeddings are made once all pictures are encoded.
    assert 50e6 < max(encoder.peak, turn.nbytes + decoder.peak) + soft_tokens < 200e6


def test_rollout_is_the_product_of_the_layers_mixed_with_the_identity(ours, theirs):
    turn = turn_of("t9 i t20 i t7")
    total, rows = turn["input_ids"].shape[1], [50, 3]
    mixed = torch.eye(total, dtype=torch.float64)
    for weights in all_weights(theirs, **turn)[:, 0].double():
        mixed = (weights.mean(dim=0) + torch.eye(total)) / 2 @ mixed
    mine = rollout(ours, turn, rows)
    assert_equal(mine, mixed[rows])
    assert torch.allclose(mine.sum(dim=1), torch.ones(2))


def test_rollout_says_how_long_a_turn_may_be(ours):
    ids = torch.full((1, ROLLOUT_MAX_TOKENS + 1), 7)
    with pytest.raises(AttentionError, match=r"4,096 tokens at most; this turn has 4,097"):
        rollout(ours, {"input_ids": ids}, [0])


def test_an_answer_is_put_behind_its_prompt():
    turn = turn_of("t3 i")
    whole = with_answer({**turn, "attention_mask": torch.ones_like(turn["input_ids"])}, [9, 8])
    assert whole["input_ids"][0, -3:].tolist() == [*turn["input_ids"][0, -1:].tolist(), 9, 8]
    assert whole["token_type_ids"][0, -2:].tolist() == [0, 0]
    assert whole["attention_mask"].shape == whole["token_type_ids"].shape == whole["input_ids"].shape
    assert whole["attention_mask"].all()
    with pytest.raises(PromptError, match="position_ids"):
        with_answer({**turn, "position_ids": turn["input_ids"]}, [9])


@pytest.mark.parametrize(
    ("rows", "change", "error", "words"),
    [
        ([], {}, AttentionError, ["at least one"]),
        ([31], {}, AttentionError, ["0 to 30", "[31]"]),
        ([-1], {}, AttentionError, ["0 to 30", "[-1]"]),
        ([1], {"labels": torch.zeros(1)}, UnsupportedOptionError, ["labels"]),
        ([1], {"input_ids": None}, PromptError, ["input_ids"]),
        ([1], {"input_ids": torch.zeros(2, 31, dtype=torch.long)}, PromptError, ["[2, 31]", "One conversation"]),
        ([1], {"token_type_ids": None}, PromptError, ["token_type_ids"]),
        ([1], {"pixel_values": pixels(2)}, PromptError, ["soft tokens"]),
    ],
)
def test_what_can_not_be_replayed_is_refused_with_the_reason(ours, rows, change, error, words):
    turn = {**turn_of("t5 i t7"), **change}
    with pytest.raises(error) as caught:
        replay(ours, turn, rows)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_more_rows_than_fit_are_refused_with_their_number(ours, monkeypatch):
    turn = turn_of("t29")
    monkeypatch.setattr(attention_maps, "MOST_WEIGHT_BYTES", 3 * 7 * 4 * 30 * 4)
    assert replay(ours, turn, [1, 2, 3]).weights.nbytes == 3 * 7 * 4 * 30 * 4
    with pytest.raises(AttentionError, match="4 tokens at once is too much: 3 fit"):
        replay(ours, turn, [1, 2, 3, 4])
