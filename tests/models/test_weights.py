"""Safetensors in and out: every naming, shards, strictness, memory mapping, and what is refused."""

import json
import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from reference import (
    TEXT,
    assert_equal,
    image_prompt,
    pixels,
    randomise,
    reference_config,
    reference_text_config,
    save_reference,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import Gemma3ForCausalLM as ReferenceCausalLM
from transformers import Gemma3ForConditionalGeneration as ReferenceModel
from transformers import Gemma3Model as ReferenceBase
from transformers import Gemma3TextModel as ReferenceTextBase

import gemma3_core
from gemma3_core.errors import CheckpointError, ConfigError, UnsupportedOptionError
from gemma3_core.files.weight_files import INDEX_FILE, SINGLE_FILE, weight_files
from gemma3_core.int4.quantize import TorchAoConfig
from gemma3_core.models.multimodal import Gemma3ForConditionalGeneration, Gemma3Model
from gemma3_core.models.text import Gemma3ForCausalLM, Gemma3TextModel
from gemma3_core.models.weights import hub_name, module_name

Rename = Callable[[str], str]


def to_hub(name: str) -> str:
    return hub_name(module_name(name, multimodal=True), multimodal=True)


MULTIMODAL_NAMINGS: dict[str, Rename] = {
    "the Hub's": to_hub,
    "the Hub's, below model.": lambda name: "model." + to_hub(name),
    "without vision_model": lambda name: to_hub(name).replace("vision_tower.vision_model.", "vision_tower."),
    "language_model.layers": lambda name: to_hub(name).replace("language_model.model.", "language_model."),
    "our modules' own": lambda name: module_name(name, multimodal=True),
    "model.language_model with vision_model": lambda name: (
        "model." + to_hub(name).replace("language_model.model.", "language_model.")
    ),
}
TEXT_NAMINGS: dict[str, Rename] = {
    "the Hub's": lambda name: name,
    "without model.": lambda name: name.removeprefix("model."),
}
HEADS = [None, "lm_head.weight", "language_model.lm_head.weight", "model.lm_head.weight"]


@pytest.fixture
def copied(reference_folder, reference_text_folder) -> Callable[[Path, bool], None]:
    """Copies a checkpoint that transformers wrote, which may be changed, to a folder."""

    def copy(folder: Path, multimodal: bool) -> None:
        shutil.copytree(reference_folder if multimodal else reference_text_folder, folder, dirs_exist_ok=True)

    return copy


@pytest.fixture
def folder(tmp_path, copied) -> Path:
    copied(tmp_path, True)
    return tmp_path


@pytest.fixture
def text_folder(tmp_path, copied) -> Path:
    copied(tmp_path, False)
    return tmp_path


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    tensors = change(load_file(folder / SINGLE_FILE))
    save_file(tensors, folder / SINGLE_FILE, metadata={"format": "pt"})


def set_config(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    config.update(changes)
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def shard(folder: Path) -> list[str]:
    """Splits the single file in three, with an index, as the Hub does."""
    tensors = load_file(folder / SINGLE_FILE)
    names = [f"model-{i + 1:05}-of-00003.safetensors" for i in range(3)]
    weight_map = {tensor: names[i % 3] for i, tensor in enumerate(tensors)}
    for name in names:
        save_file({t: v for t, v in tensors.items() if weight_map[t] == name}, folder / name, {"format": "pt"})
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / SINGLE_FILE).unlink()
    return names


def assert_same_weights(ours: torch.nn.Module, expected: dict[str, torch.Tensor]) -> None:
    state = dict(ours.named_parameters())
    assert state.keys() == expected.keys()
    assert all(torch.equal(parameter, expected[name]) for name, parameter in state.items())


def expected_weights(folder: Path, multimodal: bool = True) -> dict[str, torch.Tensor]:
    return {module_name(name, multimodal): tensor for name, tensor in load_file(folder / SINGLE_FILE).items()}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("naming", MULTIMODAL_NAMINGS)
def test_every_naming_of_a_multimodal_checkpoint_loads(folder, naming, head):
    expected = expected_weights(folder)
    embedding = next(tensor for name, tensor in expected.items() if name.endswith("embed_tokens.weight"))
    tied_head = {head: embedding.clone()} if head else {}
    rewrite(folder, lambda t: {MULTIMODAL_NAMINGS[naming](name): v for name, v in t.items()} | tied_head)
    model = Gemma3ForConditionalGeneration.from_pretrained(folder)
    assert_same_weights(model, expected)
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight


@pytest.mark.parametrize("head", [None, "lm_head.weight"])
@pytest.mark.parametrize("naming", TEXT_NAMINGS)
def test_every_naming_of_a_text_checkpoint_loads(text_folder, naming, head):
    expected = expected_weights(text_folder, multimodal=False)
    tied_head = {head: expected["model.embed_tokens.weight"].clone()} if head else {}
    rewrite(text_folder, lambda t: {TEXT_NAMINGS[naming](name): v for name, v in t.items()} | tied_head)
    model = Gemma3ForCausalLM.from_pretrained(text_folder)
    assert_same_weights(model, expected)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_what_transformers_writes_of_whole_and_bare_models_loads(tmp_path):
    whole = save_reference(tmp_path / "whole")
    whole.model.save_pretrained(tmp_path / "bare")
    model = Gemma3ForConditionalGeneration.from_pretrained(tmp_path / "whole")
    expected = {module_name(name, True): p for name, p in whole.named_parameters()}
    assert_same_weights(model, expected)
    for source in ("whole", "bare"):
        bare = Gemma3Model.from_pretrained(tmp_path / source)
        assert_same_weights(bare, {name.removeprefix("model."): p for name, p in expected.items()})


@torch.no_grad()
def test_models_without_a_head_give_the_last_hidden_state_of_transformers(
    reference_folder, reference_text_folder, tmp_path
):
    input_ids, token_type_ids = image_prompt("t5 i t9")
    prompt = {"input_ids": input_ids, "token_type_ids": token_type_ids, "pixel_values": pixels(1)}
    mine, reference = (kind.from_pretrained(reference_folder).eval() for kind in (Gemma3Model, ReferenceBase))
    assert_equal(mine(**prompt).last_hidden_state, reference(**prompt).last_hidden_state)
    kinds = Gemma3TextModel, ReferenceTextBase
    mine, reference = (kind.from_pretrained(reference_text_folder).eval() for kind in kinds)
    assert_equal(
        mine(input_ids=input_ids).last_hidden_state,
        reference(input_ids=input_ids).last_hidden_state,
    )
    mine.save_pretrained(tmp_path / "again")
    assert_same_weights(Gemma3TextModel.from_pretrained(tmp_path / "again"), dict(mine.named_parameters()))


def test_names_and_their_inverse():
    for name in ("model.language_model.layers.0.mlp.up_proj.weight", "model.vision_tower.post_layernorm.bias",
                 "model.multi_modal_projector.mm_soft_emb_norm.weight", "lm_head.weight"):  # fmt: skip
        assert module_name(hub_name(name, True), True) == name
    assert hub_name("lm_head.weight", True) == "language_model.lm_head.weight"


def test_a_checkpoint_in_shards_loads(folder):
    expected = expected_weights(folder)
    names = shard(folder)
    assert [path.name for path in weight_files(folder)] == names
    assert_same_weights(Gemma3ForConditionalGeneration.from_pretrained(folder), expected)


def test_a_single_file_beside_an_index_counts_as_in_transformers(folder):
    expected = expected_weights(folder)
    tensors = load_file(folder / SINGLE_FILE)
    shard(folder)
    save_file(tensors, folder / SINGLE_FILE, {"format": "pt"})
    assert_same_weights(Gemma3ForConditionalGeneration.from_pretrained(folder), expected)
    assert weight_files(folder) == [folder / SINGLE_FILE]


def test_missing_shards_are_all_named(folder):
    names = shard(folder)
    for name in names[1:]:
        (folder / name).unlink()
    with pytest.raises(CheckpointError) as error:
        Gemma3ForConditionalGeneration.from_pretrained(folder)
    assert all(name in str(error.value) for name in names[1:])
    assert names[0] not in str(error.value)
    assert str(folder) not in str(error.value)


@pytest.mark.parametrize("name", ["../other/model.safetensors", "/etc/passwd", 7])
def test_an_index_can_not_lead_out_of_its_folder(folder, name):
    shard(folder)
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match="outside its folder"):
        Gemma3ForConditionalGeneration.from_pretrained(folder)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": [1]}'])
def test_a_damaged_index_is_named(folder, content):
    shard(folder)
    (folder / INDEX_FILE).write_text(content)
    with pytest.raises(CheckpointError, match=INDEX_FILE):
        Gemma3ForConditionalGeneration.from_pretrained(folder)


def test_missing_left_over_and_misshapen_tensors_are_all_named_in_one_error(folder):
    gone = ["vision_tower.encoder.layers.1.mlp.fc2.bias", "language_model.model.norm.weight"]
    bent = "language_model.model.layers.2.mlp.up_proj.weight"

    def change(tensors):
        kept = {name: tensor for name, tensor in tensors.items() if name not in gone}
        assert len(kept) == len(tensors) - 2
        return {**kept, bent: torch.zeros(5, 7), "language_model.model.layers.9.novel": torch.zeros(1)}

    rewrite(folder, change)
    with pytest.raises(CheckpointError) as error:
        Gemma3ForConditionalGeneration.from_pretrained(folder)
    words = [module_name(name, True) for name in [*gone, bent, "language_model.model.layers.9.novel"]]
    words += ["[5, 7]", "[96, 64]", "missing", "not part of this model", "wrong shape", "config.json"]
    assert [word for word in words if word not in str(error.value)] == []


def test_a_config_with_more_layers_than_the_weights_names_each_missing_one(text_folder):
    set_config(text_folder, num_hidden_layers=8, layer_types=None)
    with pytest.raises(CheckpointError) as error:
        Gemma3ForCausalLM.from_pretrained(text_folder)
    assert str(error.value).count("model.layers.7.") == 13


HUGE = [
    ("text_config", "num_hidden_layers", 10**9, "num_hidden_layers is 1,000,000,000; at most 1,000"),
    ("vision_config", "num_hidden_layers", 10**9, "vision num_hidden_layers is 1,000,000,000; at most 1,000"),
    ("text_config", "num_hidden_layers", 900, "num_hidden_layers is 900, but the weights have 7 such layers"),
    ("vision_config", "num_hidden_layers", 900, "vision num_hidden_layers is 900, but the weights have 2 such layers"),
    *(("text_config", name, 10**18, "too large for any memory") for name in ("vocab_size", "intermediate_size")),
    *(("vision_config", name, 10**18, "too large for any memory") for name in ("num_channels", "intermediate_size")),
    ("text_config", "head_dim", 10**9, "wrong shape"),
]


@pytest.mark.parametrize(("part", "name", "value", "says"), HUGE)
def test_what_a_config_promises_is_counted_before_it_is_built(folder, part, name, value, says):
    config = json.loads((folder / "config.json").read_text())
    config[part] = {**config[part], "layer_types": None, name: value}
    set_config(folder, **config)
    before, began = anonymous_bytes(), time.thread_time()
    with pytest.raises((ConfigError, CheckpointError), match=says):
        Gemma3ForConditionalGeneration.from_pretrained(folder)
    assert anonymous_bytes() - before < 2**26
    assert time.thread_time() - began < 5


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("multimodal", [True, False], ids=["multimodal", "text"])
def test_weights_that_are_not_finite_are_refused_and_the_first_is_named(copied, tmp_path, multimodal, value):
    copied(tmp_path, multimodal)

    def change(tensors):
        bent = [name for name in tensors if name.endswith(("layers.1.mlp.up_proj.weight", "model.norm.weight"))]
        assert len(bent) == 2
        for name in bent:
            tensors[name].view(-1)[-1] = value
        return tensors

    rewrite(tmp_path, change)
    kind = Gemma3ForConditionalGeneration if multimodal else Gemma3ForCausalLM
    says = r"layers\.1\.mlp\.up_proj\.weight holds NaN or infinity, and 1 other"
    with pytest.raises(CheckpointError, match=says):
        kind.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=says):
        kind.from_pretrained(tmp_path, dtype="bfloat16")


def test_numbers_beyond_the_chosen_type_are_refused(text_folder):
    rewrite(text_folder, lambda t: {**t, "model.norm.weight": torch.full_like(t["model.norm.weight"], 3.4e38)})
    Gemma3ForCausalLM.from_pretrained(text_folder, dtype="float32")
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight holds NaN or infinity\."):
        Gemma3ForCausalLM.from_pretrained(text_folder, dtype="bfloat16")


def test_a_tensor_under_two_names_is_refused(text_folder):
    rewrite(text_folder, lambda t: {**t, "norm.weight": t["model.norm.weight"].clone()})
    with pytest.raises(CheckpointError, match="twice"):
        Gemma3ForCausalLM.from_pretrained(text_folder)


@pytest.mark.parametrize("multimodal", [True, False], ids=["multimodal", "text"])
@pytest.mark.parametrize("both", [True, False], ids=["two tensors", "only the head"])
@torch.no_grad()
def test_a_tied_head_in_the_file_is_read_as_transformers_does(copied, tmp_path, caplog, multimodal, both):
    """Where it differs from the embedding they are not tied, and the log says so; where it is alone it is both."""
    kind, reference = (
        (Gemma3ForConditionalGeneration, ReferenceModel) if multimodal else (Gemma3ForCausalLM, ReferenceCausalLM)
    )
    copied(tmp_path, multimodal)

    def change(tensors):
        embedding = next(name for name in tensors if name.endswith("embed_tokens.weight"))
        kept = {name: tensor for name, tensor in tensors.items() if both or name != embedding}
        return {**kept, "lm_head.weight": tensors[embedding].flip(0).contiguous()}

    rewrite(tmp_path, change)
    model, theirs = kind.from_pretrained(tmp_path), reference.from_pretrained(tmp_path).eval()
    assert ("they are not tied" in caplog.text) is both
    assert model.config.tie_word_embeddings is not both
    assert torch.equal(model.lm_head.weight, model.get_input_embeddings().weight) is not both
    input_ids, _ = image_prompt("t20")
    expected = theirs(input_ids=input_ids).logits
    assert_equal(model(input_ids=input_ids).logits, expected)
    model.save_pretrained(tmp_path / "saved")
    assert_equal(kind.from_pretrained(tmp_path / "saved")(input_ids=input_ids).logits, expected)


def test_a_model_without_a_head_does_without_one_that_differs(text_folder):
    rewrite(text_folder, lambda t: {**t, "lm_head.weight": torch.zeros_like(t["model.embed_tokens.weight"])})
    assert Gemma3TextModel.from_pretrained(text_folder).config.tie_word_embeddings


@pytest.mark.parametrize("multimodal", [True, False], ids=["multimodal", "text"])
@torch.no_grad()
def test_a_head_of_its_own_loads_and_is_saved(copied, tmp_path, multimodal):
    kind, reference = (
        (Gemma3ForConditionalGeneration, ReferenceModel) if multimodal else (Gemma3ForCausalLM, ReferenceCausalLM)
    )
    copied(tmp_path, multimodal)
    set_config(tmp_path, tie_word_embeddings=False)
    head = torch.randn(TEXT["vocab_size"], TEXT["hidden_size"], generator=torch.Generator().manual_seed(4))
    with pytest.raises(CheckpointError, match=r"missing: lm_head\.weight"):
        kind.from_pretrained(tmp_path)
    rewrite(tmp_path, lambda t: {**t, "lm_head.weight": head})
    model = kind.from_pretrained(tmp_path)
    assert torch.equal(model.lm_head.weight, head)
    model.save_pretrained(tmp_path / "saved")
    input_ids, _ = image_prompt("t20")
    again = reference.from_pretrained(tmp_path / "saved").eval()
    assert_equal(model(input_ids=input_ids).logits, again(input_ids=input_ids).logits)
    assert torch.equal(kind.from_pretrained(tmp_path / "saved").lm_head.weight, head)


@pytest.mark.parametrize("kept", [0, 4, 200, 0.5, 0.999])
def test_a_cut_off_file_is_named(folder, kept):
    data = (folder / SINGLE_FILE).read_bytes()
    (folder / SINGLE_FILE).write_bytes(data[: kept if isinstance(kept, int) else int(len(data) * kept)])
    with pytest.raises(CheckpointError) as error:
        Gemma3ForConditionalGeneration.from_pretrained(folder)
    assert SINGLE_FILE in str(error.value)
    assert "damaged or cut off" in str(error.value)
    assert str(folder) not in str(error.value)
    assert error.value.__suppress_context__


def test_no_weights_at_all(folder):
    (folder / SINGLE_FILE).unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing"):
        Gemma3ForConditionalGeneration.from_pretrained(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth"])
def test_pickled_weights_are_refused_and_never_opened(folder, name):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (folder / "trap",))

    (folder / SINGLE_FILE).unlink()
    (folder / name).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CheckpointError, match=r"(?i)pickled.*safetensors"):
        Gemma3ForConditionalGeneration.from_pretrained(folder)
    assert not (folder / "trap").exists()


@pytest.mark.parametrize("dtype", ["float16", torch.float16])
def test_float16_is_refused_with_the_reason(folder, dtype):
    with pytest.raises(UnsupportedOptionError, match=r"65504.*bfloat16"):
        Gemma3ForConditionalGeneration.from_pretrained(folder, dtype=dtype)


def test_a_float16_checkpoint_is_refused_unless_another_type_is_asked_for(text_folder):
    rewrite(text_folder, lambda t: {name: tensor.half() for name, tensor in t.items()})
    set_config(text_folder, dtype="float16")
    with pytest.raises(UnsupportedOptionError, match="65504"):
        Gemma3ForCausalLM.from_pretrained(text_folder)
    set_config(text_folder, dtype=None)
    with pytest.raises(CheckpointError, match=r"65504.*dtype='bfloat16'"):
        Gemma3ForCausalLM.from_pretrained(text_folder)
    model = Gemma3ForCausalLM.from_pretrained(text_folder, dtype="bfloat16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    int4 = Gemma3ForCausalLM.from_pretrained(text_folder, dtype="bfloat16", quantization_config=TorchAoConfig(32))
    assert {parameter.dtype for parameter in int4.parameters()} == {torch.bfloat16}


def test_whole_numbers_are_no_weights(text_folder):
    rewrite(text_folder, lambda t: {**t, "model.norm.weight": torch.zeros(64, dtype=torch.int8)})
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight.*int8"):
        Gemma3ForCausalLM.from_pretrained(text_folder)


@pytest.mark.parametrize(
    ("asked", "written", "expected"),
    [
        (None, "bfloat16", torch.bfloat16),
        ("auto", "bfloat16", torch.bfloat16),
        ("float32", "bfloat16", torch.float32),
        (torch.bfloat16, "float32", torch.bfloat16),
        (None, None, torch.float32),
    ],
)
def test_the_type_is_the_one_asked_for_else_the_configs_else_the_files(text_folder, asked, written, expected):
    set_config(text_folder, dtype=None, torch_dtype=written)
    model = Gemma3ForCausalLM.from_pretrained(text_folder, dtype=asked)
    assert {parameter.dtype for parameter in model.parameters()} == {expected}


def test_an_unknown_type_is_refused(folder):
    with pytest.raises(UnsupportedOptionError, match="int4"):
        Gemma3ForConditionalGeneration.from_pretrained(folder, dtype="int4")


def test_unknown_options_are_refused(folder):
    with pytest.raises(UnsupportedOptionError, match="flash_attention_2"):
        Gemma3ForConditionalGeneration.from_pretrained(folder, attn_implementation="flash_attention_2")
    with pytest.raises(UnsupportedOptionError, match="trust_remote_code"):
        Gemma3ForConditionalGeneration.from_pretrained(folder, trust_remote_code=True)


def mapped_ranges(path: Path) -> list[tuple[int, int]]:
    """Addresses of this process at which a file is mapped."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("this system does not list a process's mappings")
    lines = [line.split() for line in maps.read_text().splitlines()]
    ranges = [line[0].split("-") for line in lines if line[-1] == str(path.resolve())]
    return [(int(first, 16), int(last, 16)) for first, last in ranges]


def anonymous_bytes() -> int:
    """Memory of this process that is no file's."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


def test_weights_lie_in_the_mapped_file_itself(folder):
    model = Gemma3ForConditionalGeneration.from_pretrained(folder)
    ranges = mapped_ranges(folder / SINGLE_FILE)
    for name, parameter in model.named_parameters():
        assert any(first <= parameter.data_ptr() < last for first, last in ranges), f"{name} is a copy"


def test_loading_and_running_takes_no_second_copy_of_the_weights(text_folder):
    size = 64 * 2**20
    rows = size // 4 // TEXT["hidden_size"]
    rewrite(text_folder, lambda t: {**t, "model.embed_tokens.weight": torch.randn(rows, TEXT["hidden_size"])})
    set_config(text_folder, vocab_size=rows)
    with torch.no_grad():
        Gemma3ForCausalLM.from_pretrained(text_folder)(input_ids=image_prompt("t3")[0], logits_to_keep=1)  # warm up
        before = anonymous_bytes()
        model = Gemma3ForCausalLM.from_pretrained(text_folder)
        model(input_ids=image_prompt("t3")[0], logits_to_keep=1)
        assert anonymous_bytes() - before < size / 4


def test_two_models_of_one_file_share_nothing_that_can_be_written(folder):
    bytes_before = (folder / SINGLE_FILE).read_bytes()
    one, other = (Gemma3ForConditionalGeneration.from_pretrained(folder) for _ in range(2))
    expected = expected_weights(folder)
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.add_(1.0)
    assert_same_weights(other, expected)
    assert (folder / SINGLE_FILE).read_bytes() == bytes_before
    assert_same_weights(Gemma3ForConditionalGeneration.from_pretrained(folder), expected)
    assert torch.equal(one.lm_head.weight, expected["model.language_model.embed_tokens.weight"] + 1)


@torch.no_grad()
def test_saving_over_the_folder_that_the_weights_are_mapped_from(folder):
    model = Gemma3ForConditionalGeneration.from_pretrained(folder)
    model.model.language_model.norm.weight.add_(1.0)
    expected = {name: parameter.clone() for name, parameter in model.named_parameters()}
    model.save_pretrained(folder)
    assert_same_weights(model, expected)
    assert_same_weights(Gemma3ForConditionalGeneration.from_pretrained(folder), expected)


@pytest.mark.parametrize("multimodal", [True, False], ids=["multimodal", "text"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@torch.no_grad()
def test_what_we_save_loads_in_transformers(weights, tmp_path, multimodal, dtype):
    kind, reference = (
        (Gemma3ForConditionalGeneration, ReferenceModel) if multimodal else (Gemma3ForCausalLM, ReferenceCausalLM)
    )
    model = kind.from_pretrained(weights.both if multimodal else weights.text, dtype=dtype)
    model.save_pretrained(tmp_path / "ours")
    with safe_open(tmp_path / "ours" / SINGLE_FILE, "pt") as file:
        names = set(file.keys())
    assert names == {hub_name(name, multimodal) for name, _ in model.named_parameters()}
    again, info = reference.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert again.dtype == model.dtype
    theirs = {module_name(name, multimodal): p for name, p in again.named_parameters()}
    assert_same_weights(model, theirs)
    reloaded = kind.from_pretrained(tmp_path / "ours")
    assert reloaded.config.to_dict() == kind.from_pretrained(tmp_path / "ours").config.to_dict()
    assert reloaded.dtype == model.dtype
    if dtype == "float32":
        prompt = {"input_ids": image_prompt("t40")[0]}
        assert_equal(model(**prompt).logits, again.eval()(**prompt).logits)


CLASSES = [
    ("Gemma3ForConditionalGeneration", True),
    ("Gemma3Model", True),
    ("Gemma3ForSequenceClassification", True),
    ("Gemma3ForCausalLM", False),
    ("Gemma3TextModel", False),
    ("Gemma3TextForSequenceClassification", False),
]


@pytest.mark.parametrize(("name", "multimodal"), CLASSES)
def test_every_class_goes_from_transformers_to_us_and_back_unchanged(tmp_path, name, multimodal):
    config = reference_config() if multimodal else reference_text_config()
    reference = getattr(transformers, name)
    original = reference(config)
    randomise(original)
    original.save_pretrained(tmp_path / "theirs")
    getattr(gemma3_core, name).from_pretrained(tmp_path / "theirs").save_pretrained(tmp_path / "ours")
    again, told = reference.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    assert not told["mismatched_keys"]
    expected = original.state_dict()
    assert again.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in again.state_dict().items())
    changes = {"dtype", "architectures", "transformers_version"}
    ours, theirs = ({k: v for k, v in m.config.to_dict().items() if k not in changes} for m in (again, original))
    assert _without_private(ours) == _without_private(theirs)


def _without_private(data: dict) -> dict:
    return {
        k: _without_private(v) if isinstance(v, dict) else v
        for k, v in data.items()
        if not str(k).startswith("_") and k != "dtype"
    }


@pytest.mark.parametrize("device_map", ["cpu", "auto", None, torch.device("cpu")])
def test_device_map(folder, device_map):
    model = Gemma3ForConditionalGeneration.from_pretrained(folder, device_map=device_map)
    assert len({parameter.device for parameter in model.parameters()}) == 1
    if device_map != "auto":
        assert model.device.type == "cpu"


def test_a_loaded_model_is_in_evaluation_mode(folder):
    assert not any(module.training for module in Gemma3ForConditionalGeneration.from_pretrained(folder).modules())


def test_the_wrong_class_for_a_folder_says_which_config_it_takes(folder):
    with pytest.raises(ValueError, match=r"Gemma3ForCausalLM takes a Gemma3TextConfig, got Gemma3Config"):
        Gemma3ForCausalLM.from_pretrained(folder)
