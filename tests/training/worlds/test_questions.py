"""The demo model's questions and answers, what counts as right, and its tokenizer."""

import random
import re
from collections import Counter

import pytest
from tokenizers import Tokenizer

from training.drawing.backgrounds import Background
from training.drawing.colors import ANCHORS, COLORS, UNNAMED
from training.drawing.geometry import SHAPES
from training.language.asking import Question
from training.learning.model import DEMO_MODEL
from training.tokenizer import _KEY_WORDS, CONTROL_TOKENS, VOCABULARY_SIZE, build, save
from training.worlds.boards import questions as board_questions
from training.worlds.charts import questions as chart_questions
from training.worlds.pairs import follow_ups
from training.worlds.pairs import questions as pair_questions
from training.worlds.scenes import more_questions
from training.worlds.scenes.phrasings import HELDOUT_PHRASINGS, PHRASINGS
from training.worlds.scenes.questions import KINDS, NUMBERS, PLACES, QUESTIONS, clear_place
from training.worlds.scenes.scenes import Scene, SceneObject, is_heldout_pair, random_scene
from training.worlds.signs import questions as sign_questions
from training.worlds.signs import two_line_questions
from training.worlds.signs.signs import random_text

ask, is_right = QUESTIONS.ask, QUESTIONS.is_right


def scene_of(*objects: tuple[str, str, float, float]) -> Scene:
    """A picture 300 x 300 of (color, shape, x, y)."""
    items = tuple(SceneObject(s, c, ANCHORS.get(c, ((0, 128, 128),))[0], x, y, 40.0) for c, s, x, y in objects)
    return Scene(300, 300, Background("plain", ((230, 230, 230),)), items)


def questions(split: str, count: int = 400) -> list[tuple[Scene, Question]]:
    rng = random.Random(split)
    found = []
    for _ in range(count):
        scene = random_scene(rng, split)
        found += [(scene, question) for question in ask(scene, rng, split, 6)]
    return found


def answers(scene: Scene, kind: str, tries: int = 60) -> set[str]:
    rng = random.Random(0)
    return {q.answer for _ in range(tries) for q in ask(scene, rng, "train", 6, (kind,))}


THREE = scene_of(("red", "circle", 50, 50), ("red", "square", 150, 150), ("orange", "circle", 250, 250))


def test_answers_are_short_sentences():
    assert "The square is red." in answers(THREE, "color")
    assert answers(THREE, "shape") == {"The orange shape is a circle."}
    assert "There are three shapes." in answers(THREE, "count_all")
    assert {"There are two circles.", "There is one square."} <= answers(THREE, "count_shape")
    assert {"There are two red shapes.", "There is one orange shape."} <= answers(THREE, "count_color")
    assert {"Yes, there is an orange circle.", "No, there is no orange star."} <= answers(THREE, "is_there")
    assert answers(THREE, "where") == {
        "The red circle is in the top left.", "The red square is in the center.",
        "The square is in the center.", "The orange circle is in the bottom right.",
        "The orange shape is in the bottom right.",
    }  # fmt: skip


def test_ambiguous_things_are_not_asked():
    assert answers(THREE, "color") == {"The square is red."}  # the circles differ
    same = scene_of(("red", "circle", 50, 50), ("red", "circle", 250, 250))
    assert answers(same, "color", 200) == {"The circles are red."}
    assert answers(same, "shape") == set()
    assert answers(same, "where") == set()


def test_of_unnamed_colors_only_what_is_without_doubt_is_asked():
    teal = scene_of((UNNAMED, "star", 50, 50), ("red", "square", 150, 150))
    assert answers(teal, "color") == {"The square is red."}
    assert answers(teal, "count_color") == set()
    assert answers(teal, "shape") == set()
    assert answers(teal, "where") == {"The star is in the top left.", "The square is in the center."}
    assert {"Yes, there is a star.", "No, there is no circle."} <= answers(teal, "is_there", 200)
    assert not any(color in answer for answer in answers(teal, "is_there", 200) for color in COLORS)
    assert answers(scene_of((UNNAMED, "star", 50, 50)), "shape") == {"The shape is a star."}


def test_absent_things_are_counted_now_and_then():
    zero = {a for a in answers(THREE, "count_shape", 300) if a.startswith("There are no")}
    assert "There are no stars." in zero


def test_places_near_a_border_are_not_asked():
    near = scene_of(("red", "circle", 104, 50))
    assert clear_place(near.objects[0], near) is None
    assert answers(near, "where") == set()
    clear = scene_of(("red", "circle", 115, 50))
    assert clear_place(clear.objects[0], clear) == "top center"


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_questions_are_true_to_the_scene(split: str):
    for scene, question in questions(split):
        assert "{" not in question.question
        assert question.kind in KINDS
        assert is_right(question.kind, question.key, question.answer), question
        truth = _truth(scene, question)
        assert truth is None or truth == question.key, question


def _truth(scene: Scene, question: Question) -> str | None:
    """The key worked out anew from the answer's subject."""
    items = scene.objects
    words = set(re.findall(r"[a-z]+", question.answer.lower()))
    shapes = [s for s in SHAPES if s in words or s + "s" in words]
    colors = [c for c in COLORS if c in words]
    if question.kind.startswith("count"):
        items = [o for o in items if (not shapes or o.shape in shapes)]
        items = [o for o in items if (not colors or o.color in colors)]
        return NUMBERS[len(items)]
    if question.kind == "is_there":
        pairs = [(o.shape, o.color) for o in items]
        fits = [(not shapes or s in shapes) and (not colors or c in colors) for s, c in pairs]
        return "yes" if any(fits) else "no"
    if question.kind == "color" and shapes:
        return "/".join({o.color for o in items if o.shape in shapes})
    if question.kind == "shape" and colors:
        return "/".join({o.shape for o in items if o.color in colors})
    return None


def test_training_never_asks_about_heldout_pairs():
    for _, question in questions("train"):
        for shape in SHAPES:
            for color in COLORS:
                if is_heldout_pair(shape, color):
                    assert f"{color} {shape}" not in question.question


def test_phrasings_are_many_and_split():
    assert set(PHRASINGS) == set(HELDOUT_PHRASINGS) == set(KINDS)
    for kind in KINDS:
        known = {text for forms in PHRASINGS[kind].values() for text in forms}
        kept = {text for forms in HELDOUT_PHRASINGS[kind].values() for text in forms}
        assert len(known) >= 15
        assert not known & kept
        assert PHRASINGS[kind].keys() == HELDOUT_PHRASINGS[kind].keys()
        assert 0.10 <= len(kept) / len(known | kept) <= 0.20


def test_what_one_world_holds_out_no_other_trains_on():
    modules = (board_questions, chart_questions, follow_ups, more_questions, pair_questions, sign_questions,
               two_line_questions)  # fmt: skip
    train = {text for module in modules for texts in module.PHRASINGS.values() for text in texts}
    kept = {text for module in modules for texts in module.HELDOUT_PHRASINGS.values() for text in texts}
    train |= {text for forms in PHRASINGS.values() for texts in forms.values() for text in texts}
    kept |= {text for forms in HELDOUT_PHRASINGS.values() for texts in forms.values() for text in texts}
    train |= {text for texts in pair_questions.IN_ONE.values() for text in texts}
    kept |= {text for texts in pair_questions.IN_ONE_HELDOUT.values() for text in texts}
    assert not train & kept


def test_kinds_and_answers_are_balanced():
    keys: dict[str, Counter] = {kind: Counter() for kind in KINDS}
    for _, question in questions("train", 1200):
        keys[question.kind][question.key] += 1
    total = sum(sum(counter.values()) for counter in keys.values())
    shares = {kind: {key: n / sum(counter.values()) for key, n in counter.items()} for kind, counter in keys.items()}
    assert all(0.08 < sum(counter.values()) / total < 0.25 for counter in keys.values())
    assert all(0.4 < share < 0.6 for share in shares["is_there"].values())
    assert set(shares["color"]) == set(COLORS)
    assert max(shares["color"].values()) < 0.14
    assert set(shares["shape"]) == set(SHAPES)
    assert max(shares["shape"].values()) < 0.24
    assert set(shares["where"]) == set(PLACES)
    assert max(shares["where"].values()) < 0.17
    for kind in ("count_shape", "count_color"):
        assert set(shares[kind]) == set(NUMBERS)
        assert min(shares[kind].values()) > 0.03
        assert max(shares[kind].values()) < 0.4


def test_same_seed_same_questions():
    one, two = (ask(THREE, random.Random(5), "heldout", 6) for _ in range(2))
    assert one == two


def test_unknown_split_and_kind_are_errors():
    with pytest.raises(ValueError, match="test"):
        ask(THREE, random.Random(0), "test")
    with pytest.raises(ValueError, match="reading"):
        is_right("reading", "a", "a")


@pytest.mark.parametrize(
    ("kind", "key", "answer", "right"),
    [
        ("count_shape", "three", "There are three circles.", True),
        ("count_shape", "three", "There are 3 circles.", True),
        ("count_all", "three", "THREE", True),
        ("count_shape", "three", "There are two circles.", False),
        ("count_shape", "three", "There are two or three circles.", False),
        ("count_shape", "one", "There are 13 circles.", False),
        ("count_shape", "no", "There are no stars.", True),
        ("count_shape", "no", "Zero.", True),
        ("count_color", "no", "0", True),
        ("color", "gray", "The star is grey.", True),
        ("color", "blue", "The star is Blue", True),
        ("color", "blue", "The star is blue and red.", False),
        ("color", "red", "The star is colored.", False),
        ("shape", "heart", "The red shape is a heart.", True),
        ("shape", "heart", "The red shape is a star.", False),
        ("shape", "circle", "They are circles.", True),
        ("is_there", "yes", "Yes, there is a blue star.", True),
        ("is_there", "no", "No, there is no blue star.", True),
        ("is_there", "no", "There isn't any.", True),
        ("is_there", "yes", "No, there is no blue star.", False),
        ("where", "top left", "The star is in the top left.", True),
        ("where", "top left", "In the upper-left corner.", True),
        ("where", "top left", "The star is in the top center.", False),
        ("where", "top left", "The star is in the top.", False),
        ("where", "top center", "The star is in the top center.", True),
        ("where", "center", "In the middle.", True),
        ("where", "center", "The star is in the center left.", False),
        ("where", "center left", "The star is in the centre left.", True),
        ("where", "center", "I cannot say.", False),
        ("where", "top left", "top left bottom right", False),
    ],
)
def test_right_and_wrong(kind: str, key: str, answer: str, right: bool):
    assert is_right(kind, key, answer) is right


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("tokenizer")
    save(build(), path)
    return path


def test_tokenizer_has_whole_words_and_the_same_ids_on_every_run(folder):
    tokenizer = build()
    assert tokenizer.to_str(pretty=True) == (folder / "tokenizer.json").read_text()
    vocabulary = tokenizer.get_vocab()
    assert len(vocabulary) == VOCABULARY_SIZE
    assert sorted(vocabulary.values()) == list(range(VOCABULARY_SIZE))
    assert [tokenizer.token_to_id(t) for t in CONTROL_TOKENS[:4]] == [0, 1, 2, 3]
    places = {word for place in PLACES for word in place.split()}
    plurals = [shape + "s" for shape in SHAPES]
    for word in (*COLORS, "grey", *NUMBERS, "zero", *SHAPES, *plurals, *places):
        assert "▁" + word in vocabulary
    assert all("▁" not in piece[1:] for piece in vocabulary)


def test_the_tokenizer_keeps_key_words_whole_and_spells_what_is_quoted():
    tokenizer, shipped = build(), Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json"))
    vocabulary = tokenizer.get_vocab()
    assert [tokenizer.token_to_id(t) for t in CONTROL_TOKENS] == [shipped.token_to_id(t) for t in CONTROL_TOKENS]
    keys = [*COLORS, "grey", *NUMBERS, "zero", *SHAPES, *(shape + "s" for shape in SHAPES), *_KEY_WORDS]
    keys += [word for place in PLACES for word in place.split()]
    assert [word for word in (*keys, "sign", "says", "text") if "▁" + word not in vocabulary] == []
    answers = ("only", "first", "second", "both", "same", "different", "picture", "line", "letters", "digits", "word",
               "number", "bar", "taller", "costs", "board")  # fmt: skip
    assert [word for word in answers if "▁" + word not in vocabulary] == []
    short = [*COLORS, *SHAPES, *NUMBERS, "seven", "eight", "none", "top", "word", "number"]
    assert [word for word in short if word.capitalize() not in vocabulary] == []
    starts = ("The", "There", "Yes", "No", "What", "How", "Which", "Where", "Is", "Read", "Tell", "Please")
    assert [word for word in (*starts, "user", "model") if word not in vocabulary] == []
    rng = random.Random(1)
    texts = [random_text(rng, split) for split in ("train", "heldout") for _ in range(500)] + [
        *starts,
        "models",
        "reuse",
    ]
    for text in texts:
        pieces = tokenizer.encode(f'The sign says "{text}".', add_special_tokens=False).tokens
        opening = ['"' + text[0]] if text[0].isupper() else ['"', text[0]]
        assert pieces == ["The", "▁sign", "▁says", "▁", *opening, *text[1:], '"', "."], text
    turn = "<start_of_turn>user\nHow many<end_of_turn>\n<start_of_turn>model\n"
    assert tokenizer.encode(turn, add_special_tokens=False).tokens == [
        "<start_of_turn>", "user", "\n", "How", "▁many", "<end_of_turn>", "\n", "<start_of_turn>", "model", "\n",
    ]  # fmt: skip


def test_tokenizer_is_the_same_in_transformers(folder):
    transformers = pytest.importorskip("transformers")
    ours = build()
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert type(theirs).__name__ == "GemmaTokenizer"
    assert len(theirs) == VOCABULARY_SIZE
    rng = random.Random(0)
    parts = [*" \n\t▁abcXYZ09é漢😀.,?!'\"", "  ", "\n\n", " red", "<end_of_turn>", "<start_of_image>", "The", "model"]
    texts = ["".join(rng.choices(parts, k=rng.randrange(30))) for _ in range(1000)]
    texts += [text for _, q in questions("heldout", 100) for text in (q.question, q.answer)]
    for text in texts:
        ids = ours.encode(text).ids
        assert theirs(text)["input_ids"] == ids
        assert ours.decode(ids[1:], skip_special_tokens=False) == text.replace("▁", " ")
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hi\n\n😀"}]}]
    prompt = theirs.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert prompt == ("<bos><start_of_turn>user\n<start_of_image>Hi\n\n😀<end_of_turn>\n<start_of_turn>model\n")
