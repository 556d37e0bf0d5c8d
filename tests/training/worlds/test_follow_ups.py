"""Follow-ups: each is decided by the turns before it, trained as one conversation and evaluated turn by turn."""

import random
import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from PIL import Image
from places import DEMO_MODEL

from gemma3_core.processor import Gemma3Processor
from training.drawing.colors import COLORS
from training.drawing.geometry import SHAPES
from training.evaluation import trials
from training.evaluation.dialogues import Dialogue, dialogues_of_kind
from training.evaluation.trials import Examinee, held
from training.language.asking import Question
from training.learning.batches import ConversationWriter, Mix, Share
from training.train import mix_of, parse
from training.worlds.pairs.follow_ups import HELDOUT_PHRASINGS, KINDS, MOST_TURNS, ONLY_ONE, PHRASINGS, QUESTIONS
from training.worlds.pairs.pairs import Pair
from training.worlds.registry import WORLDS
from training.worlds.registry import is_right as right_in_any_world
from training.worlds.scenes.questions import NUMBERS, PLACES
from training.worlds.scenes.scenes import HELDOUT_PAIRS, Scene

ask, is_right = QUESTIONS.ask, QUESTIONS.is_right

WORLD = WORLDS["follow_ups"]
ONLY_FOLLOW_UPS = Mix((Share("follow_ups", 1.0),), pan_and_scan=0.0, no_picture=0.0, question_first=0.0, true_size=0.0)


def conversations(split: str, count: int = 150) -> list[tuple[Scene | Pair, list[Question]]]:
    rng = random.Random(split)
    found = []
    while len(found) < count:
        depiction = WORLD.imagine(rng, split)
        if asked := WORLD.ask(depiction, rng, split, MOST_TURNS):
            found.append((depiction, asked))
    return found


def said_of(answer: str, scene: Scene) -> bool:
    """Whether an answer is true of a scene, worked out from its words alone."""
    words = re.findall(r"[a-z]+", answer.lower())
    shape = next((s for s in SHAPES if s in words or f"{s}s" in words), "")
    color = next((c for c in COLORS if c in words), "")
    items = [o for o in scene.objects if shape in ("", o.shape) and color in ("", o.color)]
    if words[0] in ("yes", "no"):
        return bool(items) == (words[0] == "yes")
    if words[0] == "there":
        return NUMBERS[len(items)] == words[2]
    if "in" in words:
        place = next(place for place in sorted(PLACES, key=len, reverse=True) if answer.endswith(f" {place}."))
        (item,) = items
        across, down = int(3 * item.x / scene.width), int(3 * item.y / scene.height)
        return PLACES[3 * down + across] == place
    return len(items) == 1  # the only one has this shape and this color


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_every_answer_is_true_of_the_picture_that_is_spoken_of(split: str) -> None:
    for depiction, asked in conversations(split):
        scenes = depiction.scenes if isinstance(depiction, Pair) else (depiction,)
        if asked[-1].kind == "no_other_picture":
            assert isinstance(depiction, Scene)
            assert asked.pop().answer == ONLY_ONE
        assert len(asked) <= MOST_TURNS
        assert not asked or asked[0].kind not in KINDS
        assert {question.kind for question in asked[1:]} <= set(KINDS)
        number = 1 if asked and "second" in asked[0].question else 0
        for question in asked:
            assert "{" not in question.question
            assert right_in_any_world(question.kind, question.key, question.answer), question
            if question.kind == "other_picture":
                number = 1 - number
                assert "other" in question.question or ("first", "second")[number] in question.question.lower()
            assert said_of(question.answer, scenes[number]), (question, scenes[number])


def test_each_turn_changes_one_thing() -> None:
    moves: Counter = Counter()
    for _, asked in conversations("train"):
        for before, after in pairwise(asked):
            text = after.question.lower()
            if after.kind == "other_picture":
                moves["picture"] += 1
                assert subject(before.answer, before) == subject(after.answer, after)
            elif re.search(r"\b(it|its)\b", text):
                moves["it"] += 1
                assert subject(before.answer, before) == subject(after.answer, after)
                assert topic(before) != topic(after)
            elif after.kind == "follow_up":
                moves["other"] += 1
    assert min(moves.values()) > 0.1 * moves.total()


def topic(question: Question) -> str:
    return question.key.split(" ")[0] if question.kind in (*KINDS, "in_one") else question.kind


def subject(answer: str, question: Question) -> str:
    """What an answer is about: the shape or the color that is not what it tells."""
    words = answer.lower().rstrip(".").split()
    told = question.key.split(" ")[-1]
    named = [word.removesuffix("s") for word in words if word.removesuffix("s") in (*SHAPES, *COLORS) and word != told]
    return named[0] if named else "all"


def test_they_come_in_every_length_and_about_one_picture_and_two() -> None:
    found = conversations("train")
    assert set(Counter(len(asked) for _, asked in found)) == set(range(1, MOST_TURNS + 1))
    assert all(asked[0].kind == "no_other_picture" for _, asked in found if len(asked) == 1)
    assert 0.25 < sum(isinstance(depiction, Pair) for depiction, _ in found) / len(found) < 0.65
    further = [question for _, asked in found for question in asked[1:]]
    kinds = Counter(question.kind for question in further)
    assert kinds["other_picture"] > 0.1 * kinds.total()
    assert 0.01 < kinds["no_other_picture"] / kinds.total() < 0.1
    topics = Counter(question.key.split(" ")[0] for question in further if question.kind != "no_other_picture")
    assert set(topics) == {"count_shape", "count_color", "count_all", "color", "shape", "where", "is_there"}
    assert max(topics.values()) < 0.5 * topics.total()


def test_only_conversations_with_a_wanted_kind_are_given() -> None:
    rng = random.Random(4)
    for _ in range(40):
        depiction = WORLD.imagine(rng, "train")
        asked = WORLD.ask(depiction, rng, "train", MOST_TURNS, ("other_picture",))
        assert asked == [] or any(question.kind == "other_picture" for question in asked)
        assert len(WORLD.ask(depiction, rng, "train", 1)) <= 1
    with pytest.raises(ValueError, match="apart"):
        ask(depiction, rng, "train", 4, apart=True)
    with pytest.raises(ValueError, match="split"):
        ask(depiction, rng, "test", 4)
    with pytest.raises(ValueError, match="color"):
        is_right("color", "red", "red")
    assert WORLD.kinds == KINDS


def test_phrasings_are_many_and_split() -> None:
    assert set(PHRASINGS) == set(HELDOUT_PHRASINGS)
    for words in PHRASINGS:
        assert len(PHRASINGS[words]) >= 8
        assert len(HELDOUT_PHRASINGS[words]) >= 2
        assert not set(PHRASINGS[words]) & set(HELDOUT_PHRASINGS[words])


@pytest.mark.parametrize(
    ("kind", "key", "answer", "right"),
    [
        ("follow_up", "count_color two", "There are two blue shapes.", True),
        ("follow_up", "count_color two", "There are three blue shapes.", False),
        ("follow_up", "where top left", "The star is in the top left.", True),
        ("follow_up", "color red", "The star is in the top left.", False),
        ("other_picture", "is_there no", "No, there is no star.", True),
        ("no_other_picture", ONLY_ONE, "There is only one picture.", True),
        ("no_other_picture", ONLY_ONE, "The second picture shows a red star.", False),
    ],
)
def test_right_and_wrong(kind: str, key: str, answer: str, right: bool) -> None:
    assert is_right(kind, key, answer) is right


@pytest.fixture(scope="module")
def processor() -> Gemma3Processor:
    return Gemma3Processor.from_pretrained(DEMO_MODEL)


def test_training_sends_one_conversation_as_the_app_does(processor: Gemma3Processor) -> None:
    writer, pictures = ConversationWriter(processor.tokenizer), set()
    for number in range(6):
        conversation = writer.write(random.Random(number), replace(ONLY_FOLLOW_UPS, apart=1.0, second_picture=1.0))
        assert set(conversation.segments) == {0}
        text = processor.decode(conversation.ids)
        turns = [part.partition("\n")[2].removesuffix("<end_of_turn>\n") for part in text.split("<start_of_turn>")[1:]]
        shown = len(conversation.squares)
        pictures.add(shown)
        question = turns[0].removeprefix(shown * processor.full_image_sequence)
        assert processor.full_image_sequence not in question
        messages = [{"role": "user", "content": [*[{"type": "image"}] * shown, {"type": "text", "text": question}]}]
        for place, turn in enumerate(turns[1:], 1):
            role = "assistant" if place % 2 else "user"
            messages.append({"role": role, "content": [{"type": "text", "text": turn}]})
        rendered = processor.apply_chat_template(messages)
        assert processor.expand_images([rendered], [0] * shown)[0] == text
        assert processor.tokenizer.encode(text, add_special_tokens=False) == conversation.ids
        assert conversation.positions == list(range(len(conversation.ids)))
        assert 1 <= len(turns) // 2 <= MOST_TURNS
        lowered = text.lower().replace("grey", "gray")
        assert not any(f"{color} {shape}" in lowered for shape, color in HELDOUT_PAIRS)
    assert pictures == {1, 2}


class Forgetful(Examinee):
    """Says of every question how many messages it saw."""

    def __init__(self) -> None:
        self.seen: list[list[dict]] = []

    def reply(self, chats: list[list[dict]], pan_and_scan: bool = False) -> list[str]:
        assert not pan_and_scan
        self.seen += [list(chat) for chat in chats]
        return [f"answer {len(chat)}" for chat in chats]


def test_the_evaluation_asks_turn_by_turn_with_the_models_own_answers_before() -> None:
    blank = Image.new("RGB", (20, 20))
    questions = [Question("follow_up", f"question {n}", "", "count_all two") for n in range(3)]
    dialogues = [Dialogue((blank,), tuple(questions)), Dialogue((blank, blank), tuple(questions[:1]), "Be kind.")]
    examinee = Forgetful()
    told = held(examinee, dialogues)
    assert sorted(answer for _, answer in told) == ["answer 1", "answer 2", "answer 3", "answer 5"]
    last = examinee.seen[-1]
    assert [message["role"] for message in last] == ["user", "assistant", "user", "assistant", "user"]
    texts = [message["content"][-1]["text"] for message in last]
    assert texts == ["question 0", "answer 1", "question 1", "answer 3", "question 2"]
    assert [len(message["content"]) for message in last] == [2, 1, 1, 1, 1]
    prompted = examinee.seen[1]
    assert prompted[0] == {"role": "system", "content": [{"type": "text", "text": "Be kind."}]}
    assert len(prompted[1]["content"]) == 3


def test_as_many_follow_ups_are_judged_as_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    dialogues = list(dialogues_of_kind("other_picture", 4, "heldout", 1, "pillow"))
    assert sum(q.kind == "other_picture" for one in dialogues for q in one.questions) == 4
    assert all(one.questions[-1].kind == "other_picture" and len(one.pictures) == 2 for one in dialogues)
    monkeypatch.setattr(trials, "dialogues_of_kind", lambda *_: dialogues)
    told = trials.evaluate(Forgetful(), 4, kinds=("other_picture",))
    assert [trial.question.kind for trial in told] == ["other_picture"] * 4
    assert not any(trial.right for trial in told)


def test_the_arguments_ask_for_follow_ups() -> None:
    mix = mix_of(parse(["--out", "x", "--follow-ups", "0.25"]))
    assert mix.worlds == (Share("scenes", 0.75), Share("follow_ups", 0.25))
    with pytest.raises(SystemExit):
        parse(["--out", "x", "--follow-ups", "-0.1"])
