"""One word of an answer about one picture: what methods explain, and what scores ask again."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageFilter

from benchmarks.faithfulness.cases import Case
from gemma3_core.engine import DEMO_MODEL, Answered, DoneEvent, Engine, Request, TokenEvent, Turn
from gemma3_core.engine.precisions import ModelVariants
from gemma3_core.inspection.attention import with_answer
from gemma3_core.inspection.knockout import KnockOut
from gemma3_core.int4.quantize import TorchAoConfig
from gemma3_core.models.multimodal import Gemma3ForConditionalGeneration
from gemma3_core.processor import Gemma3Processor

_BLUR = 10 / 224  # of the tile's side: nothing of the demo model's letters is left
_TILES_AT_A_TIME = 4  # what many layers leave of more does not fit a core's cache


class Subject:
    """A word and the turn in which it was written; `pixels` [3, S, S] are the picture as the encoder sees it."""

    def __init__(
        self, model: Gemma3ForConditionalGeneration, processor: Gemma3Processor, case: Case, ids: Sequence[int]
    ):
        """`ids` are the answer's tokens. `choose` says which word is asked about."""
        self.model, self.case, self.ids = model, case, tuple(ids)
        messages = [
            {
                "role": "user",
                "content": [{"type": "image", "image": case.picture}, {"type": "text", "text": case.question}],
            }
        ]
        inputs = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        self.pixels: torch.Tensor = inputs["pixel_values"][0].to(model.dtype)
        self.prompt = {name: inputs[name] for name in ("input_ids", "token_type_ids")}
        with torch.inference_mode():
            self.prompt["soft_tokens"] = model.get_image_features(self.pixels[None]).pooler_output
        self.tokens = (self.prompt["token_type_ids"][0] == 1).nonzero()[:, 0]
        self.grid = round(len(self.tokens) ** 0.5)
        self.word = range(0)
        self._ends: dict[str, float] = {}
        self.small = case.picture.resize((self.side, self.side), Image.Resampling.BILINEAR)
        blurred = self.small.filter(ImageFilter.GaussianBlur(_BLUR * self.side))
        blur = processor.image_processor(images=[blurred], return_tensors="pt")["pixel_values"][0].to(self.pixels)
        mean = self.pixels.mean(dim=(1, 2), keepdim=True).expand_as(self.pixels)
        self.bases = {"blurred": blur, "mean": mean}

    def ends(self) -> dict[str, float]:
        """The word's probability for the whole picture and for each base; computed once."""
        if not self._ends:
            found = self.probabilities(torch.stack([self.pixels, *self.bases.values()])).tolist()
            self._ends = dict(zip(("whole", *self.bases), found, strict=True))
        return self._ends

    @property
    def side(self) -> int:
        return self.pixels.shape[-1]

    @property
    def turn(self) -> dict[str, Any]:
        """The model's inputs up to the token before the word."""
        return with_answer(self.prompt, self.ids[: self.word.start])

    @property
    def target(self) -> int:
        return self.ids[self.word.start]

    def choose(self, texts: Sequence[str]) -> float:
        """Chooses the asked word, or the one that the picture decides most; returns by how much its probability falls
        with the picture hidden."""
        asked = [number for number, text in enumerate(texts) if text.strip() == self.case.word]
        falls = {number: self._fall(number) for number in asked[:1] or range(len(self.ids))}
        number = max(falls, key=falls.__getitem__)
        self.word = range(number, number + 1)
        return falls[number]

    def _fall(self, number: int) -> float:
        knock_out = KnockOut(self.model, self.prompt, self.ids, range(number, number + 1))
        hidden = torch.zeros(2, len(self.tokens), dtype=torch.bool)
        hidden[1] = True
        seen, unseen = knock_out.probabilities(hidden).tolist()
        return seen - unseen

    @torch.inference_mode()
    def probabilities(self, pixels: torch.Tensor) -> torch.Tensor:
        """The word's probability [N] with other pixels [N, 3, S, S] in the picture's place: encoded again."""
        turn, parts = self.turn, []
        for some in pixels.split(_TILES_AT_A_TIME):
            soft, rows = self.model.get_image_features(some).pooler_output, len(some)
            ids, types = (turn[name].expand(rows, -1) for name in ("input_ids", "token_type_ids"))
            logits = self.model(ids, token_type_ids=types, soft_tokens=soft, use_cache=False, logits_to_keep=1).logits
            parts.append(logits[:, 0].float().softmax(dim=-1)[:, self.target])
        return torch.cat(parts)


def loaded(folder: Path | None = None) -> tuple[Engine, Gemma3ForConditionalGeneration, Gemma3Processor]:
    """A checkpoint on the CPU in float32, by default the demo model: an engine that answers with it, the model itself,
    which shares the weights, and its processor."""
    model = Gemma3ForConditionalGeneration.from_pretrained(folder or DEMO_MODEL, dtype=torch.float32).eval()
    processor = Gemma3Processor.from_pretrained(folder or DEMO_MODEL)
    return Engine(ModelVariants(model, TorchAoConfig()), processor, (folder or DEMO_MODEL).name), model, processor


def asked(engine: Engine, case: Case) -> tuple[Answered, list[str]]:
    """The answer to a case's question, greedy, and the texts of its tokens."""
    request = Request((Turn("user", case.question, (case.picture,)),), confidence=True, max_new_tokens=48)
    texts, done = [], None
    for event in engine.stream(request):
        if isinstance(event, TokenEvent) and event.choice is not None:
            texts.append(event.choice.text)
        elif isinstance(event, DoneEvent):
            done = event
    assert done is not None
    return Answered(request, done), texts
