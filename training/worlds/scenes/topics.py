"""Questions about a scene as a topic and a subject ("color", the star), with their answers.

The topics are kinds of questions.py. Follow-ups ("And the circle?") need the subject by itself.
"""

import random
from dataclasses import dataclass

from training.drawing.colors import COLORS
from training.drawing.geometry import SHAPES
from training.language.asking import Target
from training.worlds.scenes.questions import NUMBERS, article, clear_place, plural, there_are
from training.worlds.scenes.scenes import HELDOUT_PAIRS, Scene, SceneObject

TOPICS = ("count_shape", "count_color", "count_all", "color", "shape", "where", "is_there")
_ABSENT_SHARE = 0.15  # of the counts are of something absent
_KEPT_ONES = 0.35  # of the counts of single things, the most common ones
_SORTS = {  # the subjects of each topic
    "count_shape": ("shape",), "count_color": ("color",), "count_all": ("all",),
    "color": ("shape",), "shape": ("color",), "where": ("shape", "color"), "is_there": ("shape", "color"),
}  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """The subject of a question: objects of this shape or color, or all objects."""

    shape: str = ""
    color: str = ""

    @property
    def sort(self) -> str:
        return "shape" if self.shape else "color" if self.color else "all"

    @property
    def noun(self) -> str:
        return self.shape or f"{self.color} shape".strip()

    def meant(self, scene: Scene) -> list[SceneObject]:
        return [o for o in scene.objects if self.shape in ("", o.shape) and self.color in ("", o.color)]


def target(topic: str, subject: Subject, scene: Scene) -> Target | None:
    """Answer and key, with the subject's words for all slots; None if the scene has no clear answer."""
    noun, meant = subject.noun, subject.meant(scene)
    slots = (
        ("shape", subject.shape), ("shapes", plural(subject.shape)), ("color", subject.color), ("noun", noun),
        ("nouns", plural(noun)), ("a_noun", article(noun)), ("many", plural(noun)),
    )  # fmt: skip
    if topic.startswith("count"):
        return Target(slots, there_are(len(meant), noun, plural(noun)), NUMBERS[len(meant)])
    if topic == "is_there":
        answer, key = (f"Yes, there is {article(noun)}.", "yes") if meant else (f"No, there is no {noun}.", "no")
        return Target(slots, answer, key, "color" if subject.color else "one")
    if len(meant) != 1:
        return None
    item = meant[0]
    if topic == "where":
        place = clear_place(item, scene)
        return None if place is None else Target(slots, f"The {noun} is in the {place}.", place)
    if topic == "color" and subject.shape:
        unseen = tuple(c for s, c in sorted(HELDOUT_PAIRS) if s == item.shape)
        return Target(slots, f"The {noun} is {item.color}.", item.color, unseen=unseen)
    if topic == "shape" and subject.color:
        unseen = tuple(s for s, c in sorted(HELDOUT_PAIRS) if c == item.color)
        return Target(slots, f"The {noun} is {article(item.shape)}.", item.shape, unseen=unseen)
    return None


def subjects(topic: str, scene: Scene, rng: random.Random) -> list[Subject]:
    """A topic's possible subjects in this scene, in random order; absent and single things are rare."""
    found = [subject for sort in _SORTS[topic] for subject in _named(sort)]
    there = [subject for subject in found if subject.meant(scene)]
    absent = [subject for subject in found if subject not in there]
    if topic.startswith("count"):
        there = [s for s in there if len(s.meant(scene)) > 1 or rng.random() < _KEPT_ONES]
    if topic == "is_there":
        there += rng.sample(absent, min(len(absent), len(there)))
    elif absent and topic.startswith("count") and rng.random() < _ABSENT_SHARE:
        there = [rng.choice(absent)]
    there = [subject for subject in there if target(topic, subject, scene) is not None]
    rng.shuffle(there)
    return there


def _named(sort: str) -> list[Subject]:
    if sort == "shape":
        return [Subject(shape=shape) for shape in SHAPES]
    return [Subject(color=color) for color in COLORS] if sort == "color" else [Subject()]
