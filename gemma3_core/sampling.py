"""How the next token is chosen from its logits."""

from dataclasses import dataclass

import torch

from gemma3_core.errors import SamplingError


@dataclass(frozen=True)
class SamplingSettings:
    """Validated settings; temperature 0 is greedy, and then the others have no effect.

    top_k keeps the k best tokens (0: all), top_p the smallest set whose probabilities reach p. The same
    seed gives the same answer on the same machine; None draws a new one each time.
    """

    temperature: float = 0.0
    top_k: int = 64
    top_p: float = 0.95
    seed: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.temperature, int | float) or not 0.0 <= self.temperature <= 2.0:
            raise SamplingError(f"Temperature must lie between 0 (greedy) and 2, got {self.temperature}.")
        if not isinstance(self.top_k, int) or self.top_k < 0:
            raise SamplingError(f"top_k must be a whole number, 0 (all tokens) or more, got {self.top_k}.")
        if not isinstance(self.top_p, int | float) or not 0.0 < self.top_p <= 1.0:
            raise SamplingError(f"top_p must lie above 0 and at most at 1, got {self.top_p}.")
        if self.seed is not None and not (isinstance(self.seed, int) and 0 <= self.seed < 2**63):
            raise SamplingError(f"The seed must be a whole number from 0 to 2^63 - 1, got {self.seed}.")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

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


def sample(logits: torch.Tensor, settings: SamplingSettings, generator: torch.Generator | None) -> torch.Tensor:
    """Token ids [B] from logits [B, vocabulary].

    Temperature, then top-k, then top-p, in the order of transformers' logits processors.
    """
    if settings.greedy:
        return logits.max(dim=-1).indices  # argmax of bfloat16 is several times slower on CPUs
    scores = logits.float() / settings.temperature
    if 0 < settings.top_k < scores.shape[-1]:
        least = scores.topk(settings.top_k, dim=-1).values[:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    if settings.top_p < 1.0:
        scores = _keep_top_p(scores, settings.top_p)
    return torch.multinomial(scores.softmax(dim=-1), 1, generator=generator)[:, 0]


def _keep_top_p(scores: torch.Tensor, top_p: float) -> torch.Tensor:
    ordered, places = scores.sort(dim=-1)
    # From the least likely up: what lies within the last 1 - p of probability goes, the best always stays.
    dropped = ordered.softmax(dim=-1).cumsum(dim=-1) <= 1.0 - top_p
    dropped[:, -1] = False
    return scores.masked_fill(dropped.scatter(-1, places, dropped), -torch.inf)
