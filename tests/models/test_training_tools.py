"""accelerate, peft and transformers' Trainer on our models, with the numbers that they reach on transformers' own."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from reference import assert_equal, ids_of, picture_prompt, text_batch
from safetensors.torch import load_file

import gemma3_core
from gemma3_core import Gemma3ForCausalLM, Gemma3TextModel, TorchAoConfig
from gemma3_core.errors import UnsupportedOptionError

# Of transformers' own model, which peft asks under its older name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

PROJECTIONS = ["q_proj", "v_proj", "down_proj"]
TASKS = [
    ("Gemma3ForCausalLM", "CAUSAL_LM"),
    ("Gemma3ForConditionalGeneration", "CAUSAL_LM"),
    ("Gemma3ForCausalLM", None),
    ("Gemma3TextForSequenceClassification", "SEQ_CLS"),
    ("Gemma3ForSequenceClassification", "SEQ_CLS"),
    ("Gemma3Model", "FEATURE_EXTRACTION"),
]


def sees(name: str) -> bool:
    return name in ("Gemma3ForConditionalGeneration", "Gemma3ForSequenceClassification", "Gemma3Model")


def source(name: str, request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue("reference_folder" if sees(name) else "reference_text_folder")


def inputs(name: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A prompt, and labels where the class takes them."""
    prompt = picture_prompt("t9 i t5") if sees(name) else text_batch()
    if "Classification" in name:
        return prompt, {"labels": torch.arange(len(prompt["input_ids"])) % 2}
    return prompt, {} if name.endswith("Model") else {"labels": prompt["input_ids"]}


def randomise_adapters(model: torch.nn.Module) -> None:
    """Adapters begin as the identity; and a classifier's head begins at random."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "lora_" in name or "score" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


@pytest.mark.parametrize(("name", "task"), TASKS)
def test_lora_trains_saves_loads_and_merges_as_on_transformers(name, task, request, tmp_path):
    prompt, labels = inputs(name)
    results: list[list[torch.Tensor]] = []
    for module in (gemma3_core, transformers):
        kind = getattr(module, name)
        base = kind.from_pretrained(folder := source(name, request))
        config = peft.LoraConfig(task_type=task, r=4, target_modules=PROJECTIONS)
        model = peft.get_peft_model(base, config).train()
        randomise_adapters(model)
        before = {n for n, p in model.named_parameters() if p.requires_grad}
        out = model(**prompt, **labels)
        loss = out.loss if labels else out[0].square().mean()
        loss.backward()
        assert {n for n, p in model.named_parameters() if p.grad is not None} == before
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05).step()
        trained = model.eval()(**prompt)[0]
        results.append([loss, trained])
        if module is transformers:
            break
        assert model.peft_config["default"].base_model_name_or_path == str(folder)
        model.save_pretrained(tmp_path / "adapter")
        again = peft.PeftModel.from_pretrained(kind.from_pretrained(folder), tmp_path / "adapter").eval()
        assert_equal(again(**prompt)[0], trained)
        if task == "CAUSAL_LM":
            continued = model.generate(**prompt, max_new_tokens=4)
        merged = model.merge_and_unload()
        assert type(merged) is kind
        assert_equal(merged(**prompt)[0], trained)
        if task == "CAUSAL_LM":
            assert torch.equal(merged.generate(**prompt, max_new_tokens=4), continued)
        merged.save_pretrained(tmp_path / "merged")
        assert_equal(kind.from_pretrained(tmp_path / "merged")(**prompt)[0], trained)
    real = prompt["attention_mask"].bool() if results[0][1].ndim == 3 else ...
    assert_equal(results[0][0], results[1][0])
    assert_equal(results[0][1][real], results[1][1][real])


@pytest.mark.filterwarnings("ignore:Model.*tie_word_embeddings")
def test_an_adapter_of_the_embedding_is_scaled_like_the_embedding(reference_folder):
    prompt, results = picture_prompt("t9 i t5"), []
    for module in (gemma3_core, transformers):
        base = module.Gemma3ForConditionalGeneration.from_pretrained(reference_folder)
        model = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["embed_tokens"])).eval()
        randomise_adapters(model)
        results.append(model(**prompt).logits)
    assert_equal(results[0], results[1])


def test_adapters_under_checkpointing_have_the_same_gradients(reference_text_folder):
    fields, results = {**text_batch(), "labels": text_batch()["input_ids"]}, []
    for reentrant in (None, False, True):
        base = Gemma3ForCausalLM.from_pretrained(reference_text_folder)
        if reentrant is not None:
            base.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", target_modules=PROJECTIONS)).train()
        randomise_adapters(model)
        model(**fields).loss.backward()
        results.append([p.grad for p in model.parameters() if p.requires_grad])
    for other in results[1:]:
        for own, expected in zip(other, results[0], strict=True):
            assert_equal(own, expected)


def test_what_peft_can_not_do_here_is_told(reference_text_folder):
    int4 = Gemma3ForCausalLM.from_pretrained(reference_text_folder, quantization_config=TorchAoConfig(group_size=32))
    with pytest.raises(UnsupportedOptionError, match=r"int4 weights, which take no adapter.*full precision"):
        peft.get_peft_model(int4, peft.LoraConfig(target_modules=PROJECTIONS))
    config = peft.PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=4, num_layers=7, token_dim=64, num_attention_heads=4
    )
    prompted = peft.get_peft_model(Gemma3ForCausalLM.from_pretrained(reference_text_folder), config)
    prompted(**text_batch(), labels=text_batch()["input_ids"]).loss.backward()
    with pytest.raises(UnsupportedOptionError, match="another prepare_inputs_for_generation, as prompt tuning"):
        prompted.generate(**text_batch(), max_new_tokens=2)


@torch.no_grad()
@pytest.mark.parametrize("folder", ["reference_folder", "reference_text_folder"])
def test_inputs_of_a_loop_of_ones_own(folder, request):
    """Token by token with `prepare_inputs_for_generation`: the logits of the whole row."""
    name = "Gemma3ForConditionalGeneration" if folder == "reference_folder" else "Gemma3ForCausalLM"
    model = getattr(gemma3_core, name).from_pretrained(request.getfixturevalue(folder))
    prompt = picture_prompt("t9 i t5") if sees(name) else {"input_ids": ids_of("t30")}
    ids, rest = prompt.pop("input_ids"), dict(prompt)
    whole = torch.cat([ids, ids_of("t3")], dim=1)
    cache = gemma3_core.KVCache(model.config)
    for end in range(ids.shape[1], whole.shape[1] + 1):
        if "attention_mask" in rest:
            rest["attention_mask"] = torch.ones_like(whole[:, :end])
        fields = model.prepare_inputs_for_generation(whole[:, :end], past_key_values=cache, use_cache=True, **rest)
        assert fields["input_ids"].shape[1] == (1 if cache.length else ids.shape[1])
        last = model(**fields).logits[:, -1]
    full = model.prepare_inputs_for_generation(whole, next_sequence_length=whole.shape[1], **rest)
    assert_equal(last, model(**full).logits[:, -1])


@pytest.fixture(autouse=True)
def own_state_of_accelerate():
    """It is one for the process, and keeps the precision of the first Accelerator."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate_prepares_and_trains(reference_text_folder, precision):
    fields, losses = {**text_batch(), "labels": text_batch()["input_ids"]}, []
    for module in (gemma3_core, transformers):
        accelerator = Accelerator(cpu=True, mixed_precision=precision)
        model = module.Gemma3ForCausalLM.from_pretrained(reference_text_folder).train()
        model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
        for _ in range(2):
            out = model(**fields)
            assert out.logits.dtype == out["logits"].dtype == torch.float32  # widened by accelerate, field by field
            accelerator.backward(out.loss)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(out.loss)
        assert accelerator.unwrap_model(model) is not None
        assert accelerator.verify_device_map(model) is False
    assert_equal(losses[0], losses[1], 1e-5 if precision == "no" else 2e-2)


class Rows(torch.utils.data.Dataset):
    """Rows of text, or their classes."""

    def __init__(self, classes: bool):
        self.classes = classes

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids = ids_of("t9", index)[0]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": index % 2 if self.classes else ids}


@pytest.mark.parametrize("name", ["Gemma3ForCausalLM", "Gemma3TextForSequenceClassification"])
def test_three_steps_of_the_trainer(reference_text_folder, tmp_path, name):
    """The same losses as on transformers' model. The weights that it saves load with the model's configuration."""
    results, classes = [], name != "Gemma3ForCausalLM"
    for module in (gemma3_core, transformers):
        kind = getattr(module, name)
        model = kind.from_pretrained(reference_text_folder)
        randomise_adapters(model)
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path / module.__name__), max_steps=3, per_device_train_batch_size=2, learning_rate=1e-3,
            report_to=[], use_cpu=True, save_strategy="no", logging_steps=1, disable_tqdm=True,
            activation_checkpointing=True, dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = transformers.Trainer(model, arguments, train_dataset=Rows(classes), eval_dataset=Rows(classes))
        trainer.train()
        steps = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        assert len(steps) == 3
        results.append(torch.tensor([*steps, trainer.evaluate()["eval_loss"]]))
        if module is gemma3_core:
            assert model.is_gradient_checkpointing
            assert not model.config.use_cache
            trainer.save_model(str(tmp_path / "saved"))
            again = kind.from_pretrained(tmp_path / "saved", config=model.config)
            assert torch.equal(again(ids_of("t9")).logits, model.eval()(ids_of("t9")).logits)
            assert "lm_head.weight" not in load_file(tmp_path / "saved" / "model.safetensors")
    assert_equal(results[0], results[1])


def test_a_bare_model_may_be_one_part_of_another(reference_text_folder):
    """accelerate prepares modules that hold a model of ours."""
    body = Gemma3TextModel.from_pretrained(reference_text_folder)
    whole = torch.nn.ModuleDict({"body": body, "head": torch.nn.Linear(64, 2)})
    prepared = Accelerator(cpu=True).prepare(whole)
    prepared["head"](prepared["body"](ids_of("t5")).last_hidden_state).sum().backward()
    assert body.embed_tokens.weight.grad is not None
