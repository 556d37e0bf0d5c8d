"""Ways of asking put together out of parts: what comes of a pattern, and that nothing held out does."""

import json
import re
from pathlib import Path

import pytest

from training import chart_questions, more_questions, pair_questions, phrasings, two_line_questions
from training.asking import slots_of
from training.evaluate import ask_in_the_words_of, questions_of_kind
from training.wordings import indirect, named, ordered, spelled, straight, widened

FRESH = Path(phrasings.__file__).with_name("fresh_phrasings.json")
MODULES = (chart_questions, more_questions, pair_questions, two_line_questions)
# By kind and form: written, used in training, held out.
SETS = {
    **{
        (kind, form): (written, phrasings.TRAINED[kind][form], phrasings.HELDOUT_PHRASINGS[kind][form])
        for kind, forms in phrasings.PHRASINGS.items()
        for form, written in forms.items()
    },
    **{
        (kind, ""): (written, module.TRAINED[kind], module.HELDOUT_PHRASINGS[kind])
        for module in MODULES
        for kind, written in module.PHRASINGS.items()
    },
}


def core(text: str) -> str:
    return " ".join(re.sub(r"[^\w{}' ]", " ", text.lower()).split())


def test_alternatives_are_spelled_out_and_may_hold_others():
    assert spelled("a (b|c) d") == ("a b d", "a c d")
    assert spelled("a (|b)", "a") == ("a", "a b")
    assert set(spelled("(a|the (b|c)) {slot}")) == {"a {slot}", "the b {slot}", "the c {slot}"}
    assert spelled("plain") == ("plain",)


def test_sentences_are_put_as_people_ask():
    assert straight("what (is|was) it") == ("What is it?", "What was it?")
    told = indirect("what it is")
    assert {"Tell me what it is.", "Could you tell me what it is?", "Do you know what it is?"} <= set(told)
    assert {"I want to know what it is.", "Let me know what it is."} <= set(told)
    assert {"What is the end?", "Name the end.", "Could you name the end?"} <= set(named("the end"))
    assert {"Count them.", "Please count them.", "Will you count them?"} <= set(ordered("count them"))


def test_what_holds_a_heldout_sentence_is_left_out():
    kept = widened(("Count them.",), ("Count them.", "Say what it is.", "Please say what it is!"), ("Say what it is?",))
    assert kept == ("Count them.",)


@pytest.mark.parametrize("kind", SETS, ids=" ".join)
def test_training_asks_in_many_ways_and_never_in_a_heldout_one(kind):
    written, trained, heldout = SETS[kind]
    assert len(set(trained)) == len(trained) >= 100
    assert set(written) <= set(trained)
    slots = {slots_of(text) for text in written}
    for text in trained:
        assert slots_of(text) in slots, text
        assert not set("()|") & set(text), text
        assert text[-1] in ".?", text
        assert "  " not in text, text
        composed = text not in written
        assert not composed or not [one for one in heldout if core(one) in core(text)], text


@pytest.fixture
def heldout_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (phrasings, more_questions, chart_questions):
        kept = {kind: dict(told) if isinstance(told, dict) else told for kind, told in module.HELDOUT_PHRASINGS.items()}
        monkeypatch.setattr(module, "HELDOUT_PHRASINGS", kept)
    monkeypatch.setattr("training.questions.HELDOUT_PHRASINGS", phrasings.HELDOUT_PHRASINGS)


@pytest.mark.usefixtures("heldout_put_back")
def test_the_evaluation_asks_in_the_words_of_a_file():
    told = json.loads(FRESH.read_text(encoding="utf-8"))
    assert ask_in_the_words_of(FRESH) == tuple(told)
    for kind in ("largest", "chart_tallest", "count_all"):
        asked = {core(question.question) for _, question in questions_of_kind(kind, 12, "heldout", 5)}
        assert any(core(text) in one for text in told[kind]["one"] for one in asked)
        _, trained, _ = SETS[(kind, "one" if (kind, "one") in SETS else "")]
        assert all(len(texts) == 5 for texts in told[kind].values())
        assert not set(told[kind]["one"]) <= set(trained)


@pytest.mark.usefixtures("heldout_put_back")
@pytest.mark.parametrize(
    ("told", "wrong"),
    [
        ({"colour": {"one": ["Which?"]}}, "colour, one"),
        ({"largest": {"many": ["Which are the largest?"]}}, "largest, many"),
        ({"color": {"one": ["What color is it?"]}}, "What color is it"),
    ],
)
def test_a_file_with_other_kinds_forms_or_slots_is_refused(told, wrong, tmp_path):
    (tmp_path / "told.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match=wrong):
        ask_in_the_words_of(tmp_path / "told.json")
