"""The base of the model classes: from_pretrained, save_pretrained, device, dtype."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, Unpack

import torch
from torch import nn

from gemma3_core.adapters.config import base_of
from gemma3_core.config.base import CONFIG_FILE
from gemma3_core.config.gemma3 import AnyConfig, Gemma3Config, read_config
from gemma3_core.errors import ConfigError, UnsupportedOptionError
from gemma3_core.files.download import Watch
from gemma3_core.files.hub import HubOptions, pop_hub_options, resolve_folder
from gemma3_core.files.saving import folder_to_save_in, refuse_options, write_json
from gemma3_core.files.weight_files import MAX_SHARD_SIZE, shard_bytes
from gemma3_core.generation.config import GenerationConfig, read_generation_config
from gemma3_core.gguf.checkpoint import weights_of
from gemma3_core.int4.linear import Int4Linear, require_int4
from gemma3_core.int4.quantize import Int4Plan, TorchAoConfig, count_weights, install_int4, quantized
from gemma3_core.kernels import cpu as cpu_kernels
from gemma3_core.models.adapters import AdaptersMixin
from gemma3_core.models.device_map import DeviceMap, mapped_device, pick_device
from gemma3_core.models.embeddings import EmbeddingsMixin
from gemma3_core.models.training import TrainingMixin
from gemma3_core.models.weights import (
    build_on_meta,
    check_layers,
    load_weights,
    parse_dtype,
    save_weights,
    with_head_of_its_own,
)

__all__ = ["LOADING", "PreTrainedModel", "pick_device"]

LOADING: Mapping[str, tuple[Any, ...]] = {
    "low_cpu_mem_usage": (True, False),  # weights are never held twice
    "use_safetensors": (True,),
    "weights_only": (True,),
    "ignore_mismatched_sizes": (False,),
    "output_loading_info": (False,),
    "subfolder": ("",),
    "use_kernels": (False,),
    "offload_buffers": (False,),
}
"""Options of transformers' from_pretrained, with the values at which they have no effect."""


class PreTrainedModel(AdaptersMixin, EmbeddingsMixin, TrainingMixin, nn.Module):
    """Base of the model classes."""

    config: Any
    config_class: ClassVar[type]
    hf_device_map: dict[str, torch.device]
    """{"": device}; only after from_pretrained(device_map=…), as in transformers."""

    def __init__(self, config: AnyConfig):
        super().__init__()
        self._check_config(config)
        self.config = config
        self.generation_config = GenerationConfig.from_model_config(self.config)
        self.eager = False
        """True runs explicit attention ("eager"), False torch's fused attention ("sdpa")."""
        self.int4_plan: Int4Plan | None = None
        """The layers with int4 weights; None in full precision."""
        self.name_or_path = ""
        """The folder or Hub id that it was loaded from."""

    @classmethod
    def _check_config(cls, config: Any) -> None:
        if not isinstance(config, cls.config_class):
            raise ConfigError(
                f"{cls.__name__} takes a {cls.config_class.__name__}, got {type(config).__name__}. For a "
                "checkpoint that sees pictures take Gemma3ForConditionalGeneration, for one that reads text only "
                "Gemma3ForCausalLM, for either AutoModelForCausalLM."
            )

    @property
    def device(self) -> torch.device:
        """The device of the weights, and so of the inputs."""
        return self.decoder.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """The number of weights; a tied head's count once."""
        # int4 weights are not parameters, and not trainable.
        int4 = 0 if only_trainable else count_weights(self) - sum(p.numel() for p in self.parameters())
        counted = [p for p in self.parameters() if p.requires_grad or not only_trainable]
        if exclude_embeddings:
            embeddings = {id(module.weight) for module in self.modules() if isinstance(module, nn.Embedding)}
            counted = [p for p in counted if id(p) not in embeddings]
        return int4 + sum(p.numel() for p in counted)

    def can_generate(self) -> bool:
        return hasattr(self, "generate")

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes of the weights, a tied head's once; int4 weights are buffers."""
        buffers = self.buffers() if return_buffers else ()
        return sum(tensor.nbytes for tensor in (*self.parameters(), *buffers))

    def push_to_hub(self, *_: Any, **__: Any) -> None:
        raise UnsupportedOptionError("push_to_hub is not supported: save, and upload the folder with huggingface_hub.")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        config: AnyConfig | None = None,
        dtype: str | torch.dtype | None = None,
        torch_dtype: str | torch.dtype | None = None,
        device_map: DeviceMap | None = None,
        attn_implementation: str | None = None,
        quantization_config: TorchAoConfig | None = None,
        dequantize: bool = False,
        **unknown: Any,
    ) -> Self:
        """Loads a checkpoint in the Hub's layout, or a GGUF file; no tensor may be missing or left over.

        dtype (or torch_dtype, its older name) None and "auto" mean the checkpoint's own. device_map is one device: its
        name, a CUDA device's number, "auto" (the first accelerator, else the CPU) or {"": device}; None is the CPU.
        attn_implementation is "sdpa" (the default) or "eager". quantization_config makes int4 weights from a checkpoint
        in full precision; a checkpoint saved with int4 weights needs none. Of a GGUF file, weights in Q4_0 are int4
        weights without any loss, unless `dequantize` asks for full precision; with a TorchAoConfig of their group size,
        32, the other layers become int4 too. The log names layers that could be int4 but stay in full precision.
        `config` replaces the folder's config.json. Of an adapter's folder or repository, the base that it names is
        loaded, and the adapter beside it. Other options are HubOptions. Raises CheckpointError, ConfigError,
        UnsupportedOptionError.
        """
        hub = pop_hub_options(unknown)
        refuse_options("from_pretrained", unknown, LOADING)
        if dtype is not None and torch_dtype is not None and dtype != torch_dtype:
            raise UnsupportedOptionError(f"dtype={dtype} and torch_dtype={torch_dtype} differ. Give dtype alone.")
        folder = resolve_checkpoint(pretrained_model_name_or_path, has_config=config is not None, **hub)
        if (base := base_of(folder)) is not None:
            asked: dict[str, Any] = {
                "config": config,
                "dtype": dtype if torch_dtype is None else torch_dtype,
                "device_map": device_map,
                "attn_implementation": attn_implementation,
                "quantization_config": quantization_config,
                "dequantize": dequantize,
            }
            adapted = cls.from_pretrained(base.source, **base.hub_options(hub), **asked)
            adapted.load_adapter(folder)
            return adapted
        config = read_config(folder) if config is None else config
        if isinstance(config, Gemma3Config):
            _ = config.tokens_per_side  # raises for a checkpoint whose pictures can't be read
        cls._check_config(config)
        check_layers(config, folder)
        if hasattr(cls, "_tied_weights_keys"):
            config = with_head_of_its_own(config, folder)
        model = build_on_meta(lambda: cls(config))
        assert isinstance(model, cls)
        model.set_attn_implementation("sdpa" if attn_implementation is None else attn_implementation)
        weights = parse_dtype(torch_dtype if dtype is None else dtype, config.dtype)
        if not isinstance(quantization_config, TorchAoConfig | None):
            raise UnsupportedOptionError(
                f"quantization_config must be a TorchAoConfig, got {type(quantization_config).__name__}."
            )
        device = mapped_device(device_map)
        if device.type == "cpu":
            cpu_kernels.prepare()
        int4 = _int4_config(config, folder, quantization_config, dequantize)
        filled = model._filled(folder, weights, device, *int4)
        filled.name_or_path = str(pretrained_model_name_or_path)
        if device_map is not None:
            filled.hf_device_map = {"": device}
        return filled

    def _filled(
        self,
        folder: Path,
        dtype: torch.dtype | None,
        device: torch.device,
        stored: TorchAoConfig | None,
        wanted: TorchAoConfig | None,
    ) -> Self:
        """This model (on the meta device) with a checkpoint's weights: in int4 as it stores them, or as they are
        `wanted`."""
        if stored or wanted:
            require_int4(device)
        if stored:
            install_int4(self, stored)
        if wanted:
            # The weights stay memory-mapped and go to the device one by one: never are all in memory unquantised.
            load_weights(self, folder, dtype, torch.device("cpu"), mapped=True)
        else:
            load_weights(self, folder, dtype, device)
        self.tie_weights()
        self.generation_config = read_generation_config(folder, self.config)
        model = quantized(self, wanted, device, dtype) if wanted else self
        if (plan := model.int4_plan) is not None:
            model.to(device, dtype or model.dtype)
            plan.warn()
        return model

    def save_pretrained(
        self, save_directory: str | Path, *, max_shard_size: int | str = MAX_SHARD_SIZE, **options: Any
    ) -> None:
        """Writes config.json, model.safetensors and, for models with `generate`, generation_config.json.

        Weights of more than `max_shard_size` (bytes, or "500MB") are split into several files with an index. int4
        weights are written in a format for any device. Weights of an earlier save in the folder are replaced. Raises
        CheckpointError, UnsupportedOptionError.
        """
        if self.is_adapted:
            raise UnsupportedOptionError(
                "This model has an adapter beside its weights. Call merge_and_unload() to save both as one checkpoint, "
                "or disable_adapters() to save the weights alone."
            )
        if self.int4_plan is None and any(isinstance(module, Int4Linear) for module in self.modules()):
            raise UnsupportedOptionError("A part of an int4 model can't be saved alone. Save the whole model.")
        shard_bytes(max_shard_size)
        folder = folder_to_save_in(save_directory, options)
        save_weights(self, folder, max_shard_size)  # first, so that a full disk leaves an earlier save whole
        dtype = str(self.dtype).removeprefix("torch.")
        data = {**self.config.to_diff_dict(), "architectures": [type(self).__name__], "dtype": dtype}
        for name in ("torch_dtype", "quantization_config"):
            data.pop(name, None)
        if self.int4_plan:
            data["quantization_config"] = self.int4_plan.config.to_dict()
        write_json(folder / "config.json", data)
        if self.can_generate():
            self.generation_config.save_pretrained(folder)

    def set_attn_implementation(self, attn_implementation: str) -> None:
        """ "sdpa" is torch's fused attention; "eager" is explicit and slower. Both can return attention weights."""
        if attn_implementation not in ("sdpa", "eager"):
            raise UnsupportedOptionError(
                f"attn_implementation={attn_implementation!r} is not supported. Use sdpa or eager."
            )
        for module in self.modules():
            if isinstance(module, PreTrainedModel):
                module.eager = attn_implementation == "eager"


def resolve_checkpoint(
    source: str | Path, *, has_config: bool = False, watch: Watch | None = None, **hub: Unpack[HubOptions]
) -> Path:
    """As `resolve_folder`, but a repository whose config.json describes what can't run here is refused before its
    weights are downloaded, unless the caller has another config.

    Raises CheckpointError, ConfigError, UnsupportedOptionError.
    """
    if not has_config and ":" not in str(source) and not Path(str(source)).expanduser().exists():
        folder = resolve_folder(source, weights=False, watch=watch, **hub)
        if (folder / CONFIG_FILE).is_file():
            stored = read_config(folder).extra.get("quantization_config")
            if stored is not None:
                TorchAoConfig.from_dict(stored)
    return resolve_folder(source, watch=watch, **hub)


def _int4_config(
    config: AnyConfig, folder: Path, asked: TorchAoConfig | None, dequantize: bool
) -> tuple[TorchAoConfig | None, TorchAoConfig | None]:
    """How int4 weights are read from the checkpoint, and how they are made of weights that were loaded; at most one.

    A GGUF file gives each layer as int4 weights or dequantised, one by one. Raises UnsupportedOptionError if int4
    weights would have to be made again.
    """
    data = config.extra.get("quantization_config")
    is_gguf = weights_of(folder) is not None
    stored = None if data is None or (is_gguf and dequantize) else TorchAoConfig.from_dict(data)
    if dequantize and (stored or asked):
        raise UnsupportedOptionError("Only a GGUF file can be dequantised, and not into int4. Leave out dequantize.")
    if is_gguf and (stored is None or asked is None or asked.group_size == stored.group_size):
        return asked or stored, None
    if stored and asked not in (None, stored):
        raise UnsupportedOptionError(
            f"The checkpoint holds int4 weights already, by {stored}; they can't be made again by {asked}. "
            "Leave quantization_config out, or load the checkpoint in full precision."
        )
    return stored, None if stored else asked
