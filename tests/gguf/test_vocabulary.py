"""A tokenizer made of tokens, scores and types gives the published tokenizer's ids."""

import json
import random
import re

import pytest
from tokenizers import Tokenizer

from gemma3_core.errors import CheckpointError
from gemma3_core.gguf.vocabulary import build_tokenizer

NORMAL, CONTROL, USER_DEFINED, BYTE = 1, 3, 4, 6
CORPUS = [
    "The quick brown fox jumps over the lazy dog's back, didn't it?",
    "Größe Ærøskøbing naïve café Łódź İstanbul ǅ ﬁ ½ ² № 💩",
    "Съешь же ещё этих мягких французских булок",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία",
    "نص حكيم له سر قاطع وذو شأن عظيم ‏مكتوب",
    "דג סקרן שט בים מאוכזב",
    "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा",
    "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า",
    "天地玄黃，宇宙洪荒。日月盈昃，辰宿列張。",
    "いろはにほへと ちりぬるを カタカナ ｶﾀｶﾅ",
    "다람쥐 헌 쳇바퀴에 타고파",
    "ሰማይ አይታረስ ንጉሥ አይከሰስ ᠮᠣᠩᠭᠣᠯ ᏣᎳᎩ 𝕳𝖊𝖑𝖑𝖔 𓀀𓁐",
    "👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇫🇷 ❤️ 1️⃣ 👍🏽",
    "def f(x):\n\tif x > 0:\n\t\treturn [i**2 for i in range(x)]  # ok\r\n\r\n",
    "<table><tr><td>1</td></tr></table> </h1><h2> &amp; <!-- -->",
    "<end_of_turn>\n<start_of_turn>model\n<unused5><bos>x<eos>[multimodal]<mask><pad><unk>",
    "<start_of_image> <end_of_image> <unused6000> <0x41> ▁▁ ▁a",
    "a\u00a0b\u3000c\u2009d\u200be\u2028f\u0000g\ufffdh\u0007i",
    *(f"x{' ' * n}y{chr(10) * n}z{chr(9) * n}" for n in range(1, 41)),
    "",
    " ",
    "\n",
    "   leading and trailing   ",
]


@pytest.fixture(scope="module")
def published(real_tokenizer_folder) -> Tokenizer:
    return Tokenizer.from_file(str(real_tokenizer_folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def rebuilt(published) -> Tokenizer:
    """From what a GGUF file of it holds: no merges, and types as llama.cpp's converter writes them."""
    data = json.loads(published.to_str())
    vocabulary = data["model"]["vocab"]
    added = {entry["content"] for entry in data["added_tokens"]}
    control = re.compile(r"<(pad|eos|bos|unk|mask|start_of_turn|end_of_turn|unused\d+)>")
    ranks = {}
    for rank, pair in enumerate(data["model"]["merges"]):
        ranks.setdefault("".join(pair), -float(rank))
    tokens, scores, types = [], [], []
    for token, number in sorted(vocabulary.items(), key=lambda entry: entry[1]):
        kind = NORMAL if token not in added else CONTROL if control.fullmatch(token) else USER_DEFINED
        kind = BYTE if re.fullmatch(r"<0x[0-9A-F]{2}>", token) else kind
        tokens.append(token.replace("▁", " ") if kind == USER_DEFINED else token)
        scores.append(ranks.get(token, -1e6 - number) if kind == NORMAL else -1000.0 if kind != BYTE else 0.0)
        types.append(kind)
    return build_tokenizer(tokens, scores, types, bos_id=2, unk_id=3, add_bos=True)


def random_texts(published: Tokenizer):
    draw = random.Random(0)
    size = published.get_vocab_size(with_added_tokens=False)
    for _ in range(300):
        yield "".join(
            chr(draw.choice([draw.randrange(32, 0x250), draw.randrange(0xD800), draw.randrange(0xE000, 0x110000)]))
            for _ in range(40)
        )
        yield "".join((published.id_to_token(draw.randrange(size)) or "").replace("▁", " ") for _ in range(20))


def test_it_gives_the_published_ids(published, rebuilt):
    for text in [*CORPUS, *random_texts(published)]:
        for with_special in (True, False):
            expected = published.encode(text, add_special_tokens=with_special).ids
            assert rebuilt.encode(text, add_special_tokens=with_special).ids == expected, repr(text)


def test_it_merges_in_the_published_order(published, rebuilt):
    assert json.loads(rebuilt.to_str())["model"]["merges"] == json.loads(published.to_str())["model"]["merges"]


@pytest.mark.parametrize("skips", [True, False])
def test_it_decodes_as_the_published_one(published, rebuilt, skips):
    texts = [*CORPUS, *random_texts(published)]
    lists = [encoding.ids for encoding in published.encode_batch(texts)]
    assert rebuilt.decode_batch(lists, skip_special_tokens=skips) == published.decode_batch(
        lists, skip_special_tokens=skips
    )


def small(**changed):
    tokens = ["<pad>", "<bos>", "<unk>", "a", "b", "ab"]
    arguments = {"tokens": tokens, "scores": [0.0] * 6, "types": [3, 3, 2, 1, 1, 1]}
    return build_tokenizer(**{**arguments, "bos_id": 1, "unk_id": 2, "add_bos": True, **changed})


def test_a_small_one():
    assert small().encode("abba").ids == [1, 5, 4, 3]
    assert small(add_bos=False).encode("abba").ids == [5, 4, 3]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"tokens": []}, "0 tokens"),
        ({"scores": [0.0]}, "6 tokens, 1 scores"),
        ({"types": [1]}, "and 1 types"),
        ({"tokens": ["<pad>", "<bos>", "<unk>", "a", "a", "ab"]}, "a token twice"),
        ({"tokens": ["<pad>", "<bos>", "<unk>", "a", "b", "a" * 5000]}, "a token of 5,000 characters"),
        ({"tokens": ["<pad>", "<bos> $A", "<unk>", "a", "b", "ab"]}, "which is no special token"),
        ({"unk_id": 6}, "unknown token is 6, beyond"),
        ({"bos_id": -1}, "bos token is -1, beyond"),
    ],
)
def test_what_is_no_vocabulary(changed, says):
    with pytest.raises(CheckpointError, match=says):
        small(**changed)
