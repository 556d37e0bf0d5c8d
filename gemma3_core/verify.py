"""`python -m gemma3_core.verify FOLDER_OR_ID`: this program against an installed transformers, on a real checkpoint.

Prompts, ids and pixels must be the same; logits in float32 within 1e-5 of the largest one, or, where rounding
grows more than that, no further apart than a few times what the reference's own two kinds of attention are; 64
greedy tokens the same. One model is in memory at a time. Exit status 0 where all of it is so, else 1.
"""

import argparse
import gc
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from gemma3_core.config.gemma3 import Gemma3Config, read_config
from gemma3_core.errors import Gemma3Error, UnsupportedOptionError
from gemma3_core.files.hub import resolve_folder
from gemma3_core.hf.auto import AutoModelForCausalLM, AutoProcessor, AutoTokenizer
from gemma3_core.model_inputs import ModelInputs
from gemma3_core.models.pretrained import pick_device

BOUND = 1e-5
"""Of the largest logit: what two right float32 implementations stay within (eager against sdpa: about 1e-6)."""
NOISE_FACTOR = 4.0
"""Rounding differs from case to case: so many times the reference's own (its eager against its sdpa attention)."""
NEW_TOKENS = 64
COMPARED_POSITIONS = 64
"""How many of a prompt's last logits are compared: the whole of a long prompt would not fit into memory."""

Message = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A conversation to compare on."""

    name: str
    messages: list[Message]
    pan_and_scan: bool = False


@dataclass(frozen=True)
class Check:
    """One line of the verdict."""

    name: str
    passed: bool
    figures: str


@dataclass(frozen=True)
class Answer:
    """What a model gave for a case, on the CPU: logits [positions, vocabulary], and new ids [tokens]."""

    logits: torch.Tensor
    new_ids: torch.Tensor


def cases(sees: bool) -> list[Case]:
    """Text alone, with and without a system prompt; and for models that see: one picture, two, and one in crops."""
    system = {"role": "system", "content": [{"type": "text", "text": "You answer in one sentence."}]}
    plants = _user("How do plants turn light into food?")
    colors = {"role": "assistant", "content": [{"type": "text", "text": "Red, green and blue."}]}
    earlier = [_user("Name three colors."), colors, _user("One more?")]
    found = [Case("a question", [plants]), Case("a system prompt and earlier turns", [system, *earlier])]
    if not sees:
        return found
    first, second, wide = picture(640, 480), picture(300, 700, seed=1), picture(1500, 500, seed=2)
    return [
        *found,
        Case("one picture", [_user("What is shown in this image?", first)]),
        Case("two pictures", [system, _user("What differs between these?", first, second)]),
        Case("a wide picture in crops", [_user("Describe it from left to right.", wide)], pan_and_scan=True),
    ]


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture with slopes, edges and a little noise, the same every time."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.arange(height)[:, None] / height, torch.arange(width)[None, :] / width
    slopes = torch.stack([rows.expand(height, width), columns.expand(height, width), (rows + columns) / 2], dim=-1)
    noise = torch.randint(0, 16, (height, width, 3), generator=generator)
    drawn = Image.fromarray((slopes * 200 + noise).to(torch.uint8).numpy())
    corners = (torch.rand(5, 4, generator=generator) * torch.tensor([width, height, width, height])).tolist()
    pen = ImageDraw.Draw(drawn)
    for number, (left, top, right, bottom) in enumerate(corners):
        box = (min(left, right), min(top, bottom), max(left, right), max(top, bottom))
        (pen.ellipse if number % 2 else pen.rectangle)(box, fill=(40 * number, 255 - 50 * number, 90))
    return drawn


def verify(folder: Path, device: torch.device) -> Iterator[Check]:
    """Compares on every case; yields each check as soon as it is known. Raises what loading raises."""
    import transformers

    transformers.logging.set_verbosity_error()
    config = read_config(folder)
    if config.extra.get("quantization_config") is not None:
        raise UnsupportedOptionError("The checkpoint holds quantised weights. Give the one in full precision.")
    sees = isinstance(config, Gemma3Config)
    todo = cases(sees)
    mine = AutoProcessor.from_pretrained(folder, backend="pil") if sees else AutoTokenizer.from_pretrained(folder)
    theirs = reference_processor(folder, sees)
    inputs = [_inputs(mine, case, sees) for case in todo]
    for case, ours in zip(todo, inputs, strict=True):
        yield from compare_inputs(case, ours, _inputs(theirs, case, sees))
    answers = _all_answers(
        lambda: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map=device), inputs
    )
    gc.collect()
    reference: Any = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa"
    )
    reference.to(device).eval()
    for case, one, ours in zip(todo, inputs, answers, strict=True):
        yield from _compare_answers(reference, case, one, ours)


def reference_processor(folder: Path, sees: bool) -> Any:
    """transformers' own, with the image processor that works on Pillow pictures (no torchvision is needed)."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    if not sees:
        return tokenizer
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    whole = transformers.AutoProcessor.from_pretrained(folder)
    images = Gemma3ImageProcessorPil.from_pretrained(folder)
    length = whole.image_seq_length
    return transformers.Gemma3Processor(images, tokenizer, tokenizer.chat_template, image_seq_length=length)


def compare_inputs(case: Case, ours: ModelInputs, theirs: Any) -> Iterator[Check]:
    """Ids, which of them are soft tokens, and pixels."""
    same = ours["input_ids"].shape == theirs["input_ids"].shape and torch.equal(ours["input_ids"], theirs["input_ids"])
    yield Check(f"{case.name}: prompt", same, f"{ours['input_ids'].shape[1]} tokens, {_identical(same)}")
    if "pixel_values" not in theirs:
        return
    kinds = same and torch.equal(ours["token_type_ids"], theirs["token_type_ids"])
    mine, other = ours["pixel_values"], torch.as_tensor(theirs["pixel_values"])
    difference = (mine - other).abs().max().item() if mine.shape == other.shape else float("inf")
    passed = kinds and difference <= BOUND
    yield Check(f"{case.name}: pixels", passed, f"{list(mine.shape)}, largest difference {difference:.1e}")


def compare_logits(case: Case, ours: Answer, theirs: Answer, eager: torch.Tensor) -> Check:
    """`eager`: the reference's logits by its other attention, which tell how far rounding goes."""
    difference, noise = _apart(ours.logits, theirs.logits), _apart(eager, theirs.logits)
    passed = difference <= max(BOUND, NOISE_FACTOR * noise)  # False for NaN
    figures = f"max|a - b| / max|b| is {difference:.1e} (the reference's own rounding: {noise:.1e})"
    return Check(f"{case.name}: logits", passed, figures)


def _apart(logits: torch.Tensor, reference: torch.Tensor) -> float:
    reference = reference.double()
    return ((logits.double() - reference).abs().max() / reference.abs().max()).item()


def compare_tokens(case: Case, ours: Answer, theirs: Answer, logits_at: Callable[[int], torch.Tensor]) -> Check:
    """Greedy ids. Where they part, the reference's logits [vocabulary] there tell whether it was a tie."""
    name = f"{case.name}: greedy tokens"
    if torch.equal(ours.new_ids, theirs.new_ids):
        return Check(name, True, f"{len(theirs.new_ids)}, the same")
    shorter = min(len(ours.new_ids), len(theirs.new_ids))
    parted = (ours.new_ids[:shorter] != theirs.new_ids[:shorter]).nonzero()
    at = int(parted[0]) if len(parted) else shorter
    if at == shorter:
        return Check(name, False, f"{len(ours.new_ids)} against {len(theirs.new_ids)}")
    logits = logits_at(at)
    gap = (logits[theirs.new_ids[at]] - logits[ours.new_ids[at]]).abs().item() / logits.abs().max().item()
    return Check(
        name, gap <= BOUND, f"they part at token {at}, where the two logits are {gap:.1e} of the largest apart"
    )


def main(arguments: list[str] | None = None) -> int:
    """Prints every check and the verdict; 0 where all passed, else 1."""
    parser = argparse.ArgumentParser(prog="python -m gemma3_core.verify", description=__doc__)
    parser.add_argument("model", help="a folder or a Hub id with a checkpoint in full precision")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub")
    parser.add_argument("--device", default="auto", help="auto, cuda, mps or cpu")
    asked = parser.parse_args(arguments)
    try:
        import transformers
    except ImportError:
        print("transformers is not installed here: there is nothing to compare with. pip install transformers")
        return 1
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    failed = []
    try:
        folder = resolve_folder(asked.model, asked.revision)
        for check in verify(folder, pick_device(asked.device)):
            print(f"{'same' if check.passed else 'NOT THE SAME':12}  {check.name}: {check.figures}", flush=True)
            failed += [] if check.passed else [check.name]
    except Gemma3Error as error:
        print(error)
        return 1
    verdict = f"No: {len(failed)} differ ({'; '.join(failed)})" if failed else "Yes"
    print(f"The same as transformers {transformers.__version__}? {verdict}.")
    return 1 if failed else 0


def _all_answers(load: Callable[[], Any], inputs: list[ModelInputs]) -> list[Answer]:
    """A model's answers; it is gone when they are there."""
    model = load()
    return [_answer(model, one) for one in inputs]


def _compare_answers(model: Any, case: Case, inputs: ModelInputs, ours: Answer) -> Iterator[Check]:
    theirs = _answer(model, inputs)
    model.set_attn_implementation("eager")
    eager = _logits(model, inputs, COMPARED_POSITIONS)
    model.set_attn_implementation("sdpa")
    yield compare_logits(case, ours, theirs, eager)
    yield compare_tokens(
        case, ours, theirs, lambda token: _logits(model, _longer(inputs, theirs.new_ids[:token]), positions=1)[-1]
    )


@torch.inference_mode()
def _answer(model: Any, inputs: ModelInputs) -> Answer:
    here = {name: value.to(model.device) for name, value in inputs.items()}
    ids = model.generate(**here, max_new_tokens=NEW_TOKENS, do_sample=False)
    return Answer(_logits(model, inputs, COMPARED_POSITIONS), ids[0, inputs["input_ids"].shape[1] :].cpu())


@torch.inference_mode()
def _logits(model: Any, inputs: ModelInputs, positions: int) -> torch.Tensor:
    here = {name: value.to(model.device) for name, value in inputs.items()}
    return model(**here, logits_to_keep=positions).logits[0].float().cpu()


def _longer(inputs: ModelInputs, ids: torch.Tensor) -> ModelInputs:
    """The inputs of a prompt [1, T] with new ids behind it."""
    more = {"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None]}
    more["token_type_ids"] = torch.zeros_like(ids)[None]
    joined = {n: torch.cat([v, more[n]], dim=1) if n in more else v for n, v in inputs.items()}
    return ModelInputs(joined)


def _inputs(processor: Any, case: Case, sees: bool) -> Any:
    options: dict[str, Any] = {"processor_kwargs": {"do_pan_and_scan": True}} if case.pan_and_scan else {}
    inputs = processor.apply_chat_template(
        case.messages if sees else [_words_alone(message) for message in case.messages],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        **options,
    )
    return ModelInputs(dict(inputs))


def _user(text: str, *pictures: Image.Image) -> Message:
    shown = [{"type": "image", "image": one} for one in pictures]
    return {"role": "user", "content": [*shown, {"type": "text", "text": text}]}


def _words_alone(message: Message) -> Message:
    return {**message, "content": message["content"][0]["text"]}


def _identical(same: bool) -> str:
    return "identical" if same else "ids differ"


if __name__ == "__main__":
    sys.exit(main())
