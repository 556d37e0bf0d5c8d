"""What every model class can do: from_pretrained, save_pretrained, device, dtype, tied weights."""

from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import nn

from gemma3_core.config import AnyConfig, Gemma3TextConfig, read_config
from gemma3_core.errors import ConfigError, UnsupportedOptionError
from gemma3_core.generation import GenerationConfig
from gemma3_core.hub import resolve_folder, write_json
from gemma3_core.int4_linear import Int4Linear, require_int4
from gemma3_core.quantization import Int4Plan, TorchAoConfig, install_int4, quantized
from gemma3_core.weights import build_on_meta, is_tied, load_weights, parse_dtype, save_weights, stored_dtype

ATTENTION_IMPLEMENTATIONS = ("sdpa", "eager")


class PreTrainedModel(nn.Module):
    """Base of the model classes."""

    config: Any
    config_class: ClassVar[type]

    def __init__(self, config: AnyConfig):
        super().__init__()
        if not isinstance(config, self.config_class):
            raise ConfigError(
                f"{type(self).__name__} takes a {self.config_class.__name__}, got {type(config).__name__}."
            )
        self.config = config
        self.generation_config = GenerationConfig.from_dict({}, self.config)
        self.eager = False
        """True runs the open form of attention ("eager"), False torch's fused one ("sdpa")."""
        self.int4_plan: Int4Plan | None = None
        """Which layers hold int4 weights; None in full precision."""

    @property
    def text_config(self) -> Gemma3TextConfig:
        return getattr(self.config, "text_config", self.config)

    @property
    def decoder(self) -> Any:
        """The Gemma3TextModel inside (or the model itself)."""
        return self

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @classmethod
    def from_pretrained(
        cls,
        folder_or_hub_id: str | Path,
        *,
        dtype: str | torch.dtype | None = None,
        device_map: str | torch.device | None = None,
        attn_implementation: str = "sdpa",
        quantization_config: TorchAoConfig | None = None,
        revision: str | None = None,
        token: str | None = None,
    ) -> Self:
        """Loads a checkpoint in the Hub's layout, strictly: each tensor there, none left over.

        dtype None or "auto" is the checkpoint's own. device_map is "auto", or a device; None is the CPU.
        quantization_config makes int4 weights of a checkpoint in full precision; one that was saved with int4
        weights needs none. Layers that stay in full precision although they are candidates are named in the log.
        Raises CheckpointError, ConfigError, UnsupportedOptionError.
        """
        folder = resolve_folder(folder_or_hub_id, revision, token)
        config = read_config(folder)
        model = build_on_meta(lambda: cls(config))
        assert isinstance(model, cls)
        model.set_attention(attn_implementation)
        if not isinstance(quantization_config, TorchAoConfig | None):
            raise UnsupportedOptionError(
                f"quantization_config must be a TorchAoConfig, got {type(quantization_config).__name__}."
            )
        where = pick_device(device_map or "cpu")
        stored = _stored_int4(config, quantization_config)
        if stored or quantization_config:
            require_int4(where)
        if stored:
            install_int4(model, stored)
        # To be quantised, weights are read on the CPU, where they stay on disk, and go to the device one by one.
        load_weights(
            model,
            folder,
            parse_dtype(dtype, stored_dtype(config)),
            torch.device("cpu") if quantization_config and not stored else where,
        )
        model.tie_weights()
        model.generation_config = GenerationConfig.from_pretrained(folder, model.config)
        if quantization_config and not stored:
            model = quantized(model, quantization_config, where)
        if model.int4_plan:
            model.to(where, model.dtype)
            model.int4_plan.warn()
        return model

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes config.json, generation_config.json and model.safetensors in the Hub's layout.

        int4 weights are written as they are, in a form that fits any device.
        """
        if self.int4_plan is None and any(isinstance(module, Int4Linear) for module in self.modules()):
            raise UnsupportedOptionError("A part of an int4 model can't be saved alone. Save the whole model.")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        dtype = str(self.dtype).removeprefix("torch.")
        data = {**self.config.to_dict(), "architectures": [type(self).__name__], "dtype": dtype}
        for name in ("torch_dtype", "quantization_config"):
            data.pop(name, None)
        if self.int4_plan:
            data["quantization_config"] = self.int4_plan.config.to_dict()
        write_json(folder / "config.json", data)
        self.generation_config.save_pretrained(folder)
        save_weights(self, folder)

    def set_attention(self, implementation: str) -> None:
        """ "sdpa" (torch's fused attention) or "eager" (open, slower; gives attention weights either way)."""
        if implementation not in ATTENTION_IMPLEMENTATIONS:
            raise UnsupportedOptionError(
                f"attn_implementation={implementation!r} is not supported; use 'sdpa' or 'eager'."
            )
        for module in self.modules():
            if isinstance(module, PreTrainedModel):
                module.eager = implementation == "eager"

    def tie_weights(self) -> None:
        """Lets the head share the embedding's weight where the config says so."""
        head = getattr(self, "lm_head", None)
        if isinstance(head, nn.Linear) and is_tied(self.config):
            head.weight = self.decoder.embed_tokens.weight


def _stored_int4(config: AnyConfig, asked: TorchAoConfig | None) -> TorchAoConfig | None:
    """How the checkpoint's weights are quantised; None for full precision. UnsupportedOptionError if not as asked."""
    data = config.extra.get("quantization_config")
    if data is None:
        return None
    stored = TorchAoConfig.from_dict(data)
    if asked not in (None, stored):
        raise UnsupportedOptionError(
            f"The checkpoint holds int4 weights already, by {stored}; they can't be made again by {asked}. "
            "Leave quantization_config out, or load the checkpoint in full precision."
        )
    return stored


def pick_device(device: str | torch.device) -> torch.device:
    """ "auto" is the first CUDA device, else MPS, else the CPU."""
    if str(device) != "auto":
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
