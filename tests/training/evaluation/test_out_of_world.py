"""The held-out questions beyond the model's world: asked about every sort of picture, judged by one sentence."""

from collections import Counter

import pytest
import torch
from places import REPOSITORY

from training.evaluation import out_of_world
from training.evaluation.out_of_world import FILE, IN_WORLD, SHOWN, ask, conversations, shares, sorts
from training.evaluation.trials import CUT_OFF, Examinee, Trial
from training.language.asking import Question
from training.learning.model import DEMO_MODEL
from training.worlds.elsewhere import NOT_ASKED_FOR
from training.worlds.registry import WORLDS

ASKED = sum(turn != IN_WORLD for entries in sorts().values() for turns in entries for turn in turns)


def test_two_hundred_questions_of_many_sorts_each_once() -> None:
    entries = [tuple(turns) for told in sorts().values() for turns in told]
    assert len(set(entries)) == len(entries) >= 200
    assert len(sorts()) >= 8
    assert all(len(told) >= 20 for told in sorts().values())
    assert all(turns[-1] != IN_WORLD for turns in entries)
    assert sum(turns[0] == IN_WORLD for turns in entries) >= 40


def test_only_the_evaluation_reads_them() -> None:
    training = REPOSITORY / "training"
    reading = {
        path.relative_to(training).as_posix() for path in training.rglob("*.py") if "out_of_world" in path.read_text()
    }
    assert reading == {"evaluate.py", "evaluation/out_of_world.py", "language/something_else.py"}
    assert FILE.name not in (training / "language" / "something_else.py").read_text().split('"""', 2)[2]


def test_each_is_asked_about_a_picture_of_the_models_own_worlds() -> None:
    told = conversations(seed=5, renderer="pillow")
    dialogues = [dialogue for of_sort in told.values() for dialogue in of_sort]
    assert sum(question.kind != "" for dialogue, _ in dialogues for question in dialogue.questions) == ASKED
    assert all(question.question for dialogue, _ in dialogues for question in dialogue.questions)
    assert Counter(len(dialogue.pictures) for dialogue, _ in dialogues)[2] == len(dialogues) // len(SHOWN)
    with_crops = [dialogue for dialogue, crops in dialogues if crops]
    assert len(dialogues) // len(SHOWN) // 2 <= len(with_crops) <= len(dialogues) // len(SHOWN) // 2 + 1
    assert set(SHOWN) <= set(WORLDS)
    again = conversations(seed=5, renderer="pillow")
    assert [d.questions for d, _ in again["follow-ups"]] == [d.questions for d, _ in told["follow-ups"]]


class Honest(Examinee):
    """Answers anything honestly, but what asks for kittens with too many words."""

    def __init__(self) -> None:
        self.chats: list[list] = []

    def reply(self, chats: list, pan_and_scan: bool = False) -> list[str]:  # noqa: ARG002
        self.chats += chats
        texts = [chat[-1]["content"][-1]["text"] for chat in chats]
        return [f"{NOT_ASKED_FOR} And{CUT_OFF}" if "kittens" in text else NOT_ASKED_FOR for text in texts]


def test_only_the_honest_sentence_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"things": [["How many kittens?"], [IN_WORLD, "And its owls?"]], "talk": [["Hm, hello"]]}
    monkeypatch.setattr(out_of_world, "sorts", lambda: told)
    trials = ask(examinee := Honest(), renderer="pillow")
    assert len(trials) == 3
    assert len(examinee.chats) == 4  # the question about the picture was asked, and is not judged
    assert shares(trials) == {"out_of_world: things": 0.5, "out_of_world: talk": 1.0, "out_of_world: all 3": 2 / 3}
    assert [trial.question.question for trial in trials if trial.cut_off] == ["How many kittens?"]
    assert shares([]) == {}


def test_an_answer_that_does_not_end_is_told_from_one_that_does(monkeypatch: pytest.MonkeyPatch) -> None:
    examinee = Examinee(DEMO_MODEL, device="cpu")
    chat = [{"role": "user", "content": [{"type": "text", "text": "What do you see?"}]}]
    with torch.inference_mode():
        (whole,) = examinee.reply([chat])
        monkeypatch.setattr("training.evaluation.trials.NEW_TOKENS", 3)
        (part,) = examinee.reply([chat])
    assert not whole.endswith(CUT_OFF)
    assert part.endswith(CUT_OFF)
    assert whole.startswith(part.removesuffix(CUT_OFF))
    assert Trial(Question("strange_question", "Hi", "", NOT_ASKED_FOR), part).cut_off
