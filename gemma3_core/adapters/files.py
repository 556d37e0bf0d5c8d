"""An adapter's folder or Hub id -> its config and its tensors, sorted by what they do."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import torch

from gemma3_core.adapters.config import AdapterConfig, read_adapter_config
from gemma3_core.errors import CheckpointError, UnsupportedOptionError
from gemma3_core.files.hub import HubOptions, hub_id_of, resolve_adapter, revision_of
from gemma3_core.files.weight_files import read_tensors

WEIGHTS_FILE = "adapter_model.safetensors"
PICKLED_FILE = "adapter_model.bin"

A, B, BIAS = "lora_A.weight", "lora_B.weight", "lora_B.bias"
EMBEDDING_A, EMBEDDING_B = "lora_embedding_A", "lora_embedding_B"
_FACTORS = (A, B, BIAS, EMBEDDING_A, EMBEDDING_B)
_PREFIX, _WRAPPED = "base_model.model.", "base_layer."
_REFUSED = {
    "lora_magnitude_vector": "DoRA",
    "trainable_tokens_delta": "trainable_token_indices",
}
"""The last parts of tensors of variants that are not supported, whatever the config says."""
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter's config and tensors, memory-mapped; nothing is checked against a model yet.

    `factors` are LoRA's tensors by the adapted module's name in the file, each by its last part (A, B, …). `whole` are
    tensors that take the place of one of the model's, by its name in the file. `revision` tells two adapters of one
    name apart; `hub_id` is empty for a folder.
    """

    name: str
    config: AdapterConfig
    factors: Mapping[str, Mapping[str, torch.Tensor]]
    whole: Mapping[str, torch.Tensor]
    revision: str
    hub_id: str


def read_adapter(source: str | Path, **hub: Unpack[HubOptions]) -> StoredAdapter:
    """Reads an adapter as peft's save_pretrained wrote it. Raises CheckpointError, UnsupportedOptionError."""
    folder = resolve_adapter(source, **hub)
    config = read_adapter_config(folder)
    if not (folder / WEIGHTS_FILE).is_file():
        if (folder / PICKLED_FILE).exists():
            raise CheckpointError(
                f"{folder.name} holds a pickled {PICKLED_FILE}, which can run code and is not read. Load it with peft "
                f"and save it again: save_pretrained writes {WEIGHTS_FILE}."
            )
        raise CheckpointError(
            f"{folder.name} holds no {WEIGHTS_FILE}. A pickled {PICKLED_FILE} is not read: save the adapter with "
            "peft's save_pretrained."
        )
    factors: dict[str, dict[str, torch.Tensor]] = {}
    whole: dict[str, torch.Tensor] = {}
    for stored, tensor in read_tensors(folder / WEIGHTS_FILE):
        assert isinstance(tensor, torch.Tensor)
        name = stored.removeprefix(_PREFIX)
        _check(tensor, stored)
        part = next((part for part in _FACTORS if name.endswith(f".{part}")), None)
        if part is None:
            whole[name] = tensor
        else:
            factors.setdefault(name.removesuffix(f".{part}"), {})[part] = tensor
    if not factors and not whole:
        raise CheckpointError(f"{folder.name}'s {WEIGHTS_FILE} holds no tensors. Save the adapter again.")
    hub_id = hub_id_of(folder)
    return StoredAdapter(_name_of(source, hub_id), config, factors, whole, revision_of(folder), hub_id)


def unwrapped(name: str) -> str:
    """The model's name of a whole tensor that peft saved from inside a layer of its own."""
    module, _, last = name.rpartition(".")
    return f"{module}.".replace(f".{_WRAPPED}", ".") + last


def _check(tensor: torch.Tensor, stored: str) -> None:
    """Raises an error for a tensor of a variant, of another type, or that holds NaN or infinity."""
    for last, variant in _REFUSED.items():
        if last in stored:
            raise UnsupportedOptionError(
                f"The adapter holds {stored}, a tensor of {variant}, which is not supported here. Merge the adapter "
                "into the checkpoint with peft, and load the result."
            )
    if tensor.dtype not in _DTYPES:
        got = str(tensor.dtype).removeprefix("torch.")
        raise CheckpointError(f"{stored} is stored as {got}, expected a float type. Save the adapter again.")
    if tensor.numel() and not all(bool(one.isfinite()) for one in torch.aminmax(tensor)):
        raise CheckpointError(f"{stored} holds NaN or infinity. Train or download the adapter again.")


def _name_of(source: str | Path, hub_id: str) -> str:
    return (hub_id or str(Path(source).expanduser().resolve())).rstrip("/").rpartition("/")[2]
