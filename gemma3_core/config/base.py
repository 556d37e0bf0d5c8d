"""What the configurations share: frozen fields, reading and writing JSON, and unknown fields that are kept.

The common fields and their defaults are those of every configuration in transformers 5.23.
"""

import json
import logging
import sys
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, ClassVar, Self, get_args, get_origin

from gemma3_core.errors import ConfigError, FrozenConfigError, UnsupportedOptionError
from gemma3_core.files.hub import pop_hub_options, read_json, resolve_folder
from gemma3_core.files.saving import folder_to_save_in, write_json, write_text

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
DEFAULT_NUM_LABELS = 2
MAX_LAYERS, MAX_LABELS = 1000, 1_000_000
DTYPES = ("float32", "bfloat16", "float16", "float64")

FIXED: Mapping[str, Any] = {
    "output_hidden_states": False,
    "output_attentions": False,
    "return_dict": True,
    "chunk_size_feed_forward": 0,
    "is_encoder_decoder": False,
}
"""Fields that files hold, always with these values here; calls ask for other outputs."""


@dataclass(init=False)
class JsonConfig:
    """Base of the configurations. They are frozen: `replace` returns a changed copy.

    Only what says how a model is used, and nothing about its weights' shapes, can be set on one (`_settable`).

    Fields are given by keyword; None means the default, except for fields whose type allows None. Unknown names raise
    UnsupportedOptionError. `from_dict` keeps them in `extra` instead, so that a newer file loses nothing when it is
    saved again; they can be read as attributes.
    """

    architectures: list[str] | None = None
    dtype: Any = None
    """The weights' torch.dtype; it may be passed by name."""
    id2label: Mapping[int, str] = field(default_factory=dict)
    label2id: Mapping[str, int] | None = None
    problem_type: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    model_type: ClassVar[str] = ""
    base_config_key: ClassVar[str] = ""
    """The key of this configuration in the file of a whole model."""
    _spellings: ClassVar[Mapping[str, str]] = {"torch_dtype": "dtype"}
    """Other names of fields, in arguments and as attributes."""
    _also_read: ClassVar[frozenset[str]] = frozenset({"num_labels", *FIXED})
    """Names that are not fields but that `_read` turns into fields."""
    _settable: ClassVar[frozenset[str]] = frozenset()
    """Fields that can be set: they say how a model is used, and training programs set them."""
    _superseded: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "num_labels": ("id2label", "label2id"),
        "id2label": ("label2id",),
    }
    """Fields that a copy drops when another one changes."""

    def __init__(self, *parts: Any, **values: Any) -> None:
        values = self._read({**self._named(parts, values), **values})
        for f in fields(self):
            value = values.pop(f.name, MISSING)
            if value is MISSING or (value is None and NoneType not in get_args(f.type)):
                value = f.default_factory() if f.default_factory is not MISSING else f.default
            object.__setattr__(self, f.name, value)
        if values:
            names = ", ".join(sorted(values))
            raise UnsupportedOptionError(f"{type(self).__name__} has no {names}. Put other fields in `extra`.")
        self._complete()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._settable:
            self._set(name, value)
            return
        # In place of frozen=True, whose error does not say what to do.
        raise FrozenConfigError(
            f"{type(self).__name__} is frozen, so {name} can't be set. Make a changed copy, "
            f"config.replace({name}={value!r}), and load or build the model with config= that copy."
        )

    def _set(self, name: str, value: Any) -> None:
        """Sets a field that may be set. Raises ConfigError where a configuration could not have that value."""
        object.__setattr__(self, name, getattr(self.replace(**{name: value}), name))

    def __delattr__(self, name: str) -> None:
        raise FrozenConfigError(f"{type(self).__name__} is frozen, so {name} can't be deleted.")

    def _named(self, parts: tuple[Any, ...], values: Mapping[str, Any]) -> dict[str, Any]:
        """Positional arguments by their names. Raises ConfigError where there is none, or `values` has it too."""
        del values
        if parts:
            raise ConfigError(f"{type(self).__name__} takes its fields by name only, got {parts[0]!r} without one.")
        return {}

    def _read(self, values: dict[str, Any]) -> dict[str, Any]:
        """Arguments in any spelling -> values of fields."""
        values = dict(values)
        for other, name in self._spellings.items():
            given = values.pop(other, None)
            if given is not None and values.get(name) is None:
                values[name] = given
        for name, only in FIXED.items():
            if values.pop(name, None) not in (None, only):
                raise ConfigError(f"{name} must be {only} in a configuration; ask for it in the call instead.")
        if values.get("dtype") is not None:
            values["dtype"] = _torch_dtype(values["dtype"])
        return _read_labels(values)

    def _complete(self) -> None:
        """Checks the fields. Raises ConfigError."""
        for f in fields(self):
            if not _fits(value := getattr(self, f.name), f.type):
                raise ConfigError(f"{f.name} must be {_in_words(f.type)}, got {value!r}.")
            if f.name == "initializer_range" and value < 0:
                raise ConfigError(f"{f.name} must be 0 or more, got {value!r}.")
        if self.problem_type not in (None, *PROBLEM_TYPES):
            raise ConfigError(f"problem_type must be one of {', '.join(PROBLEM_TYPES)}, got {self.problem_type!r}.")
        if self.problem_type == "single_label_classification" and self.num_labels == 1:
            raise ConfigError(
                "problem_type single_label_classification needs num_labels of 2 or more, got 1. "
                "Use regression for a single number."
            )

    if not TYPE_CHECKING:  # type checkers still find misspelt names

        def __getattr__(self, name: str) -> Any:
            # Only called where there is no such attribute. Copying and pickling ask before there are any.
            if name in self._spellings:
                return getattr(self, self._spellings[name])
            if name in FIXED:
                return FIXED[name]
            extra = self.__dict__.get("extra", {})
            if name in extra:
                return extra[name]
            raise AttributeError(f"{type(self).__name__} has no {name!r}")

    @property
    def num_labels(self) -> int:
        """The number of a classifier's labels; 1 means a number (regression)."""
        return len(self.id2label)

    @property
    def transformers_version(self) -> str | None:
        """The version of transformers that wrote the file, if any."""
        return self.extra.get("transformers_version")

    def get_text_config(self) -> Any:
        """The decoder's configuration."""
        return self

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in changes:
            for void in (*self._superseded.get(name, ()), self._spellings.get(name, name)):
                values.pop(void, None)
        return type(self)(**{**values, **changes})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], **changes: Any) -> Self:
        """From the content of a config.json (the part for this class), with `changes`."""
        accepted = {f.name for f in fields(cls)} | cls._spellings.keys() | cls._also_read
        known = {name: value for name, value in data.items() if name in accepted and name != "extra"}
        # model_type is a class attribute here; the file's own could differ from it.
        extra = {name: value for name, value in data.items() if name not in known and name != "model_type"}
        config = cls(**known, extra=extra)
        return config.replace(**changes) if changes else config

    @classmethod
    def from_json_file(cls, path: str | Path) -> Self:
        """Raises CheckpointError where the file is missing or not JSON."""
        return cls.from_dict(read_json(Path(path)))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **changes: Any) -> Self:
        """From config.json of a folder or a Hub id (HubOptions), with `changes`; of a whole model's file, this
        class's part. Raises CheckpointError, ConfigError, UnsupportedOptionError.
        """
        folder = resolve_folder(pretrained_model_name_or_path, weights=False, **pop_hub_options(changes))
        data = read_json(folder / CONFIG_FILE)
        kind = data.get("model_type")
        if kind != cls.model_type:
            data = data.get(cls.base_config_key, {})
            if not isinstance(data, Mapping) or data.get("model_type", cls.model_type) != cls.model_type or not data:
                raise ConfigError(f"{CONFIG_FILE} says model_type {kind!r}; {cls.__name__} reads {cls.model_type!r}.")
        return cls.from_dict(data, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Every field, including unknown ones, as JSON has them (except that labels keep integer keys)."""
        data = {f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.name != "extra"}
        return {**self.extra, **FIXED, **data, "model_type": self.model_type}

    def to_diff_dict(self) -> dict[str, Any]:
        """`to_dict` without common fields at their defaults (what a saved file holds)."""
        common = {**FIXED, **_default_labels(DEFAULT_NUM_LABELS), "architectures": None, "dtype": None}
        common["problem_type"] = None
        return {name: value for name, value in self.to_dict().items() if name not in common or value != common[name]}

    def to_json_string(self, use_diff: bool = True) -> str:
        """`to_diff_dict` or `to_dict` as JSON text, sorted by key."""
        data = self.to_diff_dict() if use_diff else self.to_dict()
        return json.dumps(data, indent=2, sort_keys=True) + "\n"

    def to_json_file(self, path: str | Path, use_diff: bool = True) -> None:
        write_text(Path(path), self.to_json_string(use_diff))

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        """Writes config.json, unknown fields included. Raises CheckpointError, UnsupportedOptionError."""
        write_json(folder_to_save_in(save_directory, options) / CONFIG_FILE, self.to_diff_dict())


def require_positive(config: Any, names: Iterable[str]) -> None:
    """Raises ConfigError where one of the fields is not a whole number of 1 or more."""
    for name in names:
        positive_whole(name, getattr(config, name))


def positive_whole(name: str, value: Any) -> int:
    """A whole number of 1 or more. Raises ConfigError for anything else."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name} must be a whole number of 1 or more, got {value!r}.")
    return value


def positive_number(name: str, value: Any) -> float:
    """A finite number above 0. Raises ConfigError for anything else."""
    if not _fits(value, float) or value <= 0:
        raise ConfigError(f"{name} must be a number above 0, got {value!r}.")
    return float(value)


def require_few_layers(name: str, value: Any) -> None:
    """Raises ConfigError for so many layers that listing them alone would take all memory."""
    if isinstance(value, int) and value > MAX_LAYERS:
        raise ConfigError(f"{name} is {value:,}; at most {MAX_LAYERS:,} are read, and the largest Gemma 3 has 62.")


def json_object(name: str, value: Any) -> dict[str, Any]:
    """A copy of a JSON object in the config. Raises ConfigError for anything else."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name} must be a JSON object, got {value!r}.")
    return dict(value)


def _read_labels(values: dict[str, Any]) -> dict[str, Any]:
    """Labels from `id2label`, or LABEL_0, … where it is missing or has another length than `num_labels`."""
    count, labels = values.pop("num_labels", None), values.get("id2label")
    if isinstance(labels, Mapping) and labels and count not in (None, len(labels)):
        logger.warning("num_labels=%s wins over the %s names of id2label.", count, len(labels))
        labels = None
    if not labels:
        count = DEFAULT_NUM_LABELS if count is None else count
        if positive_whole("num_labels", count) > MAX_LABELS:
            raise ConfigError(f"num_labels is {count:,}; at most {MAX_LABELS:,} are possible.")
        return {**values, **_default_labels(count)}
    try:
        labels = {int(number): str(label) for number, label in json_object("id2label", labels).items()}
    except ValueError:
        raise ConfigError(f"id2label must name a label for each number, got {labels!r}.") from None
    return {**values, "id2label": labels}


def _default_labels(count: int) -> dict[str, Any]:
    names = [f"LABEL_{number}" for number in range(count)]
    return {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}


_WORDS = {NoneType: "null", bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def _fits(value: Any, kind: Any) -> bool:
    """Whether a field of this type may have the value. Numbers are finite, and true is none."""
    if kind is Any:
        return True
    if isinstance(kind, UnionType):
        return any(_fits(value, one) for one in get_args(kind))
    origin = get_origin(kind)
    if origin in (list, tuple):
        return isinstance(value, list | tuple) and all(_fits(item, get_args(kind)[0]) for item in value)
    if kind is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and abs(value) <= sys.float_info.max
    if kind is int and isinstance(value, bool):
        return False
    return isinstance(value, origin or kind)


def _in_words(kind: Any) -> str:
    """A field's type, as its error says it."""
    if isinstance(kind, UnionType):
        return " or ".join(_in_words(one) for one in get_args(kind))
    if get_origin(kind) in (list, tuple):
        return f"a list, each item {_in_words(get_args(kind)[0])}"
    return _WORDS.get(kind, "a JSON object")


def _torch_dtype(dtype: Any) -> Any:
    import torch

    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}.")
    return getattr(torch, name)


def _plain(value: Any) -> Any:
    """As JSON has it: tuples become lists, dtypes their names."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    is_dtype = type(value).__module__ == "torch" and type(value).__name__ == "dtype"
    return str(value).removeprefix("torch.") if is_dtype else value
