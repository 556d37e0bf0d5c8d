"""`python -m gemma3_core.verify FOLDER_OR_ID` compares this program with an installed transformers on a checkpoint.

Ids, pixels and 64 greedy tokens must be the same, and float32 logits within 1e-5 of the largest one. If rounding alone
exceeds that, the bound is a few times the difference between the reference's own two kinds of attention. One model is
in memory at a time. The exit status is 0 if all checks pass, else 1.
"""

import argparse
import gc
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from gemma3_core.config.gemma3 import Gemma3Config, read_config
from gemma3_core.errors import Gemma3Error, UnsupportedOptionError
from gemma3_core.gguf.checkpoint import weights_of
from gemma3_core.hf.auto import AutoModelForCausalLM, AutoProcessor, AutoTokenizer
from gemma3_core.inspection.attention import with_answer
from gemma3_core.model_inputs import ModelInputs
from gemma3_core.models.pretrained import pick_device, resolve_checkpoint

BOUND = 1e-5
"""Relative to the largest logit. Two correct float32 implementations differ less (eager and sdpa: about 1e-6)."""
NOISE_FACTOR = 4.0
"""How many times the reference's own rounding (its eager against its sdpa attention) is allowed."""
NEW_TOKENS = 64
COMPARED_POSITIONS = 64
"""Compares the last logits of a prompt; all of a long prompt would not fit into memory."""

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
    """A model's result for a case, on the CPU: logits [positions, vocabulary], and new ids [tokens]."""

    logits: torch.Tensor
    new_ids: torch.Tensor


def cases(sees: bool) -> list[Case]:
    """Text with and without a system prompt; for models that see also one picture, two, and one with crops."""
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
    """A picture with slopes, edges and a little noise, the same for each seed."""
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
    """Yields the checks of every case. Raises what loading raises."""
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
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map=device)
    answers = [_answer(model, one) for one in inputs]
    del model
    gc.collect()
    reference: Any = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa"
    )
    reference.to(device).eval()
    for case, one, ours in zip(todo, inputs, answers, strict=True):
        yield from _compare_answers(reference, case, one, ours)


def reference_processor(folder: Path, sees: bool) -> Any:
    """transformers' processor, with the image processor for Pillow pictures, which needs no torchvision."""
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
    found = "identical" if same else "ids differ"
    yield Check(f"{case.name}: prompt", same, f"{ours['input_ids'].shape[1]} tokens, {found}")
    if "pixel_values" not in theirs:
        return
    kinds = same and torch.equal(ours["token_type_ids"], theirs["token_type_ids"])
    mine, other = ours["pixel_values"], torch.as_tensor(theirs["pixel_values"])
    difference = (mine - other).abs().max().item() if mine.shape == other.shape else float("inf")
    passed = kinds and difference <= BOUND
    yield Check(f"{case.name}: pixels", passed, f"{list(mine.shape)}, largest difference {difference:.1e}")


def compare_logits(case: Case, ours: Answer, theirs: Answer, eager: torch.Tensor) -> Check:
    """`eager` are the reference's logits by its other attention, to measure rounding."""
    difference, noise = _apart(ours.logits, theirs.logits), _apart(eager, theirs.logits)
    passed = difference <= max(BOUND, NOISE_FACTOR * noise)  # False for NaN
    figures = f"max|a - b| / max|b| is {difference:.1e} (the reference's own rounding: {noise:.1e})"
    return Check(f"{case.name}: logits", passed, figures)


def _apart(logits: torch.Tensor, reference: torch.Tensor) -> float:
    reference = reference.double()
    return ((logits.double() - reference).abs().max() / reference.abs().max()).item()


def compare_tokens(case: Case, ours: Answer, theirs: Answer, logits_at: Callable[[int], torch.Tensor]) -> Check:
    """Greedy ids. If they part, the reference's logits [vocabulary] there tell whether it was a tie."""
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
    """Prints every check and the verdict; returns 0 if all passed, else 1."""
    parser = argparse.ArgumentParser(prog="python -m gemma3_core.verify", description=__doc__)
    parser.add_argument("model", help="a folder, a GGUF file or a Hub id with a checkpoint")
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
        folder = resolve_checkpoint(asked.model, revision=asked.revision)
        with tempfile.TemporaryDirectory() as unpacked:
            if weights_of(folder) is not None:
                folder = _written_out(folder, Path(unpacked))
            for check in verify(folder, pick_device(asked.device)):
                print(f"{'same' if check.passed else 'NOT THE SAME':12}  {check.name}: {check.figures}", flush=True)
                failed += [] if check.passed else [check.name]
    except Gemma3Error as error:
        print(error)
        return 1
    verdict = f"No: {len(failed)} differ ({'; '.join(failed)})" if failed else "Yes"
    print(f"The same as transformers {transformers.__version__}? {verdict}.")
    return 1 if failed else 0


def _written_out(folder: Path, target: Path) -> Path:
    """A GGUF file's model in full precision, as transformers reads it."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, dequantize=True)
    model.save_pretrained(target)
    AutoProcessor.from_pretrained(folder).save_pretrained(target)
    return target


def _compare_answers(model: Any, case: Case, inputs: ModelInputs, ours: Answer) -> Iterator[Check]:
    theirs = _answer(model, inputs)
    model.set_attn_implementation("eager")
    eager = _logits(model, inputs, COMPARED_POSITIONS)
    model.set_attn_implementation("sdpa")
    yield compare_logits(case, ours, theirs, eager)

    def logits_at(token: int) -> torch.Tensor:
        return _logits(model, with_answer(inputs, theirs.new_ids[:token].tolist()), positions=1)[-1]

    yield compare_tokens(case, ours, theirs, logits_at)


@torch.inference_mode()
def _answer(model: Any, inputs: ModelInputs) -> Answer:
    here = {name: value.to(model.device) for name, value in inputs.items()}
    ids = model.generate(**here, max_new_tokens=NEW_TOKENS, do_sample=False)
    return Answer(_logits(model, inputs, COMPARED_POSITIONS), ids[0, inputs["input_ids"].shape[1] :].cpu())


@torch.inference_mode()
def _logits(model: Any, inputs: Mapping[str, Any], positions: int) -> torch.Tensor:
    here = {name: value.to(model.device) for name, value in inputs.items()}
    return model(**here, logits_to_keep=positions).logits[0].float().cpu()


def _inputs(processor: Any, case: Case, sees: bool) -> Any:
    how: dict[str, Any] = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    if case.pan_and_scan:
        how["processor_kwargs"] = {"do_pan_and_scan": True}
    messages = case.messages
    if not sees and processor.chat_template is None:  # a base model
        texts = [message["content"][0]["text"] for message in messages]
        return ModelInputs(dict(processor("\n".join(texts), return_tensors="pt")))
    if not sees:
        messages = [{**message, "content": message["content"][0]["text"]} for message in messages]
    return ModelInputs(dict(processor.apply_chat_template(messages, **how)))


def _user(text: str, *pictures: Image.Image) -> Message:
    shown = [{"type": "image", "image": one} for one in pictures]
    return {"role": "user", "content": [*shown, {"type": "text", "text": text}]}


if __name__ == "__main__":
    sys.exit(main())
