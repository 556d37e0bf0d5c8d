"""Random bar charts: two to six upright bars with a label each; lengths are in pixels.

A label's capitals are at least LEAST_CAP_HEIGHT of the picture's shorter side. Some programs set the em to that size,
which makes capitals smaller: training goes down to LEAST_TRAINED. Any two bars differ by at least LEAST_APART of the
picture's height, 7 of the 224 pixels that the encoder sees.
"""

import math
import random
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

from training.drawing.backgrounds import Background, contrasting_shade, grounds_of, random_background
from training.drawing.colors import COLORS, RGB, UNNAMED, Lab, delta_e, is_clear, mix, to_lab
from training.drawing.fonts import Font, edges, metrics
from training.drawing.sizes import log_uniform, random_size
from training.worlds.signs.signs import Sign, is_heldout_text, random_text

FEWEST, MOST = 2, 6
LONGEST_LABEL = 6
SMALLEST_SIDE = 224  # pixels
LEAST_CAP_HEIGHT, LARGEST_CAP_HEIGHT = 0.05, 0.12
LEAST_TRAINED = 0.0365  # the cap height of letters whose em is 5 %
LEAST_APART = 1 / 32  # of the picture's height, between any two bars
LEAST_HEIGHT = 1 / 20  # of the picture's height
LEAST_BETWEEN = 3 / 224  # of the picture's width, between neighbours
INK_CONTRAST = 40.0  # CIE76 between what is written and what is behind it

_SMALLER_SHARE = 0.1  # of training charts have labels between LEAST_TRAINED and LEAST_CAP_HEIGHT
_ABOVE_SHARE = 0.15  # of the charts have the labels above the bars
_TITLED, _TICKED = 0.35, 0.6  # shares of charts with a title, and with numbers beside the axis
_EDGE = 0.015  # of the shorter side, around everything
_FEWER_FITTING = 3  # tries with labels of one length, before shorter ones are taken
_NICE_STEPS = tuple(digit * 10**power for power in range(5) for digit in (1, 2, 5))
_BLACK, _WHITE = (0, 0, 0), (255, 255, 255)

NAMES = tuple(
    """
    Al Bo Ed Jo Ty Abe Ada Amy Ana Ann Ben Bob Dan Eli Eva Fay Gus Ian Ida Jan Jim Joe Kai Kim Lea Leo Max Mia Ned
    Pam Ray Roy Sam Sue Tim Tom Uma Vic Zoe Alan Anna Beth Carl Cora Dave Emma Eric Finn Gina Hugo Ivan Jack Jane
    John Kate Kurt Lena Lily Luis Mark Mary Nina Noah Omar Otto Paul Rosa Ruth Sara Theo Vera Alice Bruno Carla
    Clara David Diana Elena Emily Ethan Felix Frank Grace Helen Henry Irene James Julia Karen Laura Lucas Maria
    Oscar Peter Ralph Simon Tanya Wendy Amanda Andrew Carlos Daniel Edward George Hannah Isabel Jasper Joanna Louise
    Martin Monica Nadine Oliver Robert Sophia Thomas Victor
    """.split()  # noqa: SIM905  (a list of strings would be three times as long)
)
SERIES = (  # that charts are of, in this order
    tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
    ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"),
    ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"),
    ("North", "East", "South", "West"),
    ("Spring", "Summer", "Autumn", "Winter"),
)


@dataclass(frozen=True)
class Look:
    """The colors of everything around the bars; None is absent."""

    name: str
    face: RGB | None  # behind the bars, within the axes
    ink: RGB  # of everything written
    spines: tuple[str, ...] = ()  # of left, right, top, bottom
    spine: RGB = _BLACK
    ticks: bool = False  # small marks outside the axes
    grid: RGB | None = None
    grid_columns: bool = False  # lines upwards from each label too
    grid_dashed: bool = False
    grid_in_front: bool = False  # of the bars


ALL_SPINES = ("left", "right", "top", "bottom")
# matplotlib's styles: the figure's background, the look, and its weight.
_STYLES: tuple[tuple[RGB, Look, int], ...] = (
    (_WHITE, Look("default", _WHITE, _BLACK, ALL_SPINES, _BLACK, True), 8),
    (_WHITE, Look("default", _WHITE, _BLACK, ALL_SPINES, _BLACK, True, (176, 176, 176), True, False, True), 2),
    (_WHITE, Look("default", _WHITE, _BLACK, ALL_SPINES, _BLACK, True, (176, 176, 176)), 2),
    (_WHITE, Look("default", _WHITE, _BLACK, ("left", "bottom"), _BLACK, True), 4),
    (_WHITE, Look("ggplot", (229, 229, 229), (85, 85, 85), (), _WHITE, True, _WHITE, True), 3),
    (_WHITE, Look("seaborn-darkgrid", (234, 234, 242), (38, 38, 38), (), _WHITE, False, _WHITE, True), 3),
    (_WHITE, Look("seaborn-whitegrid", _WHITE, (38, 38, 38), ALL_SPINES, (204, 204, 204), False, (204,) * 3), 3),
    (_WHITE, Look("bmh", (238, 238, 238), _BLACK, ALL_SPINES, (188,) * 3, True, (178,) * 3, True, True), 3),
    (_BLACK, Look("dark_background", _BLACK, _WHITE, ALL_SPINES, _WHITE, True), 4),
    ((240, 240, 240), Look("fivethirtyeight", (240, 240, 240), _BLACK, (), _BLACK, False, (203, 203, 203), True), 3),
    ((192, 192, 192), Look("grayscale", _WHITE, _BLACK, ALL_SPINES, _BLACK, True), 1),
    ((253, 246, 227), Look("Solarize_Light2", (238, 232, 213), (88, 110, 117), (), _WHITE, True, (253, 246, 227)), 2),
)


@dataclass(frozen=True)
class Bar:
    """One bar with its label; its box in pixels of the chart, edge included."""

    label: Sign
    color: str  # of COLORS, or UNNAMED
    rgb: RGB
    left: float
    top: float
    right: float
    bottom: float

    @property
    def name(self) -> str:
        return self.label.text

    @property
    def height(self) -> float:
        """Pixels."""
        return self.bottom - self.top


@dataclass(frozen=True)
class Chart:
    """A whole picture, `width` by `height` pixels; its bars from left to right.

    `axes` are left, top, right and bottom of the rectangle in which the bars stand, pixels.
    """

    width: int
    height: int
    background: Background
    look: Look
    axes: tuple[float, float, float, float]
    bars: tuple[Bar, ...]
    notes: tuple[Sign, ...]  # words of the title, numbers beside the axis: not to be asked about
    ticks: tuple[float, ...]  # where numbers stand, pixels from the top
    line: float  # width of spines, ticks and grid, pixels
    edge: RGB | None = None  # around each bar
    edge_width: float = 0.0


def random_chart(
    rng: random.Random, fonts: tuple[Font, ...], split: str = "train", difficulty: float = 1.0, unnamed: float = 0.0
) -> Chart:
    """A bar chart of the demo world.

    `split` is "train" (no held-out label) or "heldout" (at least one). `difficulty` 0 gives two or three bars of very
    different heights with short large labels on one color, 1 the whole world. `unnamed` is the share of charts with
    bars in unnamed colors.
    """
    if split not in ("train", "heldout"):
        raise ValueError(f'split is {split!r}; expected "train" or "heldout"')
    easy = rng.random() >= difficulty
    number = rng.randint(FEWEST, 3 if easy else MOST)
    while True:
        chart = _laid_out(rng, number, fonts, split, difficulty, easy, unnamed)
        if chart is not None:
            return chart


def _laid_out(
    rng: random.Random, number: int, fonts: tuple[Font, ...], split: str, difficulty: float, easy: bool, unnamed: float
) -> Chart | None:
    """A chart of `number` bars; None if something does not fit or does not stand out."""
    width, height = random_size(rng, 0.0 if easy else difficulty)
    side = min(width, height)
    if side < SMALLEST_SIDE:
        return None
    found = _random_look(rng, 0.0 if easy else difficulty)
    if found is None:
        return None
    background, look = found
    fills = _fills(rng, number, behind_bars(background, look), difficulty, unnamed)
    if fills is None:
        return None
    font = rng.choice([f for f in fonts if f.kind == "sans" and f.plain] if easy else fonts)
    writing = _Writing(width, height, background, font, look.ink)

    ticked, titled = rng.random() < _TICKED, rng.random() < _TITLED
    note_cap, top_value = rng.uniform(0.025, 0.04) * side, round(10 ** rng.uniform(0.6, 3.9))
    head = rng.choice((1.05, rng.uniform(1.02, 1.3)))  # how much higher the axes are than the tallest bar
    numbers = _tick_numbers(top_value * head) if ticked else ()
    left = _EDGE * side + rng.uniform(0.0, 0.1) * width * rng.random()
    if ticked:
        left += max(writing.length(str(value), note_cap) for value in numbers) + 1.2 * note_cap
    right = width - _EDGE * side - rng.uniform(0.0, 0.1) * width * rng.random()
    pitch = (right - left) / (number - 1 + 2 * rng.uniform(0.52, 0.8))
    first = (left + right - (number - 1) * pitch) / 2
    broad = min(rng.choice((0.8, rng.uniform(0.45, 0.9))) * pitch, pitch - LEAST_BETWEEN * width)
    above = rng.random() < _ABOVE_SHARE

    smaller = split == "train" and not easy and rng.random() < _SMALLER_SHARE
    least = (LEAST_TRAINED if smaller else LEAST_CAP_HEIGHT) * side
    longest = rng.randint(1, 2) if easy else rng.choices(range(1, LONGEST_LABEL + 1), (1, 1, 2, 3, 3, 3))[0]
    spare = (first - _EDGE * side, width - _EDGE * side - first - (number - 1) * pitch)
    fitted = _fitting_labels(rng, split, number, longest, writing, pitch, broad if above else 0.0, min(spare), least)
    if fitted is None:
        return None
    texts, most = fitted
    most = min(most, (LEAST_CAP_HEIGHT if smaller else LARGEST_CAP_HEIGHT) * side)
    cap = log_uniform(rng, max(least, 0.7 * most) if easy else least, most)

    deep, gap = metrics(font).inks["g"][1] / metrics(font).cap_height * cap, rng.uniform(0.35, 0.8) * cap
    title_cap = rng.uniform(0.03, 0.055) * side if titled else 0.0
    top = _EDGE * side + 2.2 * title_cap + rng.uniform(0.0, 0.06) * height
    below = deep + _EDGE * side if above else cap + max(gap, 0.8 * note_cap) + deep
    bottom = height - below - _EDGE * side - rng.uniform(0.0, 0.06) * height
    room = (bottom - top) / head - (gap + cap + deep if above else 0.0)
    tall = _heights(rng, number, room, height, easy)
    if tall is None:
        return None

    line = max(0.7, rng.uniform(0.002, 0.005) * side)
    edge_width = rng.uniform(0.8, 2.0) * line
    bars = []
    for index, (text, (color, rgb), reach) in enumerate(zip(texts, fills, tall, strict=True)):
        x = first + index * pitch
        base = bottom - reach - gap - deep if above else bottom + max(gap, 0.8 * note_cap) + cap
        label = writing.sign(text, x, base - cap / 2, cap)
        bars.append(Bar(label, color, rgb, x - broad / 2, bottom - reach, x + broad / 2, bottom))
    scale = max(tall) / top_value  # pixels of a unit
    ticks = tuple(bottom - value * scale for value in numbers)
    notes = [
        writing.sign(text, left - 0.8 * note_cap - writing.length(text, note_cap) / 2, y, note_cap)
        for text, y in zip(map(str, numbers), ticks, strict=True)
    ]
    if titled:
        notes += _title(rng, writing, title_cap, _EDGE * side + 0.9 * title_cap)
    edge = rng.choice((_BLACK, _BLACK, _WHITE, None)) if rng.random() < 0.2 * difficulty else None
    return Chart(
        width, height, background, look, (left, top, right, bottom), tuple(bars), tuple(notes), ticks, line,
        edge, edge_width if edge else 0.0,
    )  # fmt: skip


@dataclass(frozen=True)
class _Writing:
    """Makes the texts of one chart, all in one font and color."""

    width: int
    height: int
    background: Background
    font: Font
    ink: RGB

    def length(self, text: str, cap: float) -> float:
        """Pixels, at a cap height of `cap` pixels."""
        return edges(self.font, text)[-1] * cap / metrics(self.font).cap_height

    def sign(self, text: str, x: float, y: float, cap: float) -> Sign:
        """A text with its middle at (x, y), half a cap height above the baseline."""
        size = cap / metrics(self.font).cap_height
        color = color_name(self.ink)
        return Sign(self.width, self.height, self.background, text, self.font, color, self.ink, x, y, size)


@lru_cache(maxsize=256)
def color_name(rgb: RGB) -> str:
    """The name of a color, or UNNAMED if it lies between the named ones."""
    return next((color for color in COLORS if is_clear(rgb, color)), UNNAMED)


def behind_bars(background: Background, look: Look) -> list[Lab]:
    """The colors that a bar must stand out from."""
    return grounds_of(background) if look.face is None else [to_lab(look.face)]


def _random_look(rng: random.Random, difficulty: float) -> tuple[Background, Look] | None:
    """One of matplotlib's styles, or a plain one on any background; None if the ink does not stand out."""
    if rng.random() < 0.6:
        ground, look, _ = rng.choices(_STYLES, [share for *_, share in _STYLES])[0]
        if difficulty and rng.random() < 0.3:
            look = replace(look, grid_columns=False, grid_in_front=False, ticks=rng.random() < 0.5)
        return Background("plain", (ground,)), look
    background = random_background(rng, difficulty)
    grounds = grounds_of(background)
    dark = grounds[0][0] < 55
    ink = mix(_WHITE if dark else _BLACK, background.colors[0], rng.choice((0.0, 0.0, rng.uniform(0.0, 0.3))))
    if rng.random() < 0.1 and (shade := contrasting_shade(rng.choice(COLORS), grounds, rng, difficulty)):
        ink = shade.rgb
    if any(delta_e(to_lab(ink), ground) < INK_CONTRAST for ground in grounds):
        return None
    spines = rng.choice(((), ("bottom",), ("bottom",), ("left", "bottom"), ALL_SPINES))
    grid = mix(background.colors[0], ink, rng.uniform(0.1, 0.3)) if rng.random() < 0.3 else None
    return background, Look(
        "drawn", None, ink, spines, ink, rng.random() < 0.3, grid,
        grid_columns=rng.random() < 0.2, grid_dashed=rng.random() < 0.3, grid_in_front=rng.random() < 0.1,
    )  # fmt: skip


def _fills(
    rng: random.Random, number: int, grounds: list[Lab], difficulty: float, unnamed: float
) -> list[tuple[str, RGB]] | None:
    """Color and shade of each bar, one shade per color; None if one does not stand out."""
    sort = rng.random()
    if sort < 0.4:
        colors = [rng.choice(COLORS)] * number
    elif sort < 0.75:
        colors = rng.sample(COLORS, number)
    elif sort < 0.85:  # one stands out
        usual, special = rng.sample(COLORS, 2)
        colors = [usual] * number
        colors[rng.randrange(number)] = special
    else:
        colors = rng.choices(COLORS, k=number)
    if rng.random() < unnamed:
        changed = {color: UNNAMED for color in dict.fromkeys(colors) if rng.random() < 0.75}
        colors = [changed.get(color, color) for color in colors]
    shades = {color: contrasting_shade(color, grounds, rng, difficulty) for color in dict.fromkeys(colors)}
    found = [(color, shade.rgb) for color in colors if (shade := shades[color]) is not None]
    return found if len(found) == number else None


def _fitting_labels(
    rng: random.Random,
    split: str,
    number: int,
    longest: int,
    writing: _Writing,
    pitch: float,
    bar: float,
    beside: float,
    least: float,
) -> tuple[tuple[str, ...], float] | None:
    """Labels of up to `longest` letters, and the largest cap height (pixels) at which they do not touch.

    Neighbours are `pitch` apart; the outer ones may extend `beside` pixels outwards. A label above its bar must not
    touch the next bar, which is `bar` pixels wide (0: labels are below).
    """
    for most in range(longest, 0, -1):
        for _ in range(_FEWER_FITTING):
            texts = random_labels(rng, split, number, most)
            long = [writing.length(text, 1.0) for text in texts]
            pairs = [(a + b) / 2 for a, b in pairwise(long)]
            # Half a cap height stays between neighbours.
            cap = min(pitch / (max(pairs) + 0.5), 2 * beside / max(long[0], long[-1]))
            if bar:
                cap = min(cap, (pitch - bar / 2) / (max(long) / 2 + 0.3))
            if cap > least:
                return texts, cap
    return None


def random_labels(rng: random.Random, split: str, number: int, most: int = LONGEST_LABEL) -> tuple[str, ...]:
    """Different texts of 1 to `most` letters; in split "train" none is held out, in "heldout" at least one."""
    fitting = [series for series in SERIES if len(series) >= number and max(map(len, series)) <= most]
    if fitting and rng.random() < 0.2:
        series = rng.choice(fitting)
        allowed = [text for text in series if split == "heldout" or not is_heldout_text(text)]
        if len(allowed) >= number:
            chosen = sorted(rng.sample(range(len(allowed)), number))
            if split == "train" or any(is_heldout_text(allowed[index]) for index in chosen):
                return tuple(allowed[index] for index in chosen)
    found: dict[str, str] = {}
    while len(found) < number:
        # Few single letters are held out, so only the first label must be.
        text = _label(rng, split if not found or rng.random() < 0.6 else "train", most)
        found.setdefault(text.lower(), text)
    texts = list(found.values())
    rng.shuffle(texts)
    alike = rng.choice((str, str.upper, str.lower, str.capitalize))
    return tuple(map(alike, texts))


def _label(rng: random.Random, split: str, most: int) -> str:
    """A name, a word or a string of letters."""
    while True:
        text = rng.choice(NAMES) if rng.random() < 0.25 else random_text(rng, split, most)
        if text.isalpha() and len(text) <= most and is_heldout_text(text) == (split == "heldout"):
            return text


def _heights(rng: random.Random, number: int, room: float, height: int, easy: bool) -> list[float] | None:
    """The bars' heights in pixels: the tallest is `room`, any two differ clearly; None if there is no room."""
    apart = (0.08 if easy else LEAST_APART) * height
    low = LEAST_HEIGHT * height
    slack = room - low - (number - 1) * apart
    if slack < 0.1 * height:
        return None
    if rng.random() < 0.3:  # all of them long
        taken = rng.uniform(0.3, 0.9) * slack
        low, slack = low + taken, slack - taken
    spread = sorted(rng.uniform(0.0, slack) for _ in range(number - 1))
    heights = [low + share + index * apart for index, share in enumerate(spread)] + [room]
    rng.shuffle(heights)
    return heights


def _tick_numbers(top: float) -> tuple[int, ...]:
    """At most seven numbers from 0 upwards, none above `top`."""
    step = next(step for step in _NICE_STEPS if top / step < 7)
    return tuple(range(0, math.floor(top) + 1, step))


def _title(rng: random.Random, writing: _Writing, cap: float, y: float) -> list[Sign]:
    """One to three words in a line; none is held out, because training must not see those even in a title."""
    words = [random_text(rng, "train", 7) for _ in range(rng.randint(1, 3))]
    space = 0.5 * cap
    while sum(writing.length(word, cap) + space for word in words) > 0.9 * writing.width:
        words.pop()
    x = (writing.width - sum(writing.length(word, cap) + space for word in words) + space) / 2
    signs = []
    for word in words:
        length = writing.length(word, cap)
        signs.append(writing.sign(word, x + length / 2, y, cap))
        x += length + space
    return signs
