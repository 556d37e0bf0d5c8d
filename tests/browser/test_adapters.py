"""The demo model with an adapter, in Debian's chromium: what the page says of it, the choice, and Compare."""

import re
from pathlib import Path

import pytest
from adapters import save_adapter
from browsing import add, answered, send, write
from places import EXAMPLES
from running_app import opened, served

from gemma3_core import Gemma3ForConditionalGeneration
from gemma3_core.engine import DEMO_MODEL, ModelRegistry

ADAPTED = "demo model + my-adapter"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    model = Gemma3ForConditionalGeneration.from_pretrained(DEMO_MODEL)
    folder = tmp_path_factory.mktemp("adapters") / "my-adapter"
    options = {"r": 8, "rank_pattern": {"fc1": 4}, "target_modules": ["q_proj", "v_proj", "down_proj", "fc1"]}
    return save_adapter(model, folder, seed=5, size=0.15, **options)


@pytest.fixture(scope="module")
def url(adapter):
    with served(ModelRegistry.load(device="cpu", adapters=[adapter])) as address:
        yield address


def choose(page, name):
    page.locator("#model input").click()
    page.get_by_role("option", name=name, exact=True).click()


def ask(page, number):
    if number == 1:
        add(page, EXAMPLES / "night.png")
    write(page, "What color is the star?")
    send(page)
    text = answered(page, number)
    return text, page.locator("#chat .figures").nth(number - 1).text_content()


def test_the_page_says_what_the_adapter_is_compares_it_with_the_base_and_answers_by_the_chosen_one(browser, url):
    with opened(browser, url) as page:
        page.locator("#head .badge", has_text=re.compile(rf"^{re.escape(ADAPTED)} · .* full precision")).wait_for()
        note = page.locator("#model-note").inner_text()
        assert note.startswith("Adapter my-adapter · rank 4 to 8 · decoder: ")
        assert re.search(
            r"vision tower: \d+ of its layers · [\d,]+ weights · [\d.]+ (kB|MB) · kept beside the model\s", note
        )
        assert "q_proj" in note
        adapted, figures = ask(page, 1)
        assert figures.startswith(ADAPTED)
        page.get_by_role("button", name="Look inside answer 1").click()
        page.get_by_role("tab", name="Compare").click()
        page.wait_for_function("document.querySelector('#other-model input').value === 'demo model'")
        page.locator("#compare-models").click()
        page.locator("#inside .compared section .note").nth(1).wait_for()
        assert page.locator("#inside .compared h3").all_inner_texts() == [ADAPTED, "demo model"]
        page.get_by_text("The answers part at token").wait_for()
        page.get_by_role("button", name="Close Inside").click()
        choose(page, "demo model")
        page.locator("#model-note").wait_for(state="hidden")
        base, figures = ask(page, 2)
        assert figures.startswith("demo model · ")
        assert base == "The star is yellow."
        assert adapted != base
        choose(page, ADAPTED)
        page.locator("#model-note", has_text="rank 4 to 8").wait_for()


def test_a_merged_adapter_is_told_in_german_too(browser, adapter):
    models = ModelRegistry.load(device="cpu", adapters=[adapter], merge_adapter=True)
    with served(models) as url:
        page = browser.new_context(locale="de-DE", viewport={"width": 1280, "height": 900}).new_page()
        page.goto(url)
        note = page.locator("#model-note", has_text="ins Modell eingerechnet")
        note.wait_for()
        assert re.match(r"Adapter my-adapter · Rang 4 bis 8 · Decoder: \d+ seiner Schichten · ", note.inner_text())
        assert page.locator("#model").count() == 0
        page.context.close()
