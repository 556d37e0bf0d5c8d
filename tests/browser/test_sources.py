"""Pictures from where people have them: documents, the camera, addresses, large photographs."""

import io
import random

import pytest
from browsing import accept, add, answered, refuse, send
from PIL import Image
from places import EXAMPLES
from running_app import ScriptedEngine, opened, served
from window import DEMO

from components.chat import documents
from gemma3_core.images.pan_and_scan import enough_pixels

QUESTION = "How many hearts are there?"


@pytest.fixture
def scan(tmp_path):
    path = tmp_path / "scan.tiff"
    pages = [Image.open(EXAMPLES / f"{name}.png").convert("RGB") for name in ("night", "hearts", "blue")]
    pages[0].save(path, "TIFF", save_all=True, append_images=pages[1:])
    return path


def choose_file(page, *files):
    page.locator("#composer input[type=file]").set_input_files(list(files))


def file(name, data, kind):
    return {"name": name, "mimeType": kind, "buffer": data}


def test_a_page_of_a_document_is_chosen_kept_and_asked_about(page, scan):
    page.locator("#composer textarea").fill(QUESTION)
    refuse(page)
    choose_file(page, scan)
    page.locator("#said", has_text="The server did not answer. Try again.").wait_for()
    accept(page)
    choose_file(page, scan)  # it is read all the same
    picker = page.locator("#picker .picker")
    picker.locator(".cost").get_by_text("3 pictures, 192 tokens").wait_for()
    for number in (0, 2):
        picker.locator(".page").nth(number).click()
    assert picker.locator(".numbers").input_value() == "2"
    picker.locator(".cost").get_by_text("1 picture, 64 tokens").wait_for()
    picker.get_by_role("button", name="Add pages").click()
    page.locator("#composer .thumbnail-item").wait_for()
    picker.wait_for(state="detached")
    assert page.locator("#composer textarea").input_value() == QUESTION
    # It counts as a picture at once: the strip shows it, and a reload finds it.
    page.locator("#strip").get_by_text("What the model will see: 1 tile, 64 tokens").wait_for()
    page.wait_for_function("ask.kept.get('files')?.length === 1")
    page.reload()
    page.locator("#composer .thumbnail-item").wait_for()
    assert page.locator("#composer textarea").input_value() == QUESTION
    send(page)
    assert answered(page) == "There are three hearts."


GATEWAY = {
    "status": 502,
    "content_type": "text/html",
    "body": "<html><head><title>502 Bad Gateway</title></head></html>",
}
NOT_TAKEN = "The server did not take the file. Try again."
REFUSALS = [
    (GATEWAY, NOT_TAKEN),
    ({"status": 503, "json": {"detail": "Busy.", "error": "The server is busy."}}, "The server is busy."),
    ({"status": 500, "content_type": "application/json", "body": "[1, 2"}, NOT_TAKEN),
    ({"status": 507, "content_type": "text/plain; charset=utf-8", "body": "The disk is full."}, "The disk is full."),
]


def test_what_is_refused_or_can_not_be_read_says_so_and_leaves_the_question_and_its_pictures(page, scan):
    add(page, EXAMPLES / "hearts.png")
    page.locator("#composer textarea").fill(QUESTION)
    for refusal, told in REFUSALS:
        page.route("**/upload*", lambda route, _, refusal=refusal: route.fulfill(**refusal))
        choose_file(page, file("a.pdf", b"%PDF-1.7", "application/pdf"))
        page.wait_for_function("(told) => document.querySelector('#said')?.textContent === told", arg=told)
        page.unroute("**/upload*")
    choose_file(page, file("a.pdf", b"%PDF-1.7 broken", "application/pdf"))
    page.get_by_text("“a.pdf” is not added. This PDF is damaged").wait_for()
    choose_file(page, file("b.mp4", b"no video", "video/mp4"))
    page.get_by_text("“b.mp4” is not added. These 8 bytes are not a picture").wait_for()
    choose_file(page, scan)
    page.get_by_role("button", name="Cancel").click()
    page.locator("#picker .picker").wait_for(state="detached")
    assert page.locator("#composer textarea").input_value() == QUESTION
    assert page.locator("#composer .thumbnail-item").count() == 1


def test_frames_of_a_video_are_counted_by_their_tokens_and_bring_their_times(page, tmp_path):
    av = pytest.importorskip("av", reason="av is not installed")
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=2)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(40):
            container.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p")))
        container.mux(stream.encode())
    choose_file(page, tmp_path / "clip.mp4")
    page.locator("#picker .cost").get_by_text("8 pictures, 512 tokens").wait_for()
    page.locator("#picker .numbers").fill("2")
    page.locator("#picker .cost").get_by_text("2 pictures, 128 tokens").wait_for()
    page.locator("#picker .numbers").press("Enter")
    page.locator("#composer .thumbnail-item").nth(1).wait_for()
    page.locator("#composer textarea").fill("What happens?")
    page.locator("#token-count summary").get_by_text("(128 for 2 pictures)").click()
    tokens = page.locator("#token-count .tokens")
    tokens.get_by_text("picture 2: 64 soft tokens").wait_for()
    read = tokens.inner_text()
    assert read.index("0:05") < read.index("picture 1") < read.index("0:15") < read.index("picture 2")


class Counting(ScriptedEngine):
    def picture_tokens(self, _width, _height, _pan_and_scan):
        return 64


def test_a_picture_by_its_address_arrives_beside_the_pages_that_are_being_chosen(browser, monkeypatch, scan):
    with served(Counting(DEMO)) as url, opened(browser, url) as page:
        choose_file(page, scan)
        page.locator("#picker .cost").get_by_text("3 pictures").wait_for()
        asked = "What is this? https://no-such-host.invalid/night.png"
        page.locator("#composer textarea").fill(asked)
        page.get_by_role("button", name="Add the picture").click()
        page.get_by_text("could not be fetched from no-such-host.invalid").wait_for()
        assert page.locator("#composer textarea").input_value() == asked
        assert page.locator("#picker .picker").is_visible()

        monkeypatch.setattr(documents, "fetch_image", lambda _address: (EXAMPLES / "night.png").read_bytes())
        page.locator("#composer textarea").fill("What is this? https://example.com/night.png")
        page.get_by_role("button", name="Add the picture").click()
        page.locator("#composer .thumbnail-item").wait_for()
        assert page.locator("#composer textarea").input_value() == "What is this?"
        assert page.locator("#picker .picker").is_visible()


def test_a_camera_that_is_refused_or_missing_is_told_of_and_one_that_works_gives_a_photo(page):
    button = page.get_by_role("button", name="Take a photo")
    for name, told in (("NotAllowedError", "The camera was refused"), ("NotFoundError", "No camera was found")):
        page.evaluate(
            """(name) => {
          navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException("", name));
        }""",
            name,
        )
        button.click()
        page.get_by_text(told).wait_for()
    page.evaluate("""() => {
      const canvas = Object.assign(document.createElement("canvas"), { width: 320, height: 240 });
      const draw = () => canvas.getContext("2d").fillRect(0, 0, 320, 240);
      setInterval(draw, 50);
      window.seen = canvas.captureStream(20);
      navigator.mediaDevices.getUserMedia = async () => window.seen;
    }""")
    button.click()
    page.wait_for_function("document.querySelector('#camera video')?.videoWidth > 0")
    page.get_by_role("button", name="Take the photo").click()
    page.locator("#composer .thumbnail-item").wait_for()
    assert page.evaluate("window.seen.getTracks().every((track) => track.readyState === 'ended')")

    # There is none before its first frame.
    page.evaluate(
        """() => {
          const canvas = document.createElement("canvas");
          window.seen = canvas.captureStream(20);
          window.begin = () => setInterval(() => canvas.getContext("2d").fillRect(0, 0, 320, 240), 50);
          navigator.mediaDevices.getUserMedia = async () => new MediaStream();
        }"""
    )
    page.get_by_role("button", name="Take a photo").click()
    shoot = page.get_by_role("button", name="Take the photo")
    shoot.wait_for()
    assert shoot.is_disabled()
    page.evaluate("() => { document.querySelector('#camera video').srcObject = window.seen; window.begin(); }")
    page.wait_for_function("document.activeElement.textContent === 'Take the photo'")
    shoot.click()
    page.locator("#composer .thumbnail-item").nth(1).wait_for()


def test_a_large_photograph_is_made_smaller_before_it_is_sent_to_what_the_server_finds_enough(page):
    sizes = [(random.Random(n).randint(1, 9000), random.Random(-n).randint(1, 9000)) for n in range(500)]
    found = page.evaluate("(sizes) => sizes.map((size) => ask.enoughPixels(...size))", sizes)
    wrong = [(size, ours) for size, ours in zip(sizes, found, strict=True)
             if max(abs(a - b) for a, b in zip(ours, enough_pixels(*size), strict=True)) > 1]  # fmt: skip
    assert wrong == []

    large = io.BytesIO()
    noise = Image.frombytes("RGB", (500, 375), random.Random(0).randbytes(500 * 375 * 3))
    noise.resize((4000, 3000)).save(large, "JPEG", quality=98)
    choose_file(page, file("large.jpg", large.getvalue(), "image/jpeg"))
    page.locator("#composer .thumbnail-item").wait_for()
    page.get_by_text("large.jpg is sent at 3,584 × 2,688 instead of 4,000 × 3,000 pixels").wait_for()
    stored = page.locator("#composer .thumbnail-item img").get_attribute("src")
    assert Image.open(io.BytesIO(page.request.get(stored).body())).size == (3584, 2688)


def test_enter_while_a_picture_is_on_its_way_asks_nothing_without_it(page, scan):
    page.evaluate(
        """() => {
          const read = window.createImageBitmap;
          const waits = new Promise((go) => (window.goOn = go));
          window.createImageBitmap = async (file) => {
            await waits;
            return read(file);
          };
        }"""
    )
    hearts = io.BytesIO()
    Image.open(EXAMPLES / "hearts.png").convert("RGB").resize((700, 700)).save(hearts, "PNG", compress_level=0)
    page.locator("#composer textarea").fill(QUESTION)
    choose_file(page, file("hearts.png", hearts.getvalue(), "image/png"))
    send(page)
    page.locator("#said", has_text="The picture is still on its way.").wait_for()
    assert page.locator("#composer textarea").input_value() == QUESTION
    page.evaluate("window.goOn()")
    page.locator("#composer .thumbnail-item").wait_for()
    page.locator("#composer .loader").wait_for(state="detached")
    page.wait_for_function("!document.querySelector('#said').textContent")
    send(page)
    assert answered(page) == "There are three hearts."
    assert page.locator("#chat .bot-row").count() == 1

    # A document that is being read is waited for too, and its pages are added once.
    page.locator("#composer textarea").fill("And here?")
    held = []
    page.route("**/upload*", lambda route: held.append(route))
    choose_file(page, scan)
    page.locator("#said", has_text="Reading scan.tiff").wait_for()
    send(page)
    page.locator("#said", has_text="The picture is still on its way.").wait_for()
    while not held:
        page.wait_for_timeout(50)
    for route in held:
        route.continue_()
    page.locator("#picker .cost").get_by_text("3 pictures").wait_for()
    page.evaluate(
        """() => {
          window.taken = 0;
          document.querySelector("#take-from").addEventListener("click", () => (window.taken += 1));
        }"""
    )
    page.get_by_role("button", name="Add pages").evaluate("(add) => { add.click(); add.click(); }")
    page.locator("#composer .thumbnail-item").nth(2).wait_for()
    assert page.evaluate("window.taken") == 1
    assert page.locator("#chat .bot-row").count() == 1


_BRING = """([place, kind, name]) => {
  const data = new DataTransfer();
  data.items.add(new File(["%PDF-1.7 broken"], `${kind}.pdf`, { type: "application/pdf" }));
  const make = kind === "drop" ? DragEvent : ClipboardEvent;
  const event = new make(kind, { bubbles: true, cancelable: true, [name]: data });
  document.querySelector(place).dispatchEvent(event);
}"""


def test_documents_and_texts_can_be_dropped_and_pasted_like_pictures_and_as_the_page_is_drawn(browser, url):
    """Text with a picture of itself, as spreadsheets and word processors copy it, stays text."""
    drawing = f"""new MutationObserver((_, observer) => {{
      if (!document.querySelector("#chat") || !window.ask?.attach) return;
      observer.disconnect();
      ({_BRING})(["#chat", "drop", "dataTransfer"]);
    }}).observe(document, {{ childList: true, subtree: true }});"""
    with opened(browser, url, before=lambda page: page.add_init_script(drawing)) as page:
        page.get_by_text("“drop.pdf” is not added. This PDF is damaged").wait_for()
        for place in ("#composer textarea", "#chat"):
            for kind, name in (("paste", "clipboardData"), ("drop", "dataTransfer")):
                page.evaluate(_BRING, [place, kind, name])
                page.get_by_text(f"“{kind}.pdf” is not added. This PDF is damaged").wait_for()
        assert page.locator("#composer .thumbnail-item").count() == 0

        pasted = """([place, bytes]) => {
          const data = new DataTransfer();
          data.items.add(new File([new Uint8Array(bytes)], "image.png", { type: "image/png" }));
          data.setData("text/plain", "1\\t2");
          data.setData("text/html", "<table><tr><td>1</td><td>2</td></tr></table>");
          const event = new ClipboardEvent("paste", { bubbles: true, cancelable: true, clipboardData: data });
          document.querySelector(place).dispatchEvent(event);
          return event.defaultPrevented;
        }"""
        for place, size in (("#composer textarea", 2_000_000), ("#composer textarea", 10), ("#chat", 10)):
            assert not page.evaluate(pasted, [place, size])
        page.get_by_role("button", name="Ask about many pictures").click()
        assert not page.evaluate(pasted, ["#table textarea", 10])
