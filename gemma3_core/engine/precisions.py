"""One checkpoint in two precisions, full and int4; tensors that both use are held once."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from gemma3_core.adapters.config import base_of, shown_source
from gemma3_core.adapters.facts import AdapterFacts
from gemma3_core.adapters.files import StoredAdapter
from gemma3_core.config.gemma3 import AnyConfig, Gemma3Config, read_config
from gemma3_core.engine.memory import free_bytes
from gemma3_core.errors import CheckpointError, UnsupportedOptionError
from gemma3_core.files.hub import hub_id_of
from gemma3_core.gguf.checkpoint import weights_of
from gemma3_core.int4.linear import int4_obstacle
from gemma3_core.int4.quantize import (
    Int4Converter,
    Int4Plan,
    TorchAoConfig,
    count_weights,
    int4_layer_bytes,
    quantized,
    weight_bytes,
    with_tensors_of,
)
from gemma3_core.models.multimodal import Gemma3ForConditionalGeneration, Model
from gemma3_core.models.text import Gemma3ForCausalLM
from gemma3_core.models.weights import build_on_meta, check_layers
from gemma3_core.parallel.layers import is_shared
from gemma3_core.parallel.passes import Lead

NO_MERGING = (
    "The checkpoint holds int4 weights, which can't take up an adapter. Leave out --merge-adapter to keep it beside "
    "them, or name a checkpoint in full precision."
)
ONLY_FULL = "Several devices share this model in full precision, so int4 is not available."
ONLY_PLAIN = (
    "Several devices can share a model in full precision only. Leave out --int4 and --adapter, take a checkpoint "
    "without int4 weights, or leave out --tensor-parallel."
)
ONLY_INT4 = "This checkpoint holds int4 weights only, so full precision is not available."

# Above this many weights a CPU keeps bfloat16: doubling the memory costs more than faster products gain.
_LARGEST_FLOAT32_ON_CPU = 2_000_000_000


class ModelVariants:
    """A model loaded at the start (the default) and its other precision, which is made when it is first requested.

    The two are separate models, so making one does not disturb answers from the other.
    """

    adapter: AdapterFacts | None = None
    """The adapter that is merged into the weights."""
    lead: Lead | None = None
    """What leads the other processes that share the model."""

    def __init__(self, default: Model, config: TorchAoConfig, load_full: Callable[[], Model] | None = None):
        """`load_full` reads the checkpoint in full precision onto the CPU, in `default`'s dtype.

        It is None for a checkpoint that holds only int4 weights.
        """
        self.default = default
        self.default_int4 = default.int4_plan is not None
        self._models = {self.default_int4: default}
        self.num_parameters = count_weights(default)
        self._load_full, self._lock = load_full, threading.Lock()
        self._making: Int4Converter | None = None
        self.obstacle = self._find_obstacle(config)
        """A sentence that says why the other precision is unavailable; empty if it is available."""
        self.full_bytes = self.int4_bytes = self.num_parameters * default.dtype.itemsize
        if self._plan is not None:
            self.full_bytes, self.int4_bytes = weight_bytes(default, self._plan)

    @classmethod
    def load(
        cls,
        folder: Path,
        dtype: str,
        device: torch.device,
        int4: bool,
        config: TorchAoConfig,
        merge: StoredAdapter | None = None,
        share: Callable[..., tuple[Model, Lead]] | None = None,
    ) -> "ModelVariants":
        """Loads the checkpoint in `folder`; dtype "auto" is its own, or float32 if the device is slow in bfloat16.

        `merge` becomes part of the weights, before int4 is made of them. `share` loads it in several processes, as
        `load_shared` does, from the class, the configuration, dtype and device. Raises CheckpointError, ConfigError,
        UnsupportedOptionError.
        """
        if (base := base_of(folder)) is not None:
            raise CheckpointError(
                f"{hub_id_of(folder) or folder.name} is an adapter for {shown_source(base.source)}. Name that as the "
                "model, and this one with --adapter."
            )
        model_config = read_config(folder)
        kind = model_class(model_config)
        stored = model_config.extra.get("quantization_config")

        def weights() -> int:
            check_layers(model_config, folder)  # before anything of a size that config.json only promises is built
            return count_weights(build_on_meta(lambda: kind(model_config)))

        dtype = usual_dtype(dtype, device, weights)

        def read(quantization_config: TorchAoConfig | None, where: torch.device, dequantize: bool = False) -> Model:
            model: Model = kind.from_pretrained(
                folder, dtype=dtype, device_map=where, quantization_config=quantization_config, dequantize=dequantize
            )
            return model

        if share is not None:
            if int4 or stored is not None or merge is not None:
                raise UnsupportedOptionError(ONLY_PLAIN)
            whole = weights()
            shared, lead = share(kind, model_config, dtype, device)
            variants = cls(shared, config)
            variants.lead, variants.num_parameters = lead, whole
            return variants
        if merge is not None:
            if stored is not None:
                raise UnsupportedOptionError(NO_MERGING)
            return cls._merged(read, merge, device, int4, config)
        if stored is not None and weights_of(folder) is None:
            return cls(read(None, device), config)
        if stored is not None:
            own = TorchAoConfig.from_dict(stored)
            if not int4 and int4_obstacle(device):  # such as Apple's GPUs: a GGUF file is dequantised there
                return cls(read(None, device, dequantize=True), own)
            every = TorchAoConfig(own.group_size) if int4 else None
            return cls(read(every, device), own, lambda: read(None, torch.device("cpu"), dequantize=True))
        return cls(read(config if int4 else None, device), config, lambda: read(None, torch.device("cpu")))

    @classmethod
    def _merged(
        cls,
        read: Callable[[None, torch.device], Model],
        adapter: StoredAdapter,
        device: torch.device,
        int4: bool,
        config: TorchAoConfig,
    ) -> "ModelVariants":
        """The weights with an adapter in them, which it gets on the CPU."""

        def merged() -> tuple[Model, AdapterFacts]:
            model = read(None, torch.device("cpu"))
            return model, model.load_adapter(adapter, merge=True)

        model, facts = merged()
        variants = cls((quantized(model, config, device) if int4 else model).to(device), config, lambda: merged()[0])
        variants.adapter = facts
        return variants

    @property
    def _plan(self) -> Int4Plan | None:
        return self.default.int4_plan if self._making is None else self._making.plan

    @property
    def left(self) -> tuple[str, ...]:
        """Layers that int4 should cover but that stay in full precision."""
        return () if self._plan is None else tuple(self._plan.left)

    def _find_obstacle(self, config: TorchAoConfig) -> str:
        if self.default_int4:
            return "" if self._load_full else ONLY_INT4
        if is_shared(self.default):
            return ONLY_FULL
        if reason := int4_obstacle(self.default.device):
            return reason
        try:
            self._making = Int4Converter(self.default, config)
        except UnsupportedOptionError as error:
            return str(error)
        self._making.plan.warn()  # at load time, not at the first request for int4
        return ""

    def require(self, int4: bool) -> None:
        """Raises UnsupportedOptionError, with the reason, if that precision is unavailable."""
        if int4 is not self.default_int4 and self.obstacle:
            raise UnsupportedOptionError(self.obstacle)

    def ready(self, int4: bool) -> bool:
        return int4 in self._models

    def prepare(self, int4: bool) -> Iterator[str]:
        """Makes that precision if it is missing, at most once; yields its progress in words.

        Closing the iterator stops after the current layer; layers made so far are kept. Raises as `require`, and
        UnsupportedOptionError if the GPU has no room left.
        """
        self.require(int4)
        if self.ready(int4):
            return
        if self._making is not None:
            if not self._making.begun:
                _require_room(int4_layer_bytes(self.default, self._making.plan), self.default.device)
            for done in self._making.steps():
                yield f"Making the int4 weights: {done} of {self._making.total} layers"
        else:
            yield "Loading the weights in full precision"
        with self._lock:
            if not self.ready(int4):
                self._models[int4] = self._other()

    def _other(self) -> Model:
        if self._making is not None:
            return self._making.int4_model()
        assert self._load_full is not None
        full, device = with_tensors_of(self._load_full(), self.default), self.default.device
        shared = {id(parameter) for parameter in self.default.parameters()}
        _require_room(sum(p.nbytes for p in full.parameters() if id(p) not in shared), device)
        return full.to(device)

    def model(self, int4: bool) -> Model:
        """The model of that precision, once it is prepared."""
        return self._models[int4]


def model_class(config: AnyConfig) -> Any:
    """The class that answers with a checkpoint of this configuration."""
    return Gemma3ForConditionalGeneration if isinstance(config, Gemma3Config) else Gemma3ForCausalLM


def usual_dtype(dtype: str, device: torch.device, weights: Callable[[], int]) -> str:
    """What "auto" means on a device for a model of so many weights; "auto" remains where it is the checkpoint's own."""
    if dtype == "auto" and device.type == "cuda":
        return auto_dtype(torch.cuda.get_device_capability(device))
    if dtype == "auto" and device.type == "cpu":
        # On CPUs without bfloat16 matrix units, small models are faster in float32.
        return "float32" if weights() <= _LARGEST_FLOAT32_ON_CPU else dtype
    return dtype


def auto_dtype(capability: tuple[int, int]) -> str:
    """The dtype for "auto" on CUDA: float32 below compute capability 8.0 (T4, V100: no bfloat16 units)."""
    return "auto" if capability >= (8, 0) else "float32"


def _require_room(num_bytes: int, device: torch.device) -> None:
    """Raises UnsupportedOptionError if a GPU has less memory left; no visitor may exhaust it."""
    free = free_bytes(device)
    if free is not None and num_bytes > free:
        raise UnsupportedOptionError(
            f"The other precision needs {num_bytes / 1e9:.1f} GB more on the GPU, where {free / 1e9:.1f} GB are free. "
            "Choose the precision that the server started with."
        )


def quantization_name(int4: bool) -> str:
    """The precision's name in an answer's figures."""
    return "int4" if int4 else "none"
