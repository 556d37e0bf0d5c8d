"""Questions about something else than the model knows, held out as whole sentences in out_of_world.json.

Each entry of a sort is a conversation in turns, about pictures of one of the model's worlds, each world as often.
IN_WORLD stands for a question about the pictures; its answer is not judged. All others have one right answer.
"""

import json
import random
from itertools import count
from pathlib import Path

from training.evaluation.dialogues import SEED, Dialogue, Renderer, drawn
from training.evaluation.trials import BATCH, Examinee, Trial, accuracies, held
from training.language.asking import Question
from training.worlds.elsewhere import NOT_ASKED_FOR
from training.worlds.registry import WORLDS
from training.worlds.world import ReadInCrops

NAME = "out_of_world"
FILE = Path(__file__).with_name("out_of_world.json")
IN_WORLD = "*"
SHOWN = ("scenes", "signs", "charts", "boards", "pairs", "two_lines")
"""The worlds whose pictures are shown, in turn."""
_KIND = "strange_question"


def sorts() -> dict[str, list[list[str]]]:
    """The conversations of each sort, as lists of turns."""
    told: dict[str, list[list[str]]] = json.loads(FILE.read_text(encoding="utf-8"))
    return told


def ask(examinee: Examinee, seed: int = SEED, renderer: Renderer = None) -> list[Trial]:
    """Asks all of them; half of the boards with pan & scan."""
    trials = []
    for sort, told in conversations(seed, renderer).items():
        for crops in (False, True):
            dialogues = [dialogue for dialogue, with_crops in told if with_crops == crops]
            for start in range(0, len(dialogues), BATCH):
                answered = held(examinee, dialogues[start : start + BATCH], pan_and_scan=crops)
                trials += [
                    Trial(question, answer, sort=f"{NAME}: {sort}") for question, answer in answered if question.kind
                ]
    return trials


def conversations(seed: int, renderer: Renderer = None) -> dict[str, list[tuple[Dialogue, bool]]]:
    """The dialogues of each sort, with whether pan & scan is on."""
    rng, pen = random.Random(f"{seed}/{NAME}"), random.Random(f"{seed}/{NAME}/drawing")
    numbers, found = count(), {}
    for sort, entries in sorts().items():
        found[sort] = [_dialogue(entry, next(numbers), rng, pen, renderer) for entry in entries]
    return found


def shares(trials: list[Trial]) -> dict[str, float]:
    """The share of honest answers to each sort, and to all; nothing if nothing was asked."""
    if not trials:
        return {}
    return accuracies(trials) | {f"{NAME}: all {len(trials)}": sum(trial.right for trial in trials) / len(trials)}


def _dialogue(
    turns: list[str], number: int, rng: random.Random, pen: random.Random, renderer: Renderer
) -> tuple[Dialogue, bool]:
    world = WORLDS[SHOWN[number % len(SHOWN)]]
    about = turns.count(IN_WORLD)
    while True:
        depiction = world.imagine(rng, "heldout")
        asked = world.ask(depiction, rng, "heldout", about) if about else []
        if len(asked) == about:
            break
    pictures = tuple(drawn(one, shown, pen, renderer) for one, shown in world.pictures(depiction))
    crops = isinstance(world, ReadInCrops) and number // len(SHOWN) % 2 == 0
    return Dialogue(pictures, tuple(_question(turn, asked) for turn in turns)), crops


def _question(turn: str, asked: list[Question]) -> Question:
    """The next of the questions about the picture, without a kind; or the turn itself."""
    if turn == IN_WORLD:
        return Question("", asked.pop().question, "", "")
    return Question(_KIND, turn, NOT_ASKED_FOR, NOT_ASKED_FOR)
