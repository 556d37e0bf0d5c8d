"""The pictures of a question for another server: in which form, how many bytes, and how many at a time."""

import base64
import io
import threading

import numpy as np
import pytest
from PIL import Image

from gemma3_core.engine import sent_pictures
from gemma3_core.engine.picture_reader import PictureReader
from gemma3_core.engine.sent_pictures import SentPictures
from gemma3_core.errors import ContextLengthError, ImageError

RANDOM = np.random.default_rng(0)


def noise(width=100, height=100, form="PNG", **options):
    written = io.BytesIO()
    Image.fromarray(RANDOM.integers(0, 256, (height, width, 3), np.uint8)).save(written, form, **options)
    return written.getvalue()


def finished(work):
    """What it returns."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def written(sent, pictures):
    """The data URLs."""
    return finished(sent.write("one", pictures, threading.Event()))


def opened(url):
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


@pytest.fixture
def sent():
    return SentPictures(PictureReader())


def test_a_photo_stays_a_photo_and_loses_what_its_file_says(sent, tmp_path):
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = "a secret place", 6  # turned to the right
    photo = noise(40, 20, "JPEG", exif=exif)
    (tmp_path / "photo").write_bytes(photo)
    for url in written(sent, [photo, tmp_path / "photo"]):
        assert url.startswith("data:image/jpeg;base64,")
        assert opened(url).size == (20, 40)
        assert not opened(url).getexif()


def test_other_pictures_keep_every_color_unless_they_are_large(sent, monkeypatch):
    drawn = noise()
    (url,) = written(sent, [drawn])
    assert url.startswith("data:image/png;base64,")
    assert opened(url).tobytes() == Image.open(io.BytesIO(drawn)).tobytes()
    monkeypatch.setattr(sent_pictures, "_MOST_PNG_PIXELS", 9_999)
    assert written(sent, [drawn])[0].startswith("data:image/jpeg")
    wide = noise(sent_pictures._MOST_JPEG_SIDE + 1, 1)
    assert written(sent, [wide])[0].startswith("data:image/png")


def test_behind_many_bytes_they_are_sent_as_jpeg_and_those_before_stay_as_they_were(sent, monkeypatch):
    monkeypatch.setattr(sent_pictures, "_MOST_PNG_BYTES", 50_000)
    pictures = [noise() for _ in range(4)]
    urls = written(sent, pictures)
    assert [url[:15] for url in urls] == ["data:image/png;", "data:image/png;", "data:image/jpeg", "data:image/jpeg"]
    assert written(sent, pictures[:2]) == urls[:2]


def test_more_bytes_than_are_sent_are_refused_and_equal_pictures_count_each(sent, monkeypatch):
    drawn = noise()
    monkeypatch.setattr(sent_pictures, "MAX_SENT_BYTES", 100_000)
    assert len(written(sent, [drawn, drawn])) == 2
    with pytest.raises(ContextLengthError, match="The first 3 of these 4 pictures already take"):
        written(sent, [drawn] * 4)


def test_a_broken_picture_is_told_by_its_number(sent):
    with pytest.raises(ImageError, match="The 2nd picture"):
        written(sent, [noise(), noise()[:-9_000]])


def test_all_questions_together_wait_for_room_and_hold_what_they_send(monkeypatch):
    monkeypatch.setattr(sent_pictures, "MAX_IN_FLIGHT_BYTES", 100_000)
    sent, drawn = SentPictures(PictureReader()), noise(form="JPEG")
    urls = written(sent, [drawn, drawn])
    assert sent._held._held == {"one": sum(map(len, urls))}  # 80,000 were held for it before
    work = sent.write("two", [drawn, drawn], threading.Event())
    assert next(work).text == next(work).text == "Waiting until there is room for these pictures"
    sent.release("one")
    assert finished(work) == urls


@pytest.mark.parametrize("busy", [False, True])
def test_stop_ends_it_in_a_picture_too(busy):
    reader, go_on, stop = PictureReader(at_a_time=1), threading.Event(), threading.Event()
    sent = SentPictures(reader)
    if busy:
        reader.submit(go_on.wait)
    else:
        sent._held.hold("another", sent_pictures.MAX_IN_FLIGHT_BYTES, 0)
    work = sent.write("one", [noise()], stop)
    assert next(work).text == ("Opening picture 1 of 1" if busy else "Waiting until there is room for these pictures")
    stop.set()
    assert finished(work) == []
    go_on.set()
    assert not reader._waiting or reader._waiting[0].future.cancelled()
