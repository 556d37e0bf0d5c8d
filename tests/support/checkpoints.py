"""Small random checkpoints, complete with weights, tokenizer and processor."""

import json
from pathlib import Path

from reference import SHARP, TEXT, TOKENS_PER_IMAGE, VISION, randomise

from gemma3_core.config.gemma3 import Gemma3Config, Gemma3TextConfig
from gemma3_core.models.multimodal import Gemma3ForConditionalGeneration
from gemma3_core.models.text import Gemma3ForCausalLM
from gemma3_core.tokenizer.tokenizer import Gemma3Tokenizer


def write_chat_checkpoint(folder: Path, tokenizer_folder: Path, multimodal: bool) -> None:
    """Writes random weights, the small tokenizer and the processor's configs as one checkpoint folder."""

    tokenizer = Gemma3Tokenizer.from_pretrained(tokenizer_folder)
    stops = [tokenizer.eos_token_id, tokenizer.end_of_turn_token_id]
    text = {**TEXT, "vocab_size": len(tokenizer), "max_position_embeddings": 512, "eos_token_id": stops}
    if multimodal:
        ids = {"image_token_index": tokenizer.image_token_id, "boi_token_index": tokenizer.boi_token_id}
        ids |= {"eoi_token_index": tokenizer.eoi_token_id, "mm_tokens_per_image": TOKENS_PER_IMAGE}
        config = Gemma3Config.from_dict({"text_config": text, "vision_config": VISION, "eos_token_id": stops, **ids})
        model = Gemma3ForConditionalGeneration(config)
    else:
        model = Gemma3ForCausalLM(Gemma3TextConfig.from_dict(text))
    randomise(model, sharpness=SHARP)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"height": VISION["image_size"], "width": VISION["image_size"]}
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": size}))
    (folder / "processor_config.json").write_text(json.dumps({"image_seq_length": TOKENS_PER_IMAGE}))


def write_published_shape(folder: Path, tokenizer_folder: Path) -> None:
    """Writes the smallest model for pictures of the published size (896 pixels, 256 soft tokens); no processor
    files."""

    tokenizer = Gemma3Tokenizer.from_pretrained(tokenizer_folder)
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    text = {**TEXT, "vocab_size": len(tokenizer), "max_position_embeddings": 1024}
    ids = {"image_token_index": tokenizer.image_token_id, "boi_token_index": tokenizer.boi_token_id}
    ids |= {"eoi_token_index": tokenizer.eoi_token_id, "eos_token_id": [tokenizer.eos_token_id]}
    sizes = {"image_size": 896, "patch_size": 14}
    config = Gemma3Config.from_dict({"text_config": text, "vision_config": {**vision, **sizes}, **ids})
    model = Gemma3ForConditionalGeneration(config)
    randomise(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
