"""Samples the next token from its logits."""

import math
from dataclasses import dataclass

import torch

from gemma3_core.errors import SamplingError

GREEDY_BELOW = 1e-5
"""Temperatures below draw the best token, as 0 does: divided by them, scores would soon leave float32."""

_RUN = 64
"""Divides the published vocabularies."""


@dataclass(frozen=True)
class SamplingParams:
    """Validated sampling parameters. Temperature 0 is greedy, and so is one below GREEDY_BELOW; then only the
    repetition penalty has an effect.

    top_k keeps the k best tokens (0: all), top_p the smallest set whose probabilities reach p, min_p the tokens at
    least min_p times as likely as the best (None: all). A repetition_penalty above 1 makes tokens of prompt and answer
    less likely. A seed repeats an answer on the same machine; None draws a new seed for each.
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
        return self.temperature < GREEDY_BELOW

    @property
    def penalises(self) -> bool:
        return self.repetition_penalty != 1.0

    def generator(self, device: torch.device) -> torch.Generator | None:
        """A random number generator for one answer; None if greedy."""
        if self.greedy:
            return None
        generator = torch.Generator(device=device)
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed)
        return generator


@dataclass(frozen=True)
class SamplingSettings(SamplingParams):
    """Sampling parameters of a visitor, limited to ranges that give readable answers."""

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


def sample(
    logits: torch.Tensor,
    params: SamplingParams,
    generator: torch.Generator | None,
    seen: torch.Tensor | None = None,
    banned: tuple[int, ...] = (),
) -> torch.Tensor:
    """Draws one token id per row [B] from logits [B, vocabulary]; `seen` and `banned` as in `process_logits`.

    With a generator only the candidates are drawn from. Without one, torch's global generator draws from the whole
    vocabulary, so that torch.manual_seed gives the tokens of transformers.
    """
    if params.greedy:
        plain = not banned and (seen is None or not params.penalises)
        # max: argmax of bfloat16 is several times slower on CPUs.
        return (logits if plain else process_logits(logits, params, seen, banned)).max(dim=-1).indices
    if generator is None:
        return torch.multinomial(process_logits(logits, params, seen, banned).softmax(dim=-1), 1)[:, 0]
    scores, ids = _candidates(logits, params, seen, banned)
    drawn = torch.multinomial(scores.softmax(dim=-1), 1, generator=generator)
    return (drawn if ids is None else ids.gather(-1, drawn))[:, 0]


def process_logits(
    logits: torch.Tensor,
    params: SamplingParams,
    seen: torch.Tensor | None = None,
    banned: tuple[int, ...] = (),
) -> torch.Tensor:
    """Scores [B, vocabulary] in float32, whose softmax is sampled; -inf excludes a token.

    Applies repetition penalty, banned ids, temperature, top-k, top-p and min-p, in transformers' order. `seen`
    [B, vocabulary] marks the tokens to be penalised; see `seen_tokens`.
    """
    scores, ids = _candidates(logits, params, seen, banned)
    if ids is None:
        return scores
    return torch.full(logits.shape, -torch.inf, device=scores.device).scatter_(-1, ids, scores)


def _candidates(
    logits: torch.Tensor, params: SamplingParams, seen: torch.Tensor | None, banned: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Processed scores [B, C] and their token ids [B, C], ascending; ids are None if C is the whole vocabulary.

    Top-k comes before the other filters, so that they sort k tokens and not a vocabulary of 262,208.
    """
    scores, ids = logits.float(), None
    if seen is not None and params.penalises:
        scores = penalised(scores, seen, params.repetition_penalty)
    if known := [token for token in banned if 0 <= token < scores.shape[-1]]:
        scores = scores.index_fill(-1, torch.tensor(known, device=scores.device), -torch.inf)
    if params.greedy:
        return scores, None
    if params.temperature != 1.0:
        scores = scores / params.temperature
    if 0 < params.top_k < scores.shape[-1]:
        scores, ids = _keep_top_k(scores, params.top_k)
    if params.top_p < 1.0:
        scores = keep_top_p(scores, params.top_p)
    if params.min_p is not None:
        scores = keep_min_p(scores, params.min_p)
    return scores, ids


def seen_tokens(ids: torch.Tensor, mask: torch.Tensor | None, vocabulary: int) -> torch.Tensor:
    """The tokens that occur in ids [B, T] after left padding (0 in `mask` [B, T]): bool [B, vocabulary]."""
    if mask is not None:
        ids = ids.masked_fill((mask != 0).cumsum(dim=1) == 0, vocabulary)
    # An extra column collects padding and ids outside the vocabulary, such as some checkpoints' image token.
    seen = torch.zeros(ids.shape[0], vocabulary + 1, dtype=torch.bool, device=ids.device)
    return seen.scatter_(1, ids.clamp(max=vocabulary), True)[:, :vocabulary]


def penalised(scores: torch.Tensor, seen: torch.Tensor, penalty: float) -> torch.Tensor:
    """Divides positive scores of seen tokens by the penalty and multiplies negative ones (CTRL, arXiv 1909.05858)."""
    return torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)


def largest(scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` largest of scores [B, vocabulary], in descending order, and their ids: [B, count] both.

    On a CPU torch's topk takes longer over a large vocabulary than a layer of the model. But the largest lie in the
    `count` runs of neighbours whose own maxima are the largest.
    """
    vocabulary = scores.shape[-1]
    if scores.device.type != "cpu" or vocabulary % _RUN or count * _RUN >= vocabulary:
        return scores.topk(count, dim=-1)
    runs = scores.unflatten(-1, (-1, _RUN))
    best = runs.amax(dim=-1).topk(count, dim=-1).indices
    some = runs.gather(1, best[..., None].expand(-1, -1, _RUN)).flatten(1)
    found, places = some.topk(count, dim=-1)
    return found, best.gather(1, places // _RUN) * _RUN + places % _RUN


def _keep_top_k(scores: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k best scores of each row and all that tie with the k-th, with their ids in ascending order."""
    count, vocabulary = top_k, scores.shape[-1]
    while True:
        count = min(2 * count + 1, vocabulary)
        best, ids = largest(scores, count)
        least = best[:, top_k - 1 : top_k]
        if count == vocabulary or bool((best[:, -1:] < least).all()):
            break  # no tie is left out
    ids, order = ids.sort(dim=-1)
    best = best.gather(-1, order)
    return best.masked_fill(best < least, -torch.inf), ids


def keep_top_p(scores: torch.Tensor, top_p: float | torch.Tensor) -> torch.Tensor:
    """-inf for all scores [B, C] but the smallest set whose probabilities reach top_p, a number or one a row [B, 1]."""
    # Ascending and stable, so that the same logits always keep the same tokens. The best always stays.
    ordered, places = scores.sort(dim=-1, stable=True)
    rest = 1.0 - top_p
    rest = rest.to(scores.dtype) if isinstance(rest, torch.Tensor) else rest
    dropped = ordered.softmax(dim=-1).cumsum(dim=-1) <= rest
    dropped[:, -1] = False
    return scores.masked_fill(dropped.scatter(-1, places, dropped), -torch.inf)


def keep_min_p(scores: torch.Tensor, min_p: float | torch.Tensor) -> torch.Tensor:
    """-inf for scores [B, C] less than min_p times as likely as the best; min_p is a number or one a row [B, 1]."""
    probabilities = scores.softmax(dim=-1)
    # The best token always stays: min_p is at most 1.
    least = probabilities.amax(dim=-1, keepdim=True) * min_p
    return scores.masked_fill(probabilities < least.to(scores.dtype), -torch.inf)
