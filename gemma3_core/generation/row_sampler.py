"""Samples the next token of many rows, each with settings and random numbers of its own, without waiting for a device.

All that the host needs comes in one copy: the token, its probability and the likeliest alternatives. A row's numbers do
not depend on its neighbours.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from gemma3_core.generation.grammar import Constraint
from gemma3_core.generation.sampling import (
    SamplingParams,
    keep_min_p,
    keep_top_p,
    largest,
    penalised,
    sample,
    seen_tokens,
)

ALTERNATIVES = 5
"""Likeliest tokens that are told beside the sampled one."""
MOST_TOP_K = 64
"""Rows with a larger top_k, or none, are sampled one by one from the whole vocabulary."""
_CANDIDATES = 2 * MOST_TOP_K + 1
"""More than top_k, to keep all that tie with the last one."""


@dataclass
class SamplingRow:
    """How one answer's tokens are sampled; `count` of them have been."""

    params: SamplingParams
    generator: torch.Generator | None
    with_alternatives: bool = True
    seen: torch.Tensor | None = None
    """bool [1, vocabulary] if tokens are penalised for having occurred."""
    count: int = 0
    constraint: Constraint | None = None
    """Which tokens may come next, where not all may."""
    _noise: dict[int, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        params: SamplingParams,
        prompt_ids: torch.Tensor,
        vocabulary: int,
        with_alternatives: bool = True,
        constraint: Constraint | None = None,
    ) -> "SamplingRow":
        """For an answer to prompt_ids [1, T]."""
        seen = seen_tokens(prompt_ids, None, vocabulary) if params.penalises else None
        return cls(params, params.generator(prompt_ids.device), with_alternatives, seen, constraint=constraint)

    @property
    def joins_others(self) -> bool:
        """Whether it is sampled in one batch with others."""
        return self.params.greedy or 0 < self.params.top_k <= MOST_TOP_K

    def noise(self, token: int, candidates: int) -> torch.Tensor:
        """Exponential random numbers for the answer's `token`th token, counted from 0: the same however often, and
        however early, they are asked for."""
        assert self.generator is not None
        while token not in self._noise:
            drawn = torch.empty(candidates, device=self.generator.device).exponential_(generator=self.generator)
            self._noise[max(self._noise, default=self.count - 1) + 1] = drawn
        for past in [number for number in self._noise if number < self.count]:
            del self._noise[past]
        return self._noise[token]

    def push(self, token: torch.Tensor, token_id: int | None = None) -> None:
        """Counts a token [1]; with a constraint also its id is needed. Raises SchemaError where nothing can follow."""
        self.count += 1
        if self.constraint is not None:
            assert token_id is not None
            self.constraint.push(token_id)
        if self.seen is not None:
            self.seen = self.seen.scatter(1, token[None], True)


@dataclass(frozen=True)
class Sampled:
    """One row's next token. `token` is [1], on the model's device."""

    token: torch.Tensor
    token_id: int
    is_finite: bool
    """Whether the row's logits hold neither NaN nor infinity. Otherwise nothing else counts."""
    probability: float
    """The token's, by the plain logits, before temperature and the like; among the allowed tokens if the row has a
    constraint; 0 if no row asked for alternatives."""
    likeliest: tuple[tuple[int, float], ...]
    """Ids and probabilities of the likeliest tokens, if a row asked for them."""


class SampledRows:
    """The next tokens [R] of some rows on the device; `read` brings what the host needs."""

    def __init__(self, logits: torch.Tensor, rows: Sequence[SamplingRow], ahead: int):
        self._rows, self._logits = rows, logits.float()
        self.tokens, packed = _sampled(self._logits, rows, ahead)
        self.needs_host = any(not row.joins_others or row.seen is not None for row in rows)
        """Whether `read` is needed before the tokens are right, or before the next ones can be sampled."""
        self._event: torch.cuda.Event | None = None
        self._packed = packed
        if packed.device.type == "cuda":
            self._packed = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=True)
            self._packed.copy_(packed, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    @torch.inference_mode()
    def read(self) -> list[Sampled]:
        """Waits for the numbers. Corrects `needs_host` and `tokens` where a row had to be sampled alone."""
        if self._event is not None:
            self._event.synchronize()
        found = []
        for number, (row, (token, finite, tied, probability, *likeliest)) in enumerate(
            zip(self._rows, self._packed.tolist(), strict=True)
        ):
            logits, token_id, place = self._logits[number : number + 1], int(token), self.tokens[number : number + 1]
            if finite and (tied or not row.joins_others):
                self.needs_host = True
                place = sample(logits, row.params, row.generator, row.seen)
                token_id = int(place)
                self.tokens[number] = token_id
                probability = float((logits[0, token_id] - logits[0].logsumexp(dim=-1)).exp())
            ids, probabilities = likeliest[::2], likeliest[1::2]
            told = zip(ids, probabilities, strict=True)
            pairs = tuple((int(one), p) for one, p in told if p > 0 or row.constraint is None)
            found.append(Sampled(place, token_id, bool(finite), probability, pairs))
        return found


def on_device(values: Sequence[Any], device: torch.device, dtype: torch.dtype = torch.long) -> torch.Tensor:
    """A tensor of numbers that are known on the host; nothing waits for the copy."""
    return torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda").to(device, non_blocking=True)


@torch.inference_mode()
def sample_rows(logits: torch.Tensor, rows: Sequence[SamplingRow], ahead: int = 0) -> SampledRows:
    """Samples from logits [R, vocabulary]; `ahead` tokens of each row have been sampled but not counted yet. What a
    row's constraint forbids becomes -inf in `logits` itself."""
    return SampledRows(logits, rows, ahead)


def _widest(device: torch.device) -> torch.dtype:
    """The type in which token ids and numbers stand together. Apple's GPUs have no float64, and any id is exact in
    float32."""
    return torch.float32 if device.type == "mps" else torch.float64


def _sampled(logits: torch.Tensor, rows: Sequence[SamplingRow], ahead: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [R], and in the type `_widest` [R, 4 + 2 ALTERNATIVES]: token, whether the logits are finite, whether too
    many tie, the token's probability, and the likeliest ids and probabilities in turn. Without alternatives [R, 4]."""
    device, vocabulary, wide = logits.device, logits.shape[1], _widest(logits.device)
    low, high = logits.amin(dim=-1), logits.amax(dim=-1)  # aminmax of rows takes ten times as long on a CPU
    _forbid(logits, rows)
    scores = _penalised(logits, rows)
    drawing = [number for number, row in enumerate(rows) if row.joins_others and not row.params.greedy]
    # As for generate: ties go to the first token (argmax of bfloat16 is several times slower on CPUs).
    tokens = scores.max(dim=-1).indices
    tied = torch.zeros(len(rows), dtype=torch.bool, device=device)
    likeliest: torch.Tensor | None = None
    if drawing:
        best, ids = largest(scores, min(_CANDIDATES, vocabulary))
        likeliest = ids[:, :ALTERNATIVES] if scores is logits else None
        some = on_device(drawing, device)
        drawn, too_many = _drawn(best[some], ids[some], [rows[number] for number in drawing], ahead, vocabulary)
        tokens, tied = tokens.index_copy(0, some, drawn), tied.index_copy(0, some, too_many)
    found = [tokens, torch.isfinite(low) & torch.isfinite(high), tied]
    if not any(row.with_alternatives for row in rows):
        return tokens, torch.stack([*found, torch.zeros_like(tokens)], dim=1).to(wide)
    if likeliest is None:
        likeliest = largest(logits, min(ALTERNATIVES, vocabulary))[1]
    shown = torch.cat((tokens[:, None], likeliest), dim=1)
    probabilities = (logits.gather(1, shown) - logits.logsumexp(dim=-1, keepdim=True)).exp().to(wide)
    pairs = torch.stack((shown.to(wide), probabilities), dim=-1).flatten(1)
    return tokens, torch.cat((torch.stack(found, dim=1).to(wide), pairs[:, 1:]), dim=1)


def _forbid(logits: torch.Tensor, rows: Sequence[SamplingRow]) -> None:
    """-inf for what a row's constraint does not allow; other rows are left as they are."""
    for row, own in zip(rows, logits.unbind(), strict=True):
        if row.constraint is not None:
            forbidden = ~row.constraint.allowed(len(own))
            if own.device.type == "cuda":
                forbidden = forbidden.pin_memory().to(own.device, non_blocking=True)
            own.masked_fill_(forbidden.to(own.device), -torch.inf)


def _penalised(logits: torch.Tensor, rows: Sequence[SamplingRow]) -> torch.Tensor:
    if all(row.seen is None for row in rows):
        return logits
    each = zip(logits.split(1), rows, strict=True)
    return torch.cat([x if r.seen is None else penalised(x, r.seen, r.params.repetition_penalty) for x, r in each])


def _drawn(
    best: torch.Tensor, ids: torch.Tensor, rows: Sequence[SamplingRow], ahead: int, vocabulary: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens drawn from the best scores [R, C], in descending order, with their ids; and whether more tie than C."""
    settings = [
        (row.params.temperature, row.params.top_p, row.params.min_p or 0.0, row.params.top_k - 1) for row in rows
    ]
    temperature, top_p, min_p, last = on_device(settings, best.device, _widest(best.device)).split(1, dim=1)
    best = best / temperature.float()
    least = best.gather(1, last.long().clamp(max=best.shape[1] - 1))
    # What a constraint forbids ties at -inf, and is never drawn.
    too_many = (best[:, -1] >= least[:, 0]) & (best[:, -1] > -torch.inf) & (best.shape[1] < vocabulary)
    ids, order = ids.sort(dim=-1)  # so that equal scores always get the same random numbers
    best = best.gather(1, order)
    scores = keep_min_p(keep_top_p(best.masked_fill(best < least, -torch.inf), top_p), min_p)
    noise = torch.stack([row.noise(row.count + ahead, best.shape[1]) for row in rows])
    # The largest of p / exponential is a draw by p; torch.multinomial does the same, and waits for the device.
    return ids.gather(1, (scores.softmax(dim=-1) / noise).max(dim=-1, keepdim=True).indices)[:, 0], too_many
