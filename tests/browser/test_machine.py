"""The models on this machine, in Debian's chromium, against a Hub on this machine: offered, downloaded, run, asked."""

import shutil

import pytest
from browsing import add, answered, send, write
from gguf_files import converted
from local_hub import local_hub
from places import EXAMPLES
from running_app import opened, running_app

from gemma3_core.engine import DEMO_MODEL

REPOSITORY_ID, NAME = "ggml-org/gemma-3-4b-it-GGUF", "gemma-3-4b-it-Q4_K_M"


@pytest.fixture(scope="module")
def hub(tmp_path_factory, chat_folder):
    """A Hub with the demo model under the ungated one's name, and a gated repository."""
    folder = tmp_path_factory.mktemp("hub")
    converted(DEMO_MODEL, folder, "bf16", f"{NAME}.gguf")
    (folder / f"mmproj-{NAME}.gguf").rename(folder / "mmproj-model-f16.gguf")
    with local_hub() as running:
        running.add(REPOSITORY_ID, folder)
        running.add("google/gemma-3-4b-it", chat_folder, token="secret")
        yield running


@pytest.fixture(scope="module")
def home(tmp_path_factory, text_chat_folder):
    """A home directory with models of LM Studio, one of them damaged."""
    folder = tmp_path_factory.mktemp("home")
    models = folder / ".lmstudio" / "models" / "somebody"
    shutil.copytree(text_chat_folder, models / "small-text-model")
    (models / "damaged.gguf").write_bytes(b"GGUF\x03")
    return folder


@pytest.fixture(scope="module")
def url(hub, home):
    environment = hub.environment(home / "hub") | {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache")}
    with running_app("--find", "--device", "cpu", **environment) as address:
        yield address


def open_list(page):
    page.locator("#settings").get_by_role("button", name="Models on this machine").click()
    page.locator("#machine-models li").first.wait_for()


def run(page, name, button):
    page.locator("#machine-models li", has_text=name).first.get_by_role("button", name=button).click()


def chosen(page, name):
    page.wait_for_function(f"document.querySelector('#model input').value === '{name}'", timeout=60_000)


def test_the_ungated_file_is_offered_first_downloaded_and_answers_about_a_picture(browser, hub, url):
    with opened(browser, url) as page:
        open_list(page)
        first = page.locator("#machine-models li").first
        assert first.locator("b").inner_text() == NAME
        for words in ("ggml-org", "Gemma's terms of use", "2.5 GB, and 0.8 GB for pictures", "memory: "):
            assert words in first.inner_text()
        # The gated one says what to do, and nothing changes.
        run(page, "Gemma 3 4B as Google publishes it", "Download and run")
        failure = page.locator("#machine-progress .failure")
        failure.wait_for()
        assert "accept its license at huggingface.co/google/gemma-3-4b-it" in failure.inner_text()
        assert page.locator("#model input").input_value() == "demo model"
        # Stopped half-way, what has arrived is kept.
        hub.pause_s = 0.1
        run(page, NAME, "Download and run")
        page.locator("#machine-progress progress").wait_for()
        page.locator("#machine-progress", has_text="Downloading: ").wait_for()
        page.get_by_role("button", name="Stop the download").click()
        page.locator("#machine-progress .note", has_text="What has arrived is kept").wait_for()
        page.locator("#machine-stop").wait_for(state="hidden")
        hub.ranges.clear()
        hub.pause_s = 0.01
        run(page, NAME, "Download and run")
        chosen(page, NAME)
        assert not hub.ranges[0].endswith(" from 0"), hub.ranges
        page.locator("#machine-models li", has_text=NAME).get_by_text("loaded now").wait_for()
        page.locator("#head .badge", has_text=f"{NAME} · ").wait_for()
        add(page, EXAMPLES / "night.png")
        write(page, "What color is the star?")
        send(page)
        assert answered(page) == "The star is yellow."
        assert page.locator("#chat .figures").inner_text().startswith(f"{NAME} · ")
        assert "1 picture" in page.locator("#chat .figures").first.text_content()


def test_what_lm_studio_left_is_listed_with_what_it_needs_and_runs(browser, url):
    with opened(browser, url, width=390, height=844) as page:
        page.locator("#settings .toggle-button").click()
        open_list(page)
        found = page.locator("#machine-models li", has_text="small-text-model")
        for words in ("safetensors, float32", "text only", "in LM Studio", "Memory: ", "MB in bfloat16"):
            assert words in found.inner_text(), found.inner_text()
        damaged = page.locator("#machine-models li", has_text="damaged")
        assert "damaged.gguf is cut off. Download it again." in damaged.inner_text()
        assert damaged.get_by_role("button").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        run(page, "small-text-model", "Run in float32")
        chosen(page, "small-text-model")
        # After a reload it can still be chosen.
        page.reload()
        page.locator("#composer textarea").wait_for()
        page.locator("#settings .toggle-button").click()
        chosen(page, "small-text-model")
        page.locator("#settings .toggle-button").click()
        write(page, "what is a color")
        send(page)
        answered(page)


def test_others_do_not_see_them(browser):
    with running_app("--auth", "me:secret") as address:
        page, faults = browser.new_page(), []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(address)
        page.get_by_label("username").fill("me")
        page.get_by_label("password").fill("secret")
        page.get_by_role("button", name="Login").click()
        page.locator("#composer textarea").wait_for()
        assert page.locator("#machine").count() == 0
        page.close()
        assert faults == []
