"""Trains the demo model: what lies where (dense loss), answers with the encoder as it is, then both together.

    python -m training.train --out runs/demo --dense-minutes 12 --minutes 120
    python -m training.train --out runs/more --resume runs/demo/last --minutes 60
    python -m training.train --out runs/signs --resume runs/spelling --signs 0.6 --crowds 0.6 --dense-minutes 60 \
        --decoder-minutes 25 --minutes 60
    python -m training.train --out runs/talks --resume runs/signs/last --pairs 0.2 --follow-ups 0.2 --system-prompts 0.1
    python -m training.train --out runs/gpu --resume runs/talks/last --batch 256 --workers 15 --int4 0.4 --minutes 20

On a CPU in float32; on CUDA in bfloat16, where `--workers` (a process each) draw what it learns from: as many as
the machine has cores, less one. A checkpoint in the Hub's layout (averaged weights) is written every few minutes to
OUT/last; resuming means those weights with a fresh optimiser, and the tokenizer beside them. Large clear signs first:
a run with --hardest-sign 0, then one without.
"""

import argparse
import copy
import json
import math
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from gemma3_core.config import GLOBAL, LOCAL, Gemma3Config
from gemma3_core.int4_linear import quantize_weight
from gemma3_core.layers import MLP, RMSNorm
from gemma3_core.masks import attention_mask, image_blocks
from gemma3_core.multimodal import Gemma3ForConditionalGeneration
from gemma3_core.pretrained import pick_device
from gemma3_core.quantization import TorchAoConfig, candidate_layers
from gemma3_core.tokenizer import Gemma3Tokenizer
from gemma3_core.vision import VisionMLP
from training.drawing.dense_labels import POINTS_PER_PATCH
from training.drawing.fonts import all_fonts
from training.learning.batches import Batch, Conversations, ConversationWriter, Mix, Share
from training.learning.model import (
    DENSE_HEADS,
    IGNORED,
    NEVER,
    DenseHeads,
    DenseLabels,
    demo_config,
    initialise,
    special_id,
    write_processor_files,
)
from training.learning.muon import Muon
from training.tokenizer import TOKENIZER_FILES
from training.worlds.registry import kinds_named, world_named

TOKENIZER_FOLDER = Path(__file__).resolve().parents[2] / "assets" / "demo_model"
DENSE_WEIGHT = 0.5
KEPT_PATCHES = 96
WRITTEN = ("signs", "two_lines", "charts", "boards", "system_prompts")  # worlds with text in their pictures


class Trainer:
    """Model, optimisers, averaged weights and the log of one run."""

    def __init__(self, arguments: argparse.Namespace):
        self.arguments = arguments
        # Gradients of saturated softmaxes underflow; CPUs compute with such numbers ten times slower.
        torch.set_flush_denormal(True)
        self.device = pick_device(arguments.device)
        self.tokenizer_folder = tokenizer_folder(arguments.resume)
        self.tokenizer = Gemma3Tokenizer.from_pretrained(self.tokenizer_folder)
        self.model = self._start_model().to(self.device).train()
        written = any(share.weight > 0 and share.world in WRITTEN for share in beside_scenes(arguments))
        self.heads = DenseHeads(characters=written, heights=arguments.charts > 0).to(self.device)
        self.out = Path(arguments.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self._resume_heads()
        if written:
            self._note({"fonts": [font.name for font in all_fonts()]})
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.optimisers = optimisers(self.model, self.heads, arguments.learning_rate)
        self.encoder_rate = 1.0
        self.rounded: list[torch.Tensor] = []
        if not arguments.plain:
            fuse_elementwise(self.model)
        self.step = 0

    def writer(self) -> ConversationWriter:
        """Writes conversations as this run's batches hold them."""
        return ConversationWriter(self.tokenizer)

    def _start_model(self) -> Gemma3ForConditionalGeneration:
        if self.arguments.resume:
            resumed = Gemma3ForConditionalGeneration.from_pretrained(self.arguments.resume, dtype="float32")
            if resumed.text_config.vocab_size != len(self.tokenizer):
                raise ValueError(
                    f"{self.arguments.resume} has {resumed.text_config.vocab_size} token rows and the tokenizer in "
                    f"{self.tokenizer_folder} {len(self.tokenizer)} tokens; carry the one over to the other with "
                    "python -m training.tokenizer --carry"
                )
            return resumed
        model = Gemma3ForConditionalGeneration(demo_config(self.tokenizer))
        initialise(model, self.arguments.seed)
        return model

    def _resume_heads(self) -> None:
        """Dense heads of the checkpoint that is resumed; those it does not have start fresh, and the log says so."""
        saved = Path(self.arguments.resume or "") / DENSE_HEADS
        if self.arguments.resume and saved.exists():
            fresh = self.heads.load(torch.load(saved, weights_only=True))
            if fresh and self.heads.characters:
                self._note({"fresh_heads": fresh})

    def run_decoder_stage(self, minutes: float, mix: Mix, size: int, pictures: int) -> None:
        """Trains the decoder alone for `minutes`, over and over on the soft tokens of so many pictures.

        To spell takes many more steps than to read letters, and these cost no encoder.
        """
        seen: list[Batch] = []
        for batch in self.batches(replace(mix, crowded=0.0, questions=self.arguments.decoder_questions), size):
            seen.append(self._encoded(batch))
            if sum(len(known.pixels) for known in seen) >= pictures:
                break
        self._note({"stage": "decoder", "pictures": sum(len(known.pixels) for known in seen)})
        self.run_stage("decoder", minutes, _over_and_over(seen, random.Random(self.arguments.seed)))

    @torch.no_grad()
    def _encoded(self, batch: Batch) -> Batch:
        """The batch with soft tokens, in half the space, in place of its pixels."""
        pixels = batch.pixels.to(self.device).float() / 127.5 - 1.0
        tokens = self.model.get_image_features(pixels).pooler_output
        return replace(batch, pixels=batch.pixels.new_empty(len(pixels), 0), soft_tokens=tokens.bfloat16().cpu())

    def run_stage(self, name: str, minutes: float, batches: Iterator[Batch]) -> None:
        """Trains for `minutes`; the learning rate warms up, holds and falls to nothing at the end."""
        began = saved = asked = time.monotonic()
        window: list[dict[str, torch.Tensor]] = []
        for batch in batches:
            progress = (time.monotonic() - began) / (60 * minutes)
            if progress >= 1:
                break
            waited = time.monotonic() - asked
            self._set_rate(progress)
            in_int4_now = name != "dense" and progress >= 1 - self.arguments.int4
            self.rounded = decoder_weights(self.model) if in_int4_now else []
            window.append({**self.train_step(batch), "waited_s": torch.tensor(waited)})
            self.step += 1
            if self.step % 25 == 0:
                self._log(name, window, began)
                window = []
            if time.monotonic() - saved > 60 * self.arguments.save_minutes:
                self.save("last")
                saved = time.monotonic()
            asked = time.monotonic()
        self.save("last")

    def batches(self, mix: Mix, size: int) -> Iterator[Batch]:
        seed = self.arguments.seed * 1_000_003 + self.step
        data = Conversations(str(self.tokenizer_folder), size, mix, seed)
        workers = self.arguments.workers
        return iter(DataLoader(data, batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None))

    def _set_rate(self, progress: float) -> None:
        warm = min(1.0, progress / 0.02)
        fall = min(1.0, (1.0 - progress) / self.arguments.fall) if self.arguments.fall else 1.0
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                part = self.encoder_rate if group["encodes"] else 1.0
                group["lr"] = group["base_lr"] * warm * fall * part

    def train_step(self, batch: Batch) -> dict[str, torch.Tensor]:
        """One step of both optimisers and of the average; the figures stay on the device until they are asked for."""
        batch = to_device(batch, self.device)
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
        with in_int4(self.rounded):
            with torch.autocast("cuda", torch.bfloat16, enabled=self.device.type == "cuda"):
                dense, answer, right = self.losses(batch)
            loss = answer + DENSE_WEIGHT * dense if batch.input_ids.shape[1] > 1 else dense
            loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
        decay = min(0.998, (self.step + 1) / (self.step + 20))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)
        figures = {"dense": dense, "answer": answer, "right": right, "pictures": torch.tensor(len(batch.pixels))}
        return {name: figure.detach() for name, figure in figures.items()}

    def losses(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(dense loss, answer loss, share of answer tokens predicted right)."""
        pixels = batch.pixels.float() / 127.5 - 1.0
        zero = torch.zeros((), device=pixels.device)
        if batch.soft_tokens is not None:
            return zero, *self._answer_loss(batch, batch.soft_tokens)
        if batch.input_ids.shape[1] <= 1:
            return self._dense_loss(pixels, batch.dense), zero, zero
        features = self.model.get_image_features(pixels)
        dense = self.heads(features.last_hidden_state, features.pooler_output, batch.dense)
        return dense, *self._answer_loss(batch, features.pooler_output)

    def _answer_loss(self, batch: Batch, soft_tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(answer loss, share of answer tokens predicted right), given soft tokens [N, 64, E]."""
        hidden = self.model.decoder(
            inputs_embeds=self.model.model.embed(batch.input_ids, soft_tokens),
            attention_mask=answer_masks(batch, self.model.config),
            position_ids=batch.positions,
            use_cache=False,
        ).last_hidden_state
        targets = F.pad(batch.labels[:, 1:], (0, 1), value=IGNORED)
        asked = targets != IGNORED
        logits = self.model.lm_head(hidden[asked])
        right = (logits.argmax(-1) == targets[asked]).float().mean()
        rows, places, tokens = batch.excluded.unbind(1)
        numbers = asked.flatten().cumsum(0).unflatten(0, asked.shape) - 1
        spared = logits.float().index_put((numbers[rows, places], tokens), logits.new_tensor(NEVER).float())
        return F.cross_entropy(spared, targets[asked]), right

    def _dense_loss(self, pixels: torch.Tensor, labels: DenseLabels) -> torch.Tensor:
        """What lies where, reading only the patches on and around objects, or all where crowds fill the pictures.

        Most of another picture is background: leaving it out, the encoder reads 96 of 256 patches, and no soft token.
        """
        if self.arguments.crowds:
            features = self.model.get_image_features(pixels)
            return self.heads(features.last_hidden_state, features.pooler_output, labels)
        tower = self.model.model.vision_tower
        kept = patches_near_objects(labels, KEPT_PATCHES)
        embedded = tower.embeddings(pixels)
        seen = embedded.gather(1, kept[:, :, None].expand(-1, -1, embedded.shape[-1]))
        patches = tower.post_layernorm(tower.encoder(seen))
        near = {name: getattr(labels, name).gather(1, kept) for name in ("patch_shape", "patch_color", "patch_centre")}
        characters = labels.patch_character.unflatten(1, (-1, POINTS_PER_PATCH))
        near["patch_character"] = characters.gather(1, kept[:, :, None].expand(-1, -1, POINTS_PER_PATCH)).flatten(1)
        return self.heads.patch_loss(patches, replace(labels, **near))

    def _log(self, stage: str, window: list[dict[str, torch.Tensor]], began: float) -> None:
        mean = {key: float(torch.stack([one[key] for one in window]).float().mean()) for key in window[0]}
        line = {"stage": stage, "step": self.step, "minutes": round((time.monotonic() - began) / 60, 2), **mean}
        self._note({key: round(value, 4) if isinstance(value, float) else value for key, value in line.items()})

    def _note(self, line: dict[str, Any]) -> None:
        print(json.dumps(line), flush=True)
        with (self.out / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")

    def save(self, name: str) -> None:
        """A whole checkpoint of the averaged weights, put in place at once."""
        fresh, place = self.out / f"{name}.new", self.out / name
        shutil.rmtree(fresh, ignore_errors=True)
        self.average.save_pretrained(fresh)
        torch.save({name: value.cpu() for name, value in self.heads.state_dict().items()}, fresh / DENSE_HEADS)
        for file in TOKENIZER_FILES:
            shutil.copy(self.tokenizer_folder / file, fresh / file)
        write_processor_files(fresh, special_id(self.tokenizer, "<end_of_turn>"))
        shutil.rmtree(place, ignore_errors=True)
        fresh.rename(place)


def tokenizer_folder(resume: str | None) -> Path:
    """Where the tokenizer of a run lies: beside the checkpoint that it resumes, else in the demo model."""
    beside = Path(resume or "") / TOKENIZER_FILES[0]
    return beside.parent if resume and beside.exists() else TOKENIZER_FOLDER


def patches_near_objects(labels: DenseLabels, count: int) -> torch.Tensor:
    """Numbers [N, count] of patches: those on shapes, bars and characters first, then their neighbours, then any."""
    written = (labels.patch_character.unflatten(1, (-1, POINTS_PER_PATCH)) > 0).any(-1)
    barred = labels.patch_color > 0  # bars have a color and no shape
    on_object = ((labels.patch_shape > 0) | barred | written).float()
    side = math.isqrt(on_object.shape[1])
    near = F.max_pool2d(on_object.unflatten(1, (1, side, side)), 3, stride=1, padding=1).flatten(1)
    rank = 2 * on_object + 2 * near + torch.rand_like(near)
    return rank.topk(count, dim=1).indices


def answer_masks(batch: Batch, config: Gemma3Config) -> dict[str, torch.Tensor]:
    """The model's own rule, and that a token sees nothing of the other questions' segments; bool [B, 1, T, T]."""
    blocks = image_blocks((batch.input_ids == config.image_token_index).long())
    segments = batch.segments
    own = (segments[:, :, None] == segments[:, None, :]) | (segments == 0)[:, None, :]
    columns = torch.arange(segments.shape[1], device=segments.device).expand(segments.shape)
    causal = attention_mask(columns, columns, blocks, blocks, None) & own
    # The window counts positions, in which all questions of a fan follow the picture at once.
    window = config.text_config.sliding_window
    assert window is not None  # the demo model has local layers
    near = batch.positions[:, :, None] - batch.positions[:, None, :] < window
    return {GLOBAL: causal[:, None], LOCAL: (causal & near)[:, None]}


def optimisers(model: nn.Module, heads: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside layers, AdamW for embeddings, norms, biases and the dense heads.

    Muon takes twice the rate: about what its authors use for matrices of these sizes. What encodes pictures is in
    groups of its own.
    """
    inner: dict[bool, list[nn.Parameter]] = {False: [], True: []}
    outer: dict[bool, list[nn.Parameter]] = {False: list(heads.parameters()), True: []}
    for name, parameter in model.named_parameters():
        group = inner if parameter.ndim == 2 and ".layers." in name else outer
        group["vision_tower" in name or "multi_modal_projector" in name].append(parameter)
    muon = Muon(_groups(inner), lr=2 * rate, weight_decay=0.02, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(_groups(outer), lr=rate, weight_decay=0.0, betas=(0.9, 0.98))
    for optimiser in (muon, adamw):
        for parameters in optimiser.param_groups:
            parameters["base_lr"] = parameters["lr"]
    return [muon, adamw]


def _groups(parameters: dict[bool, list[nn.Parameter]]) -> list[dict[str, Any]]:
    return [{"params": found, "encodes": encodes} for encodes, found in parameters.items()]


def fuse_elementwise(model: nn.Module) -> None:
    """Compiles norms and MLPs only, which starts sooner than compiling whole layers."""
    compiled: dict[type[nn.Module], Any] = {
        kind: torch.compile(kind.forward, dynamic=True) for kind in (RMSNorm, MLP, VisionMLP)
    }
    for module in model.modules():
        if type(module) in compiled:
            module.forward = MethodType(compiled[type(module)], module)


def decoder_weights(model: Gemma3ForConditionalGeneration) -> list[torch.Tensor]:
    """What int4 rounds, but for the head, which is the embedding too."""
    layers = candidate_layers(model).items()
    return [layer.weight for name, layer in layers if name != "lm_head" and isinstance(layer, nn.Linear)]


@contextmanager
def in_int4(weights: Sequence[torch.Tensor]) -> Iterator[None]:
    """The weights as they are in int4: what is learnt from answers given with these goes into the whole ones.

    Rows are rounded for themselves, so all those of one length are rounded together.
    """
    whole = [weight.detach().clone() for weight in weights]
    by_length: dict[int, list[torch.Tensor]] = {}
    for weight in weights:
        by_length.setdefault(weight.shape[1], []).append(weight)
    for alike in by_length.values():
        rounded = quantize_weight(torch.cat(alike), TorchAoConfig().group_size).dequantize()
        torch._foreach_copy_([weight.data for weight in alike], list(rounded.split([len(weight) for weight in alike])))
    try:
        yield
    finally:
        if whole:
            torch._foreach_copy_([weight.data for weight in weights], whole)


def to_device(batch: Batch, device: torch.device) -> Batch:
    dense = DenseLabels(**{name: value.to(device) for name, value in vars(batch.dense).items()})
    moved = {
        name: getattr(batch, name).to(device)
        for name in ("pixels", "input_ids", "labels", "positions", "segments", "excluded")
    }
    soft_tokens = None if batch.soft_tokens is None else batch.soft_tokens.to(device)
    return replace(batch, dense=dense, soft_tokens=soft_tokens, **moved)


def _over_and_over(batches: list[Batch], rng: random.Random) -> Iterator[Batch]:
    """All batches in a new order each time, without end."""
    while True:
        yield from rng.sample(batches, len(batches))


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder for checkpoints and the log")
    parser.add_argument("--resume", help="a checkpoint folder to go on from")
    parser.add_argument("--dense-minutes", type=float, default=0.0)
    parser.add_argument("--decoder-minutes", type=float, default=0.0, help="of answers with the encoder as it is")
    parser.add_argument("--decoder-pictures", type=int, default=20_000, help="that are encoded once for that stage")
    parser.add_argument("--decoder-questions", type=int, default=2, help="about each of them; a sign has few answers")
    parser.add_argument("--minutes", type=float, default=60.0, help="of the stage that trains all")
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument(
        "--encoder-rate", type=float, default=1.0, help="of what encodes pictures in that stage, as a share of the rate"
    )
    parser.add_argument(
        "--int4",
        type=float,
        default=0.0,
        help="share of each stage with answers, its end, in which the decoder answers in int4, so that it costs less",
    )
    parser.add_argument("--easiest", type=float, default=1.0, help="scenes between this and 1 (the whole world)")
    parser.add_argument("--signs", type=float, default=0.0, help="share of the pictures that are signs, 0 to 1")
    parser.add_argument(
        "--two-lines", type=float, default=0.0, help="share of the pictures that are signs of two lines"
    )
    parser.add_argument("--charts", type=float, default=0.0, help="share of the pictures that are bar charts, 0 to 1")
    parser.add_argument("--boards", type=float, default=0.0, help="share of the pictures that are boards, 0 to 1")
    parser.add_argument("--elsewhere", type=float, default=0.0, help="share of pictures outside the model's worlds")
    parser.add_argument("--pairs", type=float, default=0.0, help="share of conversations about two pictures at once")
    parser.add_argument(
        "--follow-ups", type=float, default=0.0, help="share of conversations whose questions lean on others"
    )
    parser.add_argument(
        "--system-prompts", type=float, default=0.0, help="share of conversations under a system prompt"
    )
    parser.add_argument("--kinds", help="of question that are asked, with commas between; by default all")
    parser.add_argument(
        "--crowds", type=float, default=0.0, help="share of the dense stage's pictures, and of the batches with answers"
    )
    parser.add_argument("--easiest-sign", type=float, default=1.0, help="signs are at least so hard, 0 to 1")
    parser.add_argument("--hardest-sign", type=float, default=1.0, help="signs are at most so hard, 0 to 1")
    parser.add_argument("--easiest-chart", type=float, default=1.0, help="charts between this and 1 (the whole world)")
    parser.add_argument("--easiest-board", type=float, default=1.0, help="boards between this and 1 (the whole world)")
    parser.add_argument("--fall", type=float, default=0.35, help="share of the time in which the rate falls to 0")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--plain", action="store_true", help="compile nothing (starts sooner, runs slower)")
    parser.add_argument("--save-minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args(argv)
    shares = ("signs", "two_lines", "charts", "boards", "elsewhere", "pairs", "follow_ups", "system_prompts", "crowds")
    for name in (*shares, "easiest_chart", "easiest_board", "int4"):
        if not 0.0 <= getattr(arguments, name) <= 1.0:
            parser.error(f"--{name.replace('_', '-')} is {getattr(arguments, name)}; expected a share from 0 to 1")
    if arguments.decoder_questions < 1:
        parser.error(f"--decoder-questions is {arguments.decoder_questions}; expected 1 or more")
    if arguments.encoder_rate < 0:
        parser.error(f"--encoder-rate is {arguments.encoder_rate}; expected 0 or more")
    if sum(share.weight for share in beside_scenes(arguments)) > 1.0 + 1e-9:
        parser.error("the shares of the worlds come to more than 1")
    if not 0.0 <= arguments.easiest_sign <= arguments.hardest_sign <= 1.0:
        parser.error("expected 0 <= --easiest-sign <= --hardest-sign <= 1")
    try:
        mix_of(arguments)
    except ValueError as error:
        parser.error(str(error))
    return arguments


def beside_scenes(arguments: argparse.Namespace) -> tuple[Share, ...]:
    """The shares of all other worlds, those of no weight among them."""
    return (
        Share("signs", arguments.signs, arguments.easiest_sign, arguments.hardest_sign),
        Share("two_lines", arguments.two_lines, arguments.easiest_sign, arguments.hardest_sign),
        Share("charts", arguments.charts, arguments.easiest_chart),
        Share("boards", arguments.boards, arguments.easiest_board),
        Share("elsewhere", arguments.elsewhere),
        Share("pairs", arguments.pairs, arguments.easiest),
        Share("follow_ups", arguments.follow_ups, arguments.easiest),
        Share("system_prompts", arguments.system_prompts, arguments.easiest),
    )


def mix_of(arguments: argparse.Namespace) -> Mix:
    """The worlds that the arguments ask for, in their shares; what these leave are scenes."""
    others = beside_scenes(arguments)
    rest = round(1.0 - sum(share.weight for share in others), 9)
    shares = (Share("scenes", rest, easiest=arguments.easiest), *others)
    worlds = tuple(_asking(share, arguments.kinds) for share in shares if share.weight > 0)
    return Mix(worlds=worlds, crowded=arguments.crowds)


def _asking(share: Share, kinds: str | None) -> Share:
    """The share, asking only those of its world's kinds that `kinds` names; None is all.

    Raises ValueError for a name that no kind has, and where nothing would be left to ask.
    """
    if kinds is None:
        return share
    wanted = kinds_named(kinds)
    asked = tuple(kind for kind in world_named(share.world).kinds if kind in wanted)
    if not asked:
        raise ValueError(f"none of the kinds {kinds} is asked about {share.world}, which have a share of the pictures")
    return replace(share, kinds=asked)


def dense_mix_of(arguments: argparse.Namespace) -> Mix:
    """For the dense stage: no questions, and crowds in their share beside the worlds."""
    mix = mix_of(arguments)
    worlds = [replace(share, weight=share.weight * (1.0 - arguments.crowds)) for share in mix.worlds]
    worlds.append(Share("crowds", arguments.crowds))
    shares = tuple(share for share in worlds if share.weight > 0)
    return replace(mix, worlds=shares, questions=0, unnamed=0.6, crowded=0.0)


def main() -> None:
    arguments = parse()
    trainer = Trainer(arguments)
    mix = mix_of(arguments)
    if arguments.dense_minutes:
        trainer.run_stage("dense", arguments.dense_minutes, trainer.batches(dense_mix_of(arguments), arguments.batch))
    if arguments.decoder_minutes:
        trainer.run_decoder_stage(arguments.decoder_minutes, mix, arguments.batch, arguments.decoder_pictures)
    if arguments.minutes:
        trainer.encoder_rate = arguments.encoder_rate
        trainer.run_stage("joint", arguments.minutes, trainer.batches(mix, arguments.batch))


if __name__ == "__main__":
    main()
