"""What the page asks for at once, and what it does with a version of Gradio that it doesn't know."""

import pytest

from components.serving import frontend
from components.serving.frontend import first_files, stand_in
from components.serving.head import head, joined_styles, style_sheets, with_head

KINDS = frozenset({"chatbot", "button", "state", "a kind of the future"})
CACHED = (first_files, frontend._later, head, joined_styles, style_sheets)


@pytest.fixture
def other_version(monkeypatch, tmp_path):
    """Gradio's frontend as files in a folder, written by another bundler."""
    monkeypatch.setattr(frontend, "FRONTEND", tmp_path)
    monkeypatch.setattr(frontend, "ASSETS", tmp_path / "assets")
    (tmp_path / "assets").mkdir()
    for cached in CACHED:
        cached.cache_clear()
    yield tmp_path
    for cached in CACHED:
        cached.cache_clear()


def test_a_component_brings_its_files_and_no_others():
    few, more = first_files(frozenset({"button"})), first_files(KINDS)
    assert few[0].endswith(".js")
    assert set(few) < set(more)
    assert all((frontend.ASSETS / name).is_file() for name in more)


@pytest.mark.parametrize("entry", ['import("./Index-1.js")', "m.f=[]; import(`./Index-1.js`),__vite__mapDeps([7])", ""])
def test_in_an_unknown_version_the_browser_finds_the_files_itself(other_version, entry):
    (other_version / "index.html").write_text('<script type="module" src="./assets/main.js"></script>')
    (other_version / "assets" / "main.js").write_text(entry)
    assert first_files(KINDS) == ("main.js",)
    html = with_head('<head><base href=\'./\'><link rel="stylesheet" href="./assets/a.css"></head>', KINDS, "a {}", "1")
    assert '<link rel="stylesheet" href="./assets/a.css">' in html
    assert "theme.css?v=1" in html


@pytest.mark.usefixtures("other_version")
def test_without_a_frontend_nothing_is_named():
    assert first_files(KINDS) == ()


def test_a_theme_with_addresses_stays_a_file_of_its_own():
    theme = "@import url(fonts.css);"
    assert theme.encode() not in joined_styles(KINDS, theme)
    assert "theme.css" not in head(KINDS, theme, "1")[1]


@pytest.mark.parametrize(
    ("name", "script"), [("hls-1.js", "export default 1;"), ("other-1.js", "export{a as b};"), ("hls-2.js", None)]
)
def test_only_a_script_whose_exports_are_known_has_a_stand_in(other_version, name, script):
    if script is not None:
        (other_version / "assets" / name).write_text(script)
    assert stand_in(name) is None


def test_a_stand_in_has_each_export(other_version):
    (other_version / "assets" / "hls-1.js").write_text("let a,b;export{a as t,b};\n")
    assert b"none as t, none as b" in stand_in("hls-1.js")


STATUS = "a(()=>{o.status===`pending`?b():c()});function d(){r(()=>{e(f,(performance.now()-g(h))/1e3),i&&d()})}"


def test_a_status_counts_no_seconds_once_nothing_is_pending(other_version):
    (other_version / "assets" / "statustracker-1.js").write_text(STATUS)
    assert b"/1e3),o.status===`pending`&&i&&d()})}" in stand_in("statustracker-1.js")
    for unknown in (STATUS.replace("&&d()", "?d():0"), STATUS.replace("`", "'"), STATUS * 2):
        (other_version / "assets" / "statustracker-1.js").write_text(unknown)
        assert stand_in("statustracker-1.js") is None


def test_outside_frames_nothing_tells_the_size_of_the_page():
    script = "script.src='iframeResizer.contentWindow.min.js'; document.head.appendChild(script);"
    html = with_head(f"<head><base href='./'><script>{script}</script></head>", KINDS, "", "1")
    assert "window === window.parent || document.head.appendChild(script)" in html
    assert "appendChild(other)" in with_head(f"<head>{script.replace('(script)', '(other)')}</head>", KINDS, "", "1")
