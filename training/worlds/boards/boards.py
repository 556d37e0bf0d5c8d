"""Random boards: a few words, or items and prices, on a picture too long for one square; lengths are in pixels.

A board is legible only with pan & scan. In a crop squeezed to a square, capitals are at least LEAST_IN_CROP of the side
in both directions. In the whole picture squeezed to a square, they are at most MOST_IN_WHOLE of the side that is
squeezed. No entry crosses the border of a crop.
"""

import random
from collections import Counter
from dataclasses import dataclass
from itertools import combinations_with_replacement, pairwise

from gemma3_core.images.pan_and_scan import Box, pan_and_scan_boxes
from training.drawing.backgrounds import Background, contrasting_shade, grounds_of, random_background
from training.drawing.colors import COLORS, RGB, UNNAMED, Lab, mix, to_lab
from training.drawing.fonts import Font, edges, metrics
from training.drawing.sizes import log_uniform
from training.worlds.signs.signs import Sign, random_text

LEAST_RATIO, MOST_RATIO = 3.0, 8.0  # of the longer to the shorter side
LEAST_SIDE, MOST_SIDE = 256, 4000  # pixels
LEAST_IN_CROP, MOST_IN_WHOLE = 0.09, 0.04
LEAST_ENTRIES, MOST_ENTRIES = 3, 6
COMMON_SIZES = (
    (768, 256), (900, 300), (1024, 256), (1200, 300), (1200, 400), (1280, 320), (1500, 300), (1500, 500),
    (1600, 400), (1920, 480), (2000, 400), (2000, 500), (2400, 600), (3000, 1000), (4000, 1000),
)  # fmt: skip
_MARGIN = 0.03  # of a crop's side, between an entry and the crop's border
_ENTRY_GAP = 1.1  # cap heights between entries that stand beside each other, and more than between item and price
_LINE_GAP = 0.45  # and between one entry and the next below it
_PRICED = 0.8  # of the boards tried; they are fuller, so fewer of them have room
_STACKED = 0.15  # of these have each price below its item, which has room more often
_CENTS = ("00", "00", "50", "50", "25", "75", "90", "95", "99", "20", "40", "80")


@dataclass(frozen=True)
class Panel:
    """An upright rectangle, in pixels of the picture: a plate, a rule between entries, a frame."""

    left: float
    top: float
    right: float
    bottom: float
    fill: RGB | None
    frame: RGB | None = None
    frame_width: float = 0.0
    radius: float = 0.0  # of the corners; only where there is a fill
    is_plate: bool = False  # behind one entry


@dataclass(frozen=True)
class Entry:
    """A word, or an item and its price; each written upright."""

    item: Sign
    price: Sign | None = None

    @property
    def texts(self) -> tuple[Sign, ...]:
        return (self.item,) if self.price is None else (self.item, self.price)

    @property
    def outer(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of its ink, in pixels."""
        bounds = [(t.x + t.outer[0], t.y + t.outer[1], t.x + t.outer[2], t.y + t.outer[3]) for t in self.texts]
        lefts, tops, rights, bottoms = zip(*bounds, strict=True)
        return min(lefts), min(tops), max(rights), max(bottoms)


@dataclass(frozen=True)
class Board:
    """A whole picture; the entries in reading order: from top to bottom, or row by row."""

    width: int
    height: int
    background: Background
    panels: tuple[Panel, ...]
    entries: tuple[Entry, ...]

    @property
    def wide(self) -> bool:
        return self.width > self.height

    @property
    def priced(self) -> bool:
        return self.entries[0].price is not None

    @property
    def boxes(self) -> list[Box]:
        """The crops of pan & scan with its defaults."""
        return pan_and_scan_boxes(self.width, self.height)

    @property
    def first(self) -> Entry | None:
        """The topmost or leftmost entry; None if two rows make it ambiguous."""
        entry = self.entries[0]
        leftmost = min(other.outer[0] for other in self.entries)
        return entry if not self.wide or entry.outer[0] < leftmost + entry.item.cap_height else None

    @property
    def last(self) -> Entry | None:
        """The lowest or rightmost entry; None if two rows make it ambiguous."""
        entry = self.entries[-1]
        rightmost = max(other.outer[2] for other in self.entries)
        return entry if not self.wide or entry.outer[2] > rightmost - entry.item.cap_height else None


@dataclass(frozen=True)
class _Style:
    """The typesetting of a board; lengths in pixels."""

    font: Font
    size: float  # of the em
    stacked: bool  # the price below its item, else behind it
    price_gap: float  # between item and price
    line_gap: float  # between an item and the price below it
    padding: float  # around an entry, for its plate
    rows: int
    align: str  # left or center: entries of a column, and an item above its price

    @property
    def cap(self) -> float:
        return metrics(self.font).cap_height * self.size


@dataclass(frozen=True)
class _Block:
    """The room of one entry: width, height, and each baseline's distance from the top, in pixels."""

    width: float
    height: float
    baselines: tuple[float, ...]


def random_board(
    rng: random.Random, fonts: tuple[Font, ...], split: str = "train", difficulty: float = 1.0, unnamed: float = 0.0
) -> Board:
    """A board of the demo world.

    `split` is "train" (no held-out text) or "heldout" (only held-out items). `difficulty` 0 gives three or four sans
    words on one color, 1 the whole world. `unnamed` is the share of boards with texts in unnamed colors.
    """
    if split not in ("train", "heldout"):
        raise ValueError(f'split is {split!r}; expected "train" or "heldout"')
    while True:
        easy = rng.random() >= difficulty
        width, height = _random_size(rng)
        number = rng.randint(LEAST_ENTRIES, 4 if easy else MOST_ENTRIES)
        priced = rng.random() < _PRICED
        style = _random_style(rng, fonts, width, height, number, priced, easy)
        texts = _random_texts(rng, split, number, priced, 5 if easy else 8)
        for _ in range(3):  # a random board is often too full for its size: try it again first
            places = _laid_out(rng, texts, style, width, height)
            if places is not None:
                board = _colored(rng, texts, places, style, (width, height), 0.0 if easy else difficulty, unnamed)
                if board is not None:
                    return board


def _random_size(rng: random.Random) -> tuple[int, int]:
    if rng.random() < 0.5:
        longer, shorter = rng.choice(COMMON_SIZES)
    else:
        ratio = LEAST_RATIO + (MOST_RATIO - LEAST_RATIO) * rng.random() ** 2.5
        shorter = round(log_uniform(rng, LEAST_SIDE, min(1000.0, MOST_SIDE / ratio)))
        longer = min(MOST_SIDE, max(3 * shorter, round(ratio * shorter)))
    return (longer, shorter) if rng.random() < 0.5 else (shorter, longer)


def cap_heights(width: int, height: int) -> tuple[float, float]:
    """The range of cap heights on a board of this size, in pixels."""
    boxes = pan_and_scan_boxes(width, height)
    side = max(max(box.right - box.left, box.bottom - box.top) for box in boxes)
    return LEAST_IN_CROP * side, MOST_IN_WHOLE * max(width, height)


def _random_style(
    rng: random.Random, fonts: tuple[Font, ...], width: int, height: int, number: int, priced: bool, easy: bool
) -> _Style:
    font = rng.choice([f for f in fonts if f.kind == "sans" and f.plain] if easy else fonts)
    cap = log_uniform(rng, *cap_heights(width, height))
    rows = 2 if width > height and number > 3 and rng.random() < (0.6 if priced else 0.35) else 1
    plates = not easy and rng.random() < 0.15
    return _Style(
        font, cap / metrics(font).cap_height,
        stacked=priced and rng.random() < _STACKED,
        price_gap=cap * rng.uniform(0.6, 1.0),
        line_gap=cap * rng.uniform(0.3, 0.5),
        padding=cap * rng.uniform(0.2, 0.4) if plates else 0.0,
        rows=rows,
        align=rng.choice(("left", "center")),
    )  # fmt: skip


def _random_texts(rng: random.Random, split: str, number: int, priced: bool, most: int) -> list[tuple[str, str | None]]:
    """Items with their prices or None, all different."""
    case = rng.choice((str.upper, str.lower, str.capitalize, str))  # str: each as it comes
    items: dict[str, str] = {}
    prices: set[str] = set()
    while len(items) < number:
        text = case(random_text(rng, split, most))
        if is_possible_item(text, priced):
            items.setdefault(text.lower(), text)
    while priced and len(prices) < number:
        prices.add(random_price(rng))
    if not priced:
        return [(item, None) for item in items.values()]
    return list(zip(items.values(), rng.sample(sorted(prices), number), strict=True))


def is_possible_item(text: str, priced: bool) -> bool:
    """Whether a text can be an item; beside prices, a number cannot."""
    return not (priced and text.isdigit())


def random_price(rng: random.Random) -> str:
    """A price from 0.05 to 99.99, mostly small."""
    whole = rng.choices((0, rng.randint(1, 9), rng.randint(10, 99)), (1, 6, 3))[0]
    cents = rng.choice(_CENTS) if rng.random() < 0.7 else f"{rng.randrange(5, 100):02d}"
    return f"{whole}.{cents}" if whole or int(cents) else "0.50"


# Layout. "Along" is the picture's longer side, the direction in which the crops follow each other.


def _laid_out(
    rng: random.Random, texts: list[tuple[str, str | None]], style: _Style, width: int, height: int
) -> list[tuple[float, float, _Block]] | None:
    """Left, top and room of each entry, in reading order; None if they do not fit."""
    inks = [metrics(style.font).inks[c] for item, price in texts for c in item + (price or "")]
    above, below = (max(ink[side] for ink in inks) * style.size for side in range(2))
    blocks = [_block(style, item, price, above, below) for item, price in texts]
    wide = width > height
    columns = -(-len(blocks) // style.rows)
    groups = [blocks[start::columns] for start in range(columns)] if wide else [[block] for block in blocks]
    extents = [max(block.width if wide else block.height for block in group) for group in groups]
    gap = max(_ENTRY_GAP * style.cap, 1.5 * style.price_gap)
    if not wide:  # entries stand farther apart than an item and the price below it
        gap = _LINE_GAP * style.cap + (style.line_gap if style.stacked else 0.0)
    starts = _along(rng, extents, gap, pan_and_scan_boxes(width, height), wide)
    room = min(width, height) * (1 - 2 * _MARGIN)
    tallest = max(block.height for block in blocks)
    across = style.rows * tallest + (style.rows - 1) * gap if wide else max(block.width for block in blocks)
    if starts is None or across > room:
        return None
    apart = rng.uniform(0.0, 0.7) * min(room - across, 2 * tallest) if style.rows > 1 else 0.0
    near = min(width, height) * _MARGIN + (room - across - apart) * rng.choice((0.5, 0.5, rng.random()))
    if not wide:
        return [(near + _aligned(style, across, b.width), s, b) for s, b in zip(starts, blocks, strict=True)]
    places = []
    for number, block in enumerate(blocks):
        row, column = divmod(number, columns)
        left = starts[column] + _aligned(style, extents[column], block.width)
        places.append((left, near + row * (tallest + gap + apart), block))
    return places


def _aligned(style: _Style, room: float, width: float) -> float:
    return (room - width) / 2 if style.align == "center" else 0.0


def _block(style: _Style, item: str, price: str | None, above: float, below: float) -> _Block:
    """The room of an entry with its plate; `above` and `below` are the ink's reach from the baseline."""
    lengths = [_length(style, text) for text in (item, price) if text]
    lines = 2 if price and style.stacked else 1
    width = max(lengths) if style.stacked else sum(lengths) + (style.price_gap if price else 0.0)
    pitch = above + below + style.line_gap
    height = above + below + (lines - 1) * pitch
    baselines = tuple(style.padding + above + line * pitch for line in range(lines))
    return _Block(width + 2 * style.padding, height + 2 * style.padding, baselines)


def _length(style: _Style, text: str) -> float:
    """The length of a text with all its ink, in pixels."""
    hanging = metrics(style.font).overhangs
    return (edges(style.font, text)[-1] + hanging[text[0]][0] + hanging[text[-1]][1]) * style.size


def _along(rng: random.Random, extents: list[float], gap: float, boxes: list[Box], wide: bool) -> list[float] | None:
    """Start of each thing in a row such that none crosses a crop's border; None if they do not fit."""
    ends = [(box.left, box.right) if wide else (box.top, box.bottom) for box in boxes]
    rooms = [(low + _MARGIN * (high - low), high - _MARGIN * (high - low)) for low, high in ends]
    possible = [
        split
        for split in combinations_with_replacement(range(len(rooms)), len(extents))
        if len(set(split)) > 1 and _fits(split, extents, gap, rooms)
    ]
    if not possible:
        return None
    if rng.random() < 0.6:  # as evenly as can be
        fewest = min(max(Counter(split).values()) for split in possible)
        possible = [split for split in possible if max(Counter(split).values()) == fewest]
    split, even = rng.choice(possible), rng.random() < 0.6
    starts: list[float] = []
    for crop, (low, high) in enumerate(rooms):
        held = [extent for extent, where in zip(extents, split, strict=True) if where == crop]
        slack = high - low - sum(held) - gap * (len(held) - 1)
        cuts = [(n + 1) / (len(held) + 1) for n in range(len(held))]
        cuts = cuts if even else sorted(rng.random() for _ in held)
        starts += [low + slack * cut + sum(held[:n]) + gap * n for n, cut in enumerate(cuts)]
    ends_here = [start + extent for start, extent in zip(starts, extents, strict=True)]
    apart = all(after - end >= gap for end, after in zip(ends_here[:-1], starts[1:], strict=True))
    return starts if apart else None  # they may be too close across a border


def _fits(split: tuple[int, ...], extents: list[float], gap: float, rooms: list[tuple[float, float]]) -> bool:
    needed = [-gap] * len(rooms)
    for extent, crop in zip(extents, split, strict=True):
        needed[crop] += extent + gap
    return all(need <= high - low for need, (low, high) in zip(needed, rooms, strict=True))


# Colors, and what lies around the texts.


def _colored(
    rng: random.Random,
    texts: list[tuple[str, str | None]],
    places: list[tuple[float, float, _Block]],
    style: _Style,
    size: tuple[int, int],
    difficulty: float,
    unnamed: float,
) -> Board | None:
    """The finished board; None if the colors do not stand out."""
    background = random_background(rng, difficulty)
    panels = _sheet(rng, size, places) if rng.random() < 0.15 * difficulty else []
    grounds = grounds_of(background) if not panels or panels[0].fill is None else [to_lab(panels[0].fill)]
    base = panels[0].fill if panels and panels[0].fill else background.colors[0]
    if style.padding:
        plates = _plates(rng, places, style)
        panels, grounds = [*panels, *plates], [to_lab(plate.fill) for plate in plates if plate.fill]
    elif rng.random() < 0.3 * difficulty:
        panels = [*panels, *_rules(rng, places, style, size, base)]
    item = _random_color(rng, grounds, difficulty, unnamed)
    price = item if rng.random() < 0.7 else _random_color(rng, grounds, difficulty, unnamed)
    if item is None or price is None:
        return None
    entries = [
        _entry(text, place, style, size, background, (item, price)) for text, place in zip(texts, places, strict=True)
    ]
    return Board(*size, background, tuple(panels), tuple(entries))


def _random_color(rng: random.Random, grounds: list[Lab], difficulty: float, unnamed: float) -> tuple[str, RGB] | None:
    name = UNNAMED if rng.random() < unnamed else rng.choice(COLORS)
    shade = contrasting_shade(name, grounds, rng, difficulty)
    return None if shade is None else (name, shade.rgb)


def _entry(
    texts: tuple[str, str | None],
    place: tuple[float, float, _Block],
    style: _Style,
    size: tuple[int, int],
    background: Background,
    colors: tuple[tuple[str, RGB], tuple[str, RGB]],
) -> Entry:
    left, top, block = place
    room = block.width - 2 * style.padding
    hanging = metrics(style.font).overhangs
    signs = []
    for number, (text, color) in enumerate(zip(texts, colors, strict=True)):
        if text is None:
            continue
        start = left + style.padding
        if style.stacked:
            start += _aligned(style, room, _length(style, text))
        elif number:
            start += room - _length(style, text)
        length = edges(style.font, text)[-1] * style.size
        x = start + hanging[text[0]][0] * style.size + length / 2
        y = top + block.baselines[number if style.stacked else 0] - style.cap / 2
        signs.append(Sign(*size, background, text, style.font, *color, x, y, style.size))
    return Entry(*signs)


def _sheet(rng: random.Random, size: tuple[int, int], places: list[tuple[float, float, _Block]]) -> list[Panel]:
    """A rectangle or a frame around all entries, near the picture's border."""
    shorter = min(size)
    inset, thick = rng.uniform(0.004, 0.012) * shorter, rng.uniform(0.006, 0.014) * shorter
    ground = random_background(rng, 0.0).colors[0]
    framed = rng.random() < 0.5
    width, height = size
    sheet = Panel(
        inset, inset, width - inset, height - inset,
        fill=ground if not framed or rng.random() < 0.5 else None,
        frame=_line_color(rng, ground) if framed else None,
        frame_width=thick if framed else 0.0,
    )  # fmt: skip
    inner = inset + thick
    assert all(min(left, top) > inner for left, top, _ in places)  # _MARGIN is wider
    return [sheet]


def _plates(rng: random.Random, places: list[tuple[float, float, _Block]], style: _Style) -> list[Panel]:
    """A plate behind each entry, all alike."""
    fill = random_background(rng, 0.0).colors[0]
    frame = _line_color(rng, fill) if rng.random() < 0.4 else None
    thick = 0.5 * rng.uniform(0.1, 0.4) * style.padding if frame else 0.0
    radius = rng.choice((0.0, rng.uniform(0.1, 0.5) * style.cap))
    return [
        Panel(left, top, left + block.width, top + block.height, fill, frame, thick, radius, is_plate=True)
        for left, top, block in places
    ]


def _rules(
    rng: random.Random, places: list[tuple[float, float, _Block]], style: _Style, size: tuple[int, int], ground: RGB
) -> list[Panel]:
    """Lines between entries along the board; none if there are two rows."""
    if style.rows > 1:
        return []
    wide, shorter = size[0] > size[1], min(size)
    half, color = 0.5 * rng.uniform(0.004, 0.012) * shorter, _line_color(rng, ground)
    near = rng.uniform(0.04, 0.15) * shorter
    rules = []
    for (left, top, block), (next_left, next_top, _) in pairwise(places):
        if wide:
            middle = (left + block.width + next_left) / 2
            rules.append(Panel(middle - half, near, middle + half, shorter - near, color))
        else:
            middle = (top + block.height + next_top) / 2
            rules.append(Panel(near, middle - half, shorter - near, middle + half, color))
    return rules


def _line_color(rng: random.Random, ground: RGB) -> RGB:
    return mix(ground, (0, 0, 0) if sum(ground) > 382 else (255, 255, 255), rng.uniform(0.4, 1.0))
