"""Gemma 3 in PyTorch, without transformers: from chat messages with pictures to text.

The names here are those of transformers' Gemma 3 page; each is loaded when it is first used, so that importing
the package costs nothing.

Shape letters, the same in every file: B batch, T queries (new tokens), S keys (all tokens seen),
H heads, K key-value heads, D head width, E model width, N pictures (squares for the encoder).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gemma3_core.auto import (
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoProcessor,
        AutoTokenizer,
        pipeline,
    )
    from gemma3_core.cache import KVCache
    from gemma3_core.classification import Gemma3ForSequenceClassification, Gemma3TextForSequenceClassification
    from gemma3_core.config import Gemma3Config, Gemma3TextConfig, SiglipVisionConfig
    from gemma3_core.generation_config import GenerationConfig
    from gemma3_core.image_processor import Gemma3ImageProcessor, Gemma3ImageProcessorPil
    from gemma3_core.mask_visualizer import AttentionMaskVisualizer
    from gemma3_core.multimodal import Gemma3ForConditionalGeneration, Gemma3Model
    from gemma3_core.processor import Gemma3Processor
    from gemma3_core.quantization import TorchAoConfig
    from gemma3_core.streamers import BaseStreamer, TextIteratorStreamer, TextStreamer
    from gemma3_core.text import Gemma3ForCausalLM, Gemma3TextModel
    from gemma3_core.tokenizer import Gemma3Tokenizer

_MODULES = {
    "AttentionMaskVisualizer": "mask_visualizer",
    "AutoModelForCausalLM": "auto",
    "AutoModelForImageTextToText": "auto",
    "AutoProcessor": "auto",
    "AutoTokenizer": "auto",
    "BaseStreamer": "streamers",
    "Gemma3Config": "config",
    "Gemma3ForCausalLM": "text",
    "Gemma3ForConditionalGeneration": "multimodal",
    "Gemma3ForSequenceClassification": "classification",
    "Gemma3ImageProcessor": "image_processor",
    "Gemma3ImageProcessorPil": "image_processor",
    "Gemma3Model": "multimodal",
    "Gemma3Processor": "processor",
    "Gemma3TextConfig": "config",
    "Gemma3TextForSequenceClassification": "classification",
    "Gemma3TextModel": "text",
    "Gemma3Tokenizer": "tokenizer",
    "GenerationConfig": "generation_config",
    "KVCache": "cache",
    "SiglipVisionConfig": "config",
    "TextIteratorStreamer": "streamers",
    "TextStreamer": "streamers",
    "TorchAoConfig": "quantization",
    "pipeline": "auto",
}
"""The module of each public name."""

__all__ = [
    "AttentionMaskVisualizer",
    "AutoModelForCausalLM",
    "AutoModelForImageTextToText",
    "AutoProcessor",
    "AutoTokenizer",
    "BaseStreamer",
    "Gemma3Config",
    "Gemma3ForCausalLM",
    "Gemma3ForConditionalGeneration",
    "Gemma3ForSequenceClassification",
    "Gemma3ImageProcessor",
    "Gemma3ImageProcessorPil",
    "Gemma3Model",
    "Gemma3Processor",
    "Gemma3TextConfig",
    "Gemma3TextForSequenceClassification",
    "Gemma3TextModel",
    "Gemma3Tokenizer",
    "GenerationConfig",
    "KVCache",
    "SiglipVisionConfig",
    "TextIteratorStreamer",
    "TextStreamer",
    "TorchAoConfig",
    "pipeline",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
