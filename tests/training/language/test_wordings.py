"""Ways of asking put together out of parts: what comes of a pattern, and that nothing held out does."""

import json

import pytest
from places import REPOSITORY

from training.evaluation.dialogues import ask_in_the_words_of, questions_of_kind
from training.language.asking import slots_of
from training.language.wordings import holds_heldout, indirect, named, ordered, spelled, straight, widened, words_of
from training.language.written_phrasings import all_heldout
from training.worlds.charts import questions as chart_questions
from training.worlds.pairs import questions as pair_questions
from training.worlds.scenes import more_questions, phrasings
from training.worlds.signs import two_line_questions

FRESH = REPOSITORY / "training" / "fresh_phrasings.json"
MODULES = (chart_questions, more_questions, pair_questions, two_line_questions)
# By kind and form: written, used in training.
SETS = {
    **{
        (kind, form): (written, phrasings.TRAINED[kind][form])
        for kind, forms in phrasings.PHRASINGS.items()
        for form, written in forms.items()
    },
    **{(kind, ""): (written, module.TRAINED[kind]) for module in MODULES for kind, written in module.PHRASINGS.items()},
}


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


def test_a_bracket_without_an_end_is_told():
    with pytest.raises(ValueError, match="does not close"):
        spelled("a (b|c")


def test_what_holds_a_heldout_sentence_of_any_kind_is_left_out():
    composed = ("Count them.", "Could you count the {many} for me?", "Please, say where the {shape} is!", "Find it.")
    assert widened(("Count them.",), composed) == ("Count them.", "Find it.")


@pytest.mark.parametrize("kind", SETS, ids=" ".join)
def test_training_asks_in_many_ways_and_never_in_a_heldout_one(kind):
    written, trained = SETS[kind]
    assert len(set(trained)) == len(trained) >= 100
    assert set(written) <= set(trained)
    slots = {slots_of(text) for text in written}
    heldout = " | ".join(" ".join(words_of(text)) for text in all_heldout())
    assert "could you count the {} for me" in heldout
    for text in trained:
        assert slots_of(text) in slots, text
        assert not set("()|") & set(text), text
        assert text[-1] in ".?", text
        assert "  " not in text, text
        assert f"| {' '.join(words_of(text))} |" not in heldout, text
        assert not holds_heldout(text), text


@pytest.fixture
def heldout_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (phrasings, more_questions, chart_questions):
        sets = module.HELDOUT_PHRASINGS
        for kind, told in sets.items():
            monkeypatch.setitem(sets, kind, told)


@pytest.mark.usefixtures("heldout_put_back")
def test_the_evaluation_asks_in_the_words_of_a_file():
    told = json.loads(FRESH.read_text(encoding="utf-8"))
    kinds = ask_in_the_words_of(FRESH)
    assert kinds == tuple(told)
    for kind in ("largest", "chart_tallest", "count_all"):
        trained = {words_of(text) for text in SETS[(kind, "one" if (kind, "one") in SETS else "")][1]}
        new = [text for text in told[kind]["one"] if words_of(text) not in trained]
        asked = {words_of(question.question) for _, question in questions_of_kind(kind, 12, "heldout", 5)}
        assert 0 < len(new) < 5
        assert any(set(words_of(text)) <= set(words) for text in new for words in asked)


@pytest.mark.usefixtures("heldout_put_back")
@pytest.mark.parametrize(
    ("told", "wrong"),
    [
        ({"colour": {"one": ["Which?"]}}, "no such kind"),
        ({"largest": {"many": ["Which are the largest?"]}}, "many.*largest.*one"),
        ({"largest": {}}, "largest"),
        ({"largest": {"one": ["What color is the {shape}?"]}}, "What color is the"),
    ],
)
def test_a_file_with_other_kinds_forms_or_slots_is_refused(told, wrong, tmp_path):
    (tmp_path / "told.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match=wrong):
        ask_in_the_words_of(tmp_path / "told.json")
