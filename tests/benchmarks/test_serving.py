"""Many visitors: what is counted, and that they are really asked."""

import sys

import pytest
from running_app import free_port
from warm import Program

from benchmarks import serving
from benchmarks.serving import Question, Reply
from benchmarks.watched_app import watched_app

RED, BLUE = (
    Question("color", f"What color is the {shape}?", color, b"")
    for shape, color in (("star", "red"), ("heart", "blue"))
)


def test_the_figures_tell_right_answers_and_ones_own_from_others():
    alone = {RED: "It is red.", BLUE: "It is blue."}
    good = [Reply("It is red.", "", 4, 0.5, 1.0), Reply("It is blue.", "", 4, 1.5, 2.0)]
    assert serving._figures([RED, BLUE], [good], alone) == {
        "tokens_per_s": 4.0,
        "first_token_s": 1.0,
        "first_token_95_s": 0.5,
        "last_s": 2.0,
        "right": 1.0,
        "as_alone": 1.0,
        "refused": 0,
    }
    swapped = serving._figures([RED, BLUE], [list(reversed(good))], alone)
    assert (swapped["right"], swapped["as_alone"]) == (0.0, 0.0)
    refused = serving._figures([RED, BLUE], [[good[0], Reply(None, "64 are waiting", 0, 0.0, 0.0)]], alone)
    assert (refused["refused"], refused["right"], refused["last_s"]) == (1, 1.0, 1.0)
    with pytest.raises(RuntimeError, match="64 are waiting"):
        serving._figures([RED], [[Reply(None, "64 are waiting", 0, 0.0, 0.0)]], alone)


def test_each_has_a_picture_and_a_question_of_its_own():
    asked = serving.questions(7)
    assert len({question.picture for question in asked}) == 7
    assert [question.kind for question in asked[:5]] == list(serving.KINDS)


@pytest.mark.skipif(sys.platform != "linux", reason="what a process takes is read from Linux's /proc")
def test_visitors_get_their_own_answers():
    asked = serving.questions(3)
    with watched_app("--at-once", "3", start=Program, port=free_port()) as app:
        alone = [serving.ask(app, question) for question in asked]
        together = serving.together(app, asked)
        memory = serving._memory_over(app, asked, 6, rest_s=0.0)
    assert [reply.answer for reply in together] == [reply.answer for reply in alone]
    assert all(reply.answer and reply.tokens and 0 < reply.first_s <= reply.last_s for reply in together)
    assert memory["requests"] == 6
    assert len(memory["mb"]) == len(memory["rested_mb"]) == 1
    assert 100 < memory["rested_mb"][0] <= memory["most_mb"]
