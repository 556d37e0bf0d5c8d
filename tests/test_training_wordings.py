"""Ways of asking put together out of parts: what comes of a pattern, and that nothing held out does."""

import re

import pytest

from training import chart_questions, more_questions, pair_questions, phrasings, two_line_questions
from training.wordings import indirect, named, ordered, spelled, straight, widened

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


def slots_of(text: str) -> set[str]:
    return set(re.findall(r"\{(\w+)\}", text))


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
    slots = {frozenset(slots_of(text)) for text in written}
    for text in trained:
        assert frozenset(slots_of(text)) in slots, text
        assert not set("()|") & set(text), text
        assert text[-1] in ".?", text
        assert "  " not in text, text
        composed = text not in written
        assert not composed or not [one for one in heldout if core(one) in core(text)], text
