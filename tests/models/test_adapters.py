"""Adapters on our models against peft's on transformers': beside the weights, merged, several, int4."""

import json
import os
import re
import shutil
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from adapters import DECODER, PROJECTOR, VISION, save_adapter, with_peft
from reference import assert_equal, picture_prompt, text_batch
from safetensors.torch import load_file, save_file
from warm import ran

import gemma3_core
from gemma3_core import Gemma3ForCausalLM, Gemma3ForConditionalGeneration, TorchAoConfig
from gemma3_core.errors import CheckpointError, UnsupportedOptionError
from gemma3_core.int4.linear import Int4Linear
from gemma3_core.int4.quantize import sharing_copy

ADAPTERS: dict[str, dict[str, Any]] = {
    "decoder_and_vision": {"target_modules": DECODER + VISION, "r": 4, "lora_alpha": 6},
    "patterns": {
        "target_modules": [*DECODER, "fc1"], "r": 4, "lora_alpha": 6,
        "rank_pattern": {"layers.0.self_attn.q_proj": 2, "fc1": 8, r"layers\.[3-5]\.mlp\.up_proj": 3},
        "alpha_pattern": {"down_proj": 3, r"language_model\.layers\.1\..*": 20},
    },
    "rslora": {"target_modules": DECODER, "r": 4, "lora_alpha": 3, "use_rslora": True},
    "all_linear": {"target_modules": "all-linear", "r": 2},
    "regular_expression": {"target_modules": r".*language_model.*\.(q_proj|up_proj)", "r": 4},
    "some_layers": {"target_modules": ["v_proj"], "layers_to_transform": [1, 4], "layers_pattern": "layers", "r": 4},
    "projector": {"target_modules": ["o_proj"], "target_parameters": [PROJECTOR], "r": 4},
    "saved_projector": {"target_modules": ["v_proj"], "modules_to_save": ["multi_modal_projector"], "r": 4},
    "saved_head": {"target_modules": ["v_proj"], "modules_to_save": ["lm_head"], "r": 4},
    "saved_embedding": {"target_modules": ["v_proj"], "modules_to_save": ["embed_tokens"], "r": 4},
    "saved_both": {"target_modules": ["v_proj"], "modules_to_save": ["embed_tokens", "lm_head"], "r": 4},
    "head": {"target_modules": ["v_proj", "lm_head"], "r": 4},
    "embedding": {"target_modules": ["v_proj", "embed_tokens"], "r": 4},
    "biases": {"target_modules": ["q_proj"], "r": 4, "bias": "all"},
    "bias_of_b": {"target_modules": ["q_proj", "fc2"], "r": 4, "lora_bias": True},
}  # fmt: skip
PROMPT = picture_prompt("t9 i t5 i t30")


@cache
def _loaded(folder: Path) -> Any:
    return transformers.Gemma3ForConditionalGeneration.from_pretrained(folder).eval()


def reference(folder: Path) -> Any:
    """A copy each time: peft puts its adapter into the model."""
    return deepcopy(_loaded(folder))


@pytest.fixture(scope="module")
def saved(reference_folder, tmp_path_factory):
    """The folder of one of ADAPTERS, made when it is first asked for."""
    folder = tmp_path_factory.mktemp("adapters")

    def get(name: str) -> Path:
        made = folder / name
        return made if made.exists() else save_adapter(reference(reference_folder), made, **ADAPTERS[name])

    return get


def logits_of(model: Any, prompt: Any = PROMPT) -> torch.Tensor:
    with torch.inference_mode():
        return model(**prompt).logits


def copied(adapter: Path, folder: Path, **changes: Any) -> Path:
    """A copy of an adapter's folder with another config; None leaves an entry out."""
    shutil.copytree(adapter, folder)
    config = {**json.loads((folder / "adapter_config.json").read_text()), **changes}
    config = {name: value for name, value in config.items() if value is not None or name not in changes}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def with_tensors(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    return folder


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("name", ADAPTERS)
def test_logits_are_pefts_beside_the_weights_and_merged_and_switched_off_the_bases(name, saved, reference_folder):
    expected = logits_of(with_peft(reference(reference_folder), saved(name)))
    model = Gemma3ForConditionalGeneration.from_pretrained(reference_folder)
    alone = logits_of(model)
    assert (alone - expected).abs().max() > 0.05 * expected.abs().max()  # the adapter says something
    model.load_adapter(saved(name))
    assert_equal(logits_of(model), expected)
    model.disable_adapters()
    assert torch.equal(logits_of(model), alone)
    model.enable_adapters()
    assert_equal(logits_of(model.merge_and_unload()), expected)
    merged = Gemma3ForConditionalGeneration.from_pretrained(reference_folder)
    assert merged.load_adapter(saved(name), merge=True).merged
    assert_equal(logits_of(merged), expected)


@pytest.mark.parametrize("name", ["decoder_and_vision", "saved_head", "saved_embedding", "head", "embedding"])
def test_a_merged_model_is_a_checkpoint_for_transformers_too(name, saved, reference_folder, tmp_path):
    expected = logits_of(with_peft(reference(reference_folder), saved(name)))
    model = Gemma3ForConditionalGeneration.from_pretrained(reference_folder)
    model.load_adapter(saved(name))
    with pytest.raises(UnsupportedOptionError, match=r"an adapter beside its weights.*merge_and_unload"):
        model.save_pretrained(tmp_path)
    model.merge_and_unload().save_pretrained(tmp_path)
    assert_equal(logits_of(reference(tmp_path)), expected)
    assert_equal(logits_of(Gemma3ForConditionalGeneration.from_pretrained(tmp_path)), expected)


@pytest.mark.parametrize("options", [{"target_modules": DECODER, "r": 8}, {"target_modules": "all-linear", "r": 2}])
def test_models_that_read_text_only(options, reference_text_folder, tmp_path):
    kind, prompt = transformers.Gemma3ForCausalLM, text_batch()
    save_adapter(kind.from_pretrained(reference_text_folder), tmp_path, task_type="CAUSAL_LM", **options)
    theirs = with_peft(kind.from_pretrained(reference_text_folder), tmp_path)
    model = Gemma3ForCausalLM.from_pretrained(reference_text_folder)
    model.load_adapter(tmp_path)
    real = prompt["attention_mask"].bool()
    assert_equal(logits_of(model, prompt)[real], logits_of(theirs, prompt)[real])
    options = {"max_new_tokens": 12, "do_sample": False}
    assert torch.equal(model.generate(**prompt, **options), theirs.generate(**prompt, **options))


def test_a_classifiers_head_is_saved_with_its_adapter(reference_text_folder, tmp_path):
    name, prompt = "Gemma3TextForSequenceClassification", text_batch()
    theirs, ours = (getattr(m, name).from_pretrained for m in (transformers, gemma3_core))
    save_adapter(theirs(reference_text_folder), tmp_path, task_type="SEQ_CLS", target_modules=["q_proj"])
    model = ours(reference_text_folder)
    assert model.load_adapter(tmp_path).replaced == ("score.weight",)
    assert_equal(logits_of(model, prompt), logits_of(with_peft(theirs(reference_text_folder), tmp_path), prompt))


def test_the_model_without_a_head(reference_folder, tmp_path):
    save_adapter(transformers.Gemma3Model.from_pretrained(reference_folder), tmp_path, target_modules=["q_proj", "fc1"])
    theirs = with_peft(transformers.Gemma3Model.from_pretrained(reference_folder), tmp_path)
    model = gemma3_core.Gemma3Model.from_pretrained(reference_folder)
    model.load_adapter(tmp_path)
    with torch.inference_mode():
        assert_equal(model(**PROMPT)[0], theirs(**PROMPT)[0])


OLDER = [
    (r"^base_model\.model\.model\.language_model\.", "base_model.model.language_model.model."),
    (r"^base_model\.model\.model\.vision_tower\.(vision_model\.)?", "base_model.model.vision_tower.vision_model."),
    (r"^base_model\.model\.model\.multi_modal_projector\.", "base_model.model.multi_modal_projector."),
    (r"^base_model\.model\.lm_head\.", "base_model.model.language_model.lm_head."),
]


@pytest.mark.parametrize("name", ["decoder_and_vision", "projector", "saved_head", "patterns"])
def test_adapters_of_older_transformers_name_their_tensors_otherwise(name, saved, reference_folder, tmp_path):
    expected = Gemma3ForConditionalGeneration.from_pretrained(reference_folder)
    expected.load_adapter(saved(name))
    older = {}
    for stored, tensor in tensors_of(saved(name)).items():
        for pattern, replacement in OLDER:
            stored = re.sub(pattern, replacement, stored)
        older[stored] = tensor
    assert not older.keys() & tensors_of(saved(name)).keys()
    alpha = (
        {"alpha_pattern": {"down_proj": 3, r"language_model\.model\.layers\.1\..*": 20}} if name == "patterns" else {}
    )
    folder = with_tensors(copied(saved(name), tmp_path / "older", **alpha), older)
    model = Gemma3ForConditionalGeneration.from_pretrained(reference_folder)
    model.load_adapter(folder)
    assert torch.equal(logits_of(model), logits_of(expected))


def test_an_adapter_of_the_decoder_fits_the_decoder_alone(saved, reference_folder):
    """As of a GGUF file without its mmproj file."""
    both = Gemma3ForConditionalGeneration.from_pretrained(reference_folder)
    both.load_adapter(saved("regular_expression"))
    config = both.config.text_config
    text = Gemma3ForCausalLM(config)
    text.load_state_dict({f"model.{k}": v for k, v in Gemma3ForConditionalGeneration.from_pretrained(
        reference_folder).model.language_model.state_dict().items()}, strict=False)  # fmt: skip
    text.tie_weights()
    text.load_adapter(saved("regular_expression"))
    assert_equal(logits_of(text.eval(), text_batch()), logits_of(both, text_batch()))
    with pytest.raises(CheckpointError, match=r"not part of this model: .*vision_tower"):
        text.load_adapter(saved("decoder_and_vision"), "second")


def test_one_adapter_is_switched_as_in_transformers(saved, reference_folder):
    results = []
    for model in (Gemma3ForConditionalGeneration.from_pretrained(reference_folder), reference(reference_folder)):
        said = [logits_of(model)]
        model.load_adapter(str(saved("decoder_and_vision")))
        said.append(logits_of(model))
        assert model.active_adapters() == ["default"]
        model.disable_adapters()
        said.append(logits_of(model))
        model.enable_adapters()
        model.set_adapter("default")
        said.append(logits_of(model))
        model.delete_adapter("default")
        said.append(logits_of(model))
        results.append(said)
    for own, expected in zip(*results, strict=True):
        assert_equal(own, expected)
    assert torch.equal(results[0][0], results[0][4])


def test_several_adapters_are_chosen_as_in_peft(saved, reference_folder):
    """transformers' own load_adapter makes the first adapter anew when it loads a second."""
    theirs = with_peft(reference(reference_folder), saved("rslora"))
    theirs.load_adapter(saved("decoder_and_vision"), "second")
    ours = Gemma3ForConditionalGeneration.from_pretrained(reference_folder)
    ours.load_adapter(saved("rslora"))
    ours.load_adapter(saved("decoder_and_vision"), "second")
    for names in (["default"], ["second"], ["default", "second"]):
        theirs.base_model.set_adapter(names)
        if names != ["default"]:
            ours.set_adapter(names)
        assert ours.active_adapters() == names
        assert_equal(logits_of(ours), logits_of(theirs))
    ours.disable_adapters()
    assert_equal(logits_of(ours.merge_and_unload()), logits_of(theirs))
    with pytest.raises(UnsupportedOptionError, match="No adapter is loaded"):
        ours.set_adapter("second")


def test_an_adapter_that_is_deleted_leaves_the_others_in_use(saved, reference_folder):
    model = Gemma3ForConditionalGeneration.from_pretrained(reference_folder)
    alone, expected = logits_of(model), {}
    for name in ("rslora", "saved_head", "biases"):
        model.load_adapter(saved(name), name)
        model.set_adapter(name)
        expected[name] = logits_of(model)
    model.set_adapter(["rslora", "biases"])  # the second holds weights of layers that the first changes
    both = logits_of(model)
    model.set_adapter(["biases", "rslora"])
    assert_equal(logits_of(model), both)
    model.delete_adapter("saved_head")
    assert_equal(logits_of(model), both)
    model.delete_adapter("biases")
    assert torch.equal(logits_of(model), expected["rslora"])
    assert model.active_adapters() == ["rslora"]
    model.delete_adapter(["rslora"])
    assert torch.equal(logits_of(model), alone)


def test_what_adapters_are_asked_and_are_not(saved, reference_folder):
    model = Gemma3ForConditionalGeneration.from_pretrained(reference_folder)
    for call in (model.disable_adapters, model.enable_adapters, model.active_adapters, model.merge_and_unload):
        with pytest.raises(UnsupportedOptionError, match="No adapter is loaded"):
            call()
    model.load_adapter(saved("saved_head"))
    model.load_adapter(saved("saved_both"), "both")
    for call, says in [
        (lambda: model.load_adapter(saved("rslora")), "There is an adapter 'default' already"),
        (lambda: model.load_adapter(saved("rslora"), "third", merge=True), "without other adapters"),
        (lambda: model.load_adapter(saved("rslora"), 3), "must be a text"),
        (lambda: model.load_adapter(saved("rslora"), "third", is_trainable=True), "does not support is_trainable"),
        (lambda: model.load_adapter(saved("rslora"), "third", shiny=1), "does not support shiny"),
        (lambda: model.set_adapter("third"), "no adapter third. Loaded are default, both"),
        (lambda: model.set_adapter([]), "needs the name"),
        (lambda: model.set_adapter(["default", "both"]), "hold whole weights, so they can't be used together"),
    ]:
        with pytest.raises(UnsupportedOptionError, match=re.escape(says)):
            call()
    assert model.active_adapters() == ["default"]


def test_facts_say_rank_targets_and_size(saved, reference_folder):
    model = Gemma3ForConditionalGeneration.from_pretrained(reference_folder)
    before, bytes_before = model.num_parameters(), model.get_memory_footprint()
    facts = model.load_adapter(saved("patterns"))
    assert facts == model.adapter_facts()
    assert facts.ranks == (2, 3, 4, 8)
    assert set(facts.targets) == {*DECODER, "fc1"}
    assert dict(facts.layers) == {"decoder": 7 * 7, "vision tower": 2 * 4}
    assert (facts.name, facts.base, facts.merged) == ("patterns", reference_folder.name, False)
    stored = tensors_of(saved("patterns"))
    assert facts.num_parameters == sum(tensor.numel() for tensor in stored.values())
    assert facts.num_parameters == model.num_parameters() - before
    assert facts.num_bytes == model.get_memory_footprint() - bytes_before == 4 * facts.num_parameters
    model.delete_adapter("default")
    assert model.num_parameters() == before
    assert dict(model.load_adapter(saved("projector")).layers)["projector"] == 1


@pytest.mark.parametrize("name", ["decoder_and_vision", "saved_head", "embedding", "projector"])
def test_a_model_with_an_adapter_shares_every_weight_with_the_base(name, saved, reference_folder):
    base = Gemma3ForConditionalGeneration.from_pretrained(reference_folder)
    expected, addresses = logits_of(base), {parameter.data_ptr() for parameter in base.parameters()}
    adapted = sharing_copy(base)
    facts = adapted.load_adapter(saved(name))
    own = [p for p in adapted.parameters() if p.data_ptr() not in addresses]
    assert sum(p.nbytes for p in own) == facts.num_bytes
    # The embedding that peft saved beside its adapter is the base's.
    assert facts.num_parameters < 0.2 * base.num_parameters() or "lm_head.weight" in facts.replaced
    shared = {p.data_ptr() for p in adapted.parameters()} & addresses
    replaced = [name for name in facts.replaced if name != "lm_head.weight"]  # it shares the embedding's
    assert len(shared) == len(addresses) - len(replaced)
    assert not torch.equal(logits_of(adapted), expected)
    assert torch.equal(logits_of(base), expected)


def test_loading_takes_the_adapters_memory_and_no_more(reference_text_folder, tmp_path):
    """A base of 100 MB, memory-mapped, with an adapter of 1 MB: beside it nothing else is added."""
    program = tmp_path / "load.py"
    program.write_text("""
import sys
from pathlib import Path
import torch
from gemma3_core import Gemma3ForCausalLM, Gemma3TextConfig
folder, adapter = map(Path, sys.argv[1:])
def held():
    return sum(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith(('RssAnon', 'RssShmem'))) * 1024
model = Gemma3ForCausalLM.from_pretrained(folder)
before = held()
facts = model.load_adapter(adapter)
print(sum(p.nbytes for p in model.parameters()), facts.num_bytes, held() - before)
""")
    config = json.loads((reference_text_folder / "config.json").read_text())
    config |= {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 7, "head_dim": 64}
    torch.manual_seed(0)
    kind = transformers.Gemma3ForCausalLM
    large = kind(transformers.Gemma3TextConfig(**config))
    large.save_pretrained(tmp_path / "base")
    save_adapter(large, tmp_path / "adapter", target_modules=["up_proj"], r=16)
    status, printed, errors = ran(program, [str(tmp_path / "base"), str(tmp_path / "adapter")], os.environ, tmp_path)
    assert status == 0, errors
    weights, added, grown = map(int, printed.split())
    assert weights > 80_000_000
    assert 1_000_000 < added < 4_000_000
    assert grown < 3 * added + 8_000_000


@pytest.fixture(scope="module")
def folder_for_int4(reference_folder, tmp_path_factory) -> Path:
    """With a vocabulary whose head can be int4."""
    folder = tmp_path_factory.mktemp("even")
    model = Gemma3ForConditionalGeneration.from_pretrained(reference_folder)
    model.resize_token_embeddings(256)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["decoder_and_vision", "saved_head", "head", "saved_embedding"])
def test_int4_weights_take_an_adapter_beside_them(name, folder_for_int4, tmp_path):
    adapter = save_adapter(reference(folder_for_int4), tmp_path, **ADAPTERS[name])
    prompt = picture_prompt("t60 i t70 i t30")  # so many rows are multiplied by dequantised weights, in float32
    config = TorchAoConfig(group_size=32)
    int4 = Gemma3ForConditionalGeneration.from_pretrained(folder_for_int4, quantization_config=config)
    alone = logits_of(int4, prompt)
    layers = {path: layer for path, layer in int4.named_modules() if isinstance(layer, Int4Linear)}
    full = Gemma3ForConditionalGeneration.from_pretrained(folder_for_int4)
    for model in (int4, full):
        model.load_adapter(adapter)
    if name == "saved_head":
        del layers["lm_head"]
    for path, layer in layers.items():
        wrapped: Any = full.get_submodule(path)
        weight = torch.nn.Parameter(layer.int4_weight().dequantize(), requires_grad=False)
        getattr(wrapped, "base_layer", wrapped).weight = weight
    assert_equal(logits_of(int4, prompt), logits_of(full, prompt))
    assert {id(layer) for layer in int4.modules() if isinstance(layer, Int4Linear)} == set(map(id, layers.values()))
    with pytest.raises(UnsupportedOptionError, match="int4 weights can't take up an adapter"):
        int4.merge_and_unload()
    int4.disable_adapters()
    assert torch.equal(logits_of(int4, prompt), alone)
    with pytest.raises(UnsupportedOptionError, match="int4 weights can't take up an adapter"):
        Gemma3ForConditionalGeneration.from_pretrained(folder_for_int4, quantization_config=config).load_adapter(
            adapter, merge=True
        )


def test_factors_stay_in_float32_beside_weights_in_bfloat16(saved, reference_folder):
    theirs = with_peft(reference(reference_folder).bfloat16(), saved("decoder_and_vision"))
    model = Gemma3ForConditionalGeneration.from_pretrained(reference_folder, dtype="bfloat16")
    model.load_adapter(saved("decoder_and_vision"))
    factors = {parameter.dtype for name, parameter in model.named_parameters() if "low_rank" in name}
    assert (model.dtype, factors) == (torch.bfloat16, {torch.float32})
    assert logits_of(model).dtype == torch.bfloat16
    assert_equal(logits_of(model).float(), logits_of(theirs).float(), bound=0.05)
    text = sharing_copy(model)
    text.delete_adapter("default")
    text.load_adapter(saved("embedding"))
    assert text.dtype == torch.bfloat16
    merged = text.merge_and_unload()
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.bfloat16}


def test_from_pretrained_of_an_adapter_loads_its_base_too(saved, reference_folder, tmp_path):
    expected = Gemma3ForConditionalGeneration.from_pretrained(reference_folder)
    expected.load_adapter(saved("rslora"))
    for kind in (Gemma3ForConditionalGeneration, gemma3_core.AutoModelForImageTextToText):
        model = kind.from_pretrained(saved("rslora"), dtype="float32")
        assert model.active_adapters() == ["default"]
        assert torch.equal(logits_of(model), logits_of(expected))
    folder = copied(saved("rslora"), tmp_path / "nameless", base_model_name_or_path=None)
    with pytest.raises(CheckpointError, match="nameless names no base model"):
        Gemma3ForConditionalGeneration.from_pretrained(folder)


def test_a_mismatch_names_the_tensors_both_shapes_and_the_models(saved, reference_folder, tmp_path):
    stored = tensors_of(saved("rslora"))
    names = sorted(stored)
    query = next(name for name in names if name.endswith("language_model.layers.2.self_attn.q_proj.lora_A.weight"))
    partner = query.replace("lora_A", "lora_B")
    for number, (changed, says) in enumerate([
        ({query: torch.zeros(4, 7)}, r"wrong shape: .*layers.2.self_attn.q_proj.lora_A.weight is \[4, 7\]"),
        ({query: torch.zeros(6, 64)}, r"is \[6, 64\], expected \[4, 64\]"),  # another rank than the config's
        ({query: torch.zeros(4, 64, 1)}, r"is \[4, 64, 1\], expected \[4, 64\]"),
        ({query: torch.zeros(())}, r"is \[\], expected \[4, 64\]"),
        ({partner: None}, r"missing: model.*layers.2.self_attn.q_proj.lora_B.weight"),
        ({query: None, partner: None}, r"missing: model.*layers.2.self_attn.q_proj.lora_A.weight"),
        ({"base_model.model.model.language_model.layers.9.mlp.up_proj.lora_A.weight": torch.zeros(4, 64)},
         r"not part of this model: model.language_model.layers.9.mlp.up_proj.lora_A.weight"),
        ({"base_model.model.what.is_this": torch.zeros(3)}, r"not part of this model: what.is_this"),
        ({"base_model.model.lm_head.weight": torch.zeros(3, 64)}, r"lm_head.weight is \[3, 64\], expected \[251, 64\]"),
        ({query.replace("q_proj.lora_A.weight", "q_norm.lora_A.weight"): torch.zeros(4, 16)}, "takes no adapter here"),
        ({query.replace("self_attn.q_proj", "mlp.down_proj"): torch.zeros(4, 96),
          partner.replace("self_attn.q_proj", "mlp.down_proj"): torch.zeros(64, 4),
          query: None, partner: None}, r"missing: .*layers.2.self_attn.q_proj"),
    ]):  # fmt: skip
        tensors = {name: tensor for name, tensor in {**stored, **changed}.items() if tensor is not None}
        folder = with_tensors(copied(saved("rslora"), tmp_path / f"wrong{number}"), tensors)
        model = Gemma3ForConditionalGeneration.from_pretrained(reference_folder)
        with pytest.raises(CheckpointError, match=says) as error:
            model.load_adapter(folder)
        told = f"It was trained on {reference_folder.name}; this model is {reference_folder.name}."
        assert told in str(error.value)
        assert str(reference_folder.parent) not in str(error.value)
        with pytest.raises(UnsupportedOptionError, match="No adapter is loaded"):
            model.active_adapters()


def test_an_adapter_of_another_model_names_a_few_of_its_tensors(saved, reference_text_folder):
    model = Gemma3ForCausalLM.from_pretrained(reference_text_folder)
    with pytest.raises(CheckpointError, match=r"not part of this model: .* and \d+ more") as error:
        model.load_adapter(saved("decoder_and_vision"))
    assert "missing" not in str(error.value)
    assert len(str(error.value)) < 1500


def test_targets_of_the_config_are_those_of_the_tensors(saved, reference_folder, tmp_path):
    model = Gemma3ForConditionalGeneration.from_pretrained(reference_folder)
    for number, (changes, says) in enumerate([
        ({"target_modules": ["k_proj"]}, r"not named by target_modules: .*down_proj.lora_A.weight.* and \d+ more"),
        ({"target_modules": "nothing"}, "not named by target_modules"),
        ({"exclude_modules": ["layers.0.mlp.up_proj"]}, "not named by target_modules: .*layers.0.mlp.up_proj.lora_A"),
        ({"target_modules": [*DECODER, "fc2"]}, r"missing: .*fc2.lora_A.weight"),
        ({"modules_to_save": ["lm_head"]}, "missing: lm_head.weight"),
    ]):  # fmt: skip
        with pytest.raises(CheckpointError, match=says):
            model.load_adapter(copied(saved("rslora"), tmp_path / f"other{number}", **changes))
    model.load_adapter(copied(saved("rslora"), tmp_path / "open", target_modules=None))
    assert model.active_adapters() == ["default"]
