"""How well a box that is estimated from a map fits the object in question: intersection over union with its true box.

    python -m benchmarks.faithfulness.boxes
    python -m benchmarks.faithfulness.boxes --world charts --train 20 --pictures 40

For the color word of answers about pictures of the demo model's worlds. Each map gives two boxes: around the connected
part with at least a share of its maximum, and around patches of like color (`inspection/place.py`). The shares, and the
heads of "five heads", are those that do best on pictures of the training split; the table is about held-out pictures.
Wrong answers are left out. Prints the table and writes benchmarks/results/boxes_WORLD.json.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.faithfulness.cases import SEED, WORLDS_WITH_OBJECTS, Case, drawn_cases
from benchmarks.faithfulness.methods import gradient_x_attention, knock_out
from benchmarks.faithfulness.report import interval
from benchmarks.faithfulness.scores import upsampled
from benchmarks.faithfulness.subject import Subject, asked, loaded
from benchmarks.timing import machine
from gemma3_core.engine import DEMO_MODEL, Box
from gemma3_core.inspection.attention import replay
from gemma3_core.inspection.heat_maps import TileMap, chosen_layers, connected
from gemma3_core.inspection.place import estimated_box, most_on
from gemma3_core.inspection.prompt import Tile
from gemma3_core.processor import Gemma3Processor

RESULTS = Path(__file__).resolve().parents[1] / "results"
TRAIN_SEED = 11
SHARES = (0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7)
HEADS = 5
PAGE = "the head that looks most at what the word rests on"
_FINE = 64  # cells to a side of a map whose parts are taken


@dataclass(frozen=True)
class Found:
    """One case: the true box (left, top, right, bottom) in pixels, the maps [G, G], and all heads [layers, H, G, G]."""

    case: Case
    truth: tuple[float, float, float, float]
    maps: Mapping[str, np.ndarray]
    heads: np.ndarray


def find(cases: Iterator[Case], until: float) -> tuple[list[Found], int]:
    """What is known about each case until this time (seconds of time.monotonic), and how many answers were wrong."""
    engine, model, processor = loaded()
    found, wrong = [], 0
    for case in cases:
        if time.monotonic() > until:
            break
        answered, texts = asked(engine, case)
        said = [number for number, text in enumerate(texts) if text.strip() == case.word]
        if not said:
            wrong += 1
            continue
        subject = Subject(model, processor, case, answered.done.token_ids)
        subject.word = range(said[0], said[0] + 1)
        found.append(_found(subject))
    return found, wrong


def _found(subject: Subject) -> Found:
    row = subject.turn["input_ids"].shape[1] - 1
    looks = replay(subject.model, subject.turn, [row]).weights[:, :, 0, subject.tokens].float()
    heads, rests = looks.view(*looks.shape[:2], subject.grid, subject.grid).numpy(), knock_out(subject)
    layers = heads.mean(axis=1)
    maps = {
        "attention, mean of global layers": heads[list(chosen_layers(subject.model.text_config, "global", None))].mean(
            axis=(0, 1)
        ),
        "attention, best layer": layers[layers.max(axis=(1, 2)).argmax()],
        "gradient x attention": gradient_x_attention(subject),
        "knock-out": rests,
        PAGE: heads[most_on(looks, torch.from_numpy(rests).flatten())],
    }
    outline = subject.case.outline
    assert outline is not None
    (left, top), (right, bottom) = outline.min(axis=0), outline.max(axis=0)
    return Found(subject.case, (float(left), float(top), float(right), float(bottom)), maps, heads)


def overlap(box: tuple[float, float, float, float], truth: tuple[float, float, float, float]) -> float:
    """Intersection over union."""
    wide = max(0.0, min(box[2], truth[2]) - max(box[0], truth[0]))
    high = max(0.0, min(box[3], truth[3]) - max(box[1], truth[1]))
    areas = sum((right - left) * (bottom - top) for left, top, right, bottom in (box, truth))
    return wide * high / (areas - wide * high)


def box_above(heat: np.ndarray, share: float, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The box around the connected part of a map that has at least this share of its maximum, in pixels."""
    fine = upsampled(heat, _FINE)
    peak = np.unravel_index(int(fine.argmax()), fine.shape)
    rows, columns = np.nonzero(connected(fine >= share * fine[peak], (int(peak[0]), int(peak[1]))))
    across, down = size[0] / _FINE, size[1] / _FINE
    return columns.min() * across, rows.min() * down, (columns.max() + 1) * across, (rows.max() + 1) * down


def box_of_patches(heat: np.ndarray, picture: Image.Image, side: int) -> tuple[float, float, float, float]:
    """The estimate of `Engine.why` from this map."""
    tile = Tile(0, None, Box(0, 0, *picture.size), 0, heat.size)
    small = picture.resize((side, side), Image.Resampling.BILINEAR)
    box = estimated_box(TileMap(tile, tuple(map(tuple, heat.tolist()))), small)
    return box.left, box.top, box.right, box.bottom


def best_share(found: list[Found], heat_of: Callable[[Found], np.ndarray]) -> float:
    """The share of a map's maximum whose boxes fit best."""

    def mean(share: float) -> float:
        return float(
            np.mean([overlap(box_above(heat_of(one), share, one.case.picture.size), one.truth) for one in found])
        )

    return max(SHARES, key=mean)


def best_heads(found: list[Found]) -> list[tuple[int, int]]:
    """The heads with the most attention inside the true boxes."""
    inside = np.zeros(found[0].heads.shape[:2])
    for one in found:
        mask, side = np.zeros((_FINE, _FINE)), one.heads.shape[-1]
        left, right = (int(_FINE * x / one.case.picture.width) for x in (one.truth[0], one.truth[2]))
        top, bottom = (int(_FINE * y / one.case.picture.height) for y in (one.truth[1], one.truth[3]))
        mask[max(0, top) : bottom + 1, max(0, left) : right + 1] = 1.0
        cells = mask.reshape(side, _FINE // side, side, _FINE // side).mean(axis=(1, 3))
        inside += (one.heads * cells).sum(axis=(2, 3))
    order = np.argsort(-inside, axis=None)[:HEADS]
    return [tuple(map(int, np.unravel_index(place, inside.shape))) for place in order]  # type: ignore[misc]


def _map_named(name: str, one: Found) -> np.ndarray:
    return one.maps[name]


def figures_of(train: list[Found], heldout: list[Found], side: int) -> dict[str, Any]:
    """For each map and way the mean overlap with its interval, and the share of boxes that overlap by half or more."""
    heads = best_heads(train)
    ways: dict[str, Callable[[Found], np.ndarray]] = {name: partial(_map_named, name) for name in heldout[0].maps}
    ways[f"the {HEADS} heads that do best on the training split"] = lambda one: np.mean(
        [one.heads[head] for head in heads], axis=0
    )
    rows = []
    for name, heat_of in ways.items():
        share = best_share(train, heat_of)
        for box, fits in (
            (
                f"at least {share:.0%} of the maximum",
                [overlap(box_above(heat_of(one), share, one.case.picture.size), one.truth) for one in heldout],
            ),
            (
                "patches of like color",
                [overlap(box_of_patches(heat_of(one), one.case.picture, side), one.truth) for one in heldout],
            ),
        ):
            half = round(float(np.mean([fit >= 0.5 for fit in fits])), 4)
            rows.append({"map": name, "box": box, "overlap": interval(fits), "half": half})
    return {"heads": heads, "train": len(train), "pictures": len(heldout), "ways": rows}


def table(figures: dict[str, Any]) -> str:
    """The figures as a Markdown table."""
    lines = ["| map | box | intersection over union | at least half |", "|---|---|---|---|"]
    for way in figures["ways"]:
        fit = way["overlap"]
        cells = f"{fit['mean']:.2f} ({fit['low']:.2f} to {fit['high']:.2f}) | {way['half']:.0%}"
        lines.append(f"| {way['map']} | {way['box']} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=WORLDS_WITH_OBJECTS, default="scenes")
    parser.add_argument("--train", type=int, default=60, help="pictures of the training split")
    parser.add_argument("--pictures", type=int, default=100, help="held-out pictures")
    parser.add_argument("--seed", type=int, default=SEED, help="of the held-out pictures")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="at most; a third for training")
    arguments = parser.parse_args()
    world = arguments.world
    start = time.monotonic()
    train, _ = find(drawn_cases(world, arguments.train, TRAIN_SEED, "train"), start + arguments.seconds / 3)
    heldout, wrong = find(drawn_cases(world, arguments.pictures, arguments.seed), start + arguments.seconds)
    side = Gemma3Processor.from_pretrained(DEMO_MODEL).image_processor.config.size.for_picture(1, 1)[0]
    figures = {"machine": machine(), "world": world, "wrong_answers": wrong, **figures_of(train, heldout, side)}
    path = RESULTS / f"boxes_{world}.json"
    path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(table(figures))
    print({name: value for name, value in figures.items() if name not in ("machine", "ways")})


if __name__ == "__main__":
    main()
