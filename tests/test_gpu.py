"""What must hold on a CUDA device: `pytest -m gpu`. Left out where there is none; asked for there, skipped."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from adapters import DECODER, PROJECTOR, save_adapter, with_peft
from places import REPOSITORY
from reference import (
    NEVER,
    WINDOW,
    assert_equal,
    image_prompt,
    left_padded,
    picture_prompt,
    pixels,
    text_batch,
)
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import Gemma3ForCausalLM as ReferenceCausalLM
from transformers import Gemma3ForConditionalGeneration as ReferenceModel

from gemma3_core import AutoProcessor, TorchAoConfig, pipeline
from gemma3_core.engine import DoneEvent, Engine, Request, Turn
from gemma3_core.engine.slot_runner import SlotRunner
from gemma3_core.generation.loop import DecodePass, decode_together, prefill
from gemma3_core.generation.row_sampler import SamplingRow, sample_rows
from gemma3_core.generation.sampling import SamplingParams
from gemma3_core.int4.linear import Int4Linear, quantize_weight
from gemma3_core.models.multimodal import Gemma3ForConditionalGeneration
from gemma3_core.models.text import Gemma3ForCausalLM
from gemma3_core.nn.cache import KVCache
from gemma3_core.nn.layers import attend
from training.examples import EXAMPLES, FOLDER

pytestmark = pytest.mark.gpu
CUDA = "cuda"


@pytest.fixture(autouse=True)
def _exact_products():
    """TF32 off, as the project's meaning of equal has it."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def both_models(folder):
    theirs = ReferenceModel.from_pretrained(folder).eval().to(CUDA)
    return Gemma3ForConditionalGeneration.from_pretrained(folder, device_map="auto"), theirs


@pytest.fixture(scope="module")
def pair(weights):
    return both_models(weights.both)


@pytest.fixture(scope="module")
def sharp_pair(sharp_weights):
    """With attention so sharp that generated tokens vary."""
    return both_models(sharp_weights.both)


@pytest.fixture(scope="module")
def text_pair(sharp_weights):
    theirs = ReferenceCausalLM.from_pretrained(sharp_weights.text).eval().to(CUDA)
    return Gemma3ForCausalLM.from_pretrained(sharp_weights.text, device_map=0), theirs


def on_gpu(inputs):
    return {name: value.to(CUDA) for name, value in inputs.items()}


def padded_batch():
    """Two rows with three pictures, padded on the left, beyond the window."""
    rows = [image_prompt("t9 i t30 i t5"), image_prompt("i t3")]
    ids, mask = left_padded([row for row, _ in rows])
    types, _ = left_padded([kinds for _, kinds in rows])
    assert ids.shape[1] > WINDOW
    return on_gpu({"input_ids": ids, "attention_mask": mask, "token_type_ids": types, "pixel_values": pixels(3)})


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits_hidden_states_and_image_features(weights, pair, attention):
    _, theirs = pair
    ours = Gemma3ForConditionalGeneration.from_pretrained(
        weights.both, device_map="auto", attn_implementation=attention
    )
    assert (ours.device.type, ours.dtype) == (CUDA, torch.float32)
    given = padded_batch()
    mine, other = ours(**given, output_hidden_states=True), theirs(**given, output_hidden_states=True)
    real = given["attention_mask"].bool()
    for one, two in zip((mine.logits, *mine.hidden_states), (other.logits, *other.hidden_states), strict=True):
        assert_equal(one[real], two[real])
    assert_equal(mine.image_hidden_states, other.image_hidden_states)


@pytest.mark.parametrize("cache", [None, "static"])
def test_greedy_tokens_far_beyond_the_window(sharp_pair, cache):
    given = {**padded_batch(), "max_new_tokens": 2 * WINDOW, "do_sample": False, "eos_token_id": NEVER}
    mine = sharp_pair[0].generate(**given, cache_implementation=cache)
    assert mine.device.type == CUDA
    assert torch.equal(mine, sharp_pair[1].generate(**given))


def test_sampling_with_a_generator_of_the_device(text_pair):
    ours, theirs = text_pair
    given = {**on_gpu(text_batch()), "do_sample": True, "top_k": 20, "max_new_tokens": 12, "eos_token_id": NEVER}
    torch.manual_seed(5)
    expected = theirs.generate(**given)
    torch.manual_seed(5)
    assert torch.equal(ours.generate(**given), expected)
    draws = [ours.generate(**given, generator=torch.Generator(CUDA).manual_seed(3)) for _ in range(2)]
    assert torch.equal(*draws)


def test_loss_and_gradients(weights):
    given = on_gpu(picture_prompt("t9 i t30 i t5"))
    given["labels"] = given["input_ids"].masked_fill(given["token_type_ids"] == 1, -100)
    ours = Gemma3ForConditionalGeneration.from_pretrained(weights.both, device_map=CUDA)
    theirs = ReferenceModel.from_pretrained(weights.both).to(CUDA)
    for model in (ours, theirs):
        model(**given).loss.backward()
    # A tied weight has one gradient, whatever the parameters are called.
    assert_equal(ours.lm_head.weight.grad, theirs.lm_head.weight.grad, 1e-4)
    norms = [model.model.language_model.layers[0].input_layernorm.weight.grad for model in (ours, theirs)]
    assert_equal(*norms, 1e-4)


@torch.no_grad()
def test_bfloat16_is_as_near_to_float32_as_the_references(weights, pair):
    given = padded_batch()
    real = given["attention_mask"].bool()
    exact = pair[1](**given).logits[real]
    errors = []
    for kind, options in ((Gemma3ForConditionalGeneration, {"device_map": CUDA}), (ReferenceModel, {})):
        model = kind.from_pretrained(weights.both, dtype=torch.bfloat16, **options).eval().to(CUDA)
        errors.append((model(**given).logits[real].float() - exact).norm())
    assert errors[0] <= 1.2 * errors[1]


@torch.no_grad()
def test_int4_weights_answer_as_on_the_cpu(weights, tmp_path):
    config = TorchAoConfig("int4_weight_only", group_size=32)
    there, here = (
        Gemma3ForCausalLM.from_pretrained(weights.text, quantization_config=config, device_map=where)
        for where in (CUDA, "cpu")
    )
    given = text_batch()
    real = given["attention_mask"].bool()
    expected = here(**given).logits[real]
    found = there(**on_gpu(given)).logits.cpu()[real]
    assert (found - expected).norm() <= 5e-2 * expected.norm()
    there.save_pretrained(tmp_path, max_shard_size="60KB")
    again = Gemma3ForCausalLM.from_pretrained(tmp_path, device_map=CUDA)
    assert torch.equal(again(**on_gpu(given)).logits.cpu()[real], found)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("in_features", "group_size"), [(96, 32), (192, 64), (2560, 128)])
def test_many_rows_are_multiplied_by_dequantised_int4_weights(dtype, in_features, group_size):
    weight = quantize_weight(torch.randn(208, in_features, device=CUDA), group_size)
    layer = Int4Linear.from_weight(weight, None)
    assert torch.equal(layer.int4_weight().packed, weight.packed)
    x = torch.randn(300, in_features, device=CUDA, dtype=dtype)
    expected = x.double() @ weight.dequantize().double().T
    few, many = torch.cat([layer(some) for some in x.split(50)]), layer(x)
    assert many.dtype == dtype
    for found in (few, many):
        assert (found.double() - expected).norm() <= 1e-2 * expected.norm()


@torch.no_grad()
def test_masked_attention_has_a_kernel_that_needs_little_memory():
    """At head width 256 with a mask and grouped heads; torch raises where no such kernel can be taken."""
    queries, keys, values = (
        torch.randn(
            1, heads, 64, 256, device=CUDA, dtype=torch.bfloat16, generator=torch.Generator(CUDA).manual_seed(n)
        )
        for n, heads in enumerate((8, 4, 4))
    )
    mask = torch.ones(1, 1, 64, 64, dtype=torch.bool, device=CUDA).tril()
    with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]):
        out, _ = attend(queries, keys, values, mask, 0.0625, False)
    exact, _ = attend(queries.double(), keys.double(), values.double(), mask, 0.0625, True)
    assert (out.double() - exact).norm() <= 1e-2 * exact.norm()


def test_an_adapter_gives_pefts_logits(weights, tmp_path):
    options = {"target_modules": [*DECODER, "fc1"], "target_parameters": [PROJECTOR], "modules_to_save": ["lm_head"]}
    save_adapter(ReferenceModel.from_pretrained(weights.both), tmp_path, r=4, **options)
    ours, theirs = both_models(weights.both)
    ours.load_adapter(tmp_path)
    prompt = {name: tensor.to(CUDA) for name, tensor in picture_prompt("t9 i t5").items()}
    with torch.inference_mode():
        assert_equal(ours(**prompt).logits, with_peft(theirs, tmp_path)(**prompt).logits)


def test_processor_model_and_pipeline_work_together(chat_folder, gradient_picture):
    model = Gemma3ForConditionalGeneration.from_pretrained(chat_folder, device_map="auto", dtype=torch.bfloat16)
    processor = AutoProcessor.from_pretrained(chat_folder, padding_side="left", device=CUDA)
    parts = [{"type": "image", "image": gradient_picture}, {"type": "text", "text": "what is it"}]
    messages = [{"role": "user", "content": parts}]
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "do_pan_and_scan": True}
    inputs = processor.apply_chat_template(messages, **options, add_generation_prompt=True)
    inputs = inputs.to(model.device, dtype=model.dtype)
    assert (inputs["pixel_values"].device.type, inputs["pixel_values"].dtype) == (CUDA, torch.bfloat16)
    output = model.generate(**inputs, max_new_tokens=5, cache_implementation="static")
    assert isinstance(processor.decode(output[0], skip_special_tokens=True), str)
    pipe = pipeline("image-text-to-text", model=chat_folder, device=0)
    assert pipe.device == torch.device(CUDA, 0)
    [record] = pipe(gradient_picture, text="<start_of_image> what", max_new_tokens=3, return_full_text=False)
    assert isinstance(record["generated_text"], str)


@pytest.mark.parametrize(("dtype", "int4"), [("float32", False), ("bfloat16", False), ("bfloat16", True)])
def test_the_demo_model_answers_the_cards_as_the_cpu_does(dtype, int4):
    """In conversation: what was read before is reused, and reading it anew gives the same tokens."""
    ours, here = Engine.load(device=CUDA, dtype=dtype), Engine.load(device="cpu", dtype="float32")
    for example in EXAMPLES:
        turns: list[Turn] = []
        for asked in example.asked:
            pictures = () if turns else tuple(str(FOLDER / name) for name in example.files)
            turns.append(Turn("user", asked.question, pictures))
            request = Request(tuple(turns), pan_and_scan=example.pan_and_scan, visitor="test", int4=int4)
            answers = [answered(engine, request) for engine in (ours, here)]
            answers.append(answered(ours, replace(request, reuse=False)))
            assert len({answer.token_ids for answer in answers}) == 1, (example.name, [a.text for a in answers])
            turns.append(Turn("assistant", answers[0].text))


def answered(engine, request):
    *_, end = engine.stream(request)
    assert isinstance(end, DoneEvent)
    return end


def test_the_triton_kernels_compute_what_torch_computes():
    environment = os.environ | {"PYTHONPATH": "."}
    command = [sys.executable, "tests/kernels/decode_on_triton.py"]
    run = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]


def in_slots(model, rows: int, captures: bool, steps: int):
    """The tokens of greedy and of sampled answers of several lengths, and the runner."""
    runner = SlotRunner(model, 8, 2**40, captures)
    prompts = [picture_prompt("t5", seed=number)["input_ids"][:, : 3 + 2 * number].to(CUDA) for number in range(rows)]
    caches, samplers, tokens = [], [], []
    for number, prompt in enumerate(prompts):
        caches.append(KVCache(model.text_config, reserve=200))
        settings = SamplingParams(1.0, 20, 0.95, seed=number) if number % 2 else SamplingParams()
        samplers.append(SamplingRow.of(settings, prompt, model.text_config.vocab_size))
        tokens.append(sample_rows(prefill(model, caches[-1], input_ids=prompt), samplers[-1:]).read()[0].token)
        samplers[-1].push(tokens[-1])
    found = [[int(token)] for token in tokens]
    for _ in range(steps):
        passes = [DecodePass(model, *given) for given in zip(caches, tokens, samplers, strict=True)]
        runner.decode(passes)
        tokens = [one.sampled.token for one in passes]
        for answer, row, one in zip(found, samplers, passes, strict=True):
            row.push(one.sampled.token)
            answer.append(one.sampled.token_id)
    for cache in caches:
        runner.release(cache)
    return found, runner


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_captured_steps_write_the_tokens_of_launched_ones_and_of_plain_ones(sharp_weights, rows):
    model = Gemma3ForConditionalGeneration.from_pretrained(sharp_weights.both, device_map="auto")
    captured, runner = in_slots(model, rows, True, 3 * WINDOW)
    assert runner._groups
    assert all(group and group._captured and group.captures.go_on for group in runner._groups.values()), "not captured"
    assert captured == in_slots(model, rows, False, 3 * WINDOW)[0]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(SlotRunner, "decode", lambda _, passes: decode_together(passes))
        assert captured == in_slots(model, rows, False, 3 * WINDOW)[0]


def test_a_step_in_slots_waits_for_the_device_in_one_place_alone(sharp_weights):
    """torch raises where the host would wait for the device, but for the event that `read` waits for."""
    model = Gemma3ForConditionalGeneration.from_pretrained(sharp_weights.both, device_map="auto")
    _, runner = in_slots(model, 2, True, 6)
    prompt = picture_prompt("t5")["input_ids"].to(CUDA)
    settings = SamplingParams(1.0, 20, seed=1)
    cache, row = KVCache(model.text_config, reserve=200), SamplingRow.of(settings, prompt, model.text_config.vocab_size)
    first = sample_rows(prefill(model, cache, input_ids=prompt), [row]).read()[0]
    row.push(first.token)
    runner.decode([step := DecodePass(model, cache, first.token, row)])
    row.push(step.sampled.token)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(10):
            runner.decode([step := DecodePass(model, cache, step.sampled.token, row)])
            row.push(step.sampled.token)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_memory_stays_as_it_is_over_many_answers():
    engine = Engine.load(device=CUDA, dtype="bfloat16")
    taken = []
    for number in range(120):
        request = Request((Turn("user", f"What is {number}?"),), max_new_tokens=8, visitor=str(number), reuse=False)
        answered(engine, request)
        taken.append(torch.cuda.memory_allocated())
    assert max(taken[60:]) <= max(taken[20:60]) + 2**20
