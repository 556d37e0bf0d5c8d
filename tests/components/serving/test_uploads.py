"""Uploads: only pictures, within bounds for one visitor and for all, kept as long as they are used."""

import io
import os
from pathlib import Path

import pytest
from PIL import Image
from warm import ran

from components.serving import uploads
from components.serving.uploads import UploadError, Uploads


class Clock:
    def __init__(self):
        self.s = 1000.0

    def __call__(self):
        return self.s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def held(tmp_path, clock):
    return Uploads(tmp_path / "held", clock)


def png(color: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 20), (color, 0, 0)).save(file, "PNG")
    return file.getvalue()


def add(held: Uploads, tmp_path: Path, data: bytes, name: str = "a.png") -> str:
    temporary = tmp_path / "arriving"
    temporary.write_bytes(data)
    try:
        return held.add(temporary, name)
    finally:
        assert not temporary.exists()


def test_a_picture_stays_and_anything_else_does_not(held, tmp_path):
    path = add(held, tmp_path, png(1), "holiday.png")
    assert Path(path).name == "holiday.png"
    assert Path(path).read_bytes() == png(1)
    assert add(held, tmp_path, png(1), "holiday.png") == path
    assert len(held) == 1
    assert held.num_bytes == len(png(1))
    for data, reason in ((b"", "0 bytes"), (b"<script>", "not a picture"), (b"%PDF-1.7", "PDF files are not read")):
        with pytest.raises(UploadError, match=f"“notes.png” is not added. .*{reason}"):
            add(held, tmp_path, data, "notes.png")
    assert [file.name for file in (tmp_path / "held").rglob("*") if file.is_file()] == ["holiday.png"]


@pytest.mark.parametrize(("name", "kept"), [
    ("../../etc/passwd", "passwd"), ("..\\..\\a.png", "a.png"), ("", "file"), ("...", "file"), ("/", "file"),
    ("a" * 500 + ".png", "a" * 100 + ".png"), ("a\0b.png", "ab.png"),
])  # fmt: skip
def test_names_lead_nowhere(held, tmp_path, name, kept):
    path = Path(add(held, tmp_path, png(1), name))
    assert path.name == kept
    assert path.parent.parent == held.folder


def test_what_an_open_window_uses_stays_and_the_rest_goes_after_a_while(held, tmp_path, clock):
    used, left = add(held, tmp_path, png(1)), add(held, tmp_path, png(2))
    held.opened("window")
    held.use("window", [used, "/etc/passwd"])
    clock.s += 100_000
    assert held.sweep(60.0) == [left]
    assert Path(used).exists()
    assert not Path(left).parent.exists()
    held.closed("window")
    assert held.sweep(60.0) == []  # it may come back
    clock.s += 61
    assert held.sweep(60.0) == [used]
    assert len(held) == 0


def test_a_second_window_keeps_what_the_first_has_let_go(held, tmp_path, clock):
    path = add(held, tmp_path, png(1))
    for window in ("one", "other"):
        held.opened(window)
        held.use(window, [path])
    held.closed("one")
    clock.s += 1000
    assert held.sweep(60.0) == []


def test_a_window_whose_connection_broke_finds_its_files_again(held, tmp_path, clock):
    path = add(held, tmp_path, png(1))
    held.opened("window")
    held.use("window", [path])
    held.closed("window")
    clock.s += 50
    held.sweep(60.0)
    held.opened("window")
    clock.s += 1000
    assert held.sweep(60.0) == []


def test_windows_that_were_made_up_take_no_memory(held, tmp_path, clock):
    path = add(held, tmp_path, png(1))
    sessions = held._files[path].sessions
    for window in ("open", "left"):
        held.opened(window)
        held.use(window, [path])
    held.closed("left")
    for number in range(3 * uploads.MAX_AWAY):
        held.use(f"made up {number}", [path])
        held.use(f"uses nothing {number}", [])
    assert len(sessions) == len(held._away) + 1 == uploads.MAX_AWAY + 1
    clock.s += 61
    assert held.sweep(60.0) == []
    assert (sessions, len(held._away)) == ({"open"}, 0)


def test_where_room_is_needed_the_oldest_unused_go_first(held, tmp_path, clock, monkeypatch):
    monkeypatch.setattr(uploads, "MAX_ALL_BYTES", 3 * len(png(1)))
    paths = []
    for color in (1, 2, 3):
        clock.s += 1
        paths.append(add(held, tmp_path, png(color)))
    held.opened("window")
    held.use("window", paths[:1])
    add(held, tmp_path, png(4))
    assert [Path(path).exists() for path in paths] == [True, False, True]
    held.use("window", [paths[2], add(held, tmp_path, png(4))])
    with pytest.raises(UploadError, match="no room for more pictures") as full:
        add(held, tmp_path, png(5))
    assert full.value.status == 507
    assert held.num_bytes == 3 * len(png(1))


def test_the_number_of_files_is_bounded_too(held, tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "MAX_FILES", 2)
    for color in range(5):
        add(held, tmp_path, png(color))
    assert len(held) == 2


def test_one_window_gives_up_its_oldest_and_holds_no_more_than_its_share(held, tmp_path, clock, monkeypatch):
    monkeypatch.setattr(uploads, "MAX_SESSION_BYTES", 2 * len(png(1)))
    held.opened("window")
    paths = []
    for color in (1, 2, 3):
        clock.s += 1
        paths.append(add(held, tmp_path, png(color)))
        held.use("window", paths[-1:])
    clock.s += 1000
    assert held.sweep(60.0) == paths[:1]
    paths.append(add(held, tmp_path, png(4)))
    held.use("window", paths[1:])  # three at once: two stay however long it takes
    clock.s += 1000
    assert held.sweep(60.0) == paths[3:]


@pytest.mark.parametrize("named", [None, "chosen", "ask-about-pictures-1-of_another"])
def test_the_folder_of_a_process_goes_with_it_and_so_do_those_of_dead_ones(tmp_path, tmp_path_factory, named):
    """Named by its operator or not: two servers, or one after the other, share no folder."""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    environment.pop("GRADIO_TEMP_DIR", None)
    if named is not None:
        tmp_path = tmp_path / named
        tmp_path.mkdir()
        environment["GRADIO_TEMP_DIR"] = str(tmp_path)
    said = tmp_path_factory.mktemp("said")
    program = said / "program.py"
    program.write_text("from components.serving.uploads import private_folder as f; assert f() == f(); print(f())")
    left = tmp_path / "ask-about-pictures-999999999-left"
    alive = tmp_path / f"ask-about-pictures-{os.getpid()}-alive"
    for folder in (left, alive):
        folder.mkdir()
    status, out, errors = ran(program, [], environment, said)
    assert status == 0, errors
    assert Path(out.strip()).parent == tmp_path
    assert sorted(tmp_path.iterdir()) == [alive]
