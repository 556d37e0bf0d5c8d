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


def new_chat(page):
    page.locator("#clear").click()
    page.locator("#chat .placeholder-content").wait_for()


def test_cards_bring_their_settings_their_pictures_and_questions_that_follow(page, scripted):
    (board,) = [card for card in CARDS if card.pan_and_scan]
    (told,) = [card for card in CARDS if card.system_prompt]
    (pair,) = [card for card in CARDS if len(card.pictures) == 2]
    (asks_on,) = [card for card in CARDS if len(card.questions) == 2]

    # Settings that a card brings show, and go with its conversation.
    choose(page, board)
    assert scripted.requests[-1].pan_and_scan
    assert not scripted.requests[-1].system_prompt
    page.wait_for_function("document.querySelector('#pan-and-scan input').checked")
    page.locator("#clear").click()
    page.wait_for_function("!document.querySelector('#pan-and-scan input').checked")
    page.locator("#chat .placeholder-content").wait_for()
    choose(page, told)
    assert scripted.requests[-1].system_prompt == told.system_prompt
    assert not page.locator("#pan-and-scan input").is_checked()
    page.locator("#system-prompt textarea").wait_for()  # its fold has opened
    page.wait_for_function(
        "(text) => document.querySelector('#system-prompt textarea').value === text", arg=told.system_prompt
    )
    page.locator("#clear").click()
    page.wait_for_function("!document.querySelector('#system-prompt textarea')?.value")
    page.locator("#chat .placeholder-content").wait_for()

    # Two pictures are both shown and asked about.
    assert page.locator("#chat button.example").nth(CARDS.index(pair)).locator("img").count() == 2
    choose(page, pair)
    assert page.locator("#chat .user-row img").count() == 2
    request = scripted.requests[-1]
    assert request.system_prompt == ""
    assert [path.name for path in request.turns[-1].pictures] == [path.name for path in pair.pictures]

    # A second question is asked after the first answer, but not once the card was stopped.
    new_chat(page)
    scripted.requests.clear()
    choose(page, asks_on)
    first, second = scripted.requests
    asked, further = asks_on.questions
    assert [turn.text for turn in first.turns] == [asked]
    assert [turn.text for turn in second.turns] == [asked, asked, further]
    assert not second.turns[-1].pictures
    new_chat(page)
    stop_while_it_writes(page, scripted, asks_on)
    assert len(scripted.requests) == 1


def stop_while_it_writes(page, scripted, card):
    scripted.requests.clear()
    scripted.closed_in.clear()
    scripted.go_on["writing"].clear()
    page.locator("#chat button.example").nth(CARDS.index(card)).click()
    page.get_by_text(card.questions[0].split()[0], exact=True).wait_for()
    page.locator("#composer .stop-button").click()
    page.locator("#composer .submit-button").wait_for()
    scripted.wait_until_closed()
