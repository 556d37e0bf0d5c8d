"""Random pairs of scenes to compare: alike, nearly alike, or unrelated."""

import random
from dataclasses import dataclass, replace

from training.drawing.backgrounds import MIN_CONTRAST, Background, contrasting_shade, grounds_of, random_background
from training.drawing.colors import delta_e, to_lab
from training.worlds.scenes.scenes import Scene, possible_pairs, random_scene, scene_of

_RELATIONS = {"alike": 0.3, "nearly": 0.35, "apart": 0.35}  # their shares
_MOVED = 0.5  # of the second pictures that are related to the first get a new layout
_MOST_OBJECTS = 6
_BACKGROUNDS_TRIED = 6


@dataclass(frozen=True)
class Pair:
    """Two pictures, in the order in which they are shown."""

    first: Scene
    second: Scene

    @property
    def scenes(self) -> tuple[Scene, Scene]:
        return self.first, self.second


def names(scene: Scene) -> list[tuple[str, str]]:
    """Shape and color of each object, sorted."""
    return sorted((item.shape, item.color) for item in scene.objects)


def random_pair(rng: random.Random, split: str = "train", difficulty: float = 1.0) -> Pair:
    """Two random scenes of the split; in "heldout", at least one has a held-out pair."""
    first = random_scene(rng, split, difficulty)
    relation = rng.choices(tuple(_RELATIONS), tuple(_RELATIONS.values()))[0]
    if relation == "apart":
        second = random_scene(rng, split, difficulty)
    elif relation == "alike":
        second = scene_of(names(first), rng, difficulty) if rng.random() < _MOVED else _on_other_ground(first, rng)
    else:
        second = _nearly(first, rng, split, difficulty)
    return Pair(first, second) if rng.random() < 0.5 else Pair(second, first)


def _on_other_ground(scene: Scene, rng: random.Random) -> Scene:
    """The same objects in place, on another background if all stand out from one of those tried."""
    fills = [to_lab(item.rgb) for item in scene.objects]
    for _ in range(_BACKGROUNDS_TRIED):
        background: Background = random_background(rng, 1.0)
        if all(delta_e(fill, ground) > MIN_CONTRAST for fill in fills for ground in grounds_of(background)):
            return replace(scene, background=background)
    return scene


def _nearly(scene: Scene, rng: random.Random, split: str, difficulty: float) -> Scene:
    """The scene with one object recolored, removed, added, or changed in shape."""
    number = rng.randrange(len(scene.objects))
    changes = ["color", "color", "shape", *["less"] * (len(scene.objects) > 1)]
    changes += ["more"] * (len(scene.objects) < _MOST_OBJECTS)
    change = rng.choice(changes)
    staying = change in ("color", "less") and rng.random() >= _MOVED
    if staying and (changed := _in_place(scene, number, change, rng, split)) is not None:
        return _on_other_ground(changed, rng) if rng.random() < 0.5 else changed
    kept = [(item.shape, item.color) for item in scene.objects]
    if change == "more":
        return scene_of([*kept, rng.choice(possible_pairs(split))], rng, difficulty)
    old = kept.pop(number)
    if change != "less":
        same = 0 if change == "color" else 1  # what stays: the shape, or the color
        kept.append(rng.choice([pair for pair in possible_pairs(split) if pair != old and pair[same] == old[same]]))
    return scene_of(kept, rng, difficulty)


def _in_place(scene: Scene, number: int, change: str, rng: random.Random, split: str) -> Scene | None:
    objects = list(scene.objects)
    item = objects.pop(number)
    if change == "less":
        return replace(scene, objects=tuple(objects))
    color = rng.choice([c for s, c in possible_pairs(split) if s == item.shape and c != item.color])
    shade = contrasting_shade(color, grounds_of(scene.background), rng, 1.0)
    if shade is None:
        return None
    objects.insert(number, replace(item, color=color, rgb=shade.rgb))
    return replace(scene, objects=tuple(objects))
