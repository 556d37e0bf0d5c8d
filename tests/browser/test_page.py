"""The real page in Debian's chromium: with the demo model, and with an engine that waits where it is told to."""

import base64
import re
import time
from pathlib import Path

import pytest
from browsing import add, answered, choose, send, write
from checkpoints import write_published_shape
from PIL import Image
from places import EXAMPLES
from running_app import opened, served, unfold

from gemma3_core.engine import Engine

STAGES = ("queued", "encoding", "reading", "writing")
FIGURES = re.compile(r"demo model · \d+\.\d s\w+ · 1 picture.* · \d+ tokens · first token \d+\.\d\d s")


def retry(page):
    """Asks again, and waits for figures that were not there before: the new answer may come within a frame."""
    page.locator("#chat .figures").last.evaluate("line => line.dataset.old = 'yes'")
    act(page, "Retry: ask the last question again")
    page.locator("#chat .figures[data-old]").wait_for(state="detached")
    page.locator("#chat .figures").last.wait_for()


def failure(page):
    page.locator("#chat .failure").wait_for()
    return page.locator("#chat .failure").inner_text()


def remark(page):
    page.locator("#chat .remark").wait_for()
    return page.locator("#chat .remark").inner_text()


def composer_holds(page):
    return page.locator("#composer textarea").input_value(), page.locator("#composer .thumbnail-item").count()


def comes_back(page, text, pictures=0):
    """Waits until the composer holds this: it is handed back after the answer's last word."""
    page.wait_for_function(
        """([text, pictures]) => document.querySelector("#composer textarea").value === text
             && document.querySelectorAll("#composer .thumbnail-item").length === pictures
             && document.querySelector("#composer .submit-button")""",
        arg=[text, pictures],
    )


def act(page, name):
    """Clicks the control of this accessible name."""
    page.get_by_role("button", name=name).click()


def converse(page, *questions):
    """Asks one question after the other."""
    for number, question in enumerate(questions, 1):
        write(page, question)
        send(page)
        answered(page, number)


# With the demo model.


def test_first_sight_and_an_example(page):
    first = page.locator("#chat .placeholder-content").inner_text()
    assert "A small demo model answers: shapes, signs, bar charts, price boards." in first
    limits = page.locator("#chat .placeholder-content details")
    assert not limits.get_by_text("eleven colors").is_visible()
    limits.locator("summary").click()
    limits.get_by_text("eleven colors").wait_for()
    assert "choose gemma-3-4b-it-Q4_K_M under Model" in limits.inner_text()
    assert page.locator("#chat button.example").count() >= 4
    choose(page)
    assert answered(page).strip()
    assert FIGURES.search(page.locator("#chat .figures").text_content())
    assert page.locator("#chat .user-row img").count() == 1
    assert "How many hearts are there?" in page.locator("#chat .user-row").inner_text()


def test_upload_ask_and_ask_again_about_the_same_picture(page):
    write(page, "What color is the star?", EXAMPLES / "night.png")
    page.locator("#composer .submit-button").click()
    assert answered(page).strip()
    assert composer_holds(page) == ("", 0)
    write(page, "Is there a circle?")
    send(page)
    assert answered(page, 2).strip()
    # The second question's prompt holds the first one's picture too.
    assert "1 picture" in page.locator("#chat .figures").nth(1).text_content()


def test_strip_shows_tiles_then_crops(page):
    add(page, EXAMPLES / "wide.png")
    strip = page.locator("#strip")
    strip.get_by_text("What the model will see: 1 tile, 64 tokens").wait_for()
    assert strip.locator("img").count() == 1
    page.locator("#pan-and-scan input").check()
    strip.get_by_text("What the model will see: 3 tiles, 192 tokens").wait_for()
    assert strip.locator(".box").count() == 2
    assert strip.locator("img").count() == 4
    page.locator("#composer .delete-button").first.click()
    strip.locator(".strip").wait_for(state="detached")


def test_strip_says_why_a_square_picture_gets_no_crops(page, tmp_path):
    picture = tmp_path / "square.png"
    Image.new("RGB", (600, 600), "white").save(picture)
    page.locator("#pan-and-scan input").check()
    add(page, picture)
    page.locator("#strip .note").wait_for()
    assert page.locator("#strip .box").count() == 0
    assert "square" in page.locator("#strip .note").inner_text()


def test_pan_and_scan_counts_for_the_answer_and_the_strip_keeps_what_was_seen(page):
    page.locator("#pan-and-scan input").check()
    write(page, "How many circles are there?", EXAMPLES / "wide.png")
    send(page)
    answered(page)
    assert "1 picture, 2 crops" in page.locator("#chat .figures").text_content()
    page.locator("#strip").get_by_text("What the model saw: 3 tiles").wait_for()


def test_the_int4_switch_counts_from_the_next_answer_on(page):
    assert "MB of memory instead of" in page.locator("#int4").inner_text()
    switch, figures = page.locator("#int4 input"), page.locator("#chat .bot-row .figures")
    assert not switch.is_checked()
    choose(page)
    figures.nth(0).wait_for()
    for number, precision in ((1, "int4"), (2, "float32")):
        switch.set_checked(precision == "int4")
        page.locator("#head .badge").get_by_text("4-bit" if precision == "int4" else "full precision").wait_for()
        write(page, "Is there a circle?")
        send(page)
        figures.nth(number).wait_for()
    lines = [figures.nth(number).text_content() for number in range(3)]
    assert ["int4" in line for line in lines] == [False, True, False]
    assert ["float32" in line for line in lines] == [True, False, True]


def test_retry_copy_and_clear(page):
    choose(page)
    answer = answered(page)
    page.get_by_role("button", name="Copy").click()
    page.get_by_role("button", name="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == answer.strip()
    retry(page)
    assert answered(page) == answer  # greedy
    page.locator("#clear").click()
    page.locator("#chat .placeholder-content").wait_for()
    assert page.locator("#chat .message-row").count() == 0
    page.locator("#strip .strip").wait_for(state="detached")


def test_a_copy_button_that_is_clicked_twice_gets_its_own_name_back(page):
    choose(page)
    answered(page)
    page.get_by_role("button", name="Copy answer 1").click()
    page.get_by_role("button", name="Copied").click()
    page.get_by_role("button", name="Copied").wait_for(state="detached")
    page.wait_for_timeout(1500)  # after the second click, too
    page.get_by_role("button", name="Copy answer 1").wait_for()


def test_an_empty_question_and_a_picture_alone(page):
    send(page)
    page.get_by_text("There is no question yet.").wait_for()
    add(page, EXAMPLES / "night.png")
    send(page)
    page.get_by_text("Ask something about the picture.").wait_for()
    comes_back(page, "", 1)
    write(page, "What color is the star?")
    send(page)
    assert answered(page).strip()
    assert page.locator("#chat .failure").count() == 0


@pytest.mark.parametrize(("content", "says"), [(b"", "empty"), (b"words", "not a picture")])
def test_what_is_no_picture_is_told_as_it_is_added(page, tmp_path, content, says):
    broken = tmp_path / "broken.png"
    broken.write_bytes(content)
    write(page, "Hello")
    page.locator("#composer input[type=file]").set_input_files(str(broken))
    page.get_by_text(re.compile(rf"broken\.png” is not added\. .*{says}")).first.wait_for()
    assert composer_holds(page) == ("Hello", 0)
    send(page)
    assert answered(page) is not None


def test_damaged_pictures_are_told_and_given_back(page, tmp_path):
    broken, says = tmp_path / "broken.png", "damaged"
    broken.write_bytes((EXAMPLES / "night.png").read_bytes()[:500])
    write(page, "What is this?", broken)
    page.locator("#strip .failure", has_text=says).wait_for()
    send(page)
    assert says in failure(page)
    comes_back(page, "What is this?", 1)
    page.locator("#strip .failure").wait_for(state="detached")  # it is told in the chat now, and only there
    page.locator("#composer .delete-button").first.click()
    write(page, "Hello")
    send(page)
    assert answered(page) is not None


def test_a_question_longer_than_the_context(page):
    write(page, "word " * 9000)
    send(page)
    assert "tokens" in failure(page)
    comes_back(page, ("word " * 9000).strip())


def test_settings_out_of_range_are_told(page):
    unfold(page, "Sampling", "#seed input").fill("-5")
    write(page, "Hello")
    send(page)
    assert "seed" in failure(page)


def test_pictures_can_be_pasted_and_dropped(page):
    data = base64.b64encode((EXAMPLES / "night.png").read_bytes()).decode()
    for event, field, place in (("paste", "clipboardData", "textarea"), ("drop", "dataTransfer", ".full-container")):
        before = page.locator("#composer .thumbnail-item").count()
        page.evaluate(
            """([data, event, field, place]) => {
              const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
              const transfer = new DataTransfer();
              transfer.items.add(new File([bytes], "night.png", { type: "image/png" }));
              const Kind = event === "paste" ? ClipboardEvent : DragEvent;
              const options = { bubbles: true, cancelable: true, [field]: transfer };
              document.querySelector("#composer " + place).dispatchEvent(new Kind(event, options));
            }""",
            [data, event, field, place],
        )
        page.locator("#composer .thumbnail-item").nth(before).wait_for()
    page.locator("#strip").get_by_text("2 tiles, 128 tokens").wait_for()


def test_shift_enter_breaks_the_line(page):
    box = page.locator("#composer textarea")
    box.fill("one")
    box.press("Shift+Enter")
    box.type("two")
    assert box.input_value() == "one\ntwo"
    assert page.locator("#chat .message-row").count() == 0


def test_the_page_works_by_keyboard_alone(page):
    page.locator("#chat button.example").first.focus()
    page.keyboard.press("Enter")
    answered(page)
    page.get_by_role("button", name="Retry").focus()
    ring = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert ring == "solid"


def test_two_windows_never_mix(browser, url):
    with opened(browser, url) as one, opened(browser, url) as two:
        choose(one, 0)
        choose(two, 1)
        answered(one)
        answered(two)
        assert "How many hearts" in one.locator("#chat .user-row").inner_text()
        assert "How many hearts" not in two.locator("#chat .user-row").inner_text()
        write(two, "Is there a circle?")
        send(two)
        answered(two, 2)
        assert one.locator("#chat .user-row").count() == 1


def test_pan_and_scan_changed_between_turns(page):
    page.locator("#pan-and-scan input").check()
    write(page, "What color is the star?", EXAMPLES / "wide.png")
    send(page)
    answered(page)
    page.locator("#pan-and-scan input").uncheck()
    write(page, "Is there a circle?", EXAMPLES / "wide.png")
    send(page)
    answered(page, 2)
    # The first picture keeps its two crops, the second one has none.
    assert "2 pictures, 2 crops" in page.locator("#chat .figures").nth(1).text_content()
    page.locator("#strip").get_by_text("What the model saw: 1 tile, 64 tokens").wait_for()


def test_the_same_seed_gives_the_same_answer(page):
    unfold(page, "Sampling", "#seed input")
    temperature = page.get_by_label("number input for Temperature")
    temperature.fill("2")
    temperature.press("Tab")
    slider = page.get_by_label("range slider for Temperature")
    page.wait_for_function("slider => slider.value === '2'", arg=slider.element_handle())
    answers = []
    for seed in ("22", "22", "25", "33", "34"):
        page.locator("#seed input").fill(seed)
        page.locator("#seed input").press("Tab")
        write(page, "How many shapes are there?", EXAMPLES / "wide.png")
        send(page)
        answers.append(answered(page))
        page.locator("#clear").click()
        page.locator("#chat .placeholder-content").wait_for()
    assert answers[0] == answers[1]
    assert len(set(answers)) > 1


def test_an_edited_question_goes_on_from_there_with_its_picture(page):
    choose(page)
    answered(page)
    write(page, "Is there a circle?")
    send(page)
    answered(page, 2)
    write(page, "half a question")
    act(page, "Edit question 1")
    comes_back(page, "How many hearts are there?", 1)
    page.locator("#changing", has_text="Editing question 1").wait_for()
    page.wait_for_function("document.activeElement.tagName === 'TEXTAREA'")
    act(page, "Cancel editing")
    comes_back(page, "half a question")
    assert page.locator("#chat .user-row").count() == 2
    act(page, "Edit question 1")
    comes_back(page, "How many hearts are there?", 1)
    write(page, "What color is the star?")
    send(page)
    page.locator("#chat .user-row", has_text="What color is the star?").wait_for()
    answered(page)
    comes_back(page, "half a question")
    assert page.locator("#chat .user-row").count() == page.locator("#chat .bot-row").count() == 1
    assert page.locator("#chat .user-row img").count() == 1
    assert page.locator("#changing p").inner_text().startswith("The earlier answer and what came after it are replaced")


def test_undo_takes_the_question_and_its_picture_back(page):
    choose(page)
    answered(page)
    act(page, "Undo")
    page.locator("#chat .placeholder-content").wait_for()
    comes_back(page, "How many hearts are there?", 1)
    page.locator("#strip").get_by_text("What the model will see: 1 tile").wait_for()
    send(page)
    assert answered(page).strip()


# Each picture kind: what is in the file, or how it is made.


def _saved(folder, name, picture, **options):
    picture.save(folder / name, **options)
    return folder / name


def _good_pictures(folder):
    """One file of each kind that is answered as it is; test_sources.py has those with several pages or frames."""
    plain = Image.open(EXAMPLES / "night.png").convert("RGB").resize((120, 80))
    turned = Image.Exif()
    turned[0x0112] = 6  # EXIF 2.32, Orientation: the first row is the right-hand side
    frames = [Image.new("RGB", (90, 60), color) for color in ("red", "green")]
    animated = {"save_all": True, "append_images": frames[1:], "duration": 200}
    deep = Image.frombytes("I;16", (64, 64), bytes(range(256)) * 32)
    alpha = plain.convert("RGBA")
    alpha.putalpha(128)
    return [
        *(_saved(folder, f"plain.{form}", plain) for form in ("jpg", "png", "webp", "bmp", "tiff", "avif")),
        _saved(folder, "alpha.png", alpha),
        _saved(folder, "palette.png", plain.convert("P", palette=Image.Palette.ADAPTIVE)),
        _saved(folder, "gray.png", plain.convert("L")),
        _saved(folder, "deep.png", deep),
        _saved(folder, "cmyk.jpg", plain.convert("CMYK")),
        _saved(folder, "turned.jpg", plain, exif=turned),
        _saved(folder, "still.gif", frames[0]),
        _saved(folder, "animated.webp", frames[0], **animated),
        _saved(folder, "thin.png", Image.new("RGB", (1, 5000), "red")),
    ]


def test_every_kind_of_picture_is_shown_as_the_model_sees_it_and_answered(page, tmp_path):
    files = _good_pictures(tmp_path)
    write(page, "What color is the star?", *files)
    strip = page.locator("#strip")
    strip.get_by_text(f"What the model will see: {len(files)} tiles, {64 * len(files)} tokens").wait_for()
    widths = strip.locator("img").evaluate_all(
        "images => Promise.all(images.map((image) => image.decode().then(() => image.naturalWidth)))"
    )
    assert len(widths) == len(files)
    assert min(widths) > 0, dict(zip(files, widths, strict=True))
    send(page)
    assert answered(page).strip()
    assert f"{len(files)} pictures" in page.locator("#chat .figures").text_content()


def test_every_picture_that_is_refused_is_told_why(page, tmp_path):
    from png import png_header

    (tmp_path / "huge.png").write_bytes(png_header(9000, 8000))
    page.locator("#composer input[type=file]").set_input_files(str(tmp_path / "huge.png"))
    page.get_by_text(re.compile(r"huge\.png” is not added\. .*at most 64 are accepted")).first.wait_for()
    night = (EXAMPLES / "night.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(night[: len(night) // 2])
    write(page, "What is this?", tmp_path / "cut.png")
    page.locator("#strip .failure", has_text="damaged or cut off").wait_for()
    send(page)
    assert "damaged or cut off" in failure(page)
    comes_back(page, "What is this?", 1)


def test_a_file_over_20_mb_is_not_taken(page, tmp_path):
    (tmp_path / "large.png").write_bytes(b"0" * 20_000_001)
    page.locator("#composer input[type=file]").set_input_files(str(tmp_path / "large.png"))
    page.get_by_text("maximum allowed size").first.wait_for()
    assert page.locator("#composer .thumbnail-item").count() == 0


@pytest.mark.parametrize(
    ("width", "height", "query"), [(1440, 900, ""), (1024, 768, ""), (390, 844, ""), (390, 844, "?__theme=dark")]
)
def test_nothing_sticks_out_sideways(browser, url, width, height, query):
    with opened(browser, url, width, height, query) as page:
        add(page, EXAMPLES / "wide.png", EXAMPLES / "night.png")
        choose(page)
        answered(page)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.locator("#composer").is_visible()
        send_button = page.locator("#composer .submit-button").bounding_box()
        assert send_button["x"] + send_button["width"] <= width
        assert send_button["y"] + send_button["height"] <= height


def test_the_controls_of_a_conversation_fit_a_phone(browser, url):
    with opened(browser, url, 390, 844) as page:
        choose(page)
        answered(page)
        for name in ("Edit question 1", "Copy answer 1", "Retry", "Undo"):
            box = page.get_by_role("button", name=name).bounding_box()
            assert box["x"] >= 0, name
            assert box["x"] + box["width"] <= 390, name
            assert box["height"] >= 24, name  # WCAG 2.2, target size (minimum)
        act(page, "Edit question 1")
        keep = page.get_by_role("button", name="Cancel editing")
        keep.wait_for()
        assert keep.bounding_box()["x"] + keep.bounding_box()["width"] <= 390


def test_settings_are_folded_on_a_phone(browser, url):
    with opened(browser, url, 390, 844) as page:
        assert page.locator("#settings.open").count() == 0
        page.get_by_role("button", name="Settings", exact=True).click()
        page.locator("#pan-and-scan input").check()
        page.get_by_role("button", name="Settings", exact=True).click()
        write(page, "How many circles are there?", EXAMPLES / "wide.png")
        send(page)
        answered(page)
        assert "2 crops" in page.locator("#chat .figures").text_content()


def test_motion_is_off_for_those_who_ask(browser, url):
    with opened(browser, url) as page:
        page.emulate_media(reduced_motion="reduce")
        page.evaluate("document.querySelector('#chat').innerHTML += '<p class=stage>…</p>'")
        assert page.evaluate("getComputedStyle(document.querySelector('p.stage')).animationName") == "none"
        page.emulate_media(reduced_motion="no-preference")
        assert page.evaluate("getComputedStyle(document.querySelector('p.stage')).animationName") == "breathe"


# With an engine that waits.


def test_stop_works_in_each_stage(browser, scripted, scripted_url):
    texts = ("2nd in the queue, about 6 s", "Encoding 1 picture", "Reading 90 tokens", "There")
    with opened(browser, scripted_url) as page:
        choose(page)
        for number, (stage, shows) in enumerate(zip(STAGES, texts, strict=True), 1):
            page.locator("#chat .bot-row", has_text=shows).wait_for()
            page.locator("#composer .stop-button").click()
            page.locator("#composer .submit-button").wait_for()
            assert scripted.wait_until_closed(number) == list(STAGES[:number])
            if stage != "writing":
                assert "Stopped before the first word" in remark(page)
                comes_back(page, "How many hearts are there?", 1)
                scripted.let_through(stage)
                send(page)
        figures = page.locator("#chat .figures", has_text="stopped after")
        known = r"float32 · 1 picture, 2 crops · .* · first token \d+\.\d\d s"
        assert re.search(known, figures.text_content())
        assert "There" in page.locator("#chat .bot-row").inner_text()


def test_stop_is_there_for_every_question_and_stays(browser, scripted, scripted_url):
    scripted.let_through(*STAGES)
    with opened(browser, scripted_url) as page:
        converse(page, "One?", "Two?")
        for number in (3, 4):
            page.locator("#composer .submit-button").wait_for()
            scripted.go_on["writing"].clear()
            write(page, "And now?")
            send(page)
            page.locator("#chat .bot-row", has_text="There").nth(number - 1).wait_for()
            page.locator("#composer .stop-button").wait_for()
            time.sleep(1.5)  # longer than any late update takes
            assert page.locator("#composer .stop-button").is_visible()
            assert page.locator("#composer .submit-button").count() == 0
            page.locator("#composer .stop-button").click()
            page.locator("#composer .submit-button").wait_for()
            page.locator("#chat .figures").nth(number - 1).wait_for()
    assert scripted.wait_until_closed(4) == ["done", "done", "writing", "writing"]


def test_what_is_typed_right_after_sending_is_kept(browser, scripted, scripted_url):
    with opened(browser, scripted_url) as page:
        box = page.locator("#composer textarea")
        box.fill("One?")
        box.press("Enter")
        page.wait_for_function("document.querySelector('#composer textarea').value === ''")  # by the browser alone
        box.type("Two?")
        page.locator("#composer .stop-button").wait_for()
        assert composer_holds(page)[0] == "Two?"
        scripted.let_through(*STAGES)
        answered(page)
        comes_back(page, "Two?")
    assert [request.turns[-1].text for request in scripted.requests] == ["One?"]


def test_two_windows_that_ask_at_once_never_mix(browser, scripted, scripted_url):
    scripted.echoes = True
    with opened(browser, scripted_url) as one, opened(browser, scripted_url) as two:
        for page, words in ((one, "alpha beta"), (two, "gamma delta")):
            write(page, words)
            send(page)
        for page in (one, two):
            page.locator("#chat .stage", has_text="2nd in the queue").wait_for()
        assert len(scripted.requests) == 2
        one.locator("#composer .stop-button").click()
        assert "Stopped before the first word" in remark(one)
        assert two.locator("#chat .stage").is_visible()
        scripted.let_through(*STAGES)
        comes_back(one, "alpha beta")
        send(one)
        assert answered(one) == "alpha beta"
        assert answered(two) == "gamma delta"
    assert len({request.visitor for request in scripted.requests}) == 2


def test_the_model_is_asked_with_what_an_edit_and_an_undo_leave(browser, scripted, scripted_url):
    scripted.let_through(*STAGES)
    with opened(browser, scripted_url) as page:
        converse(page, "One?", "Two?", "Three?")
        act(page, "Undo")
        comes_back(page, "Three?")
        send(page)
        answered(page, 3)
        act(page, "Edit question 2")
        comes_back(page, "Two?")
        write(page, "Two and a half?")
        send(page)
        page.locator("#chat .user-row", has_text="Two and a half?").wait_for()
        answered(page, 2)
        act(page, "Retry: ask the last question again")
        for _ in range(200):  # at most 10 s
            if len(scripted.requests) == 6:
                break
            page.wait_for_timeout(50)
        answered(page, 2)
    asked = [[turn.text for turn in request.turns if turn.role == "user"] for request in scripted.requests]
    assert asked[3:] == [["One?", "Two?", "Three?"], ["One?", "Two and a half?"], ["One?", "Two and a half?"]]


def test_a_stopped_retry_keeps_the_earlier_answer(browser, scripted, scripted_url):
    scripted.let_through(*STAGES)
    with opened(browser, scripted_url) as page:
        converse(page, "One?")
        scripted.go_on["reading"].clear()
        act(page, "Retry: ask the last question again")
        page.locator("#chat .stage", has_text="Reading").wait_for()
        page.locator("#composer .stop-button").click()
        assert "The earlier answer stays" in remark(page)
        assert "There are three red hearts." in page.locator("#chat").inner_text()
        comes_back(page, "")


def test_controls_work_by_keyboard(browser, scripted, scripted_url):
    scripted.let_through(*STAGES)
    with opened(browser, scripted_url) as page:
        converse(page, "One?")
        page.get_by_role("button", name="Edit question 1").focus()
        page.keyboard.press("Enter")
        comes_back(page, "One?")
        page.get_by_role("button", name="Cancel editing").focus()
        page.keyboard.press("Enter")
        comes_back(page, "")
        page.get_by_role("button", name="Edit question 1").focus()
        names = []
        for _ in range(6):
            page.keyboard.press("Tab")
            names.append(page.evaluate("document.activeElement.textContent"))
        assert names[0].startswith("demo model ·")
        assert names[1:] == ["Look inside", "Code", "Copy", "Retry", "Undo"]
        page.keyboard.press("Enter")
        comes_back(page, "One?")


# With small random checkpoints.


def test_a_conversation_that_outgrows_the_context_stays_whole(browser, chat_folder):
    engine = Engine.load(chat_folder, device="cpu")  # its context is 512 tokens
    with served(engine) as address, opened(browser, address) as page:
        write(page, "what", EXAMPLES / "night.png")
        send(page)
        answered(page)
        question = "and the other one " * 20
        write(page, question, EXAMPLES / "wide.png")
        send(page)
        reason = failure(page)
        assert "512" in reason
        assert "new conversation" in reason
        comes_back(page, question.strip(), 1)
        assert page.locator("#chat .figures").count() == 1  # the first answer is still there
        act(page, "New chat")
        page.locator("#chat .placeholder-content").wait_for()
        write(page, "what", EXAMPLES / "night.png")
        send(page)
        answered(page)


def test_a_text_only_checkpoint_answers_text_and_refuses_pictures(browser, text_chat_folder):
    engine = Engine.load(text_chat_folder, device="cpu")
    with served(engine) as address, opened(browser, address) as page:
        assert page.title() == page.locator("h1").inner_text() == "Gemma 3"
        assert page.locator("#chat button.example").first.inner_text() == "What is the capital of France?"
        assert not page.locator("#composer .upload-button").is_visible()
        assert "text only" in page.locator("#chat .placeholder-content").inner_text()
        write(page, "what", EXAMPLES / "night.png")
        page.locator("#strip .failure", has_text="reads text only").wait_for()
        send(page)
        assert "small-text-model reads text only" in failure(page)
        comes_back(page, "what", 1)
        page.locator("#composer .delete-button").first.click()
        write(page, "what")
        send(page)
        answered(page)


def test_a_checkpoint_without_processor_files_shows_the_published_tiles(browser, small_tokenizer_folder, tmp_path):
    write_published_shape(tmp_path / "plain", small_tokenizer_folder)
    with served(Engine.load(tmp_path / "plain", device="cpu")) as address, opened(browser, address) as page:
        write(page, "what", EXAMPLES / "night.png")
        page.locator("#strip").get_by_text("What the model will see: 1 tile, 256 tokens").wait_for()
        send(page)
        answered(page)


# Closing and clearing.


@pytest.mark.parametrize(
    ("stage", "shown"), [("queued", "2nd in the queue"), ("encoding", "Encoding 1 picture"), ("writing", "There")]
)
def test_closing_the_tab_stops_the_engine(browser, scripted, scripted_url, stage, shown):
    stages = ("queued", "encoding", "reading", "writing")
    scripted.let_through(*stages[: stages.index(stage)])
    with opened(browser, scripted_url) as page:
        choose(page)
        page.locator("#chat .bot-row", has_text=shown).wait_for()
        page.close()
        assert scripted.wait_until_closed() == [stage]


def test_clear_while_answering(browser, scripted, scripted_url):
    scripted.let_through("queued", "encoding", "reading")
    with opened(browser, scripted_url) as page:
        choose(page)
        page.locator("#chat .bot-row", has_text="There").wait_for()
        page.locator("#clear").click()
        page.locator("#chat .placeholder-content").wait_for()
        page.locator("#composer .submit-button").wait_for()
        assert scripted.wait_until_closed() == ["writing"]
        time.sleep(0.5)
        assert page.locator("#chat .message-row").count() == 0


def test_an_answer_streams_in_and_typing_meanwhile_is_kept(browser, scripted, scripted_url):
    scripted.let_through("queued", "encoding", "reading")
    with opened(browser, scripted_url) as page:
        choose(page)
        page.locator("#chat .bot-row", has_text="There").wait_for()
        assert "hearts." not in page.locator("#chat .bot-row").inner_text()
        page.locator("#composer textarea").type("and now")
        with page.expect_response(lambda response: "queue/join" in response.url):
            page.locator("#composer textarea").press("Enter")  # does nothing while an answer is being written
        time.sleep(1)
        scripted.let_through("writing")
        assert answered(page) == "There are three red hearts."
        assert composer_holds(page)[0] == "and now"
        assert len(scripted.requests) == 1


def test_nothing_in_an_answer_or_a_question_becomes_html(browser, scripted, scripted_url):
    scripted.let_through("queued", "encoding", "reading", "writing")
    scripted.answer = "<img src='http://evil.test/a.png'> ![x](http://evil.test/b.png) **bold** <b>raw</b>\n\n* one"
    with opened(browser, scripted_url) as page:  # fails on its own if evil.test is asked for anything
        typed = "<img src='http://evil.test/c.png'>\n    *as* typed {{x}} ${1+1}"
        write(page, typed)
        send(page)
        text = answered(page)
        assert "<img src='http://evil.test/a.png'>" in text
        assert "<b>raw</b>" in text
        assert page.locator("#chat .bot-row strong").inner_text() == "bold"
        assert page.locator("#chat .bot-row li").count() == 1
        assert page.locator("#chat img").count() == 0
        asked = page.locator("#chat .user-row .message-content").inner_text()
        assert asked.replace("\N{NO-BREAK SPACE}", " ") == typed


def test_what_the_visitor_chose_reaches_the_engine(browser, scripted, scripted_url):
    scripted.let_through("queued", "encoding", "reading", "writing")
    with opened(browser, scripted_url) as page:
        unfold(page, "System prompt", "#system-prompt textarea").fill("Be brief.")
        unfold(page, "Sampling", "#seed input").fill("11")
        page.locator("#pan-and-scan input").check()
        write(page, "What is it?", EXAMPLES / "night.png")
        send(page)
        answered(page)
        write(page, "And now?", EXAMPLES / "wide.png")
        send(page)
        answered(page, 2)
    first, second = scripted.requests
    assert (first.system_prompt, first.pan_and_scan, first.sampling.seed) == ("Be brief.", True, 11)
    assert first.max_new_tokens == 256
    assert [turn.role for turn in second.turns] == ["user", "assistant", "user"]
    assert [Path(turn.pictures[0]).name for turn in second.turns[::2]] == ["night.png", "wide.png"]
    assert first.visitor == second.visitor != ""


def test_the_next_question_reuses_what_was_read_until_the_chat_is_cleared(page):
    question = "How many hearts are there?"
    write(page, question, EXAMPLES / "night.png")
    send(page)
    answered(page)
    assert "reused" not in page.locator("#chat .figures").first.text_content()
    write(page, "How many stars are there?")
    send(page)
    answered(page, 2)
    tokens = r"([\d,]+) tokens"
    first, second = (page.locator("#chat .figures").nth(number).text_content() for number in range(2))
    read = int(re.search(tokens, first)[1])
    assert int(re.search(rf"{tokens} \((\d+) reused\)", second)[2]) > read
    page.locator("#clear").click()
    page.locator("#chat .figures").first.wait_for(state="detached")
    write(page, question, EXAMPLES / "night.png")
    send(page)
    answered(page)
    assert "reused" not in page.locator("#chat .figures").first.text_content()


def test_who_clears_the_chat_or_leaves_is_forgotten(browser, scripted, scripted_url):
    scripted.let_through(*STAGES)
    with opened(browser, scripted_url) as page:
        choose(page)
        answered(page)
        assert scripted.forgotten == []
        page.locator("#clear").click()
        page.locator("#chat .figures").first.wait_for(state="detached")
        assert len(scripted.forgotten) == 1
        page.close()
    end = time.monotonic() + 10
    while len(scripted.forgotten) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    assert len(scripted.forgotten) == 2
    assert set(scripted.forgotten) == {scripted.requests[0].visitor}


def test_an_unexpected_fault_is_told_and_the_page_goes_on(browser, scripted, scripted_url):
    def broken(_):
        raise RuntimeError("/secret/path")
        yield

    real, scripted.stream = scripted.stream, broken
    with opened(browser, scripted_url) as page:
        choose(page)
        assert "Something went wrong" in failure(page)
        assert "secret" not in page.locator("body").inner_text()
        comes_back(page, "How many hearts are there?", 1)
        scripted.stream = real
        scripted.let_through(*STAGES)
        send(page)
        assert answered(page) == "There are three red hearts."
