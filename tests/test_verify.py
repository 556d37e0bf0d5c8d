"""`python -m gemma3_core.verify`: yes where both are the same, no where a weight, an id or a pixel differs."""

import sys
from typing import Any

import pytest
import torch

from gemma3_core import verify
from gemma3_core.errors import UnsupportedOptionError
from gemma3_core.int4.quantize import TorchAoConfig
from gemma3_core.model_inputs import ModelInputs
from gemma3_core.models.text import Gemma3ForCausalLM
from gemma3_core.verify import Answer, Case, Check, cases, compare_inputs, compare_logits, compare_tokens, main, picture

CASE = Case("a case", [])


@pytest.fixture
def quick(monkeypatch):
    """Few new tokens, and of the pictures the case with crops alone: the whole is for real checkpoints."""
    whole = cases
    monkeypatch.setattr(verify, "NEW_TOKENS", 6)
    monkeypatch.setattr(verify, "cases", lambda sees: whole(sees)[-1:])


@pytest.mark.usefixtures("quick")
def test_the_same_weights_are_found_to_be_the_same(chat_folder, capsys):
    assert main([str(chat_folder), "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "The same as transformers 5.23.0? Yes."
    assert [line.split(": ")[1] for line in lines[:-1]] == ["prompt", "pixels", "logits", "greedy tokens"]
    assert all(line.startswith("same  ") for line in lines[:-1])


@pytest.mark.usefixtures("quick")
def test_a_weight_that_was_changed_is_found(text_chat_folder, monkeypatch, capsys):
    load = Gemma3ForCausalLM.from_pretrained

    def changed(*given: Any, **options: Any) -> Any:
        model = load(*given, **options)
        with torch.no_grad():
            model.model.layers[3].mlp.up_proj.weight[0] *= 1.05
        return model

    monkeypatch.setattr(Gemma3ForCausalLM, "from_pretrained", changed)
    assert main([str(text_chat_folder), "--device", "cpu"]) == 1
    said = capsys.readouterr().out
    assert "NOT THE SAME  a system prompt and earlier turns: logits" in said
    assert "same          a system prompt and earlier turns: prompt" in said
    assert said.splitlines()[-1].startswith("The same as transformers 5.23.0? No: ")


def test_the_cases_cover_text_pictures_and_crops():
    assert [case.name for case in cases(sees=False)] == ["a question", "a system prompt and earlier turns"]
    seeing = cases(sees=True)
    assert [case.pan_and_scan for case in seeing] == [False, False, False, False, True]
    assert picture(40, 30).tobytes() == picture(40, 30).tobytes() != picture(40, 30, seed=1).tobytes()


def checks(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> list[bool]:
    return [check.passed for check in compare_inputs(CASE, ModelInputs(ours), theirs)]


def test_other_ids_kinds_or_pixels_are_not_the_same():
    given = {"input_ids": torch.tensor([[1, 2]]), "token_type_ids": torch.tensor([[0, 1]])}
    given["pixel_values"] = torch.zeros(1, 3, 2, 2)
    assert checks(given, given) == [True, True]
    assert checks(given, {**given, "input_ids": torch.tensor([[1, 3]])}) == [False, False]
    assert checks(given, {**given, "input_ids": torch.tensor([[1, 2, 3]])}) == [False, False]
    assert checks(given, {**given, "token_type_ids": torch.tensor([[1, 1]])}) == [True, False]
    assert checks(given, {**given, "pixel_values": torch.full((1, 3, 2, 2), 1 / 255)}) == [True, False]
    assert checks(given, {**given, "pixel_values": torch.zeros(2, 3, 2, 2)}) == [True, False]


def answer(*ids: int, logits: float = 1.0) -> Answer:
    return Answer(torch.tensor([[logits, -2.0, 0.5]]), torch.tensor(ids))


@pytest.mark.parametrize(("logit", "passed"), [(1.0, True), (1.00001, True), (1.0001, False), (float("nan"), False)])
def test_logits_may_differ_by_rounding_alone(logit, passed):
    exact = answer()
    assert compare_logits(CASE, answer(logits=logit), exact, exact.logits).passed is passed


def test_rounding_is_measured_by_the_references_own():
    exact, noisy = answer(), answer(logits=1.0001).logits
    assert compare_logits(CASE, answer(logits=1.0003), exact, noisy).passed
    assert not compare_logits(CASE, answer(logits=1.0005), exact, noisy).passed
    assert not compare_logits(CASE, answer(logits=1.0003), exact, noisy * float("nan")).passed


def test_tokens_that_part_count_as_the_same_only_where_the_reference_was_undecided():
    def at(*logits: float):
        return lambda _: torch.tensor([9.0, *logits, -20.0])

    parted = answer(1, 2), answer(1, 1)
    assert compare_tokens(CASE, answer(1, 2), answer(1, 2), at(0.0, 0.0)).passed
    assert not compare_tokens(CASE, *parted, at(5.0, 4.0)).passed
    tie = compare_tokens(CASE, *parted, at(5.0, 5.00001))
    assert tie == Check("a case: greedy tokens", True, tie.figures)
    assert "part at token 1" in tie.figures
    assert not compare_tokens(CASE, answer(1), answer(1, 2), at(0.0, 0.0)).passed


def test_without_transformers_it_says_what_to_install(monkeypatch, capsys, chat_folder):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert main([str(chat_folder)]) == 1
    assert "transformers is not installed" in capsys.readouterr().out


def test_a_folder_without_a_checkpoint_and_quantised_weights_are_told(tmp_path, capsys, text_chat_folder):
    assert main([str(tmp_path)]) == 1
    assert "config.json is missing" in capsys.readouterr().out
    int4 = Gemma3ForCausalLM.from_pretrained(text_chat_folder, quantization_config=TorchAoConfig(32))
    int4.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedOptionError, match="in full precision"):
        list(verify.verify(tmp_path, torch.device("cpu")))
