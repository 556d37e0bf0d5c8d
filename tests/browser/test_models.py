"""The choice of a model, in Debian's chromium: the demo model, a small random one, and one for text only."""

import json
import re
import shutil

import pytest
from browsing import add, answer_briefly, answered, send, write
from places import EXAMPLES
from running_app import opened, served, unfold
from safetensors.torch import load_file, save_file

from gemma3_core.engine import DEMO_MODEL, ModelRegistry, Request, Turn

QUESTION = "What color is the star?"
PLAIN = Request((Turn("user", "what is a color"),), max_new_tokens=2)


@pytest.fixture(scope="module")
def other_demo(tmp_path_factory):
    """The demo model with soft tokens of the opposite sign, and with sampling defaults of its own."""
    folder = tmp_path_factory.mktemp("models") / "other-demo"
    shutil.copytree(DEMO_MODEL, folder)
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        for name, tensor in tensors.items():
            if "mm_input_projection" in name:
                tensors[name] = -tensor
        save_file(tensors, file, {"format": "pt"})
    settings = json.loads((folder / "generation_config.json").read_text())
    settings |= {"do_sample": True, "temperature": 0.5, "top_k": 7}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def models(other_demo, chat_folder, text_chat_folder):
    return ModelRegistry.load(None, [str(other_demo), str(chat_folder), str(text_chat_folder)], device="cpu", keep=2)


@pytest.fixture(scope="module")
def url(models):
    with served(models) as address:
        yield address


@pytest.fixture
def page(browser, url):
    with opened(browser, url) as visitor:
        yield visitor


def choose(page, name):
    page.locator("#model input").click()
    page.get_by_role("option", name=name, exact=True).click()


def ask(page, number=1, picture="night.png", question=QUESTION):
    if picture:
        add(page, EXAMPLES / picture)
    write(page, question)
    send(page)
    answered(page, number)
    return page.locator("#chat .figures").nth(number - 1).text_content()


def value(page, label):
    if not page.get_by_label("number input for Top-k").is_visible():
        unfold(page, "Sampling", "#seed input")
    return page.get_by_label(f"number input for {label}").input_value()


def test_a_switch_counts_for_the_next_answer_of_this_visitor_only(browser, page, url):
    with opened(browser, url) as second:
        choose(page, "other-demo")
        page.locator("#model-note", has_text="loads this model").wait_for()
        page.locator("#head .badge", has_text="other-demo · not loaded yet").wait_for()
        assert value(page, "Temperature") == "0"
        assert ask(page).startswith("other-demo · ")
        # Now that it is loaded, the page follows: its own settings, and nothing left to say.
        page.locator("#head .badge", has_text=re.compile(r"other-demo .* full precision")).wait_for()
        page.locator("#model-note").wait_for(state="hidden")
        assert (value(page, "Temperature"), value(page, "Top-k")) == ("0.5", "7")
        assert second.locator("#model input").input_value() == "demo model"
        assert ask(second).startswith("demo model · ")
    # The conversation goes on with another model, and each answer is looked into with its own.
    choose(page, "demo model")
    page.locator("#head .badge", has_text=re.compile(r"^demo model")).wait_for()
    assert ask(page, 2, None, "How many shapes are there?").startswith("demo model · ")
    page.get_by_role("button", name="Look inside answer 1").click()
    page.locator("#inside .answer-tokens").wait_for()
    page.get_by_role("tab", name="Attention").click()
    page.locator("#inside .answer-tokens button").first.click()
    page.locator("#inside .maps img").first.wait_for()
    # A new chat begins with the line of the model that answers.
    choose(page, "other-demo")
    ask(page, 3, None)
    page.locator("#head .badge", has_text=re.compile(r"other-demo .* full precision")).wait_for()
    page.locator("#composer .submit-button").wait_for()
    page.locator("#clear").click()
    page.locator("#chat .placeholder-content", has_text="other-demo answers. It can be wrong").wait_for()


def test_two_models_are_compared_by_tokens_or_where_their_vocabularies_differ_by_text(page):
    answer_briefly(page, 12)
    ask(page)
    page.get_by_role("button", name="Look inside answer 1").click()
    page.get_by_role("tab", name="Compare").click()
    page.wait_for_function("document.querySelector('#other-model input').value === 'other-demo'")
    page.locator("#compare-models").click()
    page.locator("#inside .compared section .note").nth(1).wait_for()
    assert page.locator("#inside .compared h3").all_inner_texts() == ["demo model", "other-demo"]
    page.get_by_text("The answers part at token").wait_for()
    assert page.locator("#inside .compared .alternatives").count() == 2
    for figures in page.locator("#inside .compared section > .note").all_inner_texts():
        assert re.search(r"first token .* tokens/s · (cut at 12 new tokens · )?weights [\d.]+ MB", figures)
    page.locator("#other-model input").click()
    page.get_by_role("option", name="small-model", exact=True).click()
    page.locator("#compare-models").click()
    page.get_by_text("have different vocabularies").wait_for()
    assert page.locator("#inside .compared mark").count() >= 1


def test_of_a_model_that_was_let_go_or_reads_text_only_the_page_shows_nothing_wrong_and_loses_nothing(page, models):
    choose(page, "other-demo")
    ask(page)
    page.locator("#strip", has_text="What the model saw").wait_for()
    for name in ("small-model", "small-text-model"):  # two are kept
        list(models.stream(name, PLAIN))
    page.get_by_role("button", name="Look inside answer 1").click()
    told = page.locator("#maps .failure")
    told.wait_for()
    assert told.inner_text().startswith("other-demo, which gave this answer, is not loaded now")
    # The picture is nothing for a model that reads text.
    choose(page, "small-text-model")
    write(page, "what is a color")
    send(page)
    failure = page.locator("#chat .failure")
    failure.wait_for()
    assert failure.inner_text().startswith("small-text-model reads text only.")
    page.wait_for_function("document.querySelector('#composer textarea').value === 'what is a color'")
    assert page.locator("#chat .figures").count() == 1
    page.locator("#pan-and-scan").wait_for(state="hidden")
    choose(page, "demo model")
    send(page)
    answered(page, 2)


def test_the_published_model_can_be_chosen_here_and_says_what_it_needs(browser, app_url):
    with opened(browser, app_url, width=390, height=844) as page:
        page.locator("#settings .toggle-button").click()
        choose(page, "gemma-3-4b-it")
        note = page.locator("#model-note")
        note.get_by_text("8.6 GB").wait_for()
        for word in ("downloads", "license", "HF_TOKEN"):
            assert word in note.inner_text()
        page.locator("#settings .toggle-button").click()
        add(page, EXAMPLES / "night.png")
        page.locator("#strip", has_text="is loaded, this shows").wait_for()
        write(page, QUESTION)
        send(page)
        page.locator("#chat .failure", has_text="could not be downloaded").wait_for()
        page.wait_for_function(f"document.querySelector('#composer textarea').value === '{QUESTION}'")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_kept_model_that_is_no_longer_offered_is_not_chosen(page):
    """As one that was added while the program ran, before it was started again."""
    choose(page, "other-demo")
    page.locator("#head .badge", has_text="other-demo").wait_for()  # after which nothing is kept anew
    page.wait_for_function("ask.kept.get('settings')?.values.includes('other-demo')")
    page.evaluate(
        """() => {
          const { offer, values } = ask.kept.get("settings");
          ask.kept.set("settings", { offer, values: values.map((one) => (one === "other-demo" ? "added" : one)) });
          location.reload();
        }"""
    )
    page.wait_for_function("window.ask && ask.kept.get('settings')?.values.includes('added') === false")
    page.wait_for_function("document.querySelector('#model input')?.value === 'demo model'")
    assert ask(page).startswith("demo model · ")
