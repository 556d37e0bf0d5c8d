"""Adapters on a model: loaded, chosen, switched off and merged, with the names of transformers' PeftAdapterMixin."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from gemma3_core.adapters.bound import BoundAdapter, bind
from gemma3_core.adapters.config import shown_source
from gemma3_core.adapters.facts import AdapterFacts
from gemma3_core.adapters.files import StoredAdapter, read_adapter
from gemma3_core.adapters.layers import Adapted
from gemma3_core.config.gemma3 import Gemma3Config
from gemma3_core.errors import UnsupportedOptionError
from gemma3_core.files.hub import pop_hub_options
from gemma3_core.files.saving import refuse_options
from gemma3_core.int4.linear import Int4Linear
from gemma3_core.models.embeddings import HEAD
from gemma3_core.models.weights import hub_name, module_name
from gemma3_core.nn.layers import Linear

_LOADING = {"low_cpu_mem_usage": (True, False), "is_trainable": (False,), "hotswap": (False, "auto")}
"""Options of transformers' load_adapter, with the values at which they have no effect."""
NO_INT4 = (
    "int4 weights can't take up an adapter. Keep it beside them, or merge it in full precision and make int4 weights "
    "of the result."
)


class AdaptersMixin(nn.Module):
    """Adapters beside the weights. The model's own weights are never changed or copied, except by merging."""

    config: Any
    name_or_path: str

    def __init__(self) -> None:
        super().__init__()
        self._adapters: dict[str, BoundAdapter] = {}
        self._chosen: tuple[str, ...] = ()
        self._switched_on = True
        self._own_modules: dict[str, nn.Module] = {}
        self._own_parameters: dict[str, nn.Parameter] = {}

    def load_adapter(
        self,
        peft_model_id: str | Path | StoredAdapter,
        adapter_name: str | None = None,
        *,
        merge: bool = False,
        **options: Any,
    ) -> AdapterFacts:
        """Loads a LoRA adapter that peft saved, from a folder or a Hub id, and answers with it from now on.

        It is kept beside the weights under `adapter_name` ("default"); its factors are frozen, in float32. A second
        one stays off until `set_adapter` chooses it. With `merge` it becomes part of the weights instead, for good.
        `options` are those of the Hub (HubOptions). To train an adapter use peft, which takes these models.

        Raises CheckpointError that names every tensor that is missing, left over or of the wrong shape, and
        UnsupportedOptionError for what can't be computed here.
        """
        name = "default" if adapter_name is None else adapter_name
        if not isinstance(name, str) or not name:
            raise UnsupportedOptionError(f"adapter_name must be a text, got {name!r}.")
        if name in self._adapters:
            raise UnsupportedOptionError(f"There is an adapter {name!r} already. Choose another adapter_name.")
        hub = pop_hub_options(options)
        refuse_options("load_adapter", options, _LOADING)
        if merge and self._adapters:
            raise UnsupportedOptionError("merge=True needs a model without other adapters. Load it anew.")
        stored = peft_model_id if isinstance(peft_model_id, StoredAdapter) else read_adapter(peft_model_id, **hub)
        if merge and self._has_int4():
            raise UnsupportedOptionError(NO_INT4)
        chosen = self._chosen
        with _Bare(self):
            self._adapters[name] = bound = self._bound(stored)
        self._use(chosen or (name,), self._switched_on)
        if merge:
            self.merge_and_unload()
            return replace(bound.facts, merged=True)
        return bound.facts

    def set_adapter(self, adapter_name: str | Sequence[str]) -> None:
        """Answers with this adapter, or with the sum of several, and no other. Raises UnsupportedOptionError."""
        names = (adapter_name,) if isinstance(adapter_name, str) else tuple(adapter_name)
        self._require(names)
        if not names:
            raise UnsupportedOptionError("set_adapter needs the name of an adapter. disable_adapters() uses none.")
        holding = [name for name in names if self._adapters[name].whole]
        if len(holding) > 1:
            raise UnsupportedOptionError(
                f"The adapters {' and '.join(holding)} hold whole weights, so they can't be used together. Choose one."
            )
        self._use(names, self._switched_on)

    def disable_adapters(self) -> None:
        """Answers with the model's own weights alone. Raises UnsupportedOptionError if no adapter is loaded."""
        self._require(self._chosen)
        self._use(self._chosen, False)

    def enable_adapters(self) -> None:
        """Takes back `disable_adapters`."""
        self._require(self._chosen)
        self._use(self._chosen, True)

    def active_adapters(self) -> list[str]:
        """The names of the adapters that answer when adapters are enabled."""
        self._require(self._chosen)
        return list(self._chosen)

    def adapter_facts(self, adapter_name: str = "default") -> AdapterFacts:
        """Rank, targets and size of a loaded adapter. Raises UnsupportedOptionError."""
        self._require((adapter_name,))
        return self._adapters[adapter_name].facts

    def delete_adapter(self, adapter_names: str | Sequence[str]) -> None:
        """Forgets adapters; if one of them was in use, the model's own weights or the rest of them answer."""
        names = (adapter_names,) if isinstance(adapter_names, str) else tuple(adapter_names)
        self._require(names)
        self._use(tuple(name for name in self._chosen if name not in names), self._switched_on)
        for name in set(names):
            del self._adapters[name]

    def merge_and_unload(self) -> Self:
        """Makes the chosen adapters part of the weights, which are computed in float32, and forgets all adapters.

        Returns the model. Raises UnsupportedOptionError for int4 weights.
        """
        self._require(self._chosen)
        if self._has_int4():
            raise UnsupportedOptionError(NO_INT4)
        self._use(self._chosen, True)
        for name in self._own_modules:
            layer = self.get_submodule(name)
            assert isinstance(layer, Adapted)
            self.set_submodule(name, layer.merged())
        for name, own in self._own_parameters.items():
            self.get_parameter(name).requires_grad_(own.requires_grad)
        self._own_modules, self._own_parameters = {}, {}
        self._adapters, self._chosen, self._switched_on = {}, (), True
        self._untie_if_changed()
        return self

    @property
    def is_adapted(self) -> bool:
        """Whether an adapter beside the weights takes part in answers."""
        return bool(self._own_modules or self._own_parameters)

    def _require(self, names: Sequence[str]) -> None:
        if not self._adapters:
            raise UnsupportedOptionError("No adapter is loaded. Load one with load_adapter.")
        if missing := [str(name) for name in names if name not in self._adapters]:
            raise UnsupportedOptionError(
                f"There is no adapter {', '.join(missing)}. Loaded are {', '.join(self._adapters)}."
            )

    def _has_int4(self) -> bool:
        return any(isinstance(module, Int4Linear) for module in self.modules())

    def _bound(self, stored: StoredAdapter) -> BoundAdapter:
        multimodal, is_bare = isinstance(self.config, Gemma3Config), not hasattr(self, "model")

        def our_name(name: str) -> str:
            if not multimodal and name.startswith("model.language_model."):  # of a model that reads pictures too
                name = name.replace("model.language_model.", "model.", 1)
            name = module_name(name, multimodal)
            return name.removeprefix("model.") if is_bare else name

        def their_name(name: str) -> str:
            return hub_name(f"model.{name}" if is_bare else name, multimodal)

        return bind(stored, self, our_name, their_name, shown_source(self.name_or_path) or type(self).__name__)

    def _use(self, names: tuple[str, ...], switched_on: bool) -> None:
        """Puts the adapters' layers and weights in place of the model's own, which come back when they are not used."""
        for name, module in self._own_modules.items():
            self.set_submodule(name, module)
        for name, parameter in self._own_parameters.items():
            path, _, leaf = name.rpartition(".")
            setattr(self.get_submodule(path), leaf, parameter)
        self._own_modules, self._own_parameters = {}, {}
        self._chosen, self._switched_on = names, switched_on
        used = [self._adapters[name] for name in names] if switched_on else []
        for adapter in used:
            self._put_whole(adapter)
        for adapter in used:
            self._put_low_rank(adapter)

    def _put_whole(self, adapter: BoundAdapter) -> None:
        for name, weight in adapter.whole.items():
            path, _, leaf = name.rpartition(".")
            module: Any = self.get_submodule(path)
            dtype = self.dtype if _is_int4(module, leaf) else getattr(module, leaf).dtype
            placed = _as(weight, self._device_of(module), dtype)
            for place in (name, *(self._tied_to(name) if name in adapter.followed else ())):
                self._replace_weight(place, placed)

    def _put_low_rank(self, adapter: BoundAdapter) -> None:
        for name, (kind, low_rank) in adapter.low_rank.items():
            layer: Any = self.get_submodule(name)
            self._own_modules.setdefault(name, layer)
            self.set_submodule(name, kind(layer, low_rank.to(self._device_of(layer))))

    def _replace_weight(self, name: str, weight: nn.Parameter) -> None:
        """Weights in full precision take the place of int4 weights too."""
        path, _, leaf = name.rpartition(".")
        module: Any = self.get_submodule(path)
        if _is_int4(module, leaf):
            full = Linear(module.in_features, module.out_features, bias=False, device="meta")
            full.weight = weight
            full.register_parameter("bias", module.bias)
            self._own_modules.setdefault(path, module)
            self.set_submodule(path, full)
        else:
            self._own_parameters.setdefault(name, getattr(module, leaf))
            setattr(module, leaf, weight)

    def _tied_to(self, name: str) -> list[str]:
        """The head's name if it shares this weight."""
        head: Any = getattr(self, "lm_head", None)
        embedding: Any = self.get_submodule(name.rpartition(".")[0])
        tied = head is not None and self.config.tie_word_embeddings and hasattr(embedding, "embed_scale")
        return [HEAD] if tied else []

    def _untie_if_changed(self) -> None:
        """The config of a model whose head and embedding share no weight any more says so."""
        head: Any = getattr(self, "lm_head", None)
        decoder: Any = self.decoder  # type: ignore[attr-defined]
        tied = isinstance(head, nn.Linear) and self.config.tie_word_embeddings
        if tied and head.weight is not decoder.embed_tokens.weight:
            self._take_config(self.config.replace(tie_word_embeddings=False))  # type: ignore[operator]

    @staticmethod
    def _device_of(layer: nn.Module) -> torch.device:
        tensors = (*layer.parameters(), *layer.buffers())
        return tensors[0].device

    @property
    def dtype(self) -> torch.dtype:
        raise NotImplementedError


class _Bare:
    """While this `with` block runs, the model is without its adapters."""

    def __init__(self, model: AdaptersMixin):
        self._model = model

    def __enter__(self) -> None:
        self._state = self._model._chosen, self._model._switched_on
        self._model._use(self._state[0], False)

    def __exit__(self, *_: Any) -> None:
        self._model._use(*self._state)


def _is_int4(module: nn.Module, leaf: str) -> bool:
    return isinstance(module, Int4Linear) and leaf == "weight"


def _as(weight: nn.Parameter, device: torch.device, dtype: torch.dtype) -> nn.Parameter:
    """The weight where it is already as wanted, or else a converted one."""
    converted = weight.detach().to(device, dtype)
    return weight if converted.data_ptr() == weight.data_ptr() else nn.Parameter(converted, requires_grad=False)
