"""A model over several devices: which part goes where, and that the numbers follow; nothing here needs a GPU.

"cpu" and "cpu:0" are two devices for the map and one for the kernels: results can be compared. That no part ever
meets a tensor of another device is seen with torch's meta device, where tensors can go, but not come back.
"""

import pytest
import torch
from reference import TEXT, WINDOW, assert_equal, image_prompt, left_padded, picture_prompt, pixels, text_batch
from transformers import Gemma3ForConditionalGeneration as ReferenceModel

from gemma3_core import TorchAoConfig
from gemma3_core.cache import KVCache
from gemma3_core.config import Gemma3TextConfig
from gemma3_core.device_maps import Placement, bytes_of_parts, connect, parts_of, placed, spread_in_order
from gemma3_core.errors import UnsupportedOptionError
from gemma3_core.multimodal import Gemma3ForConditionalGeneration
from gemma3_core.text import Gemma3ForCausalLM
from gemma3_core.weights import build_on_meta

FIRST, SECOND = torch.device("cpu"), torch.device("cpu:0")
SPLIT = {
    "model.vision_tower": "cpu:0",
    "model.multi_modal_projector": FIRST,
    "model.language_model": "cpu:0",
    "model.language_model.embed_tokens": "cpu",
    **{f"model.language_model.layers.{number}": "cpu" for number in range(3)},
    "lm_head": "cpu",
}
"""As accelerate writes it: names of modules, the longest that fits counts."""


@pytest.fixture(scope="module")
def split(weights):
    return Gemma3ForConditionalGeneration.from_pretrained(weights.both, device_map=SPLIT)


def test_each_part_lies_where_the_longest_name_says(split):
    placed_at = split.hf_device_map
    assert list(placed_at) == list(parts_of(split))
    second = [name for name, device in placed_at.items() if device == SECOND]
    language = [f"model.language_model.layers.{number}" for number in range(3, TEXT["num_hidden_layers"])]
    tower = [name for name in parts_of(split) if name.startswith("model.vision_tower.")]
    assert second == [*tower, *language, "model.language_model.norm"]
    assert split.device == FIRST


def test_every_tensor_belongs_to_one_part(split):
    where = Placement(FIRST, split.hf_device_map)
    parts = parts_of(split)
    for name, _ in split.named_parameters():
        assert sum(name == part or name.startswith(f"{part}.") for part in parts) == 1, name
        where.of(name)


def test_a_model_on_two_devices_gives_what_transformers_gives(split, theirs):
    """Several pictures, beyond the window, left padding; then the answer, token by token."""
    rows = [image_prompt("t9 i t30 i t5"), image_prompt("i t3 i")]
    ids, mask = left_padded([row for row, _ in rows])
    types, _ = left_padded([kinds for _, kinds in rows])
    given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types, "pixel_values": pixels(4)}
    assert ids.shape[1] > WINDOW
    with torch.no_grad():
        mine, other = split(**given, output_hidden_states=True), theirs(**given, output_hidden_states=True)
    real = mask.bool()
    assert_equal(mine.logits[real], other.logits[real])
    for one, two in zip(mine.hidden_states, other.hidden_states, strict=True):
        assert_equal(one[real], two[real])
    assert torch.equal(
        split.generate(**given, max_new_tokens=12, do_sample=False),
        theirs.generate(**given, max_new_tokens=12, do_sample=False),
    )


def test_gradients_go_through_all_devices(weights):
    given = {**picture_prompt("t9 i t5")}
    given["labels"] = given["input_ids"].masked_fill(given["token_type_ids"] == 1, -100)
    models = [Gemma3ForConditionalGeneration.from_pretrained(weights.both, device_map=m) for m in (SPLIT, "cpu")]
    for model in models:
        model(**given).loss.backward()
    both = [dict(model.named_parameters()) for model in models]
    assert all(torch.equal(parameter.grad, both[1][name].grad) for name, parameter in both[0].items())


def test_a_model_on_two_devices_is_saved_whole(split, tmp_path):
    split.save_pretrained(tmp_path)
    again, told = ReferenceModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(told[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    given = picture_prompt("t5 i")
    with torch.no_grad():
        assert_equal(split(**given).logits, again.eval()(**given).logits)


def test_int4_weights_on_two_devices(weights):
    spread = {"": "cpu", "model.layers.5": "cpu:0", "lm_head": "cpu"}
    config = TorchAoConfig("int4_weight_only", group_size=32)
    one, two = (
        Gemma3ForCausalLM.from_pretrained(weights.text, quantization_config=config, device_map=m)
        for m in ("cpu", spread)
    )
    assert two.hf_device_map["model.layers.5"] == SECOND
    assert two.hf_device_map["model.layers.4"] == FIRST
    given = text_batch()
    assert torch.equal(one(**given).logits, two(**given).logits)


def test_one_device_is_connected_by_nothing(weights):
    for device_map in ("cpu", {"": "cpu"}, {"model": "cpu", "lm_head": FIRST}, None):
        model = Gemma3ForCausalLM.from_pretrained(weights.text, device_map=device_map)
        assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
        assert model.hf_device_map == (None if device_map is None else {"": FIRST})


@pytest.mark.parametrize(
    ("device_map", "words"),
    [
        ({"model.layers": "cpu"}, ["nothing of model.embed_tokens"]),
        ({"": "cpu", "model.layers.99": "cpu"}, ["model.layers.99", "no module"]),
        ({"": "cpu", "transformer.h.0": "cpu"}, ["transformer.h.0", "no module"]),
        ({"": "cpu", "model.layers.1.mlp": "cpu:0"}, ["divides model.layers.1", "mlp"]),
        ({"": "disk"}, ["disk", "cpu"]),
        ({"": "cpu", "lm_head": "sofa"}, ["sofa"]),
        ({"": None}, ["None"]),
        ({0: "cpu"}, ["names of modules", "0"]),
        ({}, ["nothing of model.embed_tokens"]),
        ("balanced", ["balanced", "auto"]),
    ],
    ids=str,
)
def test_a_map_that_can_not_be_is_told(weights, device_map, words):
    with pytest.raises(UnsupportedOptionError) as error:
        Gemma3ForCausalLM.from_pretrained(weights.text, device_map=device_map)
    assert all(word in str(error.value) for word in words), error.value


def test_a_tied_head_stays_beside_its_embedding_and_the_log_says_so(weights, caplog):
    model = Gemma3ForCausalLM.from_pretrained(weights.text, device_map={"": "cpu:0", "model.embed_tokens": "cpu"})
    assert model.hf_device_map["lm_head"] == FIRST
    assert "lm_head shares the embedding's weights" in caplog.text
    assert model.lm_head.weight is model.model.embed_tokens.weight


CUDA = [torch.device("cuda", number) for number in range(3)]


def test_parts_fill_devices_in_order():
    parts = {"a": 40, "b": 40, "c": 30, "d": 60, "e": 5}
    assert spread_in_order(parts, [(CUDA[0], 1000)]) == dict.fromkeys(parts, CUDA[0])
    in_order = spread_in_order(parts, [(CUDA[0], 100), (CUDA[1], 20), (CUDA[2], 200)])
    assert in_order == {"a": CUDA[0], "b": CUDA[0], "c": CUDA[2], "d": CUDA[2], "e": CUDA[2]}
    with pytest.raises(UnsupportedOptionError, match="2 GPUs"):
        spread_in_order(parts, [(CUDA[0], 100), (CUDA[1], 20)])


def test_auto_takes_several_gpus_only_where_one_is_too_small(monkeypatch):
    model = build_on_meta(lambda: Gemma3ForCausalLM(Gemma3TextConfig(**TEXT)))
    sizes = bytes_of_parts(model, 4)
    assert sum(sizes.values()) == 4 * model.num_parameters()
    assert sizes["lm_head"] == 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for free, count in ((2 * sum(sizes.values()), 1), (sum(sizes.values()) * 0.7, 2)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (int(free), 10**12))
        where = placed(model, "auto", sizes)
        assert (where.main, len(where.devices)) == (CUDA[0], count)
    order = list(where.parts.values())
    assert order == sorted(order, key=str)
    assert placed(model, "auto", None).devices == (CUDA[0],)  # int4 weights: one device
    assert placed(model, 1, sizes).devices == (CUDA[1],)


@pytest.mark.parametrize("connected", [True, False])
def test_no_part_meets_a_tensor_of_another_device(connected):
    """A prompt beyond the window, then a token; without what connects the parts the same pass must fail."""
    config = Gemma3TextConfig(**{**TEXT, "tie_word_embeddings": False})
    model = Gemma3ForCausalLM(config).eval()
    later = [name for name in parts_of(model) if name in {*(f"model.layers.{n}" for n in (4, 5, 6)), "model.norm"}]
    for name in [*later, "lm_head"]:
        model.get_submodule(name).to("meta")
    if not connected:
        with pytest.raises((RuntimeError, NotImplementedError)):
            model.model(image_prompt("t5")[0])
        return
    connect(model)
    cache = KVCache(config)
    for new in (image_prompt(f"t{WINDOW + 9}")[0], image_prompt("t0")[0]):
        # The body alone: what the whole returns comes back, and from meta nothing can.
        out = model.model(new, past_key_values=cache, output_hidden_states=True)
        # Before each layer, and the last: a layer's input is still where the layer before it lies.
        assert [x.device.type for x in out.hidden_states] == ["cpu"] * 5 + ["meta"] * 3
        assert model.lm_head(out.last_hidden_state).shape == (*new.shape, config.vocab_size)
    assert cache.length == WINDOW + 11
    assert [keys._buffer.device.type for keys in cache._keys] == ["cpu"] * 4 + ["meta"] * 3
    with pytest.raises(NotImplementedError, match="meta"):
        model(image_prompt("t5")[0])
