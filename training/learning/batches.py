"""Training batches: pictures as pixels, conversations as token ids, dense labels beside them.

A conversation is what the app sends: the checkpoint's chat template, perhaps a system prompt, one or two pictures and
several questions about them. Some conversations continue with another picture, some use pan & scan, some look closer
(crops that cover the picture evenly, or parts of it), some have no picture. Half of the pictures that can only be read
with pan & scan get it.

Most conversations are a fan: each question is asked as if it were the first. It attends to the picture but not to the
other questions, and has the positions of a first question. Otherwise the model could copy answers from earlier ones
("two red circles" gives away a color, a shape and a number) instead of looking at the picture. Questions that depend
on each other are asked in turn. In conversations of any sort, some questions are about something else.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise, product
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import IterableDataset

from gemma3_core import Gemma3ImageProcessorPil, Gemma3Processor, Gemma3Tokenizer
from gemma3_core.images.crops import even_crops
from gemma3_core.images.pan_and_scan import Box, pan_and_scan_boxes
from training.drawing.colors import COLORS
from training.drawing.dense_labels import NO_LABEL, TOKENS_PER_SIDE, PictureLabels, unlabelled
from training.drawing.geometry import SHAPES
from training.language.asking import Question
from training.learning.dense_heads import IGNORED, DenseLabels
from training.learning.model import IMAGE_SIZE
from training.worlds.elsewhere import something_else
from training.worlds.registry import world_named
from training.worlds.scenes.scenes import HELDOUT_PAIRS
from training.worlds.world import DrawnWorld, ReadInCrops, World

NO_PICTURE = "There is no picture yet. Please add one and ask again."
UNREAD_QUESTIONS = 2
"""Maximum of questions about a picture that needs crops and has none: their answer is always the same."""
_AS_THE_PAGE, _IN_HALVES = 0.5, 0.35  # of the closer looks: its tiling, and two crops along the longer side
_POOL = 4  # batches whose conversations are written together, and sorted by length for less padding
_REPLACED = 0.4  # of the questions in conversations with asides, beside the one that always is


@dataclass(frozen=True)
class Share:
    """A world's share of a mix; difficulties are drawn from `easiest` to 1, the whole world."""

    world: str
    weight: float
    easiest: float = 1.0


@dataclass(frozen=True)
class Mix:
    """The mix of pictures and conversations in a training stage; numbers below 1 are shares of the conversations."""

    worlds: tuple[Share, ...] = (Share("scenes", 1.0),)
    questions: int = 8
    apart: float = 0.75
    asides: float = 0.0  # with questions about something else between the others
    second_picture: float = 0.1
    pan_and_scan: float = 0.06
    no_picture: float = 0.02
    question_first: float = 0.05
    true_size: float = 0.05
    unnamed: float = 0.35
    crowded: float = 0.0  # share of batches that are crowds, with dense labels and without questions
    closer: float = 0.0  # share of the other batches that look closer


@dataclass
class Batch:
    """pixels uint8 [N, 3, 224, 224]; input_ids, labels, positions and segments [B, T]; dense labels of N pictures.

    A token attends to its own segment and to segment 0. Each row (b, t, id) of `excluded` [M, 3] is a token that the
    loss leaves out at [b, t]. Where there are soft_tokens [N, 64, E], or states [B, T, E] behind the decoder's first
    layers, pixels are [N, 0].
    """

    pixels: torch.Tensor
    input_ids: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    segments: torch.Tensor
    excluded: torch.Tensor
    dense: DenseLabels
    soft_tokens: torch.Tensor | None = None
    states: torch.Tensor | None = None


@dataclass
class _Conversation:
    squares: list[np.ndarray]
    dense: list[PictureLabels]
    ids: list[int]
    labels: list[int]
    positions: list[int]
    segments: list[int]
    excluded: list[tuple[int, int]] = field(default_factory=list)  # (place in ids, token)

    def add(self, ids: list[int], labels: list[int], position: int, segment: int) -> None:
        self.ids += ids
        self.labels += labels
        self.positions += range(position, position + len(ids))
        self.segments += [segment] * len(ids)


@dataclass(frozen=True)
class _Turns:
    """Pictures, and the questions that follow them."""

    squares: list[np.ndarray]
    dense: list[PictureLabels]
    crops: list[int]  # of each picture
    questions: list[Question]


@dataclass(frozen=True)
class _Asked:
    turns: list[_Turns]
    system: str
    apart: bool  # each question as if it were the only one


class Conversations(IterableDataset):
    """Endless batches of `size` conversations; each worker has its own seeded stream."""

    def __init__(self, tokenizer_folder: str, size: int, mix: Mix, seed: int):
        self._folder, self._size, self._seed = tokenizer_folder, size, seed
        self.mix = mix

    def __iter__(self) -> Iterator[Batch]:
        info = torch.utils.data.get_worker_info()
        rng = random.Random(f"{self._seed}/{info.id if info else 0}")
        if info:  # the workers share the machine; without them this is the trainer's own process
            torch.set_num_threads(1)
        writer = ConversationWriter(Gemma3Tokenizer.from_pretrained(self._folder))
        while True:
            mix, size = _alike(self.mix, self._size, rng)
            pool = [writer.write(rng, mix) for _ in range(_POOL * size)]
            pool.sort(key=lambda conversation: len(conversation.ids))
            for start in range(0, len(pool), size):
                yield collate(pool[start : start + size])


def _alike(mix: Mix, size: int, rng: random.Random) -> tuple[Mix, int]:
    """The mix and size of one batch, such that its conversations have about the same length.

    Otherwise a few long conversations (crops, two pictures) would pad all others to their length.
    """
    with_crops, with_two = max(1, size // 3), max(1, 2 * size // 3)
    if mix.crowded and rng.random() < mix.crowded:
        return replace(mix, worlds=(Share("crowds", 1.0),), questions=0, unnamed=0.6), with_two
    if mix.closer and rng.random() < mix.closer:
        drawn = tuple(share for share in mix.worlds if isinstance(world_named(share.world), DrawnWorld))
        return replace(mix, worlds=drawn, closer=1.0, second_picture=0.0, no_picture=0.0), with_crops
    mix = replace(mix, closer=0.0)
    in_crops = tuple(share for share in mix.worlds if isinstance(world_named(share.world), ReadInCrops))
    others = tuple(share for share in mix.worlds if share not in in_crops)
    pan_and_scan = mix.pan_and_scan if others else 0.0
    draw = rng.random()
    if in_crops and mix.questions:
        # Half of these pictures get crops, in batches of their own; the other half joins the usual batches.
        usual = with_two * mix.second_picture + size * (1.0 - pan_and_scan - mix.second_picture)
        half = sum(share.weight for share in in_crops) / 2
        odds = usual / with_crops * half / (half + sum(share.weight for share in others))
        if draw < (own := odds / (1.0 + odds)):
            return replace(mix, worlds=in_crops, pan_and_scan=1.0, second_picture=0.0), with_crops
        draw = (draw - own) / (1.0 - own)
        mix = replace(mix, worlds=(*others, *(replace(share, weight=share.weight / 2) for share in in_crops)))
    if draw < pan_and_scan:
        return replace(mix, worlds=others, pan_and_scan=1.0, second_picture=0.0), with_crops
    if draw < pan_and_scan + mix.second_picture:
        return replace(mix, pan_and_scan=0.0, second_picture=1.0), with_two
    return replace(mix, pan_and_scan=0.0, second_picture=0.0), size


class ConversationWriter:
    """Draws pictures of the mix's worlds, asks about them, and encodes both for the model."""

    def __init__(self, tokenizer: Gemma3Tokenizer):
        self._tokenizer = tokenizer
        self._processor = Gemma3Processor(Gemma3ImageProcessorPil(), tokenizer, image_seq_length=TOKENS_PER_SIDE**2)
        self._unseen_colors: dict[tuple[int, int], list[int]] = {}
        self._unseen_shapes: dict[tuple[int, int], list[int]] = {}
        self._note_unseen_pairs()

    def write(self, rng: random.Random, mix: Mix) -> _Conversation:
        if mix.questions == 0:
            return self._unasked(rng, mix)
        while not (asked := self._asked(rng, mix)).turns[0].questions:
            pass  # no question fits this picture
        return self._fan(asked.turns[0], asked.system) if asked.apart else self._join(asked, rng, mix)

    def _unasked(self, rng: random.Random, mix: Mix) -> _Conversation:
        """One picture alone, or one crop of it if it is read in crops."""
        world, depiction = _imagined(rng, mix)
        drawn, shown = rng.choice(world.pictures(depiction))
        squares, dense = self._see(drawn, shown, rng, mix, crops=isinstance(drawn, ReadInCrops))
        number = rng.randrange(1, len(squares)) if len(squares) > 1 else 0
        return _Conversation([squares[number]], [dense[number]], [], [], [], [])

    def _asked(self, rng: random.Random, mix: Mix) -> _Asked:
        """Pictures and questions; sometimes without a picture, sometimes continued with a second one."""
        imagined = world, depiction = _imagined(rng, mix)
        system = world.system_prompt(depiction)
        if rng.random() < mix.no_picture:
            questions = [
                replace(q, answer=NO_PICTURE, key="", unseen=()) for q in world.ask(depiction, rng, "train", 1)
            ]
            return _Asked([_Turns([], [], [], questions)], system, apart=False)
        if not isinstance(world, DrawnWorld) or rng.random() >= mix.second_picture or mix.questions == 1:
            apart = not world.in_turn and rng.random() < mix.apart
            return _Asked([self._turns(*imagined, mix.questions, apart, rng, mix)], system, apart)
        first = mix.questions // 2
        turns = [self._turns(*imagined, first, False, rng, mix)]
        drawn = tuple(share for share in mix.worlds if isinstance(world_named(share.world), DrawnWorld))
        imagined = _imagined(rng, replace(mix, worlds=drawn))
        return _Asked([*turns, self._turns(*imagined, mix.questions - first, False, rng, mix)], system, apart=False)

    def _turns(
        self, world: World[Any], depiction: Any, count: int, apart: bool, rng: random.Random, mix: Mix
    ) -> _Turns:
        """Questions about a description, with its pictures as the encoder gets them."""
        pictures = world.pictures(depiction)
        crops = mix.closer > 0 or rng.random() < mix.pan_and_scan
        if isinstance(world, ReadInCrops) and not crops:
            asked = world.ask(depiction, rng, "train", min(count, UNREAD_QUESTIONS), apart=apart)
            asked = [replace(question, answer=world.answer_without_crops, key="", unseen=()) for question in asked]
        else:
            asked = world.ask(depiction, rng, "train", count, apart=apart)
        if asked and mix.asides and rng.random() < mix.asides:
            asked = with_asides(asked, rng, world.in_turn, apart)
        seen = [self._see(drawn, shown, rng, mix, crops) for drawn, shown in pictures] if asked else []
        return _Turns(
            [square for squares, _ in seen for square in squares],
            [one for _, dense in seen for one in dense],
            [len(squares) - 1 for squares, _ in seen],
            asked,
        )

    def _see(
        self, world: DrawnWorld[Any], depiction: Any, rng: random.Random, mix: Mix, crops: bool
    ) -> tuple[list[np.ndarray], list[PictureLabels]]:
        """The encoder's squares, the whole picture first, and their dense labels.

        Crops have labels only in worlds that are read in crops, if they are pan & scan's.
        """
        in_crops = world if isinstance(world, ReadInCrops) and not mix.closer else None
        boxes: list[Box] = []
        if crops:
            boxes = _closer(world, depiction, rng) if mix.closer else pan_and_scan_boxes(*world.size(depiction))
        drawn_squeezed = not boxes or in_crops is not None
        labels = [world.labels(depiction)]
        if in_crops is not None:
            labels += [in_crops.crop_labels(depiction, box) for box in boxes]
        labels += [unlabelled()] * (1 + len(boxes) - len(labels))
        if drawn_squeezed and rng.random() >= mix.true_size:
            seen = [world.as_seen(depiction, rng, IMAGE_SIZE)]
            if boxes and in_crops is not None:
                seen += in_crops.crops_as_seen(depiction, boxes, rng, IMAGE_SIZE)
            return [_channels_first(square) for square in seen], labels
        picture = world.draw(depiction, rng)
        squares = [_square(picture)]
        squares += [_square(picture.crop((b.left, b.top, b.right, b.bottom))) for b in boxes]
        return squares, labels

    def _fan(self, turns: _Turns, system: str) -> _Conversation:
        """The pictures once, followed by each question as if it were the only one."""
        out = _Conversation(turns.squares, turns.dense, [], [], [], [])
        start = self._encode(f"<bos><start_of_turn>user\n{_before_all(system)}{self._image_text(turns.crops)}")
        out.add(start, [IGNORED] * len(start), position=0, segment=0)
        for segment, question in enumerate(turns.questions, 1):
            prompt = self._encode(f"{question.question}<end_of_turn>\n<start_of_turn>model\n")
            answer = self._encode(f"{question.answer}<end_of_turn>")
            self._exclude(out, question, len(out.ids) + len(prompt), answer)
            out.add(prompt + answer, [IGNORED] * len(prompt) + answer, len(start), segment)
        return out

    def _join(self, asked: _Asked, rng: random.Random, mix: Mix) -> _Conversation:
        """The questions in turn, as a visitor asks them; each attends to all that came before."""
        out = _Conversation([], [], [], [], [], [])
        out.add([self._tokenizer.bos_token_id], [IGNORED], position=0, segment=0)
        before = _before_all(asked.system)
        for turns in asked.turns:
            out.squares += turns.squares
            out.dense += turns.dense
            images = self._image_text(turns.crops)
            for question in turns.questions:
                behind = images and rng.random() < mix.question_first
                text = before + (question.question + images if behind else images + question.question)
                before = images = ""
                prompt = self._encode(f"<start_of_turn>user\n{text}<end_of_turn>\n<start_of_turn>model\n")
                answer, after = self._encode(f"{question.answer}<end_of_turn>"), self._encode("\n")
                labels = [IGNORED] * len(prompt) + answer + [IGNORED] * len(after)
                self._exclude(out, question, len(out.ids) + len(prompt), answer)
                out.add(prompt + answer + after, labels, position=len(out.ids), segment=0)
        return out

    def _exclude(self, out: _Conversation, question: Question, start: int, answer: list[int]) -> None:
        """Notes the tokens that would make a held-out pair, where the wrong answer departs from the right one."""
        for unseen in question.unseen:
            other = self._encode(f"{unseen}<end_of_turn>")
            parting = next(n for n, (token, told) in enumerate(zip(other, answer, strict=False)) if token != told)
            out.excluded.append((start + parting, other[parting]))
        for place, pair in enumerate(pairwise(answer), start):
            out.excluded += [(place, color) for color in self._unseen_colors.get(pair, ())]
            out.excluded += [(place + 1, shape) for shape in self._unseen_shapes.get(pair, ())]

    def _note_unseen_pairs(self) -> None:
        """For each pair of tokens "color shape", finds the colors and shapes that would make a held-out pair there."""
        for color, shape in product(COLORS, SHAPES):
            for ending in ("", "s"):
                pair = (self._word(color), self._word(shape + ending))
                self._unseen_colors[pair] = [self._word(c) for s, c in sorted(HELDOUT_PAIRS) if s == shape]
                self._unseen_shapes[pair] = [self._word(s + ending) for s, c in sorted(HELDOUT_PAIRS) if c == color]

    def _word(self, word: str) -> int:
        (token,) = self._encode(f" {word}")
        return token

    def _image_text(self, crops: list[int]) -> str:
        """The placeholder text of pictures, given the number of crops of each."""
        return self._processor.expand_images([self._tokenizer.boi_token * len(crops)], crops)[0]

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)


def _imagined(rng: random.Random, mix: Mix) -> tuple[World[Any], Any]:
    """A world of the mix, and a description of one of its pictures."""
    shares = mix.worlds
    share = shares[0] if len(shares) == 1 else rng.choices(shares, [share.weight for share in shares])[0]
    world = world_named(share.world)
    return world, world.imagine(rng, "train", rng.uniform(share.easiest, 1.0), mix.unnamed)


def _closer(world: DrawnWorld[Any], depiction: Any, rng: random.Random) -> list[Box]:
    """The crops of a closer look; a picture that is read in crops is shown in all its parts."""
    width, height = world.size(depiction)
    draw = rng.random()
    if draw < _AS_THE_PAGE:
        return even_crops(width, height, IMAGE_SIZE)
    if draw < _AS_THE_PAGE + _IN_HALVES or isinstance(world, ReadInCrops):
        return even_crops(width, height, max(width, height))
    return [_part(width, height, rng) for _ in range(rng.randint(1, 3))]


def _part(width: int, height: int, rng: random.Random) -> Box:
    """Any part of a picture, a quarter to two thirds of each side."""
    across, down = (round(side * rng.uniform(1 / 4, 2 / 3)) for side in (width, height))
    left, top = rng.randint(0, width - across), rng.randint(0, height - down)
    return Box(left, top, left + across, top + down)


def with_asides(asked: list[Question], rng: random.Random, in_turn: bool, apart: bool) -> list[Question]:
    """The questions, about half of them replaced by some about something else.

    Those that lean on the turn before (`in_turn`) stay together: what is about something else ends the conversation.
    """
    if in_turn:
        kept = asked[: rng.randint(1, len(asked))]
        return [*kept, *(something_else(rng, follows=True) for _ in range(rng.randint(1, 2)))]
    replaced = {rng.randrange(len(asked)), *(place for place in range(len(asked)) if rng.random() < _REPLACED)}
    return [
        something_else(rng, follows=place > 0 and not apart) if place in replaced else question
        for place, question in enumerate(asked)
    ]


def _before_all(system: str) -> str:
    """The system prompt, which the chat template puts at the start of the first user turn."""
    return f"{system}\n\n" if system else ""


def _stacked(labels: list[PictureLabels]) -> DenseLabels:
    known = {}
    for part in fields(DenseLabels):
        whole = np.stack([getattr(one, part.name) for one in labels])
        known[part.name] = torch.from_numpy(np.where(whole == NO_LABEL, IGNORED, whole.astype(np.int64)))
    return DenseLabels(**known)


def _square(picture: Image.Image) -> np.ndarray:
    """[3, 224, 224] as the image processor resizes it."""
    return _channels_first(picture.resize((IMAGE_SIZE, IMAGE_SIZE), resample=Image.Resampling.BILINEAR))


def _channels_first(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).transpose(2, 0, 1)


def collate(conversations: list[_Conversation]) -> Batch:
    """Pads on the right, where nothing after the last label needs a mask."""
    longest = max(1, *(len(c.ids) for c in conversations))
    fields = {"ids": 0, "labels": IGNORED, "positions": 0, "segments": 0}
    rows = {
        name: torch.tensor([getattr(c, name) + [fill] * (longest - len(c.ids)) for c in conversations])
        for name, fill in fields.items()
    }
    squares = [s for c in conversations for s in c.squares]
    dense = [d for c in conversations for d in c.dense]
    excluded = [(b, place - 1, token) for b, c in enumerate(conversations) for place, token in c.excluded]
    return Batch(
        pixels=torch.from_numpy(np.stack(squares)),
        input_ids=rows["ids"],
        labels=rows["labels"],
        positions=rows["positions"],
        segments=rows["segments"],
        excluded=torch.tensor(excluded, dtype=torch.long).reshape(-1, 3),
        dense=_stacked(dense),
    )
