"""Gemma 3 in PyTorch, without transformers: from chat messages with pictures to text.

The names here are those of transformers' Gemma 3 page; each is loaded when it is first used, so that importing
the package costs nothing.

Shape letters, the same in every file: B batch, T queries (new tokens), S keys (all tokens seen),
H heads, K key-value heads, D head width, E model width, N pictures (tiles for the encoder).
"""

# ruff: noqa: F401  the imports below are for type checkers alone

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gemma3_core.config.gemma3 import Gemma3Config, Gemma3TextConfig, SiglipVisionConfig
    from gemma3_core.generation.config import GenerationConfig
    from gemma3_core.generation.streamers import BaseStreamer, TextIteratorStreamer, TextStreamer
    from gemma3_core.hf.auto import (
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoModelForSequenceClassification,
        AutoProcessor,
        AutoTokenizer,
        pipeline,
    )
    from gemma3_core.images.processor import Gemma3ImageProcessor, Gemma3ImageProcessorPil
    from gemma3_core.inspection.mask_visualizer import AttentionMaskVisualizer
    from gemma3_core.int4.quantize import TorchAoConfig
    from gemma3_core.models.classification import Gemma3ForSequenceClassification, Gemma3TextForSequenceClassification
    from gemma3_core.models.multimodal import Gemma3ForConditionalGeneration, Gemma3Model
    from gemma3_core.models.text import Gemma3ForCausalLM, Gemma3TextModel
    from gemma3_core.nn.cache import KVCache
    from gemma3_core.processor import Gemma3Processor
    from gemma3_core.tokenizer.tokenizer import Gemma3Tokenizer

_MODULES = {
    "AttentionMaskVisualizer": "inspection.mask_visualizer",
    "AutoModel": "hf.auto",
    "AutoModelForCausalLM": "hf.auto",
    "AutoModelForImageTextToText": "hf.auto",
    "AutoModelForSequenceClassification": "hf.auto",
    "AutoProcessor": "hf.auto",
    "AutoTokenizer": "hf.auto",
    "BaseStreamer": "generation.streamers",
    "Gemma3Config": "config.gemma3",
    "Gemma3ForCausalLM": "models.text",
    "Gemma3ForConditionalGeneration": "models.multimodal",
    "Gemma3ForSequenceClassification": "models.classification",
    "Gemma3ImageProcessor": "images.processor",
    "Gemma3ImageProcessorPil": "images.processor",
    "Gemma3Model": "models.multimodal",
    "Gemma3Processor": "processor",
    "Gemma3TextConfig": "config.gemma3",
    "Gemma3TextForSequenceClassification": "models.classification",
    "Gemma3TextModel": "models.text",
    "Gemma3Tokenizer": "tokenizer.tokenizer",
    "GenerationConfig": "generation.config",
    "KVCache": "nn.cache",
    "SiglipVisionConfig": "config.gemma3",
    "TextIteratorStreamer": "generation.streamers",
    "TextStreamer": "generation.streamers",
    "TorchAoConfig": "int4.quantize",
    "pipeline": "hf.auto",
}
"""The module of each public name."""

__all__ = [*_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
