"""Draws pictures as SVG in a browser: a renderer that training never sees, for evaluation only.

    python -m training.evaluate --renderer browser

The browser (Debian's chromium, driven by playwright) draws shapes, bars, lines and letters with its own smoothing,
hinting and kerning. Backgrounds, which no question is about, are drawn as for the other renderers.
"""

import base64
import io
import random
import shutil
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from training.drawing.backgrounds import Background, draw_background
from training.drawing.colors import RGB
from training.drawing.fonts import Font
from training.worlds.boards.boards import Board
from training.worlds.charts import drawing as chart_drawing
from training.worlds.charts.charts import Chart
from training.worlds.scenes.scenes import Scene, SceneObject, polygon
from training.worlds.signs.signs import Plate, Sign
from training.worlds.signs.two_lines import TwoLines

BROWSER = "browser"
_HERE = "http://drawing.invalid/"  # never fetched from the network: _serve answers
_OPTIONS = ("--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-color-profile=srgb")

Drawable = Scene | Sign | TwoLines | Chart | Board


class Browser:
    """A context manager: a browser that stays open between pictures.

    Raises ImportError without playwright, FileNotFoundError without chromium.
    """

    def __init__(self) -> None:
        self._fonts: dict[str, Font] = {}  # by name, as far as the page has them

    def __enter__(self) -> "Browser":
        from playwright.sync_api import sync_playwright

        program = shutil.which("chromium")
        if program is None:
            raise FileNotFoundError("chromium is not installed. Install it: apt-get install chromium")
        self._driver = sync_playwright().start()
        self._browser = self._driver.chromium.launch(executable_path=program, args=list(_OPTIONS))
        self._page = self._browser.new_page()
        self._page.route(f"{_HERE}**", self._serve)
        self._page.goto(_HERE)
        return self

    def __exit__(self, *_: Any) -> None:
        self._browser.close()
        self._driver.stop()

    def draw(self, depiction: Drawable, rng: random.Random) -> Image.Image:
        """The whole picture, RGB at its true size, without noise or blur."""
        for font in {text.font.name: text.font for text in texts_of(depiction)}.values():
            self._load(font)
        self._page.set_viewport_size({"width": depiction.width, "height": depiction.height})
        self._page.evaluate("svg => document.body.innerHTML = svg", svg_of(depiction, rng))
        self._page.evaluate("() => Promise.all([...document.querySelectorAll('image')].map((image) => image.decode()))")
        return Image.open(io.BytesIO(self._page.screenshot())).convert("RGB")

    def _serve(self, route: Any) -> None:
        name = route.request.url.removeprefix(_HERE)
        if name in self._fonts:
            route.fulfill(path=Path(self._fonts[name].path), headers={"Access-Control-Allow-Origin": "*"})
        else:
            route.fulfill(body="<!doctype html><body style='margin: 0; overflow: hidden'>", content_type="text/html")

    def _load(self, font: Font) -> None:
        if font.name in self._fonts:
            return
        self._fonts[font.name] = font
        load = """async ([family, url]) => {
          const face = new FontFace(family, `url(${url})`);
          document.fonts.add(await face.load());
        }"""
        self._page.evaluate(load, [font.name, _HERE + font.name])


def texts_of(depiction: Drawable) -> tuple[Sign, ...]:
    """All texts of a picture."""
    if isinstance(depiction, Sign | TwoLines):
        return tuple(depiction.lines)
    if isinstance(depiction, Chart):
        return (*(bar.label for bar in depiction.bars), *depiction.notes)
    if isinstance(depiction, Board):
        return tuple(text for entry in depiction.entries for text in entry.texts)
    return ()


def svg_of(depiction: Drawable, rng: random.Random) -> str:
    """The picture as one SVG element."""
    width, height = depiction.width, depiction.height
    parts = [_ground(depiction.background, width, height, rng), *_under_texts(depiction)]
    parts += [_text(text) for text in texts_of(depiction)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" style="display: block">'
        f"{''.join(parts)}</svg>"
    )


def _ground(background: Background, width: int, height: int, rng: random.Random) -> str:
    if background.pattern == "plain":
        return f'<rect width="{width}" height="{height}" fill="{_rgb(background.colors[0])}"/>'
    data = io.BytesIO()
    draw_background(background, (width, height), rng).save(data, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
    return f'<image width="{width}" height="{height}" href="{url}"/>'


def _under_texts(depiction: Drawable) -> Iterator[str]:
    if isinstance(depiction, Scene):
        for number, item in enumerate(depiction.objects):
            yield _shape(item, f"inside{number}")
    elif isinstance(depiction, Chart):
        yield from _chart(depiction)
    elif isinstance(depiction, Board):
        for panel in depiction.panels:
            half = panel.frame_width / 2
            box = (panel.left + half, panel.top + half, panel.right - half, panel.bottom - half)
            yield _box(box, panel.fill, None if panel.frame is None else (panel.frame, 2 * half), panel.radius)
    elif depiction.plated is not None and depiction.plated.plate is not None:
        yield _plate(depiction.plated, depiction.plated.plate)


def _shape(item: SceneObject, name: str) -> str:
    """A filled path with its outline inside, as in other renderers: a stroke of twice the width, clipped outside."""
    if item.shape == "circle":
        path = f'<circle cx="{item.x:.2f}" cy="{item.y:.2f}" r="{item.size / 2:.2f}"'
    else:
        points = " ".join(f"{x:.2f},{y:.2f}" for x, y in polygon(item).tolist())
        path = f'<polygon points="{points}"'
    filled = f'{path} fill="{_rgb(item.rgb)}"'
    if item.outline is None:
        return f"{filled}/>"
    stroke = f'stroke="{_rgb(item.outline)}" stroke-width="{2 * item.outline_width:.2f}"'
    return f'<clipPath id="{name}">{path}/></clipPath>{filled} {stroke} clip-path="url(#{name})"/>'


def _chart(chart: Chart) -> Iterator[str]:
    """Boxes from bottom to top; dashed ones are lines."""
    for box, color, dashes in chart_drawing.boxes(chart):
        if not any(dashes):
            yield _box(box, color)
            continue
        left, top, right, bottom = box
        middle = ((left + right) / 2, (top + bottom) / 2)
        ends = (left, middle[1], right, middle[1]) if dashes[0] else (middle[0], top, middle[0], bottom)
        width = bottom - top if dashes[0] else right - left
        pattern = " ".join(f"{part * width:.2f}" for part in chart_drawing.DASH)
        places = " ".join(f'{name}="{end:.2f}"' for name, end in zip(("x1", "y1", "x2", "y2"), ends, strict=True))
        yield f'<line {places} stroke="{_rgb(color)}" stroke-width="{width:.2f}" stroke-dasharray="{pattern}"/>'


def _plate(sign: Sign, plate: Plate) -> str:
    """A rectangle behind the text, rotated with it."""
    half = plate.frame_width * sign.cap_height / 2
    left, top, right, bottom = np.add(sign.outer, (half, half, -half, -half)).tolist()
    frame = None if plate.frame is None else (plate.frame, 2 * half)
    box = _box((left, top, right, bottom), plate.fill, frame, plate.roundness * sign.cap_height)
    return f'<g transform="{_turn(sign)}">{box}</g>'


def _text(sign: Sign) -> str:
    base, left = sign.cap_height / 2, sign.line[0]
    return (
        f'<text transform="{_turn(sign)}" x="{left:.2f}" y="{base:.2f}" font-family="{sign.font.name}" '
        f'font-size="{sign.size:.2f}" fill="{_rgb(sign.rgb)}">{escape(sign.text)}</text>'
    )


def _turn(sign: Sign) -> str:
    return f"translate({sign.x:.2f} {sign.y:.2f}) rotate({sign.rotation:.3f})"


def _box(
    box: tuple[float, float, float, float], fill: RGB | None, frame: tuple[RGB, float] | None = None, radius: float = 0
) -> str:
    left, top, right, bottom = box
    size = f'x="{left:.2f}" y="{top:.2f}" width="{max(0.0, right - left):.2f}" height="{max(0.0, bottom - top):.2f}"'
    stroke = "" if frame is None else f' stroke="{_rgb(frame[0])}" stroke-width="{frame[1]:.2f}"'
    radius = max(0.0, min(radius, (right - left) / 2, (bottom - top) / 2))
    return f'<rect {size} rx="{radius:.2f}" fill="{"none" if fill is None else _rgb(fill)}"{stroke}/>'


def _rgb(color: RGB) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)
