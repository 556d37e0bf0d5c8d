"""The page in the visitor's language: German from assets/words, English where there is nothing else."""

import json
import re
import urllib.error
import urllib.request
from datetime import datetime, timedelta, timezone

import pytest
from browsing import answered, send, write
from places import EXAMPLES, REPOSITORY
from running_app import ScriptedEngine, served
from window import DEMO

from components.serving.desk import Operation
from components.serving.ledger import HOUR_S, Allowance, MemoryLedger

QUESTION, ANSWER = "What color is the star?", "The star is yellow."
NIGHT = EXAMPLES / "night.png"
WORDS = REPOSITORY / "assets" / "words"
# What the page itself says and shows: text and names, without what visitors, models and programs wrote.
SAID_JS = """() => {
  const theirs = `.message-content :not(.stage, .failure, .remark, .figures *, .beneath *, .placeholder-content *),
    .tokens, .alternatives :is(th, td), .compared p:not(.note), textarea, pre, code, script, style, noscript,
    button.example, [data-conversation=open], dialog, [translate=no]`;
  const said = [], nodes = document.createTreeWalker(document.body, NodeFilter.SHOW_ELEMENT | NodeFilter.SHOW_TEXT);
  for (let node = nodes.nextNode(); node; node = nodes.nextNode()) {
    const element = node.nodeType === Node.TEXT_NODE ? node.parentElement : node;
    if (element.closest(theirs) || !element.checkVisibility()) continue;
    if (node.nodeType === Node.TEXT_NODE) said.push(node.data);
    else for (const name of ["aria-label", "title", "placeholder"]) said.push(element.getAttribute(name) ?? "");
  }
  return said.map((text) => text.trim()).filter((text) => text);
}"""
ENGLISH = re.compile(
    r"\b(the|this|that|of|and|is|are|with|your|how|what|where|from|picture|answer|question|each)\b", re.I
)


def opened_in(browser, url, locale, **options):
    page = browser.new_context(locale=locale, **options).new_page()
    page.goto(url)
    page.locator("#chat .placeholder-content").wait_for()
    page.locator("#share summary").wait_for()
    return page


def english(page, *quoted):
    """What the page still says in English, without what it quotes."""
    said = page.evaluate(SAID_JS)
    return [text for text in said if ENGLISH.search(re.sub("|".join(map(re.escape, quoted)) or "$", "", text))]


def test_a_german_browser_reads_german_everywhere(browser, url):
    page = opened_in(browser, url, "de-DE", viewport={"width": 1440, "height": 900})

    def all_german(*quoted):
        for width in (390, 1440):
            page.set_viewport_size({"width": width, "height": 900})
            assert english(page, *quoted) == [], width

    page.get_by_text("Fragen Sie zu einem Bild, und sehen Sie").wait_for()
    assert page.evaluate("document.documentElement.lang") == "de"
    assert page.title() == "Gemma 3 und Bilder"
    page.locator("#share summary").click()
    all_german()
    page.locator("#settings").get_by_role("button", name="Lokale Modelle").click()
    page.locator("#machine-models li").nth(2).wait_for()
    page.wait_for_timeout(500)
    all_german()
    write(page, QUESTION, NIGHT)
    send(page)
    assert answered(page) == ANSWER  # the model's words are its own
    assert page.locator("#chat").get_by_text(QUESTION).count() == 1
    page.get_by_role("button", name="In Antwort 1 hineinsehen").click()
    page.locator("#maps figure img").first.wait_for()
    page.evaluate("document.body.append(Object.assign(document.createElement('p'), { ariaLabel: 'Open “Delete”' }))")
    assert page.locator("body > p[aria-label]").get_attribute("aria-label") == "„Delete“ öffnen"  # quoted as it is
    tabs = page.locator("#inside [role=tab]:visible")
    assert tabs.all_inner_texts() == ["Eingabe", "Attention", "Maske", "Vergleich", "Code"]
    for tab in range(5):
        tabs.nth(tab).click()
        page.wait_for_timeout(500)
        all_german(QUESTION, ANSWER)
    tabs.nth(1).click()
    page.get_by_label("Worauf die Antwort beruht").click()
    for fold in (0, 1):
        page.locator("#inside .fold summary").nth(fold).click()
    all_german(QUESTION, ANSWER)
    page.context.close()


@pytest.fixture(scope="module")
def used_up():
    """The address of a page whose visitors have asked enough, for an hour."""
    allowance = Allowance("questions", 0, HOUR_S)
    with served(ScriptedEngine(DEMO), operation=Operation(ledger=MemoryLedger([allowance]))) as address:
        yield address


def is_told_when_to_come_back(page, says):
    """By the visitor's own clock, which is India's."""
    write(page, QUESTION)
    send(page)
    told = page.locator("#chat .failure").filter(has_text=says.partition(" {")[0]).filter(has_not_text="UTC")
    told.wait_for()
    there = datetime.now(timezone(timedelta(hours=5, minutes=30))) + timedelta(hours=1)
    times = [f"{there + timedelta(minutes=minutes):%H:%M}" for minutes in (-1, 0, 1)]
    assert any(told.inner_text().endswith(says.format(time)) for time in times), told.inner_text()
    page.wait_for_function("(text) => document.querySelector('#composer textarea').value === text", arg=QUESTION)


def test_what_goes_wrong_is_said_in_german(browser, used_up, tmp_path):
    page = opened_in(browser, used_up, "de", timezone_id="Asia/Kolkata")
    write(page, "")
    send(page)
    page.get_by_text("Es gibt noch keine Frage.").wait_for()
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not a picture")
    page.locator("#composer input[type=file]").first.set_input_files(broken)
    page.get_by_text("„broken.png“ ist nicht hinzugefügt. Diese 13 Bytes sind kein lesbares Bild.").first.wait_for()
    large = tmp_path / "film.mp4"
    with large.open("wb") as film:
        film.truncate(91_000_000)
    page.locator("#composer input[type=file]").first.set_input_files(large)
    page.get_by_text("„film.mp4“ ist größer als 90 MB.").wait_for()
    is_told_when_to_come_back(page, "Kommen Sie um {} wieder.")
    page.evaluate("() => { navigator.mediaDevices.getUserMedia = async () => new MediaStream(); }")
    page.get_by_role("button", name="Foto aufnehmen").click()
    page.get_by_role("dialog", name="Kamera").wait_for()
    page.context.close()


@pytest.mark.parametrize("locale", ["en-GB", "fr-FR"])
def test_others_read_english_and_fetch_nothing(browser, used_up, locale):
    page = browser.new_context(locale=locale, timezone_id="Asia/Kolkata").new_page()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(used_up)
    page.get_by_text("Ask about a picture, and see what the model saw").wait_for()
    is_told_when_to_come_back(page, "Come back at {}.")
    assert not [address for address in asked if "/words/" in address]
    page.context.close()


def test_only_languages_that_are_there_are_served(url):
    with urllib.request.urlopen(f"{url}/words/de.json") as answer:
        assert answer.headers["content-type"] == "application/json"
        assert json.load(answer) == json.loads((WORDS / "de.json").read_text(encoding="utf-8"))
    for name in ("xx", "../app", "..%2f..%2fapp"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{url}/words/{name}.json")


@pytest.mark.parametrize("file", sorted(WORDS.glob("*.json")), ids=lambda file: file.stem)
def test_each_sentence_keeps_its_places(file):
    """A place that is missing would show “undefined”; one too many would lose what stands there."""
    words = json.loads(file.read_text(encoding="utf-8"))
    places = {english: (re.findall("{=?}", english), re.findall("{=?}", text)) for english, text in words.items()}
    assert [english for english, (before, after) in places.items() if before != after or not words[english]] == []
