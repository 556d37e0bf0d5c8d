"""Whether the demo model looks at what it is asked about, and whether that matters for its answer.

    python -m benchmarks.attention
    python -m benchmarks.attention --pictures 20

The pictures are held-out scenes of three shapes or more, asked "What color is the star?" if there is one star. For the
answer's color word, this compares two shares: of the picture's attention, the part inside the box around the star, and
of the picture's area, the box. Then it hides the star, or instead the shape nearest to it in size, and reads the word's
probability again. Prints a table and writes benchmarks/results/attention.json.
"""

import argparse
import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from PIL import Image

from benchmarks.timing import machine
from gemma3_core.engine import Answered, AttentionMap, Box, DoneEvent, Engine, Request, TokenEvent, Turn
from training.drawing.colors import UNNAMED
from training.worlds.scenes.drawing import draw
from training.worlds.scenes.scenes import Scene, SceneObject, random_scene

RESULT = Path(__file__).resolve().parent / "results" / "attention.json"
SEED = 20_000_003  # the evaluation's, for held-out scenes
LEAST_OBJECTS = 3


@dataclass(frozen=True)
class Case:
    """A scene, its picture, the object in question and the object nearest to it in size."""

    picture: Image.Image
    asked: SceneObject
    other: SceneObject

    @property
    def question(self) -> str:
        return f"What color is the {self.asked.shape}?"


@dataclass(frozen=True)
class Finding:
    """One case: whether the answer was right; shares from 0 to 1; probabilities of the color word."""

    right: bool
    area: float  # share of the picture's area inside the box around the object
    on_object: dict[str, float]  # share of the picture's attention inside the box, for each choice of layers
    before: float
    without_asked: float
    without_other: float


def cases(count: int) -> Iterator[Case]:
    """Yields held-out scenes in which some shape occurs once."""
    rng = random.Random(SEED)
    while count:
        scene = random_scene(rng, "heldout")
        shapes = [item.shape for item in scene.objects]
        single = [item for item in scene.objects if shapes.count(item.shape) == 1 and item.color != UNNAMED]
        if len(shapes) < LEAST_OBJECTS or not single:
            continue
        asked = rng.choice(single)
        other = min((item for item in scene.objects if item is not asked), key=lambda item: abs(item.size - asked.size))
        yield Case(_drawn(scene, rng), asked, other)
        count -= 1


def _drawn(scene: Scene, rng: random.Random) -> Image.Image:
    picture = draw(scene, rng=rng)
    assert picture.size == (scene.width, scene.height)
    return picture


def box_around(item: SceneObject, picture: Image.Image) -> Box:
    """The square around an object, in pixels, clipped to the picture."""
    reach = item.radius
    return Box(
        max(0, math.floor(item.x - reach)),
        max(0, math.floor(item.y - reach)),
        min(picture.width, math.ceil(item.x + reach)),
        min(picture.height, math.ceil(item.y + reach)),
    )


def share_in(attention: AttentionMap, box: Box) -> float:
    """The share of the picture's attention inside `box`; a partly covered cell counts in proportion."""
    (tile,) = attention.tiles
    side, whole = len(tile.grid), tile.tile.box
    within = 0.0
    for row, weights in enumerate(tile.grid):
        for column, weight in enumerate(weights):
            left, right = (whole.right * n / side for n in (column, column + 1))
            top, bottom = (whole.bottom * n / side for n in (row, row + 1))
            wide = max(0.0, min(right, box.right) - max(left, box.left)) / (right - left)
            high = max(0.0, min(bottom, box.bottom) - max(top, box.top)) / (bottom - top)
            within += weight * wide * high
    return within / tile.total


def find(engine: Engine, case: Case, layers: Sequence[str | int]) -> Finding | None:
    """Asks one case; None if the answer names no color."""
    request = Request((Turn("user", case.question, (case.picture,)),), confidence=True)
    words, done = [], None
    for event in engine.stream(request):
        if isinstance(event, TokenEvent) and event.choice is not None:
            words.append(event.choice.text.strip())
        elif isinstance(event, DoneEvent):
            done = event
    assert done is not None
    # "The star is yellow.": the color follows "is".
    if "is" not in words[:-1]:
        return None
    token, answered = words.index("is") + 1, Answered(request, done)
    box = box_around(case.asked, case.picture)
    on_object = {str(layer): share_in(engine.attention(answered, [token], layer), box) for layer in layers}  # type: ignore[arg-type]
    asked, other = (
        engine.occlude(answered, token, 0, box_around(item, case.picture)) for item in (case.asked, case.other)
    )
    area = (box.right - box.left) * (box.bottom - box.top) / (case.picture.width * case.picture.height)
    return Finding(words[token] == case.asked.color, area, on_object, asked.before, asked.after, other.after)


def report(findings: Sequence[Finding]) -> dict[str, Any]:
    """Means and medians over all findings."""
    layers = {}
    for layer in findings[0].on_object:
        ratios = [finding.on_object[layer] / finding.area for finding in findings]
        layers[layer] = {
            "share_on_object": round(mean(finding.on_object[layer] for finding in findings), 4),
            "times_its_area_median": round(median(ratios), 2),
            "more_than_its_area": round(mean(ratio > 1 for ratio in ratios), 4),
        }
    return {
        "questions": len(findings),
        "right": round(mean(finding.right for finding in findings), 4),
        "area_of_object": round(mean(finding.area for finding in findings), 4),
        "layers": layers,
        "probability": round(mean(finding.before for finding in findings), 4),
        "probability_without_asked": round(mean(finding.without_asked for finding in findings), 4),
        "probability_without_other": round(mean(finding.without_other for finding in findings), 4),
        "asked_matters_more": round(mean(f.without_asked < f.without_other for f in findings), 4),
    }


def table(figures: dict[str, Any]) -> str:
    """The figures as a Markdown table."""
    lines = ["| layers | on the object | times its area (median) | more than its area |", "|---|---|---|---|"]
    for layer, one in figures["layers"].items():
        name = f"layer {int(layer) + 1}" if layer.isdecimal() else layer
        lines.append(
            f"| {name} | {one['share_on_object']:.1%} | {one['times_its_area_median']} | "
            f"{one['more_than_its_area']:.0%} of the pictures |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, default=RESULT)
    arguments = parser.parse_args()
    engine = Engine.load(device=arguments.device)
    layers: list[str | int] = ["global", "rollout", *range(len(engine.info.layers))]
    found = [find(engine, case, layers) for case in cases(arguments.pictures)]
    findings = [finding for finding in found if finding is not None]
    figures = {"machine": machine(), "answers_without_color": len(found) - len(findings), **report(findings)}
    arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(table(figures))
    print({name: value for name, value in figures.items() if name not in ("machine", "layers")})


if __name__ == "__main__":
    main()
