"""System prompts: answers have the form that was asked for, and prompts stand where the chat template puts them."""

import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from places import DEMO_MODEL

from gemma3_core.processor import Gemma3Processor
from gemma3_core.tokenizer.tokenizer import Gemma3Tokenizer
from training.drawing.colors import COLORS
from training.evaluation.dialogues import dialogues_of_kind
from training.language.asking import Question
from training.language.system_prompts import (
    HELDOUT_OPENINGS,
    HELDOUT_PROMPTS,
    KINDS,
    OPENINGS,
    PROMPTS,
    SHORT_KINDS,
    has_form,
    in_form,
    random_prompt,
)
from training.learning.batches import NO_PICTURE, ConversationWriter, Mix, Share
from training.learning.dense_heads import IGNORED
from training.tokenizer import build, save
from training.train import mix_of, parse
from training.worlds.registry import WORLDS, Prompted, is_right
from training.worlds.scenes.scenes import HELDOUT_PAIRS
from training.worlds.signs.signs import Sign, is_heldout_text

WORLD = WORLDS["system_prompts"]
ONLY_PROMPTED = Mix((Share("system_prompts", 1.0),), 4, no_picture=0.0, question_first=0.0, pan_and_scan=0.0)


def asked(split: str, count: int = 80) -> list[tuple[Prompted, Question]]:
    rng = random.Random(split)
    found: list = []
    while len(found) < count:
        depiction = WORLD.imagine(rng, split)
        found += [(depiction, question) for question in WORLD.ask(depiction, rng, split, 2)]
    return found


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_answers_have_the_form_and_are_right_only_in_it(split: str) -> None:
    forms, kinds = Counter(), set()
    for depiction, question in asked(split):
        assert question.kind == depiction.form
        assert is_right(question.kind, question.key, question.answer), question
        other = next(kind for kind in KINDS if kind != question.kind)
        assert not is_right(other, question.key, question.answer), question
        kinds.add((question.kind, question.key.split(" ")[0]))
        forms[question.kind] += 1
        assert (split == "heldout") == any(_asks(text, depiction.prompt) for text in _cores(HELDOUT_PROMPTS))
    assert min(forms.values()) > 0.3 * forms.total()
    assert {kind for form, kind in kinds if form == "one_word"} <= set(SHORT_KINDS)
    assert len(kinds) > 15


def _asks(core: str, prompt: str) -> bool:
    """Whether a sentence of the prompt begins so; "Never answer with a single word" does not ask for one."""
    return re.search(rf"(?<!\w )\w{re.escape(core)}", prompt) is not None


def _cores(prompts: dict[str, tuple[str, ...]]) -> list[str]:
    """What no capital or stop at the end changes."""
    return [text[1:].removesuffix(".") for texts in prompts.values() for text in texts]


def test_prompts_are_many_and_split() -> None:
    for form in KINDS:
        assert len(PROMPTS[form]) >= 20
        assert len(HELDOUT_PROMPTS[form]) >= 4
    train, heldout = ({core.lower() for core in _cores(prompts)} for prompts in (PROMPTS, HELDOUT_PROMPTS))
    assert not train & heldout
    assert not set(OPENINGS) & set(HELDOUT_OPENINGS)
    rng = random.Random(2)
    drawn = [random_prompt("full_sentence", rng) for _ in range(400)]
    assert 0.05 < sum(text in OPENINGS for text in drawn) / len(drawn) < 0.3
    assert not any(random_prompt("full_sentence", rng, "heldout") in HELDOUT_OPENINGS for _ in range(100))
    assert all("word" in random_prompt("one_word", rng).lower() for _ in range(100))
    for wrong in (("short", "train"), ("one_word", "test")):
        with pytest.raises(ValueError, match=wrong[0] if wrong[0] == "short" else "test"):
            random_prompt(wrong[0], rng, wrong[1])


def test_short_answers_are_the_word_alone() -> None:
    def short(kind: str, answer: str, key: str) -> str:
        return in_form(Question(kind, "?", answer, key), "one_word").answer

    assert short("color", "The star is red.", "red") == "Red."
    assert short("count_shape", "There are three stars.", "three") == "Three."
    assert short("count_color", "There are no red shapes.", "no") == "None."
    assert short("is_there", "No, there is no star.", "no") == "No."
    assert short("where", "The star is in the top left.", "top left") == "Top left."
    assert short("read", 'The sign says "Stop".', "Stop") == '"Stop".'
    with pytest.raises(ValueError, match="describe"):
        short("describe", "The picture shows a red star.", "red star")


@pytest.mark.parametrize(
    ("kind", "key", "answer", "right"),
    [
        ("one_word", "color red", "Red.", True),
        ("one_word", "color red", "red", True),
        ("one_word", "color red", "Blue.", False),
        ("one_word", "color red", "The star is red.", False),
        ("one_word", "color red", "", False),
        ("one_word", "count_shape three", "3.", True),
        ("one_word", "count_shape no", "None.", True),
        ("one_word", "where top left", "Top left.", True),
        ("one_word", "where top left", "In the top left.", False),
        ("one_word", "where center", "Center.", True),
        ("one_word", "read STOP", '"STOP".', True),
        ("one_word", "read STOP", "Stop.", True),
        ("one_word", "read STOP", 'The sign says "STOP".', False),
        ("one_word", "letters_count five", "Five.", True),
        ("full_sentence", "color red", "The star is red.", True),
        ("full_sentence", "color red", "The star is blue.", False),
        ("full_sentence", "color red", "Red.", False),
        ("full_sentence", "color red", "the star is red", False),
        ("full_sentence", "read STOP", 'The sign says "STOP".', True),
    ],
)
def test_right_and_wrong(kind: str, key: str, answer: str, right: bool) -> None:
    assert is_right(kind, key, answer) is right


def test_the_form_alone_is_judged_by_itself() -> None:
    assert has_form("one_word", "color red", "Blue.")
    assert not has_form("full_sentence", "color red", "Blue.")
    assert WORLD.kinds == KINDS
    with pytest.raises(ValueError, match="read"):
        WORLD.is_right("read", "STOP", "STOP")


@pytest.fixture(scope="module")
def processor() -> Gemma3Processor:
    return Gemma3Processor.from_pretrained(DEMO_MODEL)


@pytest.mark.parametrize("apart", [0.0, 1.0])
def test_training_puts_the_prompt_where_the_chat_template_does(processor: Gemma3Processor, apart: float) -> None:
    writer = ConversationWriter(processor.tokenizer)
    for number in range(6):
        conversation = writer.write(random.Random(number), replace(ONLY_PROMPTED, apart=apart, second_picture=1.0))
        assert len(conversation.squares) == 1
        ids = [i for i, s in zip(conversation.ids, conversation.segments, strict=True) if s <= 1]
        text = processor.decode(ids)
        prompt, _, _ = text.partition("<start_of_turn>model\n")
        system, question = (
            prompt.removeprefix("<bos><start_of_turn>user\n")
            .removesuffix("<end_of_turn>\n")
            .split("\n\n" + processor.full_image_sequence)
        )
        messages = [
            {"role": "system", "content": [{"type": "text", "text": system}]},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]},
        ]
        rendered = processor.apply_chat_template(messages, add_generation_prompt=True)
        sent = processor.expand_images([rendered], [0])[0]
        assert sent == f"{prompt}<start_of_turn>model\n"
        expected = processor.tokenizer.encode(sent, add_special_tokens=False)
        assert ids[: len(expected)] == expected
        kept = [label for label in conversation.labels if label != IGNORED]
        answers = processor.decode(kept).split("<end_of_turn>")[:-1]
        short = [len(answer.split()) <= 2 for answer in answers]
        assert all(short) or not any(short)


def test_without_a_picture_the_prompt_stands_before_the_question(processor: Gemma3Processor) -> None:
    writer = ConversationWriter(processor.tokenizer)
    text = processor.decode(writer.write(random.Random(1), replace(ONLY_PROMPTED, no_picture=1.0)).ids)
    system, _, rest = text.removeprefix("<bos><start_of_turn>user\n").partition("\n\n")
    assert len(system) >= 3
    assert NO_PICTURE in rest


@pytest.mark.parametrize("shipped", [False, True])
def test_no_short_answer_tells_what_a_heldout_pair_is_not(shipped: bool, tmp_path: Path) -> None:
    """Whatever the tokens are: the first token in which an unseen answer parts from the right one is spared."""
    save(build(), tmp_path)
    tokenizer = Gemma3Tokenizer.from_pretrained(DEMO_MODEL if shipped else tmp_path)
    writer, spared = ConversationWriter(tokenizer), 0
    for shape, color in sorted(HELDOUT_PAIRS):
        for told in COLORS:
            if (shape, told) in HELDOUT_PAIRS:
                continue
            unseen = tuple(f"{c.capitalize()}." for s, c in sorted(HELDOUT_PAIRS) if s == shape)
            question = Question("one_word", "?", f"{told.capitalize()}.", f"color {told}", unseen)
            answer = tokenizer.encode(f"{question.answer}<end_of_turn>", add_special_tokens=False)
            out = writer.write(random.Random(0), Mix(questions=0))
            writer._exclude(out, question, 0, answer)
            other = tokenizer.encode(f"{color.capitalize()}.<end_of_turn>", add_special_tokens=False)
            places = [
                place for place, token in out.excluded if other[place] == token and answer[:place] == other[:place]
            ]
            assert places
            assert all(answer[place] != other[place] for place in places)
            spared += 1
    assert spared > 60


def test_the_evaluation_asks_under_held_out_prompts() -> None:
    dialogues = list(dialogues_of_kind("one_word", 6, "heldout", 1, "pillow"))
    assert len(dialogues) == 6
    for one in dialogues:
        assert any(core in one.system for core in _cores({"one_word": HELDOUT_PROMPTS["one_word"]}))
        assert len(one.pictures) == len(one.questions) == 1
        kind, key = one.questions[0].key.split(" ", 1)
        assert kind != "read" or is_heldout_text(key)
    rng = random.Random(1)
    assert any(isinstance(WORLDS["system_prompts"].imagine(rng, "heldout").depiction, Sign) for _ in range(20))


def test_the_arguments_ask_for_system_prompts() -> None:
    arguments = parse(["--out", "x", "--system-prompts", "0.25"])
    assert mix_of(arguments).worlds == (Share("scenes", 0.75), Share("system_prompts", 0.25))
    with pytest.raises(SystemExit):
        parse(["--out", "x", "--system-prompts", "1.1"])
