"""adapter_config.json: what changes an adapter's numbers is read, and what can't be computed here is refused by name.

The meaning of the fields is peft's (its LoraConfig and `tuners.tuners_utils`).
"""

import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from gemma3_core.adapters.patterns import require_bounded
from gemma3_core.errors import CheckpointError, UnsupportedOptionError
from gemma3_core.files.hub import read_json

CONFIG_FILE = "adapter_config.json"
ALL_LINEAR = "all-linear"

_READ = {
    "peft_type", "base_model_name_or_path", "revision", "r", "lora_alpha", "use_rslora", "rank_pattern",
    "alpha_pattern", "target_modules", "exclude_modules", "target_parameters", "layers_to_transform",
    "modules_to_save", "init_lora_weights", "lora_bias",
}  # fmt: skip
# How an adapter was trained, and settings of variants that are refused where they are switched on.
_WITHOUT_EFFECT = {
    "auto_mapping", "bias", "corda_config", "eva_config", "fan_in_fan_out", "inference_mode", "layers_pattern",
    "loftq_config", "lora_dropout", "lora_ga_config", "megatron_core", "peft_version", "qalora_group_size",
    "runtime_config", "task_type",
}  # fmt: skip
_PLAIN_BEGINNINGS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
"""Values of init_lora_weights that leave the base's weights as they are."""


@dataclass(frozen=True)
class AdapterConfig:
    """What an adapter's config says of its numbers. Module names are those of the adapter's file.

    `targets` are names or last parts of names, one regular expression, ALL_LINEAR, or None where the config leaves it
    open. `base` is the folder or Hub id that the adapter was trained on, "" where it is unknown.
    """

    r: int
    alpha: float
    rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    targets: tuple[str, ...] | str | None
    excluded: tuple[str, ...] | str
    parameters: tuple[str, ...]
    in_some_layers: bool
    modules_to_save: tuple[str, ...]
    base: str
    revision: str | None

    def rank(self, module: str) -> int:
        """The rank that the config gives a module."""
        return _by_pattern(self.rank_pattern, module, self.r)

    def scale(self, module: str, rank: int) -> float:
        """The factor of B A: alpha / r, or with rank-stabilised LoRA alpha / sqrt(r) (arXiv 2312.03732)."""
        alpha = _by_pattern(self.alpha_pattern, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    def has_target(self, module: str) -> bool:
        """Whether the config lets the adapter change this module."""
        holders = tuple(name.rpartition(".")[0] for name in self.parameters)
        if "" in holders or _is_named(module, holders):
            return True
        if self.targets is None:
            return not self.parameters
        if self.targets == ALL_LINEAR:
            return True
        return _is_named(module, self.targets) and not _is_named(module, self.excluded)

    def demands(self, *names: str) -> bool:
        """Whether the adapter must change the module with one of these names. A regular expression is written for one
        spelling of the names, so it demands nothing."""
        if not isinstance(self.targets, tuple) or self.in_some_layers:
            return False
        return any(_is_named(name, self.targets) and not _is_named(name, self.excluded) for name in names)


def read_adapter_config(folder: Path) -> AdapterConfig:
    """The config of an adapter's folder. Raises CheckpointError, UnsupportedOptionError."""
    if not (folder / CONFIG_FILE).is_file():
        raise CheckpointError(
            f"{folder.name} holds no {CONFIG_FILE}, so it is no adapter. Give a folder that peft's save_pretrained "
            "wrote, or a repository with one."
        )
    data = read_json(folder / CONFIG_FILE)
    kind = data.get("peft_type")
    if kind != "LORA":
        raise UnsupportedOptionError(
            f"{CONFIG_FILE} says that the adapter is {_shown(kind)}; only LORA is supported. Merge it into the "
            "checkpoint with peft, and load the result."
        )
    _refuse_variants(data)
    targets = data.get("target_modules")
    return AdapterConfig(
        r=_whole("r", data.get("r", 8)),
        alpha=_number("lora_alpha", data.get("lora_alpha", 8)),
        rslora=_switch(data, "use_rslora"),
        rank_pattern={key: _whole("rank_pattern", one) for key, one in _patterns(data, "rank_pattern").items()},
        alpha_pattern={key: _number("alpha_pattern", one) for key, one in _patterns(data, "alpha_pattern").items()},
        targets=None if targets is None else _names(data, "target_modules"),
        excluded=_names(data, "exclude_modules"),
        parameters=_listed(data, "target_parameters"),
        in_some_layers=data.get("layers_to_transform") is not None,
        modules_to_save=_listed(data, "modules_to_save"),
        base=_text(data, "base_model_name_or_path"),
        revision=_text(data, "revision") or None,
    )


@dataclass(frozen=True)
class Base:
    """The checkpoint that an adapter belongs to: a folder or Hub id, and the revision on the Hub."""

    source: str
    revision: str | None

    def hub_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The options for the base, where `given` are those for the adapter."""
        shared = ("token", "cache_dir", "local_files_only", "force_download", "mmproj")
        return {"revision": self.revision} | {name: given[name] for name in shared if name in given}


def base_of(folder: Path) -> Base | None:
    """The base of an adapter's folder; None for the folder of a checkpoint. Raises CheckpointError."""
    if not (folder / CONFIG_FILE).is_file() or (folder / "config.json").exists():
        return None
    config = read_adapter_config(folder)
    if not config.base:
        raise CheckpointError(f"{folder.name} names no base model. Load the base, and give it this adapter.")
    return Base(config.base, config.revision)


def shown_source(source: str) -> str:
    """A Hub id as it is, and of a folder its name alone: a path says nothing to others, and may say too much."""
    try:
        validate_repo_id(source)
    except HFValidationError:
        return Path(source).name
    return source


def _refuse_variants(data: Mapping[str, Any]) -> None:
    begun = data.get("init_lora_weights", True)
    if begun not in _PLAIN_BEGINNINGS:
        raise UnsupportedOptionError(
            f"The adapter began with init_lora_weights={_shown(begun)}, which changes the base's weights too. Convert "
            "it with peft: save_pretrained(…, path_initial_model_for_weight_conversion=…) writes plain LoRA."
        )
    asked = [name for name, value in data.items() if name not in _READ | _WITHOUT_EFFECT and value not in _NOT_SET]
    if asked:
        names = ", ".join(sorted(_shown(name) for name in asked))
        raise UnsupportedOptionError(
            f"{CONFIG_FILE} asks for {names}, which is not supported here. Merge the adapter into the checkpoint with "
            "peft, and load the result."
        )


_NOT_SET: tuple[Any, ...] = (None, False, [], {}, "")


def _by_pattern(patterns: Mapping[str, Any], module: str, otherwise: Any) -> Any:
    """The value of the first pattern that fits a name's end, as in peft."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), otherwise)


def _is_named(module: str, names: tuple[str, ...] | str) -> bool:
    if isinstance(names, str):
        return bool(names) and re.fullmatch(names, module) is not None
    return any(f".{module}".endswith(f".{name}") for name in names)


def _patterns(data: Mapping[str, Any], field: str) -> dict[str, Any]:
    value = data.get(field) or {}
    if not isinstance(value, dict):
        raise _wrong(field, value, "an object")
    for key in value:
        _compiled(field, rf"(.*\.)?({key})$")
    return value


def _names(data: Mapping[str, Any], field: str) -> tuple[str, ...] | str:
    value = data.get(field)
    if not isinstance(value, str):
        return _listed(data, field)
    if value != ALL_LINEAR:
        _compiled(field, value)
    return value


def _listed(data: Mapping[str, Any], field: str) -> tuple[str, ...]:
    value = data.get(field) or []
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise _wrong(field, value, "a list of names")
    return tuple(value)


def _compiled(field: str, pattern: str) -> None:
    try:
        require_bounded(field, pattern)
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        raise _wrong(field, pattern, "a regular expression") from None


def _text(data: Mapping[str, Any], field: str) -> str:
    value = data.get(field) or ""
    if not isinstance(value, str):
        raise _wrong(field, value, "a text")
    return value


def _switch(data: Mapping[str, Any], field: str) -> bool:
    value = data.get(field) or False
    if not isinstance(value, bool):
        raise _wrong(field, value, "true or false")
    return value


def _whole(field: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise _wrong(field, value, "a whole number of 1 or more")
    return value


def _number(field: str, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= sys.float_info.max:
        raise _wrong(field, value, "a finite number")
    return float(value)


def _wrong(field: str, value: Any, expected: str) -> CheckpointError:
    return CheckpointError(f"{CONFIG_FILE}'s {field} must be {expected}, got {_shown(value)}. Save the adapter again.")


def _shown(value: Any) -> str:
    return repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:60]}…"
