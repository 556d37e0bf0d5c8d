"""How the next token is chosen from its logits."""

import math
from dataclasses import dataclass

import torch

from gemma3_core.errors import SamplingError


@dataclass(frozen=True)
class SamplingRule:
    """Validated settings; temperature 0 is greedy, and then only the repetition penalty has an effect.

    top_k keeps the k best tokens (0: all), top_p the smallest set whose probabilities reach p, min_p those at least
    min_p times as likely as the best (None: all). repetition_penalty above 1 makes tokens that were read or written
    before less likely, below 1 more likely. The same seed gives the same answer on the same machine; None draws
    a new one each time.
    """

    temperature: float = 0.0
    top_k: int = 50
    top_p: float = 1.0
    seed: int | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not _is_number(self.temperature) or self.temperature < 0:
            raise SamplingError(f"Temperature must be 0 (greedy) or a number above, got {self.temperature}.")
        if not isinstance(self.top_k, int) or self.top_k < 0:
            raise SamplingError(f"top_k must be a whole number, 0 (all tokens) or more, got {self.top_k}.")
        if not _is_number(self.top_p) or not 0.0 <= self.top_p <= 1.0:
            raise SamplingError(f"top_p must lie between 0 and 1, got {self.top_p}.")
        if self.min_p is not None and (not _is_number(self.min_p) or not 0.0 <= self.min_p <= 1.0):
            raise SamplingError(f"min_p must lie between 0 and 1, got {self.min_p}.")
        if not _is_number(self.repetition_penalty) or self.repetition_penalty <= 0:
            raise SamplingError(f"repetition_penalty must be above 0 (1 is none), got {self.repetition_penalty}.")
        if self.seed is not None and not (isinstance(self.seed, int) and 0 <= self.seed < 2**63):
            raise SamplingError(f"The seed must be a whole number from 0 to 2^63 - 1, got {self.seed}.")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def penalises(self) -> bool:
        return self.repetition_penalty != 1.0

    def generator(self, device: torch.device) -> torch.Generator | None:
        """The random numbers of one answer; None where none are needed."""
        if self.greedy:
            return None
        generator = torch.Generator(device=device)
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed)
        return generator


@dataclass(frozen=True)
class SamplingSettings(SamplingRule):
    """What a visitor may set: a SamplingRule within the ranges that give readable answers."""

    top_k: int = 64
    top_p: float = 0.95

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature > 2.0:
            raise SamplingError(f"Temperature must lie between 0 (greedy) and 2, got {self.temperature}.")
        if self.top_p == 0.0:
            raise SamplingError(f"top_p must lie above 0 and at most at 1, got {self.top_p}.")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def sample(logits: torch.Tensor, settings: SamplingRule, generator: torch.Generator | None) -> torch.Tensor:
    """Token ids [B] from logits [B, vocabulary] alone, without what was seen before; see `processed`, `choose`."""
    return choose(logits if settings.greedy else processed(logits, settings), settings, generator)


def choose(scores: torch.Tensor, settings: SamplingRule, generator: torch.Generator | None) -> torch.Tensor:
    """Token ids [B] from scores [B, vocabulary] that are processed already; None is torch's own generator."""
    if settings.greedy:
        return scores.max(dim=-1).indices  # argmax of bfloat16 is several times slower on CPUs
    return torch.multinomial(scores.softmax(dim=-1), 1, generator=generator)[:, 0]


def processed(
    logits: torch.Tensor,
    settings: SamplingRule,
    seen: torch.Tensor | None = None,
    banned: tuple[int, ...] = (),
) -> torch.Tensor:
    """Scores in float32 whose softmax tokens are drawn from; what may not be drawn is -inf.

    Repetition penalty, banned ids, temperature, top-k, top-p, min-p: the order of transformers' logits processors.
    `seen` [B, vocabulary] is True for tokens that the penalty is for; see `seen_tokens`.
    """
    scores = logits.float()
    if seen is not None and settings.penalises:
        scores = _penalised(scores, seen, settings.repetition_penalty)
    if known := [token for token in banned if 0 <= token < scores.shape[-1]]:
        scores = scores.index_fill(-1, torch.tensor(known, device=scores.device), -torch.inf)
    if settings.greedy:
        return scores
    if settings.temperature != 1.0:
        scores = scores / settings.temperature
    if 0 < settings.top_k < scores.shape[-1]:
        least = scores.topk(settings.top_k, dim=-1).values[:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    if settings.top_p < 1.0:
        scores = _keep_top_p(scores, settings.top_p)
    if settings.min_p is not None:
        scores = _keep_min_p(scores, settings.min_p)
    return scores


def seen_tokens(ids: torch.Tensor, mask: torch.Tensor | None, vocabulary: int) -> torch.Tensor:
    """Which tokens stand in ids [B, T], left padding apart: bool [B, vocabulary].

    `mask` [B, T] is 0 on padding. Only what stands before a row's first real token is left out, as in transformers.
    """
    if mask is not None:
        ids = ids.masked_fill((mask != 0).cumsum(dim=1) == 0, vocabulary)
    # One column more takes padding, and ids beyond the vocabulary (the soft token's, in some).
    seen = torch.zeros(ids.shape[0], vocabulary + 1, dtype=torch.bool, device=ids.device)
    return seen.scatter_(1, ids.clamp(max=vocabulary), True)[:, :vocabulary]


def _penalised(scores: torch.Tensor, seen: torch.Tensor, penalty: float) -> torch.Tensor:
    """Divides positive scores of seen tokens by the penalty and multiplies negative ones (CTRL, arXiv 1909.05858)."""
    return torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)


def _keep_top_p(scores: torch.Tensor, top_p: float) -> torch.Tensor:
    ordered, places = scores.sort(dim=-1)
    # From the least likely up: what lies within the last 1 - p of probability goes, the best always stays.
    dropped = ordered.softmax(dim=-1).cumsum(dim=-1) <= 1.0 - top_p
    dropped[:, -1] = False
    return scores.masked_fill(dropped.scatter(-1, places, dropped), -torch.inf)


def _keep_min_p(scores: torch.Tensor, min_p: float) -> torch.Tensor:
    probabilities = scores.softmax(dim=-1)
    # The best is never less likely than a share of itself, so one always stays.
    return scores.masked_fill(probabilities < min_p * probabilities.amax(dim=-1, keepdim=True), -torch.inf)
