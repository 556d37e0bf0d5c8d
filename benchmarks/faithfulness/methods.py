"""The methods that are compared: each makes a map [G, G] over the soft tokens of a picture for one word.

All formulas are written from the papers named at each method. Larger means that the place mattered more.
"""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from captum.attr import IntegratedGradients

from benchmarks.faithfulness.subject import Subject
from gemma3_core.engine import Box
from gemma3_core.inspection.attention import replay, rollout
from gemma3_core.inspection.heat_maps import TileMap, chosen_layers, mean_weights
from gemma3_core.inspection.patches import along_patches
from gemma3_core.inspection.place import look_of_best_head
from gemma3_core.inspection.prompt import Tile
from gemma3_core.inspection.rests_on import RestsOn, rests_on, sharpened

Method = Callable[[Subject], np.ndarray]
_STEPS = 32
_RANK_WINDOW = 3


def attention_mean(subject: Subject) -> np.ndarray:
    """Raw attention of the row that wrote the word: mean of the global layers and all heads."""
    return _attention(subject, "global")


def attention_best_layer(subject: Subject) -> np.ndarray:
    """Raw attention of the layer that gives the picture its most concentrated look: the largest weight on one token."""
    weights = replay(subject.model, subject.turn, [_row(subject)]).weights[:, :, 0, subject.tokens].float().mean(dim=1)
    return _grid(subject, weights[int(weights.max(dim=1).values.argmax())])


def attention_rollout(subject: Subject) -> np.ndarray:
    """Rollout through all layers (Abnar & Zuidema 2020, arXiv 2005.00928)."""
    return _grid(subject, rollout(subject.model, subject.turn, [_row(subject)])[0, subject.tokens])


def gradient_x_attention(subject: Subject) -> np.ndarray:
    """The mean over layers and heads of the positive part of attention times its gradient, in the word's row (as in
    Barkan et al. 2021, Grad-SAM, arXiv 2204.11073)."""
    rows = [(weights * gradient).clamp(min=0)[0, :, -1].mean(dim=0) for weights, gradient in _with_gradients(subject)]
    return _grid(subject, torch.stack(rows).mean(dim=0)[subject.tokens])


def relevancy(subject: Subject) -> np.ndarray:
    """The relevancy map of LVLM-Interpret (Ben Melech Stan et al. 2024, arXiv 2404.03118), after Chefer et al. 2021
    (arXiv 2103.15679): R starts as the identity; each layer adds the heads' mean of (gradient x attention)+ times R.
    """
    relevance: torch.Tensor | None = None
    for weights, gradient in _with_gradients(subject):
        step = (weights * gradient).clamp(min=0)[0].mean(dim=0)
        relevance = torch.eye(step.shape[0]) if relevance is None else relevance
        relevance = relevance + step @ relevance
    assert relevance is not None
    return _grid(subject, relevance[-1, subject.tokens])


def integrated_gradients(subject: Subject) -> np.ndarray:
    """Integrated gradients (Sundararajan et al. 2017, arXiv 1703.01365) of the word's probability on the soft tokens,
    from their mean, by captum; the sum over each token's width."""
    turn, soft = subject.turn, subject.prompt["soft_tokens"].clone()

    def probability(tokens: torch.Tensor) -> torch.Tensor:
        rows = tokens.shape[0]
        ids, types = (turn[name].expand(rows, -1) for name in ("input_ids", "token_type_ids"))
        logits = subject.model(ids, token_type_ids=types, soft_tokens=tokens, use_cache=False, logits_to_keep=1).logits
        return logits[:, 0].float().softmax(dim=-1)[:, subject.target]

    base = soft.mean(dim=1, keepdim=True).expand_as(soft)
    made = IntegratedGradients(probability).attribute(soft, base, n_steps=_STEPS, internal_batch_size=16)
    return _grid(subject, made[0].sum(dim=-1))


def tam(subject: Subject) -> np.ndarray:
    """Token Activation Map (Li et al. 2025, arXiv 2506.23270): what the head says for the word at each soft token,
    without what it says there for earlier words, through the rank Gaussian filter.

    The earlier words' maps are weighted by the head's activation for the word at their places, and their sum is scaled
    by least squares before it is subtracted.
    """
    turn, model = subject.turn, subject.model
    with torch.inference_mode():
        states = model.model(**turn, use_cache=False).last_hidden_state[0].float()
    weight = model.lm_head.weight
    assert isinstance(weight, torch.Tensor)
    head = weight.detach().float()
    ids = turn["input_ids"][0]
    own = (states[subject.tokens] @ head[subject.target]).clamp(min=0)
    # Words of the question and the answer so far; each is represented by the state at its own place.
    context = torch.arange(int(subject.tokens[-1]) + 1, len(ids))
    context = context[ids[context] != subject.target]
    shares = (states[context] @ head[subject.target]).clamp(min=0)
    if shares.sum() > 0:
        maps = (states[subject.tokens] @ head[ids[context]].T).clamp(min=0)
        others = maps @ (shares / shares.sum())
        scale = float((own @ others) / (others @ others).clamp(min=1e-12))
        own = (own - scale * others).clamp(min=0)
    return _rank_filtered(_grid(subject, own))


def occlusion(subject: Subject) -> np.ndarray:
    """Occlusion in a grid (Zeiler & Fergus 2014, arXiv 1311.2901): each cell of the soft tokens' grid is filled with
    the picture's mean color and the picture encoded again; the fall of the word's probability."""
    cells = np.linspace(0, subject.side, subject.grid + 1).round().astype(int)
    hidden = []
    for top, bottom in pairwise(cells):
        for left, right in pairwise(cells):
            pixels = subject.pixels.clone()
            pixels[:, top:bottom, left:right] = subject.bases["mean"][:, top:bottom, left:right]
            hidden.append(pixels)
    seen = subject.probabilities(subject.pixels[None])
    return _grid(subject, seen - subject.probabilities(torch.stack(hidden)))


def gradient_along_patches(subject: Subject) -> np.ndarray:
    """Gradient x attention, even along patches of like color: how much of ours is the patches'."""
    heat = gradient_x_attention(subject)
    return np.array(along_patches(TileMap(_tile(subject), tuple(map(tuple, heat.tolist()))), subject.small).grid)


def knock_out(subject: Subject) -> np.ndarray:
    """Knock-out in soft tokens, coarse to fine, alone (`inspection/rests_on.py`)."""
    return np.array(_rests_on(subject).tiles[0].grid)


def ours(subject: Subject) -> np.ndarray:
    """Knock-out, and the look of the head that looks most at what it finds, along patches: as in `Engine.why`."""
    rests, weights = _rests_on(subject), replay(subject.model, subject.turn, [_row(subject)]).weights
    look = look_of_best_head(weights, rests.tiles)
    return np.array(sharpened(rests, look.tiles, [subject.small], lambda: None).tiles[0].grid)


def random_map(subject: Subject) -> np.ndarray:
    """Noise, the same for a case in every run: the floor."""
    seed = sum(map(ord, subject.case.name))
    return np.random.default_rng(seed).random((subject.grid, subject.grid))


def centre_map(subject: Subject) -> np.ndarray:
    """The nearer to the middle, the larger: the floor that knows how people take pictures."""
    places = np.arange(subject.grid) - (subject.grid - 1) / 2
    return -np.hypot(places[:, None], places[None])


METHODS: Mapping[str, Method] = {
    "random": random_map,
    "centre": centre_map,
    "attention, mean of global layers": attention_mean,
    "attention, best layer": attention_best_layer,
    "rollout": attention_rollout,
    "gradient x attention": gradient_x_attention,
    "integrated gradients": integrated_gradients,
    "TAM": tam,
    "relevancy (LVLM-Interpret)": relevancy,
    "occlusion in a grid": occlusion,
    "gradient x attention, along patches": gradient_along_patches,
    "knock-out": knock_out,
    "ours": ours,
}
FLOOR = ("random", "centre")
OURS = "ours"
EVERY_PICTURE = ("attention, best layer", "gradient x attention", "ours")
"""Scored for every picture: ours, and the published methods that came nearest in earlier runs."""


def _tile(subject: Subject) -> Tile:
    width, height = subject.case.picture.size
    first = int(subject.tokens[0])
    return Tile(0, None, Box(0, 0, width, height), first, first + len(subject.tokens))


def _rests_on(subject: Subject) -> RestsOn:
    return rests_on(subject.model, subject.prompt, subject.ids, subject.word, [_tile(subject)])


def _row(subject: Subject) -> int:
    """The row that wrote the word."""
    return int(subject.turn["input_ids"].shape[1]) - 1


def _attention(subject: Subject, layer: Any) -> np.ndarray:
    weights = replay(subject.model, subject.turn, [_row(subject)]).weights
    layers = chosen_layers(subject.model.text_config, layer, None)
    return _grid(subject, mean_weights(weights, layers, None)[0, subject.tokens])


def _with_gradients(subject: Subject) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The attention [1, H, T, T] of each layer, and its gradient for the word's logit."""
    turn = {name: value.clone() for name, value in subject.turn.items()}  # inference tensors have no gradients
    with torch.enable_grad():
        out = subject.model(**turn, output_attentions=True, use_cache=False, logits_to_keep=1)
        gradients = torch.autograd.grad(out.logits[0, -1, subject.target], out.attentions)
    return [(weights.detach(), gradient) for weights, gradient in zip(out.attentions, gradients, strict=True)]


def _grid(subject: Subject, values: torch.Tensor) -> np.ndarray:
    made: np.ndarray = values.detach().float().cpu().view(subject.grid, subject.grid).numpy()
    return made


def _rank_filtered(grid: np.ndarray) -> np.ndarray:
    """TAM's filter: the values of each 3 x 3 window in order, weighted by a Gaussian around the middle rank whose width
    is the window's coefficient of variation."""
    half = _RANK_WINDOW // 2
    padded = np.pad(grid, half, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (_RANK_WINDOW, _RANK_WINDOW))
    ordered = np.sort(windows.reshape(*grid.shape, -1), axis=-1)
    mean = ordered.mean(axis=-1, keepdims=True)
    width = np.where(mean > 0, ordered.std(axis=-1, keepdims=True) / np.maximum(mean, 1e-12), 1.0)
    ranks = np.arange(_RANK_WINDOW**2) - _RANK_WINDOW**2 // 2
    kernel = np.exp(-(ranks**2) / (2 * np.maximum(width, 1e-6) ** 2))
    return np.where(mean[..., 0] > 0, (ordered * kernel).sum(axis=-1) / kernel.sum(axis=-1), 0.0)
