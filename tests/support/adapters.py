"""Adapters as peft trains and saves them, with random numbers that change every answer."""

import warnings
from pathlib import Path
from typing import Any

import peft
import torch

DECODER = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
VISION = ["fc1", "fc2", "out_proj"]  # its q_proj, k_proj and v_proj have the decoder's names
PROJECTOR = "multi_modal_projector.mm_input_projection_weight"


def save_adapter(model: torch.nn.Module, folder: Path, seed: int = 3, size: float = 0.1, **config: Any) -> Path:
    """Puts an adapter on `model`, which is used up, and saves it as peft does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tied weights: that a merge needs them apart
        adapted = peft.get_peft_model(model, peft.LoraConfig(**config))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in sorted(adapted.named_parameters()):
                noise = torch.randn(parameter.shape, generator=generator) * size
                if "lora_" in name:  # B begins as zeros, which would hide everything
                    parameter.copy_(noise)
                elif parameter.requires_grad:  # of modules_to_save, and biases
                    parameter.add_(noise)
        adapted.save_pretrained(folder)
    return folder


def with_peft(model: torch.nn.Module, folder: Path) -> torch.nn.Module:
    """The model with a saved adapter, as peft loads it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(model, folder).eval()
