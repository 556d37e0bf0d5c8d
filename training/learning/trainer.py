"""One training run: stages, steps, losses, log and checkpoints. `training.train` starts it."""

import contextlib
import copy
import json
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader

from gemma3_core import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextModel,
    Gemma3Tokenizer,
    TorchAoConfig,
)
from training.drawing.fonts import all_fonts
from training.learning.batches import Batch, Conversations, Mix
from training.learning.dense_heads import DENSE_HEADS, IGNORED, NEVER, DenseHeads, DenseLabels
from training.learning.model import DEMO_MODEL, TOKENIZER_FILES, copy_settings, demo_config, initialise

DENSE_WEIGHT = 0.5
SAVE_MINUTES = 5.0


@dataclass(frozen=True)
class Settings:
    """The options of one run."""

    out: Path
    resume: Path | None = None
    device: str = "cpu"
    batch: int = 48  # conversations
    workers: int = 0
    learning_rate: float = 2e-3
    fall: float = 0.35  # share of each stage, at its end, in which the rate falls to 0
    int4: float = 0.0  # share of each stage with answers, at its end, with the decoder's weights rounded
    frozen_layers: int = 0  # the decoder's first ones, which its own stage leaves as they are
    seed: int = 1


class Trainer:
    """Model, optimisers, averaged weights and the log of one run."""

    def __init__(self, settings: Settings):
        self.settings = settings
        # Gradients of saturated softmaxes underflow, and a CPU is ten times slower with denormal numbers.
        torch.set_flush_denormal(True)
        self.device = torch.device(settings.device)
        resume = settings.resume
        self.tokenizer_folder = resume if resume and (resume / TOKENIZER_FILES[0]).exists() else DEMO_MODEL
        self.tokenizer = Gemma3Tokenizer.from_pretrained(self.tokenizer_folder)
        self.model = self._start_model().to(self.device).train()
        layers = len(self.model.decoder.layers)
        if not 0 <= settings.frozen_layers < layers:
            raise ValueError(f"frozen_layers is {settings.frozen_layers}; this decoder has {layers}, expected fewer.")
        self.heads = DenseHeads().to(self.device)
        if settings.resume and (saved := settings.resume / DENSE_HEADS).exists():
            self.heads.load_state_dict(torch.load(saved, weights_only=True))
        settings.out.mkdir(parents=True, exist_ok=True)
        self._note({"fonts": [font.name for font in all_fonts()]})
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.optimisers = optimisers(self.model, self.heads, settings.learning_rate)
        self.rounded: list[torch.Tensor] = []
        self.lower: Gemma3TextModel | None = None  # the decoder's frozen layers, where there are some
        self.upper: Gemma3TextModel | None = None  # and the others
        self.step = 0

    def _start_model(self) -> Gemma3ForConditionalGeneration:
        resume = self.settings.resume
        if resume is None:
            model = Gemma3ForConditionalGeneration(demo_config(self.tokenizer))
            initialise(model, self.settings.seed)
            return model
        resumed = Gemma3ForConditionalGeneration.from_pretrained(resume, dtype="float32")
        if resumed.text_config.vocab_size != len(self.tokenizer):
            raise ValueError(
                f"{resume} has {resumed.text_config.vocab_size} token rows, but the tokenizer in "
                f"{self.tokenizer_folder} has {len(self.tokenizer)}. Put the checkpoint's own tokenizer beside it."
            )
        return resumed

    # Stages.

    def run_decoder_stage(self, minutes: float, mix: Mix, pictures: int) -> None:
        """Trains the decoder alone for `minutes` on the soft tokens of a fixed set of `pictures`, again and again; with
        0 of them each step has new ones.

        Spelling takes many more steps to learn than seeing letters, and steps with known pictures skip the encoder and
        the decoder's frozen layers.
        """
        self._freeze(self.settings.frozen_layers)
        encoded: Iterator[Batch] = map(self._encoded, self.batches(replace(mix, crowded=0.0)))
        if pictures:
            seen: list[Batch] = []
            while sum(len(known.pixels) for known in seen) < pictures:
                seen.append(next(encoded))
            self._note({"stage": "decoder", "pictures": sum(len(known.pixels) for known in seen)})
            encoded = _over_and_over(seen, random.Random(self.settings.seed))
        self.run_stage("decoder", minutes, encoded)
        self._freeze(0)

    def _freeze(self, layers: int) -> None:
        """Freezes the decoder's first `layers` and, if there are any, the embedding; all other weights learn."""
        decoder, self.lower, self.upper = self.model.decoder, None, None
        self.model.requires_grad_(True)
        if layers:
            decoder.requires_grad_(False)
            self.lower = self._part(slice(layers), nn.Identity())
            self.upper = self._part(slice(layers, None), decoder.norm)
            self.upper.layers.requires_grad_(True)
            self.upper.norm.requires_grad_(True)

    def _part(self, layers: slice, norm: Any) -> Gemma3TextModel:
        """Some of the decoder's own layers as a decoder, with a norm behind them."""
        decoder = self.model.decoder
        kinds = decoder.config.layer_types[layers]
        with torch.device("meta"):
            part = Gemma3TextModel(decoder.config.replace(num_hidden_layers=len(kinds), layer_types=kinds))
        part.layers, part.norm = decoder.layers[layers], norm
        return part

    @torch.no_grad()
    def _encoded(self, batch: Batch) -> Batch:
        """The batch with soft tokens in bfloat16 instead of its pixels, in half the memory; or, where layers are
        frozen, with the states of all tokens behind them."""
        pixels = batch.pixels.to(self.device).float() / 127.5 - 1.0
        tokens = self.model.get_image_features(pixels).pooler_output
        unseen = replace(batch, pixels=batch.pixels.new_empty(len(pixels), 0))
        if self.lower is None:
            return replace(unseen, soft_tokens=tokens.bfloat16().cpu())
        moved = to_device(unseen, self.device)
        states = self._decoded(self.lower, self._embedded(moved, tokens), moved)
        return replace(unseen, states=states.bfloat16().cpu())

    def run_stage(self, name: str, minutes: float, batches: Iterator[Batch]) -> None:
        """Trains for `minutes`; the learning rate warms up, stays, and falls to 0 at the end."""
        began = saved = asked = time.monotonic()
        window: list[dict[str, torch.Tensor]] = []
        for batch in batches:
            progress = (time.monotonic() - began) / (60 * minutes)
            if progress >= 1:
                break
            waited = time.monotonic() - asked
            self._set_rate(progress)
            in_int4_now = name != "dense" and progress >= 1 - self.settings.int4
            self.rounded = decoder_weights(self.model) if in_int4_now else []
            window.append({**self.train_step(batch), "waited_s": torch.tensor(waited)})
            self.step += 1
            if self.step % 25 == 0:
                self._log(name, window, began)
                window = []
            if time.monotonic() - saved > 60 * SAVE_MINUTES:
                self.save("last")
                saved = time.monotonic()
            asked = time.monotonic()
        self.save("last")

    def batches(self, mix: Mix) -> Iterator[Batch]:
        seed = self.settings.seed * 1_000_003 + self.step
        data = Conversations(str(self.tokenizer_folder), self.settings.batch, mix, seed)
        workers = self.settings.workers
        return iter(DataLoader(data, batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None))

    def _set_rate(self, progress: float) -> None:
        warm = min(1.0, progress / 0.02)
        fall = min(1.0, (1.0 - progress) / self.settings.fall) if self.settings.fall else 1.0
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["base_lr"] * warm * fall

    # A step, and its losses.

    def train_step(self, batch: Batch) -> dict[str, torch.Tensor]:
        """One step of both optimisers and the average; its figures stay on the device, so that no step waits."""
        batch = to_device(batch, self.device)
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
        with in_int4(self.rounded):
            with torch.autocast("cuda", torch.bfloat16, enabled=self.device.type == "cuda"):
                dense, answer, right = self.losses(batch)
            loss = answer + DENSE_WEIGHT * dense if batch.input_ids.shape[1] > 1 else dense
            loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        with contextlib.nullcontext() if self.device.type == "cuda" else _InFloat32():
            for optimiser in self.optimisers:
                optimiser.step()
        decay = min(0.998, (self.step + 1) / (self.step + 20))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)
        figures = {"dense": dense, "answer": answer, "right": right, "pictures": torch.tensor(len(batch.pixels))}
        return {name: figure.detach() for name, figure in figures.items()}

    def losses(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(dense loss, answer loss, accuracy of the answer tokens)."""
        zero = torch.zeros((), device=batch.pixels.device)
        if self.upper is not None and batch.states is not None:
            return zero, *self._answer_loss(batch, self.upper, batch.states.float())
        if batch.soft_tokens is not None:
            return zero, *self._answer_loss(batch, self.model.decoder, self._embedded(batch, batch.soft_tokens))
        features = self.model.get_image_features(batch.pixels.float() / 127.5 - 1.0)
        dense = self.heads(features.last_hidden_state, features.pooler_output, batch.dense)
        if batch.input_ids.shape[1] <= 1:
            return dense, zero, zero
        return dense, *self._answer_loss(batch, self.model.decoder, self._embedded(batch, features.pooler_output))

    def _embedded(self, batch: Batch, soft_tokens: torch.Tensor) -> torch.Tensor:
        """What the decoder's first layer gets [B, T, E], given soft tokens [N, 64, E]."""
        return self.model.model.embed(batch.input_ids, soft_tokens)

    def _decoded(self, decoder: Gemma3TextModel, inputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """What some of the decoder's layers make [B, T, E] of inputs [B, T, E]."""
        masks = answer_masks(batch, self.model.config)
        options = {"attention_mask": masks, "position_ids": batch.positions, "use_cache": False}
        return decoder(inputs_embeds=inputs, **options).last_hidden_state

    def _answer_loss(
        self, batch: Batch, decoder: Gemma3TextModel, inputs: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(answer loss, accuracy of the answer tokens), given the inputs [B, T, E] of the decoder's layers."""
        hidden = self._decoded(decoder, inputs, batch)
        targets = F.pad(batch.labels[:, 1:], (0, 1), value=IGNORED)
        asked = targets != IGNORED
        logits = self.model.lm_head(hidden[asked])
        right = (logits.argmax(-1) == targets[asked]).float().mean()
        rows, places, tokens = batch.excluded.unbind(1)
        numbers = asked.flatten().cumsum(0).unflatten(0, asked.shape) - 1
        spared = logits.float().index_put((numbers[rows, places], tokens), logits.new_tensor(NEVER).float())
        return F.cross_entropy(spared, targets[asked]), right

    # The log, and checkpoints.

    def _log(self, stage: str, window: list[dict[str, torch.Tensor]], began: float) -> None:
        mean = {key: float(torch.stack([one[key] for one in window]).float().mean()) for key in window[0]}
        line = {"stage": stage, "step": self.step, "minutes": round((time.monotonic() - began) / 60, 2), **mean}
        self._note({key: round(value, 4) if isinstance(value, float) else value for key, value in line.items()})

    def _note(self, line: dict[str, Any]) -> None:
        print(json.dumps(line), flush=True)
        with (self.settings.out / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")

    def save(self, name: str) -> None:
        """Writes a checkpoint of the averaged weights, then moves it into place."""
        fresh, place = self.settings.out / f"{name}.new", self.settings.out / name
        shutil.rmtree(fresh, ignore_errors=True)
        self.average.save_pretrained(fresh)
        torch.save({name: value.cpu() for name, value in self.heads.state_dict().items()}, fresh / DENSE_HEADS)
        for file in TOKENIZER_FILES:
            shutil.copy(self.tokenizer_folder / file, fresh / file)
        copy_settings(fresh)
        shutil.rmtree(place, ignore_errors=True)
        fresh.rename(place)


def answer_masks(batch: Batch, config: Gemma3Config) -> dict[str, torch.Tensor]:
    """Masks for `forward` that keep the questions of a fan apart: bool [B, 1, T, T].

    Within its own segment and segment 0, a token attends as in the model: to earlier tokens and to all of its own
    picture, on local layers within the window. A test compares both.
    """
    picture, segments = batch.input_ids == config.image_token_index, batch.segments
    blocks = (picture & ~F.pad(picture, (1, 0))[:, :-1]).cumsum(1)  # numbers the runs of soft tokens
    columns = torch.arange(segments.shape[1], device=segments.device)
    same_block = (blocks[:, :, None] == blocks[:, None, :]) & picture[:, :, None] & picture[:, None, :]
    own = (segments[:, :, None] == segments[:, None, :]) | (segments == 0)[:, None, :]
    allowed = ((columns[:, None] >= columns) | same_block) & own
    # The window counts positions: those of each question in a fan start right after the picture.
    window = config.text_config.sliding_window
    assert window is not None  # the demo model has local layers
    near = batch.positions[:, :, None] - batch.positions[:, None, :] < window
    return {"full_attention": allowed[:, None], "sliding_attention": (allowed & near)[:, None]}


def optimisers(model: nn.Module, heads: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices in the layers, AdamW for embeddings, norms, biases and the dense heads.

    Muon gets twice the rate, about what its authors use for matrices of this size.
    """
    inner: list[nn.Parameter] = []
    outer = list(heads.parameters())
    for name, parameter in model.named_parameters():
        (inner if parameter.ndim == 2 and ".layers." in name else outer).append(parameter)
    muon = torch.optim.Muon(inner, lr=2 * rate, weight_decay=0.02, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(outer, lr=rate, weight_decay=0.0, betas=(0.9, 0.98))
    for optimiser in (muon, adamw):
        for group in optimiser.param_groups:
            group["base_lr"] = group["lr"]
    return [muon, adamw]


class _InFloat32(TorchFunctionMode):
    """What would be converted to bfloat16 stays in float32: Muon's iterations, whose products are very slow in bfloat16
    on processors without units for it."""

    def __torch_function__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.bfloat16:
            return args[0].to(torch.float32, copy=True)  # Muon changes it in place
        return func(*args, **(kwargs or {}))


def decoder_weights(model: nn.Module) -> list[torch.Tensor]:
    """The weights that int4 rounds, without the head, which is also the embedding."""
    named = model.named_parameters()
    return [weight for name, weight in named if "language_model.layers." in name and weight.ndim == 2]


def rounded(weights: torch.Tensor) -> torch.Tensor:
    """The weights [N, K] rounded to int4: 16 steps from the least to the largest of each group.

    Scale and zero are rounded to bfloat16, as gemma3_core stores them. A test compares both.
    """
    groups = weights.detach().float().unflatten(1, (-1, TorchAoConfig().group_size))
    least, largest = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scale = ((largest - least) / 15).clamp(min=1e-6)
    scale, zero = scale.bfloat16().float(), (least + scale * 8).bfloat16().float()
    steps = ((groups - (zero - scale * 8)) / scale).round().clamp(0, 15)
    return ((steps - 8) * scale + zero).flatten(1)


@contextlib.contextmanager
def in_int4(weights: Sequence[torch.Tensor]) -> Iterator[None]:
    """Rounds the weights to int4 and restores them afterwards, so that gradients update the full weights."""
    whole = [weight.detach().clone() for weight in weights]
    for weight in weights:
        weight.data.copy_(rounded(weight))
    try:
        yield
    finally:
        for weight, kept in zip(weights, whole, strict=True):
            weight.data.copy_(kept)


def to_device(batch: Batch, device: torch.device) -> Batch:
    moved = {name: value.to(device) for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    dense = DenseLabels(**{name: value.to(device) for name, value in vars(batch.dense).items()})
    return replace(batch, dense=dense, **moved)


def _over_and_over(batches: list[Batch], rng: random.Random) -> Iterator[Batch]:
    """All batches, endlessly, in a new order each time."""
    while True:
        yield from rng.sample(batches, len(batches))
