"""Conversations of training in which some questions are about something else."""

import random
import re
from dataclasses import replace

import pytest

from gemma3_core.tokenizer.tokenizer import Gemma3Tokenizer
from training.language.asking import Question
from training.learning.batches import ConversationWriter, Mix, Share, with_asides
from training.learning.model import DEMO_MODEL
from training.train import dense_mix_of, mix_of, parse
from training.worlds.boards.questions import TOO_SMALL
from training.worlds.elsewhere import NOT_ASKED_FOR

ASKED = [Question("color", f"Question {number}?", f"Answer {number}.", "red") for number in range(4)]
PLAIN = Mix(questions=4, asides=1.0, second_picture=0.0, pan_and_scan=0.0, no_picture=0.0, question_first=0.0)


@pytest.fixture(scope="module")
def writer() -> ConversationWriter:
    return ConversationWriter(Gemma3Tokenizer.from_pretrained(DEMO_MODEL))


def answers(writer: ConversationWriter, mix: Mix, seed: int) -> list[str]:
    """The answers of one conversation, in order."""
    text = writer._tokenizer.decode(writer.write(random.Random(seed), mix).ids)
    return re.findall(r"model\n(.*?)<end_of_turn>", text, flags=re.DOTALL)


def test_some_questions_are_replaced_and_the_others_stay_as_they_are() -> None:
    rng, honest, whole = random.Random(1), 0, 0
    for _ in range(200):
        told = with_asides(ASKED, rng, in_turn=False, apart=True)
        assert len(told) == len(ASKED)
        assert all(new is old or new.answer == NOT_ASKED_FOR for new, old in zip(told, ASKED, strict=True))
        replaced = sum(new.answer == NOT_ASKED_FOR for new in told)
        assert replaced >= 1
        honest, whole = honest + replaced, whole + len(told)
    assert 0.4 < honest / whole < 0.7
    assert with_asides(ASKED[:1], rng, in_turn=False, apart=False)[0].answer == NOT_ASKED_FOR


def test_follow_ups_keep_the_turn_that_they_lean_on() -> None:
    rng, lengths = random.Random(2), set()
    for _ in range(100):
        told = with_asides(ASKED, rng, in_turn=True, apart=False)
        kept = [question for question in told if question.answer != NOT_ASKED_FOR]
        assert kept == ASKED[: len(kept)] == told[: len(kept)]
        assert 1 <= len(told) - len(kept) <= 2
        lengths.add(len(kept))
    assert lengths == {1, 2, 3, 4}


@pytest.mark.parametrize("world", ["scenes", "signs", "two_lines", "charts", "pairs", "follow_ups", "system_prompts"])
def test_they_come_in_conversations_about_all_sorts_of_pictures(writer: ConversationWriter, world: str) -> None:
    mix = replace(PLAIN, worlds=(Share(world, 1.0),), apart=0.5)
    told = [answers(writer, mix, seed) for seed in range(12)]
    assert all(NOT_ASKED_FOR in one for one in told)
    assert any(set(one) - {NOT_ASKED_FOR} for one in told)
    plain = [answers(writer, replace(mix, asides=0.0), seed) for seed in range(12)]
    assert not any(NOT_ASKED_FOR in one for one in plain)


def test_a_board_that_cannot_be_read_is_no_excuse(writer: ConversationWriter) -> None:
    mix = replace(PLAIN, worlds=(Share("boards", 1.0),))
    told = {answer for seed in range(20) for answer in answers(writer, mix, seed)}
    assert told == {NOT_ASKED_FOR, TOO_SMALL}


def test_the_arguments_ask_for_them() -> None:
    arguments = parse(["--out", "x", "--asides", "0.3", "--signs", "0.25"])
    assert mix_of(arguments).asides == 0.3
    assert mix_of(arguments).worlds == (Share("scenes", 0.75), Share("signs", 0.25))
    assert mix_of(parse(["--out", "x"])).asides == 0.0
    assert dense_mix_of(arguments).questions == 0
    with pytest.raises(SystemExit):
        parse(["--out", "x", "--asides", "1.5"])
