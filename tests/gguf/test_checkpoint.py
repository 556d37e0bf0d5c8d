"""A GGUF file stands for the checkpoint that it was made of: config, tokenizer, weights, pictures, answers."""

import random
import re
import shutil

import gguf
import numpy as np
import pytest
import torch
from gguf_files import rewritten
from PIL import Image
from places import EXAMPLES, REPOSITORY

from gemma3_core import AutoModelForCausalLM, AutoProcessor, AutoTokenizer, TorchAoConfig, pipeline
from gemma3_core.engine import DoneEvent, Engine, ModelRegistry, Request, SamplingSettings, Turn, precisions
from gemma3_core.errors import CheckpointError, Gemma3Error, PromptError, UnsupportedOptionError
from gemma3_core.files.hub import resolve_folder, revision_of
from gemma3_core.gguf import checkpoint
from gemma3_core.gguf.checkpoint import find_checkpoint, folder_of, projector_order
from gemma3_core.int4.linear import Int4Linear
from gemma3_core.models.multimodal import Gemma3ForConditionalGeneration

DEMO_MODEL = REPOSITORY / "assets" / "demo_model"
MESSAGES = [
    {
        "role": "user",
        "content": [
            {"type": "image", "image": Image.open(EXAMPLES / "hearts.png")},
            {"type": "text", "text": "How many hearts are there?"},
        ],
    }
]


def answer(engine: Engine, question: str, *pictures, int4: bool | None = None) -> str:
    greedy = SamplingSettings(temperature=0.0)
    events = engine.stream(Request((Turn("user", question, pictures),), int4=int4, sampling=greedy))
    return next(event.text for event in events if isinstance(event, DoneEvent))


def inputs_of(processor):
    how = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    return processor.apply_chat_template(MESSAGES, **how)


def logits_of(model, inputs) -> torch.Tensor:
    with torch.inference_mode():
        return model(**inputs).logits


def test_it_is_the_checkpoint_that_it_was_made_of(demo_gguf):
    ours = Gemma3ForConditionalGeneration.from_pretrained(demo_gguf, dtype="float32")
    original = Gemma3ForConditionalGeneration.from_pretrained(DEMO_MODEL, dtype="float32")
    for name, parameter in original.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name), parameter, rtol=0, atol=1e-6, msg=name)
    for field in (
        "layer_types",
        "rope",
        "sliding_window",
        "max_position_embeddings",
        "attention_scale",
        "eos_token_id",
    ):
        assert getattr(ours.text_config, field) == getattr(original.text_config, field), field
    for field in ("image_token_index", "boi_token_index", "eoi_token_index", "mm_tokens_per_image", "eos_token_id"):
        assert getattr(ours.config, field) == getattr(original.config, field), field
    inputs, theirs = (inputs_of(AutoProcessor.from_pretrained(source)) for source in (demo_gguf, DEMO_MODEL))
    assert torch.equal(inputs["input_ids"], theirs["input_ids"])
    assert torch.equal(inputs["pixel_values"], theirs["pixel_values"])
    expected = logits_of(original, theirs)
    assert (logits_of(ours, inputs) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_it_answers_about_a_picture(demo_gguf):
    engine = Engine.load(demo_gguf)
    assert engine.info.multimodal
    assert engine.info.name == "model.gguf"
    assert answer(engine, "How many hearts are there?", EXAMPLES / "hearts.png") == "There are three hearts."


def test_without_its_mmproj_file_it_says_what_is_missing(demo_gguf, tmp_path, caplog):
    path = rewritten(demo_gguf, tmp_path / "lonely.gguf", lambda *_: "F32", gemma3__rope__scaling__factor=1.0)
    # The 270M and 1B have no encoder, and no scaled positions.
    registry = ModelRegistry.load(path)
    assert not registry.first.info.multimodal
    assert "lonely.gguf reads text only here, because its mmproj file" in caplog.text
    with pytest.raises(PromptError, match="mmproj file, which reads pictures, is missing"):
        answer(registry.first, "How many hearts are there?", EXAMPLES / "hearts.png")
    given = Engine.load(path, mmproj=demo_gguf.with_name("mmproj-model.gguf"))
    assert answer(given, "How many hearts are there?", EXAMPLES / "hearts.png") == "There are three hearts."


def in_types(name: str, weights: np.ndarray) -> str:
    """As files of one kind mix them: small vectors stay in float32."""
    if weights.ndim < 2 or weights.shape[-1] % 32:
        return "F32"
    kinds = ("Q8_0", "Q5_0", "Q5_1", "Q4_1", "F16", "BF16")
    return kinds[sum(name.encode()) % len(kinds)]


def test_older_mmproj_files_call_the_encoders_layers_the_other_way_round(demo_gguf, tmp_path):
    def swapped(name: str) -> str:
        other = {"ffn_up": "ffn_down", "ffn_down": "ffn_up"}
        return re.sub("ffn_(up|down)", lambda match: other[match[0]], name)

    older = rewritten(demo_gguf.with_name("mmproj-model.gguf"), tmp_path / "older.gguf", lambda *_: "F32", swapped)
    ours = Gemma3ForConditionalGeneration.from_pretrained(demo_gguf, mmproj=older, dtype="float32")
    original = Gemma3ForConditionalGeneration.from_pretrained(DEMO_MODEL, dtype="float32")
    name = "model.vision_tower.encoder.layers.2.mlp.fc1.weight"
    assert torch.equal(ours.get_parameter(name), original.get_parameter(name))


def test_a_pipeline_takes_one(demo_gguf):
    pipe = pipeline("image-text-to-text", model=demo_gguf)
    written = pipe(text=MESSAGES, max_new_tokens=12, do_sample=False, return_full_text=False)
    assert written[0]["generated_text"] == "There are three hearts."


def test_quantised_weights_are_those_that_llama_cpp_computes_with(demo_gguf, tmp_path):
    path = rewritten(demo_gguf, tmp_path / "mixed.gguf", in_types)
    model = AutoModelForCausalLM.from_pretrained(path, dtype="float32")
    found = dict(model.named_parameters())
    for tensor in gguf.GGUFReader(path).tensors:
        weights = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
        if block := re.fullmatch(r"blk\.(\d+)\.ffn_(gate|up|down)\.weight", tensor.name):
            assert torch.equal(found[f"model.layers.{block[1]}.mlp.{block[2]}_proj.weight"], weights), tensor.name
    assert AutoModelForCausalLM.from_pretrained(path).dtype == torch.bfloat16


@pytest.fixture(scope="module")
def q4_0(demo_gguf, tmp_path_factory):
    """As the published QAT files: the decoder's layers in Q4_0, the embedding in another type."""
    folder = tmp_path_factory.mktemp("q4_0")
    shutil.copy(demo_gguf.with_name("mmproj-model.gguf"), folder)
    is_q4_0 = re.compile(r"blk\..*(attn_(q|k|v|output)|ffn_(gate|up|down))\.weight")
    return rewritten(demo_gguf, folder / "q4_0.gguf", lambda name, _: "Q4_0" if is_q4_0.fullmatch(name) else "F32")


def test_q4_0_becomes_int4_weights_bit_for_bit(q4_0):
    model = Gemma3ForConditionalGeneration.from_pretrained(q4_0, dtype="float32")
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, Int4Linear)}
    assert len(layers) == 7 * 12
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(q4_0).tensors}
    for part, ours in (("attn_k", "self_attn.k_proj"), ("attn_output", "self_attn.o_proj"), ("ffn_up", "mlp.up_proj")):
        for number in range(12):
            tensor = stored[f"blk.{number}.{part}.weight"]
            expected = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type))
            layer = layers[f"model.language_model.layers.{number}.{ours}"]
            assert torch.equal(layer.int4_weight().dequantize(), expected), (part, number)
    full = Gemma3ForConditionalGeneration.from_pretrained(q4_0, dtype="float32", dequantize=True)
    assert not any(isinstance(layer, Int4Linear) for layer in full.modules())
    inputs = inputs_of(AutoProcessor.from_pretrained(q4_0))
    expected = logits_of(full, inputs)
    # The same weights; activations are rounded to 16 bits by our kernels, to bfloat16 by torch's.
    assert (logits_of(model, inputs) - expected).abs().max() <= 0.02 * expected.abs().max()


def test_int4_weights_of_q4_0_are_saved_and_loaded_without_loss(q4_0, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(q4_0, dtype="float32")
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="float32")
    name = "model.language_model.layers.3.mlp.down_proj"
    before, after = (one.get_submodule(name).int4_weight() for one in (model, again))
    assert before.scale.dtype == after.scale.dtype == torch.float16
    assert torch.equal(before.dequantize(), after.dequantize())


def test_int4_for_all_layers_of_a_q4_0_file(q4_0):
    model = AutoModelForCausalLM.from_pretrained(q4_0, dtype="float32", quantization_config=TorchAoConfig(32))
    assert isinstance(model.lm_head, Int4Linear)
    some = AutoModelForCausalLM.from_pretrained(q4_0, dtype="float32")
    assert not isinstance(some.lm_head, Int4Linear)
    with pytest.raises(UnsupportedOptionError, match="int4 weights already"):
        AutoModelForCausalLM.from_pretrained(q4_0, quantization_config=TorchAoConfig(128))


def test_a_q4_0_file_answers_in_both_precisions(q4_0):
    engine = Engine.load(q4_0)
    assert engine.info.quantization == "int4"
    assert engine.info.int4.obstacle == ""
    hearts = EXAMPLES / "hearts.png"
    for int4 in (None, True, False):
        assert answer(engine, "How many hearts are there?", hearts, int4=int4) == "There are three hearts."


def test_int4_of_other_types_is_made_layer_by_layer(demo_gguf):
    model = AutoModelForCausalLM.from_pretrained(demo_gguf, dtype="float32", quantization_config=TorchAoConfig(64))
    original = AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype="float32", quantization_config=TorchAoConfig(64))
    name = "model.language_model.layers.7.self_attn.q_proj"
    ours, theirs = (one.get_submodule(name).int4_weight() for one in (model, original))
    assert torch.equal(ours.packed, theirs.packed)
    assert torch.equal(ours.scale, theirs.scale)


def test_dequantize_is_refused_where_it_means_nothing(q4_0):
    with pytest.raises(UnsupportedOptionError, match="dequantize"):
        AutoModelForCausalLM.from_pretrained(q4_0, dequantize=True, quantization_config=TorchAoConfig(32))


def split(path, folder):
    """The file in parts of 60 tensors."""
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(folder / "model.gguf", "gemma3", split_max_tensors=60)
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            item = field.types[1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=item)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data).reshape(tensor.shape[::-1]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.glob("*.gguf"))


def test_a_model_in_several_files(demo_gguf, tmp_path):
    parts = split(demo_gguf, tmp_path)
    assert [part.name for part in parts] == [f"model-0000{one}-of-00003.gguf" for one in (1, 2, 3)]
    expected = AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype="float32").model.language_model.norm.weight
    for source in (parts[0], tmp_path):
        model = AutoModelForCausalLM.from_pretrained(source, dtype="float32")
        torch.testing.assert_close(model.model.norm.weight, expected, rtol=0, atol=1e-6)
    with pytest.raises(CheckpointError, match=r"is part 2 of 3\. Give the first part"):
        resolve_folder(parts[1])
    parts[2].unlink()
    with pytest.raises(CheckpointError, match=r"Missing beside .*: model-00003-of-00003\.gguf\. Download all 3"):
        resolve_folder(parts[0])


def test_the_folder_is_kept_until_a_file_changes(demo_gguf, tmp_path):
    path = shutil.copy(demo_gguf, tmp_path / "copy.gguf")
    folder = resolve_folder(path)
    made = (folder / "tokenizer.json").stat().st_mtime_ns
    assert resolve_folder(path) == folder
    assert (folder / "tokenizer.json").stat().st_mtime_ns == made
    shutil.copy(demo_gguf.with_name("mmproj-model.gguf"), tmp_path)
    assert resolve_folder(path) != folder
    path.unlink()
    with pytest.raises(CheckpointError, match=r"No longer there: copy\.gguf"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_a_foreign_folder_names_no_files(tmp_path):
    shutil.copytree(DEMO_MODEL, tmp_path / "model")
    (tmp_path / "model" / "weights.json").write_text('{"files": ["/etc/passwd"]}')
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model").dtype == torch.bfloat16


def test_folders_with_several_models(demo_gguf, tmp_path):
    for name in ("a.gguf", "b.gguf"):
        shutil.copy(demo_gguf, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"holds 2 GGUF models: a\.gguf, b\.gguf\. Name one"):
        resolve_folder(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path / "a.gguf").token_id("<bos>") == 2


def test_files_that_do_not_fit(demo_gguf, tmp_path):
    mmproj = demo_gguf.with_name("mmproj-model.gguf")
    with pytest.raises(CheckpointError, match=r"mmproj-model\.gguf is the mmproj file of a model"):
        resolve_folder(mmproj)
    other = rewritten(demo_gguf, tmp_path / "other.gguf", lambda *_: "F32", general__architecture="llama")
    with pytest.raises(CheckpointError, match="architecture 'llama'; this program runs Gemma 3"):
        resolve_folder(other)
    with pytest.raises(CheckpointError, match="no mmproj file, but a model"):
        resolve_folder(demo_gguf, mmproj=other)
    with pytest.raises(CheckpointError, match="belongs to a GGUF file"):
        resolve_folder(DEMO_MODEL, mmproj=mmproj)
    narrow = tmp_path / "mmproj-narrow.gguf"
    writer = gguf.GGUFWriter(narrow, "clip")
    writer.add_string("clip.projector_type", "gemma3")
    writer.add_tensor("mm.input_projection.weight", np.zeros((32, 64), np.float32))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    with pytest.raises(CheckpointError, match=r"another size \(64 features, where this one has 256\)"):
        resolve_folder(demo_gguf, mmproj=narrow)
    shutil.copy(demo_gguf, tmp_path / "model.gguf")
    assert find_checkpoint(tmp_path / "model.gguf").mmproj is None  # the narrow one is not taken


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"gemma3__block_count": None}, "does not say gemma3.block_count"),
        ({"gemma3__block_count": 10**6}, "says it has 1000000 layers"),
        ({"gemma3__embedding_length": 128}, "wrong shape|another size"),
        ({"tokenizer__ggml__model": "gpt2"}, "tokenizer of the kind 'gpt2'"),
        ({"tokenizer__ggml__tokens": None}, "does not say tokenizer.ggml.tokens"),
        ({"gemma3__attention__head_count": 0}, "0 heads"),
        ({"gemma3__block_count": 13}, "missing: .*layers.12"),
        ({"gemma3__rope__freq_base": "much"}, "metadata of a wrong type"),
        ({"tokenizer__ggml__padding_token_id": -100}, "pad_token_id"),
    ],
)
def test_metadata_that_fits_no_model(demo_gguf, tmp_path, changed, says):
    path = rewritten(demo_gguf, tmp_path / "wrong.gguf", lambda *_: "F32", **changed)
    with pytest.raises(Gemma3Error, match=says) as error:
        AutoModelForCausalLM.from_pretrained(path)
    assert str(tmp_path) not in str(error.value)


def test_a_damaged_file_beside_the_model_is_passed_over(demo_gguf, tmp_path):
    path = shutil.copy(demo_gguf, tmp_path / "model.gguf")
    whole = demo_gguf.with_name("mmproj-model.gguf").read_bytes()
    (tmp_path / "mmproj-a.gguf").write_bytes(whole[: len(whole) // 2])
    assert find_checkpoint(path).mmproj is None
    (tmp_path / "mmproj-b.gguf").write_bytes(whole)
    assert find_checkpoint(path).mmproj.path.name == "mmproj-b.gguf"


def test_beside_several_mmproj_files_the_one_of_the_models_name_is_taken(demo_gguf, tmp_path, caplog):
    """As in llama.cpp's cache, where the files of all repositories lie in one folder."""
    mmproj = demo_gguf.with_name("mmproj-model.gguf")
    shared, own = "ggml-org_gemma-3-4b-it-GGUF_mmproj-model", "unsloth_medgemma-4b-it-GGUF_mmproj"
    for name in (f"{shared}-f16", f"{own}-Q8_0", f"{own}-F16", f"{own}-F32"):
        shutil.copy(mmproj, tmp_path / f"{name}.gguf")
    path = shutil.copy(demo_gguf, tmp_path / "unsloth_medgemma-4b-it-GGUF_medgemma-4b-it-Q8_0.gguf")
    assert find_checkpoint(path).mmproj.path.name == f"{own}-F16.gguf"
    assert f"with {own}-F16.gguf, by its name" in caplog.text
    assert "--mmproj names another one" in caplog.text
    assert find_checkpoint(path, tmp_path / f"{own}-F32.gguf").mmproj.path.name == f"{own}-F32.gguf"


@pytest.mark.parametrize(
    ("model", "best"),
    [
        ("gemma-3-4b-it-Q8_0.gguf", "mmproj-gemma-3-4b-it-f16.gguf"),
        ("gemma-3-4b-it-qat-q4_0-00001-of-00002.gguf", "gemma-3-4b-it-qat-mmproj-F32.gguf"),
        ("medgemma-4b-it.Q4_K_M.gguf", "medgemma-4b-it.mmproj-BF16.gguf"),
        ("another.gguf", "mmproj-model-f16.gguf"),
    ],
)
def test_which_mmproj_file_suits_a_name(model, best):
    names = [
        "gemma-3-4b-it-qat-mmproj-F32.gguf", "medgemma-4b-it.mmproj-BF16.gguf", "mmproj-gemma-3-4b-it-Q8_0.gguf",
        "mmproj-gemma-3-4b-it-f16.gguf", "mmproj-model-Q8_0.gguf", "mmproj-model-f16.gguf",
    ]  # fmt: skip
    assert min(names, key=lambda name: projector_order(model, name)) == best


def test_two_processes_that_make_the_same_folder(demo_gguf, tmp_path, monkeypatch):
    path = shutil.copy(demo_gguf, tmp_path / "twice.gguf")
    found, texts = find_checkpoint(path), checkpoint._texts
    first = []

    def other_process_is_faster(*given):
        monkeypatch.setattr(checkpoint, "_texts", texts)
        first.append(folder_of(found))
        return texts(*given)

    monkeypatch.setattr(checkpoint, "_texts", other_process_is_faster)
    made = (folder_of(found) / "config.json").stat().st_ino
    assert first[0] == folder_of(found)
    assert (first[0] / "config.json").stat().st_ino == made


def test_other_weights_under_one_name_have_another_revision(demo_gguf, q4_0, tmp_path):
    path = tmp_path / "model.gguf"
    revisions = [revision_of(resolve_folder(shutil.copy(source, path))) for source in (demo_gguf, q4_0, demo_gguf)]
    assert revisions[0] == revisions[2] != revisions[1]


def test_where_int4_has_no_kernel_a_q4_0_file_is_dequantised(q4_0, monkeypatch):
    monkeypatch.setattr(precisions, "int4_obstacle", lambda _: "int4 has no kernel here.")
    engine = Engine.load(q4_0)
    assert engine.info.quantization == "none"
    assert "no kernel" in engine.info.int4.obstacle
    assert answer(engine, "How many hearts are there?", EXAMPLES / "hearts.png") == "There are three hearts."


def test_tensors_of_no_gemma_are_named(demo_gguf, tmp_path):
    path = tmp_path / "renamed.gguf"
    path.write_bytes(demo_gguf.read_bytes().replace(b"blk.3.ffn_down.weight", b"blk.3.ffn_wide.weight"))
    with pytest.raises(CheckpointError, match=r"renamed\.gguf holds blk\.3\.ffn_wide\.weight"):
        AutoModelForCausalLM.from_pretrained(path)


def test_no_mutation_of_the_metadata_raises_anything_but_a_sentence(demo_gguf, tmp_path):
    """Numbers, types and names changed at random; what can be read stands for a folder, and the rest is a sentence."""
    data, draw = bytearray(demo_gguf.read_bytes()), random.Random(3)
    end = data.index(b"blk.0.")
    path, refused = tmp_path / "mutated.gguf", 0
    for _ in range(60):
        mutated = bytearray(data)
        for _ in range(draw.randint(1, 6)):
            mutated[draw.randrange(24, 1200 if draw.random() < 0.7 else end)] = draw.choice([0, 1, 127, 255])
        path.write_bytes(mutated)
        try:
            folder_of(find_checkpoint(path))
        except Gemma3Error as error:
            refused += str(tmp_path) not in str(error)
    assert 20 < refused < 60
