"""The pipelines against transformers' with Gemma 3's own tokenizer, template and picture sizes, on photographs.

The weights are small and random; prompts have the published lengths: 256 soft tokens a picture, far beyond the window.
"""

import json
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import transformers
from reference import SHARP, TEXT, VISION, randomise

from gemma3_core import AutoProcessor, pipeline
from gemma3_core.config.gemma3 import Gemma3Config, Gemma3TextConfig
from gemma3_core.models.multimodal import Gemma3ForConditionalGeneration
from gemma3_core.models.text import Gemma3ForCausalLM

FEW = {"max_new_tokens": 4}
SMALL = {"hidden_size": 32, "intermediate_size": 32, "head_dim": 8, "query_pre_attn_scalar": 8}
PUBLISHED = {"vocab_size": 262_208, "max_position_embeddings": 8192, "eos_token_id": [1, 106]}
ONE_LAYER = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}


def save(model: Any, folder: Path, tokenizer_folder: Path) -> None:
    randomise(model, sharpness=SHARP)
    model.save_pretrained(folder)
    for file in tokenizer_folder.iterdir():
        (folder / file.name).symlink_to(file)
    template = json.loads((tokenizer_folder / "tokenizer_config.json").read_text())["chat_template"]
    (folder / "chat_template.jinja").write_text(template)  # where the reference's processor looks for it


@pytest.fixture(scope="module")
def pipes(tmp_path_factory, real_tokenizer_folder):
    folder = tmp_path_factory.mktemp("seeing")
    text = Gemma3TextConfig.from_dict({**TEXT, **SMALL, **PUBLISHED})
    vision = {**VISION, **ONE_LAYER, "image_size": 896}
    save(
        Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision)),
        folder,
        real_tokenizer_folder,
    )
    ours = pipeline(
        "image-text-to-text", folder, processor=AutoProcessor.from_pretrained(folder, backend="pil"), device=-1
    )
    return ours, transformers.pipeline("image-text-to-text", str(folder), device="cpu")


@pytest.fixture(scope="module")
def text_pipes(tmp_path_factory, real_tokenizer_folder, pipes):
    """With the tokenizers that `pipes` have read, which takes either seconds."""
    folder = tmp_path_factory.mktemp("reading")
    save(Gemma3ForCausalLM(Gemma3TextConfig.from_dict({**TEXT, **SMALL, **PUBLISHED})), folder, real_tokenizer_folder)
    given = {"device": "cpu", "do_sample": False}
    ours, theirs = (pipe.processor.tokenizer for pipe in pipes)
    return (
        pipeline("text-generation", folder, tokenizer=ours, **given),
        transformers.pipeline("text-generation", str(folder), tokenizer=theirs, **given),
    )


def user(text: str, *shown: Any) -> dict[str, Any]:
    return {
        "role": "user",
        "content": [*({"type": "image", "image": p} for p in shown), {"type": "text", "text": text}],
    }


SYSTEM = {"role": "system", "content": [{"type": "text", "text": "You are a helpful assistant."}]}
WITH_PICTURES = {
    "the page's first example": lambda p: ((p[0],), {"text": "<start_of_image> What is shown in this image?"}),
    "a system prompt and two pictures": lambda p: ((), {"text": [SYSTEM, user("Welches Bild ist süßer? 🐱", *p[:2])]}),
    "unequal lengths": lambda p: ((), {"text": [[user("Hi", p[2])], [user("Which?", *p[:2])]], "batch_size": 2}),
    "pan and scan": lambda p: ((p[0],), {"text": "<start_of_image> left?", "do_pan_and_scan": True}),
}  # fmt: skip


@pytest.mark.parametrize("call", WITH_PICTURES)
def test_pictures_and_text_give_what_transformers_gives(pipes, photos, call):
    given, options = WITH_PICTURES[call](photos)
    ours, theirs = (pipe(*given, **options, **FEW, return_full_text=False) for pipe in pipes)
    records = ours if isinstance(ours[0], dict) else chain(*ours)
    assert all(record["generated_text"] for record in records), "an empty answer compares nothing"
    assert ours == theirs
    assert len(pipes[0].tokenizer) == 262_145


TEXTS = {
    "the page's text example": "Plants create energy through a process known as",
    "texts in a batch": ["Plants create", "Und was noch? Ein längerer Satz als der erste,\n\n\n\nmit Absätzen."],
    "a conversation": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a color.  "}],
}


@pytest.mark.parametrize("given", TEXTS.values(), ids=TEXTS.keys())
def test_text_gives_what_transformers_gives(text_pipes, given):
    more = {"batch_size": 2} if isinstance(given[0], str) and isinstance(given, list) else {}
    ours, theirs = (pipe(given, **FEW, **more) for pipe in text_pipes)
    assert ours == theirs
