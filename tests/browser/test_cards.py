"""Example cards in a real browser: two pictures, questions that follow, settings that a card brings."""

import pytest
from running_app import ScriptedEngine, opened, served
from window import DEMO

from components.examples import load_examples

CARDS = load_examples()


@pytest.fixture
def scripted():
    engine = ScriptedEngine(DEMO)
    engine.echoes = True
    engine.let_through("queued", "encoding", "reading", "writing")
    return engine


@pytest.fixture
def page(browser, scripted):
    with served(scripted) as address, opened(browser, address) as opened_page:
        yield opened_page


def choose(page, example):
    page.locator("#chat button.example").nth(CARDS.index(example)).click()
    page.locator("#chat .figures").nth(len(example.questions) - 1).wait_for()
    page.locator("#composer .submit-button").wait_for()


def test_a_card_of_two_pictures_shows_both_and_asks_about_both(page, scripted):
    (pair,) = [card for card in CARDS if len(card.pictures) == 2]
    assert page.locator("#chat button.example").nth(CARDS.index(pair)).locator("img").count() == 2
    choose(page, pair)
    assert page.locator("#chat .user-row img").count() == 2
    (request,) = scripted.requests
    assert [path.name for path in request.turns[-1].pictures] == [path.name for path in pair.pictures]


def test_a_card_that_asks_on_does_so_after_the_first_answer(page, scripted):
    (card,) = [card for card in CARDS if len(card.questions) == 2]
    choose(page, card)
    first, second = scripted.requests
    assert [turn.text for turn in first.turns] == [card.questions[0]]
    assert [turn.text for turn in second.turns] == [card.questions[0], card.questions[0], card.questions[1]]
    assert not second.turns[-1].pictures


def test_stopping_a_card_asks_nothing_more(page, scripted):
    (card,) = [card for card in CARDS if len(card.questions) == 2]
    scripted.go_on["writing"].clear()
    page.locator("#chat button.example").nth(CARDS.index(card)).click()
    page.get_by_text(card.questions[0].split()[0], exact=True).wait_for()
    page.locator("#composer .stop-button").click()
    page.locator("#composer .submit-button").wait_for()
    scripted.wait_until_closed()
    assert len(scripted.requests) == 1


def test_settings_that_a_card_brings_show_and_go_with_its_conversation(page, scripted):
    (board,) = [card for card in CARDS if card.pan_and_scan]
    (told,) = [card for card in CARDS if card.system_prompt]
    switch, prompt = page.locator("#pan-and-scan input"), page.locator("#system-prompt textarea")
    choose(page, board)
    assert scripted.requests[-1].pan_and_scan
    assert not scripted.requests[-1].system_prompt
    page.wait_for_function("document.querySelector('#pan-and-scan input').checked")
    page.locator("#clear").click()
    page.wait_for_function("!document.querySelector('#pan-and-scan input').checked")
    page.locator("#chat .placeholder-content").wait_for()
    choose(page, told)
    assert scripted.requests[-1].system_prompt == told.system_prompt
    assert not switch.is_checked()
    prompt.wait_for()  # its fold has opened
    page.wait_for_function(
        "(text) => document.querySelector('#system-prompt textarea').value === text", arg=told.system_prompt
    )
    page.locator("#clear").click()
    page.wait_for_function("!document.querySelector('#system-prompt textarea')?.value")
    page.locator("#chat .placeholder-content").wait_for()
    choose(page, CARDS[0])
    assert scripted.requests[-1].system_prompt == ""
