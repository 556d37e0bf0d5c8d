"""Two pictures at once: pairs keep their promises, answers are true of both, and training sends what the app sends."""

import random
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
from training.evaluation.dialogues import Dialogue, dialogues_of_kind, questions_of_kind
from training.learning.batches import ConversationWriter, Mix, Share, collate
from training.learning.dense_heads import IGNORED
from training.train import mix_of, parse
from training.worlds.pairs.pairs import Pair, names, random_pair
from training.worlds.pairs.questions import (
    HELDOUT_PHRASINGS,
    IN_ONE,
    IN_ONE_HELDOUT,
    KINDS,
    NOTHING,
    PHRASINGS,
    QUESTIONS,
)
from training.worlds.registry import WORLDS
from training.worlds.registry import is_right as right_in_any_world
from training.worlds.scenes.questions import NUMBERS
from training.worlds.scenes.scenes import HELDOUT_PAIRS, SMALLEST
from training.worlds.scenes.topics import TOPICS, Subject, subjects, target

ask, is_right = QUESTIONS.ask, QUESTIONS.is_right

ONLY_PAIRS = Mix(worlds=(Share("pairs", 1.0),), questions=4, no_picture=0.0, question_first=0.0, true_size=0.0)


@pytest.fixture(scope="module")
def processor() -> Gemma3Processor:
    return Gemma3Processor.from_pretrained(DEMO_MODEL)


@pytest.fixture(scope="module")
def writer(processor: Gemma3Processor) -> ConversationWriter:
    return ConversationWriter(processor.tokenizer)


def some_pairs(split: str, count: int = 120) -> list[Pair]:
    rng = random.Random(split)
    return [random_pair(rng, split) for _ in range(count)]


def asked(split: str, kind: str, count: int = 60) -> list:
    rng = random.Random(f"{split} {kind}")
    found: list = []
    while len(found) < count:
        pair = random_pair(rng, split)
        found += [(pair, question) for question in ask(pair, rng, split, 1, (kind,))]
    return found


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_pairs_are_alike_nearly_alike_or_have_nothing_to_do_with_each_other(split: str) -> None:
    found = some_pairs(split)
    differing = [sum((Counter(names(p.first)) - Counter(names(p.second))).values()) for p in found]
    alike = [p for p in found if names(p.first) == names(p.second)]
    assert 0.2 < len(alike) / len(found) < 0.4
    assert any(p.first.background != p.second.background for p in alike)
    assert any([(o.x, o.y) for o in p.first.objects] != [(o.x, o.y) for o in p.second.objects] for p in alike)
    assert 0.15 < sum(0 < number <= 1 for number in differing) / len(found) < 0.6
    for pair in found:
        pairs = set(names(pair.first)) | set(names(pair.second))
        assert bool(pairs & HELDOUT_PAIRS) == (split == "heldout")
        for scene in pair.scenes:
            assert 1 <= len(scene.objects) <= 6
            assert all(o.size > 0.99 * SMALLEST * min(scene.width, scene.height) for o in scene.objects)


@pytest.mark.parametrize("split", ["train", "heldout"])
@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_right_and_another_pairs_answer_hardly_ever(kind: str, split: str) -> None:
    questions = [question for _, question in asked(split, kind)]
    assert all(is_right(kind, q.key, q.answer) and "{" not in q.question for q in questions)
    assert all(right_in_any_world(kind, q.key, q.answer) for q in questions)
    others = [is_right(kind, q.key, other.answer) for q, other in pairwise(questions)]
    assert sum(others) <= (0.8 if kind in ("same", "which_more") else 0.3) * len(others)


def test_which_has_more_is_counted_and_each_answer_comes_often() -> None:
    keys: Counter = Counter()
    for pair, q in asked("train", "which_more", 150):
        words = q.question.replace("grey", "gray")
        subject = next((Subject(shape=s) for s in SHAPES if f"{s}s" in words), None)
        if subject is None:
            color = next((c for c in COLORS if f" {c} " in words), "")
            subject = Subject(color=color)
        first, second = (len(subject.meant(scene)) for scene in pair.scenes)
        assert q.key == ("both" if first == second else "first" if first > second else "second"), (pair, q)
        assert max(first, second) > 0
        keys[q.key] += 1
    assert min(keys[key] for key in ("first", "second", "both")) > 0.12 * keys.total()


def test_the_same_means_the_same_shapes_in_the_same_colors_wherever_they_lie() -> None:
    keys = Counter()
    for pair, q in asked("heldout", "same", 100):
        assert (q.key == "yes") == (names(pair.first) == names(pair.second))
        keys[q.key] += 1
    assert 0.3 < keys["yes"] / keys.total() < 0.7


def test_what_is_on_a_picture_is_all_that_is_on_it() -> None:
    for number, kind in enumerate(("on_first", "on_second")):
        for pair, q in asked("train", kind, 30):
            items = sorted(f"{o.color} {o.shape}" for o in pair.scenes[number].objects)
            assert sorted(q.key.split(", ")) == items
            assert q.answer.startswith(f"The {kind.removeprefix('on_')} picture shows a")


def test_only_in_one_picture_is_what_the_other_has_not_as_often() -> None:
    nothing, own = 0, 0
    for pair, q in asked("train", "only_in", 150):
        first = "the first" in q.answer.lower()
        here, there = pair.scenes if first else pair.scenes[::-1]
        left = Counter(f"{o.color} {o.shape}" for o in here.objects)
        left -= Counter(f"{o.color} {o.shape}" for o in there.objects)
        if left:
            assert sorted(q.key.split(", ")) == sorted(left.elements())
            own += 1
        else:
            assert q.key == NOTHING
            nothing += 1
    assert 0.1 < nothing / (nothing + own) < 0.5


def test_topics_are_answered_as_the_scenes_own_questions_are() -> None:
    rng = random.Random(3)
    scenes = [random_pair(rng).first for _ in range(150)]
    told: Counter = Counter()
    for scene in scenes:
        for topic in TOPICS:
            for subject in subjects(topic, scene, rng):
                found = target(topic, subject, scene)
                assert found is not None
                told[topic] += 1
                assert right_in_any_world(topic, found.key, found.answer), found
                if topic.startswith("count"):
                    assert NUMBERS.index(found.key) == len(subject.meant(scene))
                elif topic != "is_there":
                    assert len(subject.meant(scene)) == 1
    assert set(told) == set(TOPICS)
    assert target("color", Subject(color="red"), scenes[0]) is None


def test_phrasings_are_many_and_split() -> None:
    for kind in PHRASINGS:
        assert len(PHRASINGS[kind]) >= 15
        assert len(HELDOUT_PHRASINGS[kind]) >= 3
        assert not set(PHRASINGS[kind]) & set(HELDOUT_PHRASINGS[kind])
    assert set(IN_ONE) == set(IN_ONE_HELDOUT) == set(TOPICS)
    for topic in TOPICS:
        assert not set(IN_ONE[topic]) & set(IN_ONE_HELDOUT[topic])
        assert all("{which}" in text for text in (*IN_ONE[topic], *IN_ONE_HELDOUT[topic]))


@pytest.mark.parametrize(
    ("kind", "key", "answer", "right"),
    [
        ("which_more", "first", "The first picture.", True),
        ("which_more", "first", "The second picture.", False),
        ("which_more", "first", "The first or the second picture.", False),
        ("which_more", "both", "Both have as many.", True),
        ("which_more", "both", "The first picture.", False),
        ("same", "yes", "Yes, both show the same shapes.", True),
        ("same", "no", "No, they show different shapes.", True),
        ("same", "no", "Yes, both show the same shapes.", False),
        ("only_in", "red circle", "Only the first picture shows a red circle.", True),
        ("only_in", "red circle", "Only the first picture shows a red circle and a blue star.", False),
        ("only_in", "red circle", "The first picture shows nothing else.", False),
        ("only_in", "nothing", "The first picture shows nothing else.", True),
        ("only_in", "nothing", "Only the first picture shows a red circle.", False),
        ("only_in", "nothing", "Yes.", False),
        ("on_second", "red circle, blue star", "The second picture shows a blue star and a red circle.", True),
        ("on_second", "red circle, blue star", "The second picture shows a red circle.", False),
        ("on_second", "red circle, red circle", "The second picture shows a red circle.", False),
        ("in_one", "count_shape two", "There are 2 circles.", True),
        ("in_one", "count_shape two", "There are three circles.", False),
        ("in_one", "where top left", "The star is in the top left.", True),
    ],
)
def test_right_and_wrong(kind: str, key: str, answer: str, right: bool) -> None:
    assert is_right(kind, key, answer) is right


def test_unknown_splits_and_kinds_are_errors_and_nothing_of_it_is_shipped() -> None:
    pair = some_pairs("train", 1)[0]
    with pytest.raises(ValueError, match="test"):
        ask(pair, random.Random(0), "test")
    with pytest.raises(ValueError, match="read"):
        is_right("read", "a", "a")
    assert WORLDS["pairs"].kinds == KINDS


def test_training_sends_two_pictures_as_the_app_does(writer: ConversationWriter, processor: Gemma3Processor) -> None:
    conversation = writer.write(random.Random(1), replace(ONLY_PAIRS, apart=0.0))
    text = processor.decode(conversation.ids)
    turns = [part.partition("\n")[2].removesuffix("<end_of_turn>\n") for part in text.split("<start_of_turn>")[1:]]
    question = turns[0].replace(processor.full_image_sequence, "")
    assert turns[0] == 2 * processor.full_image_sequence + question
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": question}]}]
    for number, turn in enumerate(turns[1:], 1):
        content = [{"type": "text", "text": turn}]
        messages.append({"role": "assistant" if number % 2 else "user", "content": content})
    rendered = processor.apply_chat_template(messages)
    assert processor.expand_images([rendered], [0, 0])[0] == text
    assert processor.tokenizer.encode(text, add_special_tokens=False) == conversation.ids
    batch = collate([conversation])
    assert batch.pixels.shape == (2, 3, 224, 224)
    assert (batch.input_ids == processor.tokenizer.image_token_id).sum() == 2 * 64
    assert (batch.dense.token_shape != IGNORED).all()


def test_two_pictures_have_crops_each_as_the_processor_makes_them(
    writer: ConversationWriter, processor: Gemma3Processor
) -> None:
    """Each picture has its own crops right behind it, or none where it is nearly square."""
    rng, found = random.Random(6), set()
    while len(found) < 3:  # both, one of them, none
        conversation = writer.write(rng, replace(ONLY_PAIRS, apart=0.0, pan_and_scan=1.0))
        text = processor.decode(conversation.ids)
        layouts = [(first, second) for first in range(5) for second in range(5)]
        first, second = next(crops for crops in reversed(layouts) if f"user\n{_two_images(processor, crops)}" in text)
        assert len(conversation.squares) == 2 + first + second
        found.add((first > 0) + (second > 0))


def _two_images(processor: Gemma3Processor, crops: tuple[int, int]) -> str:
    return processor.expand_images([2 * processor.tokenizer.boi_token], list(crops))[0]


def test_a_fan_has_both_pictures_before_each_question(writer: ConversationWriter, processor: Gemma3Processor) -> None:
    conversation = writer.write(random.Random(2), replace(ONLY_PAIRS, apart=1.0, second_picture=1.0))
    assert len(conversation.squares) == 2  # no third picture
    assert max(conversation.segments) == 4
    first = [i for i, s in zip(conversation.ids, conversation.segments, strict=True) if s in (0, 1)]
    asked_alone, _, _ = processor.decode(first).partition("<start_of_turn>model\n")
    question = asked_alone.rpartition("\n\n")[2].removesuffix("<end_of_turn>\n")
    parts = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": question}]
    rendered = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
    prompt = processor.tokenizer.encode(processor.expand_images([rendered], [0, 0])[0], add_special_tokens=False)
    assert first[: len(prompt)] == prompt


def test_no_heldout_pair_is_said_in_training_and_none_is_told_to_be_wrong(writer: ConversationWriter) -> None:
    heldout = {f"{color} {shape}" for shape, color in HELDOUT_PAIRS}
    excluded = 0
    for number in range(25):
        conversation = writer.write(random.Random(number), replace(ONLY_PAIRS, apart=1.0, questions=6))
        text = writer._tokenizer.decode(conversation.ids).lower().replace("grey", "gray")
        assert not any(pair in text for pair in heldout)
        for place, token in conversation.excluded:
            excluded += 1
            assert conversation.labels[place] not in (IGNORED, token)
    assert excluded > 10


def test_the_evaluation_shows_both_pictures_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    dialogues = list(dialogues_of_kind("which_more", 3, "heldout", 1, "pillow"))
    assert all(len(one.pictures) == 2 and len(one.questions) == 1 and one.system == "" for one in dialogues)
    with pytest.raises(ValueError, match="dialogue"):
        next(questions_of_kind("which_more", 1, "heldout", 1))
    seen = []

    class Silent(trials.Examinee):
        def __init__(self) -> None:
            pass

        def reply(self, chats: list, pan_and_scan: bool = False) -> list[str]:
            seen.extend((list(chat), pan_and_scan) for chat in chats)
            return ["Both have as many."] * len(chats)

    blank = Image.new("RGB", (20, 20))
    monkeypatch.setattr(
        trials, "dialogues_of_kind", lambda *_: [Dialogue((blank, blank), d.questions) for d in dialogues]
    )
    told = trials.evaluate(Silent(), 3, kinds=("which_more",))
    assert [trial.right for trial in told] == [d.questions[0].key == "both" for d in dialogues]
    for chat, pan_and_scan in seen:
        (message,) = chat
        assert [part["type"] for part in message["content"]] == ["image", "image", "text"]
        assert not pan_and_scan


def test_the_arguments_ask_for_two_pictures() -> None:
    assert mix_of(parse(["--out", "x", "--pairs", "0.2"])).worlds == (Share("scenes", 0.8), Share("pairs", 0.2))
    mix = mix_of(parse(["--out", "x", "--pairs", "1", "--easiest", "0.5"]))
    assert mix.worlds == (Share("pairs", 1.0, 0.5),)
    for wrong in (["--pairs", "2"], ["--pairs", "0.6", "--signs", "0.6"]):
        with pytest.raises(SystemExit):
            parse(["--out", "x", *wrong])
