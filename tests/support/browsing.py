"""What a visitor does on the page, in a browser."""

from running_app import unfold


def choose(page, number=0):
    page.locator("#chat button.example").nth(number).click()


def write(page, text, *files):
    if files:
        add(page, *files)
    page.locator("#composer textarea").fill(text)


def add(page, *files):
    before = page.locator("#composer .thumbnail-item").count()
    page.locator("#composer input[type=file]").set_input_files([str(file) for file in files])
    page.locator("#composer .thumbnail-item").nth(before + len(files) - 1).wait_for()


def send(page):
    """Presses Enter once the composer shows Send: beside Stop, which may outlast an answer, Enter sends nothing."""
    page.locator("#composer .submit-button").wait_for()
    page.locator("#composer textarea").press("Enter")


def answer_briefly(page, tokens=4):
    """Sets the longest answer: a small random model would write its 256 tokens, and the page draw each of them."""
    unfold(page, "Sampling", "#seed input")
    longest = page.get_by_label("number input for Longest answer")
    longest.fill(str(tokens))
    longest.press("Enter")


def answered(page, number=1):
    """Waits until the numbered answer is complete; returns its text."""
    page.locator("#chat .figures").nth(number - 1).wait_for()
    return page.locator("#chat .bot-row").nth(number - 1).locator(".message-content").first.inner_text()


def look_inside(page, number=1):
    """Opens Inside for the numbered answer and waits until it shows where the model looked."""
    page.get_by_role("button", name=f"Look inside answer {number}").click()
    page.locator("#maps :is(figure img, .failure)").first.wait_for()
    assert page.locator("#maps .failure").count() == 0, page.locator("#maps").inner_text()


JOIN = "**/queue/join*"


def refuse(page, status=502):
    """From now on, something before the server refuses what the page asks for through the queue; `accept` ends it."""
    page.route(JOIN, lambda route: route.fulfill(status=status, json={"detail": "refused"}))


def accept(page):
    page.unroute(JOIN)
