"""How often the demo model is right, kind by kind, on pictures and words it never trained on.

    python -m training.evaluate
    python -m training.evaluate --model runs/demo/last --per-kind 100 --split train
    python -m training.evaluate --int4 --json benchmarks/results/answers.json
    python -m training.evaluate --model runs/talks/last --kinds which_more,follow_up,one_word

Held out are the seeds, the phrasings, eight pairs of shape and color (every picture of shapes has one), and one in
five of all words and other texts (every sign has one). Signs are written in the
fonts that matplotlib brings. Pictures are drawn at their
true size by each of the renderers and go through the image processor; answers are greedy; right means
the key word of the answer is right and no other is said.

Follow-ups are asked turn by turn, with the model's own earlier answers before them; one counts as right by
itself. Under a system prompt an answer also has to have the form that is asked for.

Boards are asked about twice: with pan & scan, where the answer is to be right, and without, where it is to
say that the writing is too small. Another row says how often it gives the true price nonetheless.

    python -m training.evaluate --renderer browser --per-kind 100

asks the same questions about the same pictures as drawn by a program that no training picture is from.

    python -m training.evaluate --phrasings training/fresh_phrasings.json --per-kind 100

asks in the words of a file (by kind and form) instead of the held-out ones, except for words that training has. The
author of that file had seen neither the phrasings of training nor the held-out ones.
"""

import argparse
import json
import random
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from gemma3_core import Gemma3ForConditionalGeneration, Gemma3Processor, TorchAoConfig
from training.drawing.rendering import RENDERERS
from training.evaluation.browser_drawing import BROWSER, Browser, Drawable
from training.language.asking import Question, slots_of
from training.language.heldout_phrasings import CHARTS, FURTHER, SCENES
from training.language.wordings import words_of
from training.learning.model import DEMO_MODEL
from training.worlds.boards.questions import TOO_SMALL, says_too_small
from training.worlds.charts import questions as chart_questions
from training.worlds.pairs.follow_ups import MOST_TURNS
from training.worlds.registry import ALL_KINDS, WORLDS, is_right, kinds_named
from training.worlds.scenes import more_questions, phrasings
from training.worlds.world import DrawnWorld, ReadInCrops, World

SEED = 20_000_003
NEW_TOKENS = 40
BATCH = 24
GUESSED_PRICES = "board_price, pan & scan off: the true price (should be rare)"
_ROW_ENDINGS = {None: "", True: ", pan & scan on", False: ", pan & scan off: says that it is too small"}


Message = dict[str, Any]
Renderer = str | Browser | None  # one of drawing.RENDERERS, a browser, or None for each in its share


@dataclass(frozen=True)
class Dialogue:
    """Pictures and what is asked about them, turn by turn; all of them stand before the first question."""

    pictures: tuple[Image, ...]
    questions: tuple[Question, ...]
    system: str = ""


@dataclass(frozen=True)
class Trial:
    """One question about a picture or two, and whether the answer was right.

    `pan_and_scan` is None where the question is of a kind that is asked without it only.
    """

    question: Question
    answer: str
    pan_and_scan: bool | None = None

    @property
    def right(self) -> bool:
        return says_too_small(self.answer) if self.pan_and_scan is False else self.true

    @property
    def true(self) -> bool:
        """Whether it says what is in the picture, readable or not."""
        return is_right(self.question.kind, self.question.key, self.answer)

    @property
    def wanted(self) -> str:
        """What a right answer says."""
        return TOO_SMALL if self.pan_and_scan is False else self.question.key

    @property
    def row(self) -> str:
        """Of the table."""
        return self.question.kind + _ROW_ENDINGS[self.pan_and_scan]


class Examinee:
    """A checkpoint that answers, a batch at a time."""

    def __init__(self, folder: Path, device: str = "auto", dtype: str = "float32", int4: bool = False):
        self._model = Gemma3ForConditionalGeneration.from_pretrained(
            folder, dtype=dtype, device_map=device, quantization_config=TorchAoConfig() if int4 else None
        )
        self._processor = Gemma3Processor.from_pretrained(folder)

    def answer(self, pictures: list[Image], questions: list[str], pan_and_scan: bool = False) -> list[str]:
        """Answers single questions about single pictures."""
        chats = [[_asks(question, (picture,))] for picture, question in zip(pictures, questions, strict=True)]
        return self.reply(chats, pan_and_scan)

    def reply(self, chats: list[list[Message]], pan_and_scan: bool = False) -> list[str]:
        """Answers the last message of each chat."""
        inputs = self._processor.apply_chat_template(
            chats,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
            padding=True,
            padding_side="left",
            do_pan_and_scan=pan_and_scan,
        ).to(self._model.device, self._model.dtype)
        ids = self._model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        assert isinstance(ids, torch.Tensor)  # nothing else was asked for
        return self._processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def _says(role: str, text: str, pictures: tuple[Image, ...] = ()) -> Message:
    shown = [{"type": "image", "image": picture} for picture in pictures]
    return {"role": role, "content": [*shown, {"type": "text", "text": text}]}


def _asks(question: str, pictures: tuple[Image, ...] = ()) -> Message:
    return _says("user", question, pictures)


def questions_of_kind(
    kind: str, number: int, split: str, seed: int, renderer: Renderer = None
) -> Iterator[tuple[Image, Question]]:
    """`number` questions of one kind, each about a picture of its own.

    Raises ValueError for a kind that takes more than a picture and a question.
    """
    if not isinstance(_world_of(kind), DrawnWorld):
        raise ValueError(f"kind is {kind!r}, which is asked in a dialogue; see dialogues_of_kind")
    for dialogue in dialogues_of_kind(kind, number, split, seed, renderer):
        yield dialogue.pictures[0], dialogue.questions[0]


def dialogues_of_kind(kind: str, number: int, split: str, seed: int, renderer: Renderer = None) -> Iterator[Dialogue]:
    """As many dialogues as hold `number` questions of one kind; only follow-ups have more than one question each.

    What is shown and asked does not depend on the renderer.
    """
    world = _world_of(kind)
    rng, pen = random.Random(f"{seed}/{split}/{kind}"), random.Random(f"{seed}/{split}/{kind}/drawing")
    missing = number
    while missing:
        depiction = world.imagine(rng, split)
        asked = world.ask(depiction, rng, split, MOST_TURNS if world.in_turn else 1, kinds=(kind,))
        wanted = [place for place, question in enumerate(asked, 1) if question.kind == kind][:missing]
        if wanted:
            missing -= len(wanted)
            pictures = tuple(_drawn(drawn, shown, pen, renderer) for drawn, shown in world.pictures(depiction))
            yield Dialogue(pictures, tuple(asked[: wanted[-1]]), world.system_prompt(depiction))


def _drawn(world: DrawnWorld[Any], depiction: Any, rng: random.Random, renderer: Renderer) -> Image:
    """The picture; a browser draws what it can, and leaves textures and photographs as they are."""
    if not isinstance(renderer, Browser):
        return world.draw(depiction, rng, renderer)
    return renderer.draw(depiction, rng) if isinstance(depiction, Drawable) else world.draw(depiction, rng)


def ask_in_the_words_of(file: Path) -> tuple[str, ...]:
    """Replaces the held-out phrasings by the file's until the process ends; returns the kinds to ask.

    Leaves out phrasings that training has for any kind, and kinds of which none are left. The file is JSON: phrasings
    by kind and form, for questions about scenes and charts. Raises ValueError for an unknown kind or form, and for
    phrasings without the slots of their form.
    """
    told, asked = json.loads(file.read_text(encoding="utf-8")), []
    by_form = [*phrasings.TRAINED.values(), more_questions.TRAINED, chart_questions.TRAINED]
    trained = {words_of(text) for forms in by_form for texts in forms.values() for text in texts}
    for kind, forms in told.items():
        of_one_form = next((sets for sets in (FURTHER, CHARTS) if kind in sets), None)
        known = SCENES.get(kind, {}) if of_one_form is None else {"one": of_one_form[kind]}
        if not known or set(forms) != set(known):
            raise ValueError(f"{file} has {sorted(forms)} for {kind}; expected {sorted(known) or 'no such kind'}")
        new = {}
        for form, texts in forms.items():
            slots = {slots_of(text) for text in known[form]}
            if wrong := [text for text in texts if slots_of(text) not in slots]:
                raise ValueError(f"{file} has {wrong[0]!r} for {kind}; expected the slots of {known[form][0]!r}")
            new[form] = tuple(text for text in texts if words_of(text) not in trained)
        if not all(new.values()):
            continue
        asked.append(kind)
        if of_one_form is None:
            SCENES[kind] = new
        else:
            of_one_form[kind] = new["one"]
    return tuple(asked)


def _world_of(kind: str) -> World[Any]:
    for world in WORLDS.values():
        if kind in world.kinds:
            return world
    raise ValueError(f"kind is {kind!r}; no world has it")


def evaluate(
    examinee: Examinee,
    per_kind: int,
    split: str = "heldout",
    seed: int = SEED,
    renderer: Renderer = None,
    kinds: tuple[str, ...] = ALL_KINDS,
) -> list[Trial]:
    """Asks `per_kind` questions of each kind; of worlds that are read in crops, each with pan & scan and without."""
    trials = []
    for kind in kinds:
        dialogues = list(dialogues_of_kind(kind, per_kind, split, seed, renderer))
        settings = (True, False) if isinstance(_world_of(kind), ReadInCrops) else (None,)
        for setting, start in product(settings, range(0, len(dialogues), BATCH)):
            told = held(examinee, dialogues[start : start + BATCH], pan_and_scan=bool(setting))
            trials += [Trial(question, answer, setting) for question, answer in told if question.kind == kind]
    return trials


def held(examinee: Examinee, dialogues: list[Dialogue], pan_and_scan: bool = False) -> list[tuple[Question, str]]:
    """All questions of the dialogues with the answers, each given with the earlier ones before it."""
    chats = [[_says("system", dialogue.system)] if dialogue.system else [] for dialogue in dialogues]
    told: list[tuple[Question, str]] = []
    for turn in range(max(len(dialogue.questions) for dialogue in dialogues)):
        going = [pair for pair in zip(dialogues, chats, strict=True) if len(pair[0].questions) > turn]
        for dialogue, chat in going:
            chat.append(_asks(dialogue.questions[turn].question, () if turn else dialogue.pictures))
        answers = examinee.reply([chat for _, chat in going], pan_and_scan)
        for (dialogue, chat), answer in zip(going, answers, strict=True):
            chat.append(_says("assistant", answer))
            told.append((dialogue.questions[turn], answer))
    return told


def accuracies(trials: list[Trial]) -> dict[str, float]:
    """Share of right answers of each row of the table, 0 to 1, and of prices told where none can be read."""
    by_row: dict[str, list[bool]] = {}
    for trial in trials:
        by_row.setdefault(trial.row, []).append(trial.right)
        if trial.pan_and_scan is False and trial.question.kind == "board_price":
            by_row.setdefault(GUESSED_PRICES, []).append(trial.true)
    return {row: sum(right) / len(right) for row, right in by_row.items()}


def table(shares: dict[str, dict[str, float]], per_kind: int) -> str:
    """A Markdown table of accuracies in percent, a column for each kind of weights."""
    lines = [f"| kind of question ({per_kind} each) | {' | '.join(shares)} |", "|---" * (1 + len(shares)) + "|"]
    for kind in next(iter(shares.values())):
        right = " | ".join(f"{of_weights[kind]:.1%}" for of_weights in shares.values())
        lines.append(f"| {kind.replace('_', ' ')} | {right} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=DEMO_MODEL)
    parser.add_argument("--per-kind", type=int, default=300)
    parser.add_argument("--split", choices=("train", "heldout"), default="heldout")
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument("--kinds", help="of question, with commas between; by default all")
    asked.add_argument("--phrasings", type=Path, help="ask in the words of this file, of its kinds")
    parser.add_argument(
        "--renderer", choices=(*RENDERERS, BROWSER), help="draw with this one only; by default each but the browser"
    )
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--int4", action="store_true", help="with int4 weights too, in a second column")
    parser.add_argument("--wrong", type=int, default=0, help="show this many wrong answers of each kind")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    kinds = ALL_KINDS
    if arguments.kinds:
        try:
            kinds = kinds_named(arguments.kinds)
        except ValueError as error:
            parser.error(str(error))
    if arguments.phrasings:
        if arguments.split != "heldout":
            parser.error("--phrasings stand in place of the held-out ones; leave --split as it is")
        try:
            kinds = ask_in_the_words_of(arguments.phrasings)
        except (OSError, ValueError) as error:
            parser.error(str(error))
    with ExitStack() as stack:
        renderer = stack.enter_context(Browser()) if arguments.renderer == BROWSER else arguments.renderer
        _ask_all(arguments, kinds, renderer)


def _ask_all(arguments: argparse.Namespace, kinds: tuple[str, ...], renderer: Renderer) -> None:
    """Asks, and prints and writes what came of it."""
    split, seed = arguments.split, arguments.seed
    shares = {}
    for int4 in (False, True)[: 1 + arguments.int4]:
        examinee = Examinee(arguments.model, arguments.device, arguments.dtype, int4)
        with torch.inference_mode():
            trials = evaluate(examinee, arguments.per_kind, split, seed, renderer, kinds)
        weights = "int4" if int4 else arguments.dtype
        shares[weights] = accuracies(trials)
        for kind in kinds:
            for trial in [t for t in trials if t.question.kind == kind and not t.right][: arguments.wrong]:
                question, wanted = trial.question.question, trial.wanted
                print(f"{weights}, {trial.row}: {question!r} expected {wanted!r}, got {trial.answer!r}")
    print(table(shares, arguments.per_kind))
    if arguments.json:
        figures = {"per_kind": arguments.per_kind, "split": split, "seed": seed, "right": shares}
        figures |= {"renderer": arguments.renderer} if arguments.renderer else {}
        figures |= {"phrasings": arguments.phrasings.name} if arguments.phrasings else {}
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
