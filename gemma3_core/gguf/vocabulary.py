"""The tokenizer of a GGUF file, which holds SentencePiece tokens with scores instead of merges."""

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing

from gemma3_core.errors import CheckpointError

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4  # SentencePiece's types of tokens; 6 is a byte
_SPACE = "▁"
_LONGEST, _LONGEST_ALL = 1000, 8_000_000  # characters of a token, and of all; Gemma 3's have 1.5 million
_MOST_MERGES = 2_000_000  # Gemma 3 has half a million
_NOT_SPECIAL = re.compile(r"<unused\d+>|<mask>|\[multimodal\]")
"""Control tokens that the published tokenizer.json does not call special, so that decoding keeps them."""
_SPECIAL = ("<start_of_image>", "<end_of_image>")
"""User-defined tokens that it does call special."""


def build_tokenizer(
    tokens: Sequence[str],
    scores: Sequence[float],
    types: Sequence[int],
    *,
    bos_id: int | None,
    unk_id: int,
    add_bos: bool,
) -> Tokenizer:
    """A BPE tokenizer with byte fallback that gives the ids of the published tokenizer.json; `add_bos` puts the token
    `bos_id` in front of texts.

    Raises CheckpointError for a vocabulary that is not one.
    """
    kinds = [int(kind) for kind in types]
    _check(tokens, scores, kinds, bos_id, unk_id)
    # The converter writes runs of spaces, which are user-defined, as they stand in a text.
    spelled = [
        token.replace(" ", _SPACE) if kind == _USER_DEFINED else token
        for token, kind in zip(tokens, kinds, strict=True)
    ]
    vocabulary = {token: number for number, token in enumerate(spelled)}
    if len(vocabulary) != len(spelled):
        raise CheckpointError("The file's vocabulary holds a token twice. Download it again.")
    merges = _merges(spelled, scores, kinds, vocabulary)
    model = BPE(vocabulary, merges, unk_token=spelled[unk_id], fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", _SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    if add_bos and bos_id is not None:
        bos = spelled[bos_id]
        if any(letter in bos for letter in " :$"):  # they have a meaning in the template
            raise CheckpointError(
                f"The file's bos token is {bos[:40]!r}, which is no special token. Download it again."
            )
        single, pair = f"{bos} $A", f"{bos} $A {bos}:1 $B:1"
        tokenizer.post_processor = TemplateProcessing(single=single, pair=pair, special_tokens=[(bos, bos_id)])
    tokenizer.add_tokens(list(_added(spelled, kinds)))
    return tokenizer


def _check(
    tokens: Sequence[str], scores: Sequence[float], kinds: Sequence[int], bos_id: int | None, unk_id: int
) -> None:
    if not tokens or not len(tokens) == len(scores) == len(kinds):
        raise CheckpointError(
            f"The file's vocabulary has {len(tokens):,} tokens, {len(scores):,} scores and {len(kinds):,} types; "
            "these numbers must be equal. Download it again."
        )
    if longest := next((token for token in tokens if len(token) > _LONGEST), ""):
        raise CheckpointError(f"The file's vocabulary has a token of {len(longest):,} characters. Download it again.")
    if (size := sum(map(len, tokens))) > _LONGEST_ALL:
        raise CheckpointError(f"The file's vocabulary has {size:,} characters in all. Download it again.")
    for name, number in (("bos", bos_id), ("unknown", unk_id)):
        if number is not None and (not isinstance(number, int) or not 0 <= number < len(tokens)):
            raise CheckpointError(f"The file's {name} token is {number}, beyond its vocabulary. Download it again.")


def _merges(
    tokens: Sequence[str], scores: Sequence[float], kinds: Sequence[int], vocabulary: Mapping[str, int]
) -> list[tuple[str, str]]:
    """All pairs of tokens whose join is a token: best score first, then longer left part, longer right part, lower id.

    This is exactly the order of the published merges. SentencePiece scores user-defined tokens 0, as its best normal
    token; llama.cpp's converter writes -1000 for them.
    """
    pairs: list[tuple[str, str]] = []
    joins: list[int] = []
    for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True)):
        if kind not in (_NORMAL, _USER_DEFINED):
            continue
        for end in range(len(token) - 1, 0, -1):
            left, right = vocabulary.get(token[:end]), vocabulary.get(token[end:])
            if left is not None and right is not None:
                pairs.append((tokens[left], tokens[right]))
                joins.append(number)
        if len(pairs) > _MOST_MERGES:
            raise CheckpointError("The file's vocabulary has too many tokens within tokens. Download it again.")
    score = np.asarray(scores, np.float64)
    normal = np.asarray(kinds) == _NORMAL
    score = np.where(normal, score, score[normal].max(initial=-np.inf))
    lefts, rights = (np.fromiter((len(pair[side]) for pair in pairs), np.int64, len(pairs)) for side in (0, 1))
    order = np.lexsort((-rights, -lefts, -score[np.array(joins, np.int64)]))
    return [pairs[place] for place in order.tolist()]


def _added(tokens: Sequence[str], kinds: Sequence[int]) -> Iterable[AddedToken]:
    """The tokens that are found in a text before it is split."""
    for token, kind in zip(tokens, kinds, strict=True):
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED):
            special = token in _SPECIAL or (kind != _USER_DEFINED and not _NOT_SPECIAL.fullmatch(token))
            yield AddedToken(token, special=special, normalized=False)
