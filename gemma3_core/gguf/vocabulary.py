"""The tokenizer of a GGUF file, which holds SentencePiece tokens with scores instead of merges."""

import re
from collections.abc import Iterable, Mapping, Sequence

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing

from gemma3_core.errors import CheckpointError

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4  # SentencePiece's types of tokens; 6 is a byte
_SPACE = "▁"
_LONGEST = 1000  # characters of a token
_NOT_SPECIAL = re.compile(r"<unused\d+>|<mask>|\[multimodal\]")
"""Control tokens that the published tokenizer.json does not call special, so that decoding keeps them."""


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
    by_score = sorted((number for number, kind in enumerate(kinds) if kind == _NORMAL), key=lambda n: -float(scores[n]))
    runs = [token for token, kind in zip(spelled, kinds, strict=True) if kind == _USER_DEFINED and len(set(token)) == 1]
    longest_first = sorted(runs, key=len, reverse=True)
    merges = _merges([*longest_first, *(spelled[number] for number in by_score)], vocabulary)
    model = BPE(vocabulary, merges, unk_token=spelled[unk_id], fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", _SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    if add_bos and bos_id is not None:
        bos = spelled[bos_id]
        single, pair = f"{bos} $A", f"{bos} $A {bos}:1 $B:1"
        tokenizer.post_processor = TemplateProcessing(single=single, pair=pair, special_tokens=[(bos, bos_id)])
    tokenizer.add_tokens(list(_added(spelled, kinds)))
    return tokenizer


def _check(
    tokens: Sequence[str], scores: Sequence[float], kinds: Sequence[int], bos_id: int | None, unk_id: int
) -> None:
    if not tokens or not len(tokens) == len(scores) == len(kinds):
        raise CheckpointError(
            f"The file's vocabulary has {len(tokens):,} tokens, {len(scores):,} scores and {len(kinds):,} types, which "
            "must be as many. Download it again."
        )
    if longest := next((token for token in tokens if len(token) > _LONGEST), ""):
        raise CheckpointError(f"The file's vocabulary has a token of {len(longest):,} characters. Download it again.")
    for name, number in (("bos", bos_id), ("unknown", unk_id)):
        if number is not None and (not isinstance(number, int) or not 0 <= number < len(tokens)):
            raise CheckpointError(f"The file's {name} token is {number}, beyond its vocabulary. Download it again.")


def _merges(best_first: Iterable[str], vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """All pairs of tokens whose join is a token, best first, those with a longer left part before the others.

    This is the order of the published merges. Ties between tokens of one score can't change how a text is split.
    """
    return [
        (left, right)
        for token in best_first
        for end in range(len(token) - 1, 0, -1)
        if (left := token[:end]) in vocabulary and (right := token[end:]) in vocabulary
    ]


def _added(tokens: Sequence[str], kinds: Sequence[int]) -> Iterable[AddedToken]:
    """The tokens that are found in a text before it is split."""
    for token, kind in zip(tokens, kinds, strict=True):
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED):
            special = kind != _USER_DEFINED and not _NOT_SPECIAL.fullmatch(token)
            yield AddedToken(token, special=special, normalized=False)
