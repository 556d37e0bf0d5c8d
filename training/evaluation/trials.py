"""Asks a checkpoint and judges its answers."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, product
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from gemma3_core import Gemma3ForConditionalGeneration, Gemma3Processor, TorchAoConfig
from training.evaluation.dialogues import SEED, Dialogue, Renderer, dialogues_about_the_same, dialogues_of_kind
from training.language.asking import Question
from training.worlds.boards.questions import TOO_SMALL, says_too_small
from training.worlds.registry import ALL_KINDS, is_right, world_of
from training.worlds.world import ReadInCrops

NEW_TOKENS = 256
CUT_OFF = " …"
"""Ends the text of an answer that reached NEW_TOKENS."""
BATCH = 48
TILES_KEPT = 1024
GUESSED_PRICES = "board_price, pan & scan off: the true price (should be rare)"
_ROW_ENDINGS = {None: "", True: ", pan & scan on", False: ", pan & scan off: says that it is too small"}
Message = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """One question about a picture or two, and whether the answer was right.

    `pan_and_scan` is None for kinds that are never asked with it. Questions of a `sort` have a row of their own.
    """

    question: Question
    answer: str
    pan_and_scan: bool | None = None
    sort: str = ""

    @property
    def right(self) -> bool:
        return says_too_small(self.answer) if self.pan_and_scan is False else self.true

    @property
    def true(self) -> bool:
        """Whether the answer says what is in the picture, readable or not."""
        return is_right(self.question.kind, self.question.key, self.answer)

    @property
    def wanted(self) -> str:
        """The text of a right answer."""
        return TOO_SMALL if self.pan_and_scan is False else self.question.key

    @property
    def row(self) -> str:
        """The row of the table that it counts in."""
        return self.sort or self.question.kind + _ROW_ENDINGS[self.pan_and_scan]

    @property
    def cut_off(self) -> bool:
        """Whether the answer went on until NEW_TOKENS."""
        return self.answer.endswith(CUT_OFF)


class Examinee:
    """A checkpoint that answers in batches; `closer` to every picture with an even tiling, or as it is asked."""

    closer = False

    def __init__(
        self, folder: Path, device: str = "auto", dtype: str = "float32", int4: bool = False, closer: bool = False
    ):
        self.closer = closer
        self._model = Gemma3ForConditionalGeneration.from_pretrained(
            folder, dtype=dtype, device_map=device, quantization_config=TorchAoConfig() if int4 else None
        )
        self._processor = Gemma3Processor.from_pretrained(folder)
        self._encoded: dict[bytes, torch.Tensor] = {}  # soft tokens of the latest tiles, by the tile's hash

    def answer(self, pictures: list[Image], questions: list[str], pan_and_scan: bool = False) -> list[str]:
        """Answers single questions about single pictures."""
        chats = [[_says("user", question, (picture,))] for picture, question in zip(pictures, questions, strict=True)]
        return self.reply(chats, pan_and_scan)

    def reply(self, chats: list[list[Message]], pan_and_scan: bool = False) -> list[str]:
        """Answers the last message of each chat; what reaches NEW_TOKENS ends in CUT_OFF."""
        shown = sum(part["type"] == "image" for chat in chats for message in chat for part in message["content"])
        inputs = self._processor.apply_chat_template(
            chats,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
            padding=True,
            padding_side="left",
            do_pan_and_scan=pan_and_scan,
            crops=["auto"] * shown if self.closer else None,
        ).to(self._model.device, self._model.dtype)
        tiles = inputs.pop("pixel_values", None)
        soft_tokens = None if tiles is None else self._soft_tokens(tiles)
        embedded = self._model.model.embed(inputs.pop("input_ids"), soft_tokens, None)
        written = self._model.generate(**inputs, inputs_embeds=embedded, max_new_tokens=NEW_TOKENS, do_sample=False)
        assert isinstance(written, torch.Tensor)  # nothing else was asked for
        ends = torch.tensor(self._model.generation_config.stop_ids, device=written.device)
        texts = self._processor.batch_decode(written, skip_special_tokens=True)
        ended = torch.isin(written, ends).any(dim=1).tolist()
        return [text if whole else text + CUT_OFF for text, whole in zip(texts, ended, strict=True)]

    @torch.inference_mode()
    def _soft_tokens(self, tiles: torch.Tensor) -> torch.Tensor:
        """Those of tiles [N, 3, S, S] -> [N, tokens, E]. A tile that was encoded lately is not encoded again: earlier
        turns' pictures, the whole picture beside its crops, and several questions about one picture."""
        names = [hashlib.sha256(tile.cpu().view(torch.uint8).numpy()).digest() for tile in tiles]
        new = {name: tile for name, tile in zip(names, tiles, strict=True) if name not in self._encoded}
        known = {name: self._encoded.pop(name) for name in dict.fromkeys(names) if name not in new}
        if new:
            encoded = self._model.get_image_features(torch.stack(list(new.values()))).pooler_output
            known |= zip(new, encoded, strict=True)
        self._encoded |= known
        for name in list(self._encoded)[: -max(TILES_KEPT, len(known))]:
            del self._encoded[name]
        return torch.stack([known[name] for name in names])


def _says(role: str, text: str, pictures: tuple[Image, ...] = ()) -> Message:
    shown = [{"type": "image", "image": picture} for picture in pictures]
    return {"role": role, "content": [*shown, {"type": "text", "text": text}]}


def evaluate(
    examinee: Examinee,
    per_kind: int,
    split: str = "heldout",
    seed: int = SEED,
    renderer: Renderer = None,
    kinds: tuple[str, ...] = ALL_KINDS,
    shared: bool = False,
) -> list[Trial]:
    """Asks `per_kind` questions of each kind; worlds that are read in crops are asked with pan & scan and without,
    unless all pictures are looked at closer.

    With `shared`, all kinds of a world are asked about the same pictures, which takes a third of the time.
    """
    groups: Iterable[list[tuple[str, Dialogue]]]
    if shared:
        asked = dialogues_about_the_same(kinds, per_kind, split, seed, renderer)
        groups = [list(group) for _, group in groupby(asked, lambda pair: world_of(pair[0]).kinds)]
    else:
        groups = ([(kind, one) for one in dialogues_of_kind(kind, per_kind, split, seed, renderer)] for kind in kinds)
    return [trial for group in groups for trial in _asked(examinee, group)]


def _asked(examinee: Examinee, group: list[tuple[str, Dialogue]]) -> Iterator[Trial]:
    """All dialogues, of kinds of one world; only the questions of a dialogue's own kind count."""
    in_crops = isinstance(world_of(group[0][0]), ReadInCrops) and not examinee.closer
    settings = (True, False) if in_crops else (None,)
    for setting, start in product(settings, range(0, len(group), BATCH)):
        batch = group[start : start + BATCH]
        told = _answers(examinee, [dialogue for _, dialogue in batch], bool(setting))
        for (kind, dialogue), answers in zip(batch, told, strict=True):
            for question, answer in zip(dialogue.questions, answers, strict=True):
                if question.kind == kind:
                    yield Trial(question, answer, setting)


def held(examinee: Examinee, dialogues: list[Dialogue], pan_and_scan: bool = False) -> list[tuple[Question, str]]:
    """All questions of the dialogues with their answers; each turn follows the model's earlier answers."""
    answers = _answers(examinee, dialogues, pan_and_scan)
    return [
        pair for one, told in zip(dialogues, answers, strict=True) for pair in zip(one.questions, told, strict=True)
    ]


def _answers(examinee: Examinee, dialogues: list[Dialogue], pan_and_scan: bool) -> list[list[str]]:
    chats = [[_says("system", dialogue.system)] if dialogue.system else [] for dialogue in dialogues]
    told: list[list[str]] = [[] for _ in dialogues]
    for turn in range(max(len(dialogue.questions) for dialogue in dialogues)):
        going = [place for place, dialogue in enumerate(dialogues) if len(dialogue.questions) > turn]
        for place in going:
            dialogue = dialogues[place]
            chats[place].append(_says("user", dialogue.questions[turn].question, () if turn else dialogue.pictures))
        answers = examinee.reply([chats[place] for place in going], pan_and_scan)
        for place, answer in zip(going, answers, strict=True):
            chats[place].append(_says("assistant", answer))
            told[place].append(answer)
    return told


def accuracies(trials: list[Trial]) -> dict[str, float]:
    """Share of right answers in each row of the table, 0 to 1, and of prices told where none is legible."""
    by_row: dict[str, list[bool]] = {}
    for trial in trials:
        by_row.setdefault(trial.row, []).append(trial.right)
        if trial.pan_and_scan is False and trial.question.kind == "board_price":
            by_row.setdefault(GUESSED_PRICES, []).append(trial.true)
    return {row: sum(right) / len(right) for row, right in by_row.items()}
