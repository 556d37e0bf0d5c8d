"""From an uploaded document to pictures in the composer: what is chosen, what it costs, what is refused."""

import json
from pathlib import Path

import pytest
from PIL import Image
from places import EXAMPLES
from running_app import ScriptedEngine
from window import DEMO, Window, run, typed

from components.chat import documents
from components.chat.conversation import Conversation
from components.chat.documents import GONE, Documents, pages
from components.chat.handlers import ChatHandlers
from components.serving.uploads import UploadError, Uploads
from components.shown.picker import clock, smaller_html
from gemma3_core.engine import Document, Gemma3Error, ModelRegistry, Request, Taken, Turn
from gemma3_core.engine.prompts import _messages

VALUES = (False, "", 0.0, 0, 1.0, "", 8)


class Counting(ScriptedEngine):
    def picture_tokens(self, _width, _height, pan_and_scan):
        return 192 if pan_and_scan else 64


@pytest.fixture
def uploads(tmp_path):
    return Uploads(tmp_path / "held")


@pytest.fixture
def handlers(uploads, tmp_path):
    def store(data, name, caption):
        (tmp_path / "new").write_bytes(data)
        return uploads.add(tmp_path / "new", name, caption)

    return Documents(ModelRegistry(Counting(DEMO)), uploads.__contains__, store)


@pytest.fixture
def scan(uploads, tmp_path):
    """An uploaded TIFF of three pages."""
    first, *rest = (Image.new("RGB", (40, 30), color) for color in ("red", "lime", "blue"))
    first.save(tmp_path / "arriving", "TIFF", save_all=True, append_images=rest)
    return uploads.add(tmp_path / "arriving", "a scan.tiff", is_document=True)


def test_the_picker_says_what_there_is_and_what_it_costs(handlers, scan):
    html, arrived = handlers.look(scan, True, None)
    assert json.loads(arrived) == []
    assert "<b>a scan.tiff</b>: TIFF, 3 pages" in html
    assert 'data-costs="[192, 192, 192]"' in html
    assert 'value="1-3"' in html
    assert html.count('class="page"') == 3


def test_chosen_pages_arrive_as_uploads(handlers, scan, uploads):
    html, arrived = handlers.take(scan, "3, 1", False, None)
    assert html == ""
    files = json.loads(arrived)
    assert [file["orig_name"] for file in files] == ["a scan page 3.png", "a scan page 1.png"]
    assert all(file["path"] in uploads and file["mime_type"] == "image/png" for file in files)
    assert Image.open(files[0]["path"]).getpixel((5, 5)) == (0, 0, 255)


def test_a_choice_that_does_not_fit_is_asked_again(handlers, scan):
    html, arrived = handlers.take(scan, "4", False, None)
    assert json.loads(arrived) == []
    assert "This TIFF has 3 pages; give numbers from 1 to that." in html
    assert 'class="picker"' in html


@pytest.mark.parametrize("path", ["/etc/passwd", "", None, "nothing.pdf"])
def test_only_uploads_are_read(handlers, path):
    for html, arrived in (handlers.look(path, False, None), handlers.take(path, "1", False, None)):
        assert GONE in html
        assert arrived == "[]"


def test_frames_bring_their_time_into_the_prompt(handlers, uploads, scan, tmp_path, monkeypatch):
    Image.new("RGB", (20, 20)).save(tmp_path / "frame.png")
    data = (tmp_path / "frame.png").read_bytes()
    clip = Document("video", 1000, ((640, 480),), 75.0, (), None)
    monkeypatch.setattr(documents, "open_document", lambda _path: clip)
    monkeypatch.setattr(documents, "take_frames", lambda _path, count: [
        Taken(data, ".png", 0, 12.0 + 60 * number, 640, 480) for number in range(count)
    ])  # fmt: skip
    html, _ = handlers.look(scan, False, None)
    assert "video, 1:15 long" in html
    assert 'data-costs="[64]"' in html
    for wrong in ("0", "21", "many", "-1", "1.5", None):
        assert "Give a number of frames from 1 to 20" in handlers.take(scan, f"{wrong} frames", False, None)[0]
    paths = [file["path"] for file in json.loads(handlers.take(scan, "2 frames", False, None)[1])]
    assert [Path(path).name for path in paths] == ["a scan at 0-12.png", "a scan at 1-12.png"]

    engine = ScriptedEngine(DEMO)
    engine.let_through(*engine.go_on)
    chat = ChatHandlers(ModelRegistry(engine), (), uploads.caption)
    _, conversation, _ = run(chat.send(typed("What happens?", *paths), Conversation(), Window(), 0, *VALUES))
    assert engine.requests[-1].turns[-1].captions == ("0:12", "1:12")
    assert conversation.exchanges[-1].question.captions == ("0:12", "1:12")


def test_a_caption_stands_before_its_picture():
    question = Turn("user", "What happens?", (b"1", b"2", b"3"), captions=("0:12", "", "1:12"))
    (message,) = _messages(Request((question,)))
    texts = [part.get("text", "<picture>") for part in message["content"]]
    assert texts == ["0:12", "<picture>", "<picture>", "1:12", "<picture>", "What happens?"]


@pytest.mark.parametrize(("text", "numbers"), [
    ("1", [0]), ("1-3, 7", [0, 1, 2, 6]), ("7 1 – 3", [6, 0, 1, 2]), ("2;2,1-2", [1, 0]), ("1-20", list(range(20))),
])  # fmt: skip
def test_pages_as_people_write_them(text, numbers):
    assert pages(text) == numbers


@pytest.mark.parametrize(("text", "told"), [
    ("", "No page is chosen"), (" , ", "No page is chosen"), ("0", "names no pages"), ("2 frames", "names no pages"),
    ("3-1", "names no pages"), ("a", "names no pages"), ("1-21", "At most 20"), ("1-20 21", "At most 20"),
    ("1-999999", "At most 20"), ("1" * 500, "names no pages"), ("1," * 9999, "too many pages"),
])  # fmt: skip
def test_choices_of_pages_that_are_refused(text, told):
    with pytest.raises(Gemma3Error, match=told):
        pages(text)


@pytest.mark.parametrize(
    "address", [None, "", "file:///etc/passwd", "ftp://a/b.png", "x" * 3000, "http://127.0.0.1/a.png"]
)
def test_addresses_that_are_refused(handlers, address):
    told, arrived = handlers.fetch(address)
    assert told.startswith(("This is no http or https address.", "The picture could not be fetched from 127.0.0.1."))
    assert arrived == "[]"


def test_a_picture_by_address_arrives_with_its_name(handlers, monkeypatch):
    night = (EXAMPLES / "night.png").read_bytes()
    monkeypatch.setattr(documents, "fetch_image", lambda _address: night)
    told, arrived = handlers.fetch("https://example.com/a/night.png?size=1")
    (file,) = json.loads(arrived)
    assert (told, file["orig_name"]) == ("", "night.png")
    monkeypatch.setattr(documents, "fetch_image", lambda _address: b"<html>")
    assert "not a picture" in handlers.fetch("https://example.com/a.png")[0]


def test_a_document_is_kept_under_an_ending_that_no_browser_opens(uploads, tmp_path):
    (tmp_path / "arriving").write_bytes(b"%PDF-1.7<script>")
    assert uploads.add(tmp_path / "arriving", "a.html", is_document=True).endswith("/a.html.document")
    (tmp_path / "arriving").write_bytes(b"<script>")
    with pytest.raises(UploadError, match="not a picture"):
        uploads.add(tmp_path / "arriving", "a.pdf", is_document=True)


def test_a_photograph_that_is_made_smaller_is_told_of():
    assert smaller_html(Taken(b"", ".jpg", 0, None, 4000, 3000), "<a>.heic") == (
        '<p class="note">&lt;a&gt;.heic is used at 3,584 × 2,688 instead of 4,000 × 3,000 pixels: '
        "the model sees hardly any difference.</p>"
    )
    assert smaller_html(Taken(b"", ".jpg", 0, None, 1600, 1200), "a.heic") == ""


def test_times():
    assert [clock(seconds) for seconds in (0, 12.9, 75, 3723)] == ["0:00", "0:12", "1:15", "1:02:03"]
