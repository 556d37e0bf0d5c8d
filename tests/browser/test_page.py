"""The real page in Debian's chromium: with the demo model, and with an engine that waits where it is told to."""

import base64
import re
import time
from pathlib import Path

from browsing import add, answer_briefly, answered, choose, send, write
from PIL import Image
from places import EXAMPLES
from png import png_header
from running_app import opened, served, unfold

from gemma3_core.engine import Engine, ModelRegistry

STAGES = ("queued", "encoding", "reading", "writing")
FIGURES = re.compile(r"demo model · \d+\.\d s\w+ · 1 picture.* · \d+ tokens · first token \d+\.\d\d s")


def retry(page):
    """Asks again, and waits for figures that were not there before: the new answer may come within a frame."""
    page.locator("#chat .figures").last.evaluate("line => line.dataset.old = 'yes'")
    act(page, "Retry: ask the last question again")
    page.locator("#chat .figures[data-old]").wait_for(state="detached")
    page.locator("#chat .figures").last.wait_for()


def fails(page, reason):
    page.locator("#chat .failure", has_text=reason).wait_for()


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


def new_chat(page):
    page.locator("#clear").click()
    page.locator("#chat .placeholder-content").wait_for()


def converse(page, *questions, first=1):
    """Asks one question after the other; the answer to the first one has this number."""
    for number, question in enumerate(questions, first):
        write(page, question)
        send(page)
        answered(page, number)


def figures(page, number=1):
    """The line under the numbered answer."""
    answered(page, number)
    return page.locator("#chat .figures").nth(number - 1).text_content()


# With the demo model.


def test_first_sight_and_an_example_by_keyboard_alone(page):
    first = page.locator("#chat .placeholder-content").inner_text()
    assert "A small demo model answers: shapes, signs, bar charts, price boards." in first
    limits = page.locator("#chat .placeholder-content details")
    assert not limits.get_by_text("eleven colors").is_visible()
    limits.locator("summary").click()
    limits.get_by_text("eleven colors").wait_for()
    assert "choose gemma-3-4b-it-Q4_K_M under Model" in limits.inner_text()
    assert page.locator("#chat button.example").count() >= 4
    page.locator("#chat button.example").first.focus()
    page.keyboard.press("Enter")
    answer = answered(page)
    assert answer.strip()
    assert FIGURES.search(figures(page))
    assert page.locator("#chat .user-row img").count() == 1
    assert "How many hearts are there?" in page.locator("#chat .user-row").inner_text()
    page.get_by_role("button", name="Retry").focus()
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    # A copy button that is clicked twice gets its own name back.
    act(page, "Copy answer 1")
    act(page, "Copied")
    page.get_by_role("button", name="Copied").wait_for(state="detached")
    page.wait_for_timeout(1500)  # after the second click, too
    act(page, "Copy answer 1")
    page.get_by_role("button", name="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == answer.strip()
    retry(page)
    assert answered(page) == answer  # greedy
    new_chat(page)
    assert page.locator("#chat .message-row").count() == 0
    page.locator("#strip .strip").wait_for(state="detached")


def test_questions_about_an_upload_reuse_what_was_read_until_the_chat_is_cleared(page):
    question = "How many hearts are there?"
    write(page, question, EXAMPLES / "night.png")
    page.locator("#composer .submit-button").click()
    assert answered(page).strip()
    assert composer_holds(page) == ("", 0)
    first = figures(page)
    assert "reused" not in first
    write(page, "How many stars are there?")
    send(page)
    assert answered(page, 2).strip()
    second = figures(page, 2)
    assert "1 picture" in second  # the second question's prompt holds the first one's picture too
    tokens = r"([\d,]+) tokens"
    assert int(re.search(rf"{tokens} \((\d+) reused\)", second)[2]) > int(re.search(tokens, first)[1])
    new_chat(page)
    write(page, question, EXAMPLES / "night.png")
    send(page)
    assert "reused" not in figures(page)
    # The int4 switch counts from the next answer on.
    assert "MB of memory instead of" in page.locator("#int4").inner_text()
    assert not page.locator("#int4 input").is_checked()
    for number, precision, badge in ((2, "int4", "4-bit"), (3, "float32", "full precision")):
        page.locator("#int4 input").set_checked(precision == "int4")
        page.locator("#head .badge").get_by_text(badge).wait_for()
        write(page, "Is there a circle?")
        send(page)
        answered(page, number)
    lines = [figures(page, number) for number in (1, 2, 3)]
    assert ["int4" in line for line in lines] == [False, True, False]
    assert ["float32" in line for line in lines] == [True, False, True]


def test_pan_and_scan_shows_its_crops_and_counts_for_the_question_that_it_was_set_for(page, tmp_path):
    strip, switch = page.locator("#strip"), page.locator("#pan-and-scan input")
    add(page, EXAMPLES / "wide.png")
    strip.get_by_text("What the model will see: 1 tile, 64 tokens").wait_for()
    assert strip.locator("img").count() == 1
    switch.check()
    strip.get_by_text("What the model will see: 3 tiles, 192 tokens").wait_for()
    assert strip.locator(".box").count() == 2
    assert strip.locator("img").count() == 4
    page.locator("#composer .delete-button").first.click()
    strip.locator(".strip").wait_for(state="detached")
    # A square picture gets no crops, and the strip says why.
    Image.new("RGB", (600, 600), "white").save(tmp_path / "square.png")
    add(page, tmp_path / "square.png")
    strip.locator(".note", has_text="square").wait_for()
    assert strip.locator(".box").count() == 0
    page.locator("#composer .delete-button").first.click()
    strip.locator(".strip").wait_for(state="detached")
    # After the answer the strip keeps what was seen. The first picture keeps its crops, the second one has none.
    write(page, "What color is the star?", EXAMPLES / "wide.png")
    send(page)
    assert "1 picture, 2 crops" in figures(page)
    strip.get_by_text("What the model saw: 3 tiles").wait_for()
    switch.uncheck()
    write(page, "Is there a circle?", EXAMPLES / "wide.png")
    send(page)
    assert "2 pictures, 2 crops" in figures(page, 2)
    strip.get_by_text("What the model saw: 1 tile, 64 tokens").wait_for()


def test_what_lacks_something_or_is_too_much_is_told_and_given_back(page):
    send(page)
    page.get_by_text("There is no question yet.").wait_for()
    add(page, EXAMPLES / "night.png")
    send(page)
    page.get_by_text("Ask something about the picture.").wait_for()
    comes_back(page, "", 1)
    long = "word " * 9000
    write(page, long)
    send(page)
    fails(page, "tokens")
    comes_back(page, long.strip(), 1)
    write(page, "What color is the star?")
    unfold(page, "Sampling", "#seed input").fill("-5")
    send(page)
    fails(page, "seed")
    page.locator("#seed input").fill("")
    send(page)
    assert answered(page).strip()
    assert page.locator("#chat .failure").count() == 0


def test_files_that_can_not_be_read_are_told_and_the_question_is_given_back(page, tmp_path):
    write(page, "Hello")
    for name, content, says in (
        ("nothing.png", b"", "empty"),
        ("words.png", b"words", "not a picture"),
        ("huge.png", png_header(9000, 8000), "at most 64 are accepted"),
    ):
        (tmp_path / name).write_bytes(content)
        page.locator("#composer input[type=file]").set_input_files(tmp_path / name)
        page.get_by_text(re.compile(rf"{re.escape(name)}” is not added\. .*{says}")).first.wait_for()
        assert composer_holds(page) == ("Hello", 0)
    (tmp_path / "large.png").write_bytes(b"0" * 20_000_001)
    page.locator("#composer input[type=file]").set_input_files(tmp_path / "large.png")
    page.get_by_text("maximum allowed size").first.wait_for()
    assert composer_holds(page) == ("Hello", 0)
    # A damaged one is taken: how it looks is known only once it is read.
    night = (EXAMPLES / "night.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(night[: len(night) // 2])
    write(page, "What is this?", tmp_path / "cut.png")
    page.locator("#strip .failure", has_text="damaged or cut off").wait_for()
    send(page)
    fails(page, "damaged or cut off")
    comes_back(page, "What is this?", 1)
    page.locator("#strip .failure").wait_for(state="detached")  # it is told in the chat now, and only there
    page.locator("#composer .delete-button").first.click()
    write(page, "Hello")
    send(page)
    answered(page)


def test_a_question_is_edited_and_taken_back_with_its_picture(page):
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
    write(page, "")
    act(page, "Undo")
    page.locator("#chat .placeholder-content").wait_for()
    comes_back(page, "What color is the star?", 1)
    page.locator("#strip").get_by_text("What the model will see: 1 tile").wait_for()


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


def test_pictures_of_every_kind_typed_pasted_and_dropped_are_shown_as_the_model_sees_them(page, tmp_path):
    box = page.locator("#composer textarea")
    box.fill("one")
    box.press("Shift+Enter")  # breaks the line
    box.type("two")
    assert box.input_value() == "one\ntwo"
    assert page.locator("#chat .message-row").count() == 0
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
    strip = page.locator("#strip")
    strip.get_by_text("2 tiles, 128 tokens").wait_for()
    for _ in range(2):
        page.locator("#composer .delete-button").first.click()
    strip.locator(".strip").wait_for(state="detached")
    files = _good_pictures(tmp_path)
    write(page, "What color is the star?", *files)
    strip.get_by_text(f"What the model will see: {len(files)} tiles, {64 * len(files)} tokens").wait_for()
    widths = strip.locator("img").evaluate_all(
        "images => Promise.all(images.map((image) => image.decode().then(() => image.naturalWidth)))"
    )
    assert len(widths) == len(files)
    assert min(widths) > 0, dict(zip(files, widths, strict=True))
    send(page)
    assert answered(page).strip()
    assert f"{len(files)} pictures" in figures(page)


def test_nothing_sticks_out_sideways_from_a_phone_to_a_wide_window(browser, url):
    with opened(browser, url, 390, 844) as page:

        def everything_fits(width, height):
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), width
            button = page.locator("#composer .submit-button").bounding_box()
            assert button["x"] + button["width"] <= width
            assert button["y"] + button["height"] <= height

        toggle = page.get_by_role("button", name="Settings", exact=True)
        add(page, EXAMPLES / "wide.png", EXAMPLES / "night.png")
        choose(page)
        answered(page)
        everything_fits(390, 844)
        for name in ("Edit question 1", "Copy answer 1", "Retry", "Undo"):
            box = page.get_by_role("button", name=name).bounding_box()
            assert box["x"] >= 0, name
            assert box["x"] + box["width"] <= 390, name
            assert box["height"] >= 24, name  # WCAG 2.2, target size (minimum)
        act(page, "Edit question 1")
        keep = page.get_by_role("button", name="Cancel editing")
        keep.wait_for()
        assert keep.bounding_box()["x"] + keep.bounding_box()["width"] <= 390
        keep.click()
        # On a phone the settings are folded, and count all the same.
        assert page.locator("#settings.open").count() == 0
        toggle.click()
        page.locator("#pan-and-scan input").check()
        page.locator("#theme input[value=Dark]").check()
        toggle.click()
        comes_back(page, "", 2)
        write(page, "How many circles are there?")
        send(page)
        assert "3 pictures, 4 crops" in figures(page, 2)
        page.wait_for_function("document.body.classList.contains('dark')")
        everything_fits(390, 844)
        page.set_viewport_size({"width": 1024, "height": 768})
        everything_fits(1024, 768)
        page.set_viewport_size({"width": 1440, "height": 900})
        toggle.click()  # as a window of this width has them from the start
        everything_fits(1440, 900)


# With an engine that waits.


def test_stop_works_in_each_stage_and_is_there_for_every_question(browser, scripted, scripted_url):
    texts = ("2nd in the queue, about 6 s", "Encoding 1 picture", "Reading 90 tokens", "There")
    with opened(browser, scripted_url) as page:
        stop = page.locator("#composer .stop-button")
        choose(page)
        for number, (stage, shows) in enumerate(zip(STAGES, texts, strict=True), 1):
            page.locator("#chat .bot-row", has_text=shows).wait_for()
            if stage == "queued":  # motion is off for those who ask
                for motion, animation in (("reduce", "none"), ("no-preference", "breathe")):
                    page.emulate_media(reduced_motion=motion)
                    name = "getComputedStyle(document.querySelector('#chat p.stage')).animationName"
                    assert page.evaluate(name) == animation
            stop.click()
            page.locator("#composer .submit-button").wait_for()
            assert scripted.wait_until_closed(number) == list(STAGES[:number])
            if stage != "writing":
                assert "Stopped before the first word" in remark(page)
                comes_back(page, "How many hearts are there?", 1)
                scripted.let_through(stage)
                send(page)
        known = r"float32 · 1 picture, 2 crops · .* · first token \d+\.\d\d s .* · stopped after"
        assert re.search(known, figures(page))
        assert "There" in page.locator("#chat .bot-row").inner_text()
        # It stays, also after an answer that came to its end.
        scripted.let_through("writing")
        converse(page, "One?", first=2)
        scripted.go_on["writing"].clear()
        page.locator("#composer .submit-button").wait_for()
        write(page, "And now?")
        send(page)
        page.locator("#chat .bot-row", has_text="There").nth(2).wait_for()
        stop.wait_for()
        time.sleep(1.5)  # longer than any late update takes
        assert stop.is_visible()
        assert page.locator("#composer .submit-button").count() == 0
        stop.click()
        page.locator("#composer .submit-button").wait_for()
        answered(page, 3)
    assert scripted.wait_until_closed(6)[4:] == ["done", "writing"]


def test_an_answer_streams_in_and_what_is_typed_meanwhile_is_kept(browser, scripted, scripted_url):
    with opened(browser, scripted_url) as page:
        box = page.locator("#composer textarea")
        box.fill("One?")
        box.press("Enter")
        page.wait_for_function("document.querySelector('#composer textarea').value === ''")  # by the browser alone
        box.type("Two?")
        page.locator("#composer .stop-button").wait_for()
        assert composer_holds(page)[0] == "Two?"
        scripted.let_through("queued", "encoding", "reading")
        page.locator("#chat .bot-row", has_text="There").wait_for()
        assert "hearts." not in page.locator("#chat .bot-row").inner_text()
        with page.expect_response(lambda response: "queue/join" in response.url):
            box.press("Enter")  # does nothing while an answer is being written
        time.sleep(1)
        scripted.let_through("writing")
        assert answered(page) == "There are three red hearts."
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
        converse(two, "epsilon", first=2)
        for page, asked in ((one, ["alpha beta"]), (two, ["gamma delta", "epsilon"])):
            assert page.locator("#chat .user-row .message-content").all_inner_texts() == asked
    assert [turn.text for turn in scripted.requests[-1].turns] == ["gamma delta", "gamma delta", "epsilon"]
    assert len({request.visitor for request in scripted.requests}) == 2


def test_the_controls_of_a_conversation_work_by_keyboard_and_decide_what_the_model_is_asked(
    browser, scripted, scripted_url
):
    scripted.let_through(*STAGES)
    with opened(browser, scripted_url) as page:
        converse(page, "One?", "Two?", "Three?")
        page.get_by_role("button", name="Edit question 3").focus()
        page.keyboard.press("Enter")
        comes_back(page, "Three?")
        page.get_by_role("button", name="Cancel editing").focus()
        page.keyboard.press("Enter")
        comes_back(page, "")
        page.get_by_role("button", name="Edit question 3").focus()
        names = []
        for _ in range(6):
            page.keyboard.press("Tab")
            names.append(page.evaluate("document.activeElement.textContent"))
        assert names[0].startswith("demo model ·")
        assert names[1:] == ["Look inside", "Code", "Copy", "Retry", "Undo"]
        page.keyboard.press("Enter")
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
        # A retry that is stopped keeps the earlier answer.
        scripted.go_on["reading"].clear()
        act(page, "Retry: ask the last question again")
        page.locator("#chat .stage", has_text="Reading").wait_for()
        page.locator("#composer .stop-button").click()
        assert "The earlier answer stays" in remark(page)
        assert page.locator("#chat .bot-row", has_text="There are three red hearts.").count() == 2
        comes_back(page, "")
    asked = [[turn.text for turn in request.turns if turn.role == "user"] for request in scripted.requests]
    assert asked[3:6] == [["One?", "Two?", "Three?"], ["One?", "Two and a half?"], ["One?", "Two and a half?"]]


def test_whoever_clears_the_chat_or_leaves_ends_their_answer_and_is_forgotten(browser, scripted, scripted_url):
    for number, (stage, shown) in enumerate((("queued", "2nd in the queue"), ("encoding", "Encoding 1 picture")), 1):
        with opened(browser, scripted_url) as page:
            choose(page)
            page.locator("#chat .bot-row", has_text=shown).wait_for()
            page.close()
            assert scripted.wait_until_closed(number)[-1] == stage
        scripted.let_through(stage)
    scripted.let_through("reading")
    forgotten = scripted.forgotten
    with opened(browser, scripted_url) as page:
        choose(page)
        page.locator("#chat .bot-row", has_text="There").wait_for()
        new_chat(page)
        page.locator("#composer .submit-button").wait_for()
        assert scripted.wait_until_closed(3)[-1] == "writing"
        time.sleep(0.5)
        assert page.locator("#chat .message-row").count() == 0
        scripted.let_through("writing")
        choose(page)
        answered(page)
        visitor = scripted.requests[-1].visitor
        before = forgotten.count(visitor)
        new_chat(page)
        assert forgotten.count(visitor) == before + 1
        scripted.go_on["writing"].clear()
        choose(page)
        page.locator("#chat .bot-row", has_text="There").wait_for()
        page.close()
        assert scripted.wait_until_closed(5)[3:] == ["done", "writing"]
    end = time.monotonic() + 10
    while forgotten.count(visitor) < before + 2 and time.monotonic() < end:
        time.sleep(0.05)
    assert forgotten.count(visitor) == before + 2
    assert set(forgotten) == {request.visitor for request in scripted.requests}


def test_nothing_that_is_written_becomes_html_and_a_fault_tells_nothing_of_the_server(browser, scripted, scripted_url):
    def broken(_):
        raise RuntimeError("/secret/path")
        yield

    scripted.let_through(*STAGES)
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
        # After a fault that nobody expected the page goes on.
        new_chat(page)
        real, scripted.stream = scripted.stream, broken
        choose(page)
        fails(page, "Something went wrong")
        assert "secret" not in page.locator("body").inner_text()
        comes_back(page, "How many hearts are there?", 1)
        scripted.stream, scripted.answer = real, "There are three red hearts."
        send(page)
        assert answered(page) == "There are three red hearts."


def test_what_the_visitor_chose_reaches_the_engine(browser, scripted, scripted_url):
    scripted.let_through(*STAGES)
    with opened(browser, scripted_url) as page:
        unfold(page, "System prompt", "#system-prompt textarea").fill("Be brief.")
        unfold(page, "Sampling", "#seed input").fill("11")
        temperature = page.get_by_label("number input for Temperature")
        temperature.fill("2")
        temperature.press("Tab")
        slider = page.get_by_label("range slider for Temperature")
        page.wait_for_function("slider => slider.value === '2'", arg=slider.element_handle())
        page.locator("#pan-and-scan input").check()
        write(page, "What is it?", EXAMPLES / "night.png")
        send(page)
        answered(page)
        write(page, "And now?", EXAMPLES / "wide.png")
        send(page)
        answered(page, 2)
    first, second = scripted.requests
    assert (first.system_prompt, first.pan_and_scan) == ("Be brief.", True)
    assert (first.sampling.seed, first.sampling.temperature) == (11, 2)
    assert first.max_new_tokens == 256
    assert [turn.role for turn in second.turns] == ["user", "assistant", "user"]
    assert [Path(turn.pictures[0]).name for turn in second.turns[::2]] == ["night.png", "wide.png"]
    assert first.visitor == second.visitor != ""


# With small random checkpoints.


def test_a_conversation_that_outgrows_the_context_stays_whole(browser, chat_folder):
    models = ModelRegistry.load(chat_folder, device="cpu")  # its context is 512 tokens
    with served(models) as address, opened(browser, address) as page:
        assert page.locator("#model").count() == 0  # where there is one model there is no choice
        answer_briefly(page)
        write(page, "what", EXAMPLES / "night.png")
        send(page)
        answered(page)
        question = "and the other one " * 40
        write(page, question, EXAMPLES / "wide.png")
        send(page)
        fails(page, re.compile("512.*new conversation", re.S))
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
        answer_briefly(page)
        write(page, "what", EXAMPLES / "night.png")
        page.locator("#strip .failure", has_text="reads text only").wait_for()
        send(page)
        fails(page, "small-text-model reads text only")
        comes_back(page, "what", 1)
        page.locator("#composer .delete-button").first.click()
        write(page, "what")
        send(page)
        answered(page)
