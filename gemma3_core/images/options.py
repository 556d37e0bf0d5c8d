"""The options of an image processor: what they may be, and preprocessor_config.json."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from PIL import Image

from gemma3_core.errors import ConfigError, UnsupportedOptionError

_CHANNEL_ORDERS = ("channels_first", "channels_last")
_TENSOR_KINDS = (None, "pt", "np")


@dataclass(frozen=True)
class ImageSize:
    """What a picture is resized to, in pixels: height and width, or a bound on its edges that keeps its shape.

    Reads like the dict of the config file: `size["height"]`, `dict(size)`.
    """

    height: int | None = None
    width: int | None = None
    shortest_edge: int | None = None
    longest_edge: int | None = None
    max_height: int | None = None
    max_width: int | None = None

    def __post_init__(self) -> None:
        """Raises ConfigError for a set of bounds that says no size."""
        given = dict(self)
        known = ({"height", "width"}, {"shortest_edge"}, {"shortest_edge", "longest_edge"}, {"max_height", "max_width"})
        if set(given) not in known or not all(_is_whole(value) and value > 0 for value in given.values()):
            raise ConfigError(
                f"size is {given}; give a number of pixels, or height and width, shortest_edge (with or without "
                "longest_edge) or max_height and max_width, each 1 or more."
            )

    @classmethod
    def of(cls, value: Any, default_to_square: bool = True) -> "ImageSize":
        """From any spelling of the reference: a number, (height, width) or a dict."""
        if isinstance(value, ImageSize):
            return value
        if _is_whole(value):
            return cls(height=value, width=value) if default_to_square else cls(shortest_edge=value)
        if isinstance(value, list | tuple) and len(value) == 2:
            return cls(height=value[0], width=value[1])
        is_dict = isinstance(value, Mapping) or hasattr(value, "shortest_edge")  # transformers' SizeDict is no dict
        content = dict(value) if is_dict else {"size": value}
        content = {name: number for name, number in content.items() if number is not None}
        unknown = set(content) - set(cls.__annotations__)
        if unknown:
            raise ConfigError(
                f"size is {value!r}; give a number of pixels, or a dict of height and width, of shortest_edge (with or "
                "without longest_edge) or of max_height and max_width."
            )
        return cls(**content)

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter([(f.name, value) for f in fields(self) if (value := getattr(self, f.name)) is not None])

    def __getitem__(self, name: str) -> int:
        return dict(self)[name]

    def for_picture(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after resizing. The rounding is transformers' own, so that no size differs."""
        if self.height is not None and self.width is not None:
            return self.height, self.width
        if self.max_height is not None and self.max_width is not None:
            scale = min(self.max_height / height, self.max_width / width)
            return max(1, int(height * scale)), max(1, int(width * scale))
        assert self.shortest_edge is not None
        return _by_edges(height, width, self.shortest_edge, self.longest_edge)


@dataclass(frozen=True)
class ImageProcessorConfig:
    """preprocessor_config.json; the values here are those of the published Gemma 3 checkpoints.

    `size` is what pictures and crops are resized to and `pan_and_scan_min_crop_size` the shortest side
    of a crop, both in pixels. `device` is where tensors are worked on; None leaves them where they are.
    """

    size: ImageSize = field(default_factory=lambda: ImageSize(height=896, width=896))
    resample: int = Image.Resampling.BILINEAR
    do_convert_rgb: bool = True
    do_resize: bool = True
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)
    do_pan_and_scan: bool = False
    pan_and_scan_min_crop_size: int = 256
    pan_and_scan_max_num_crops: int = 4
    pan_and_scan_min_ratio_to_activate: float = 1.2
    default_to_square: bool = True
    data_format: str = "channels_first"
    input_data_format: str | None = None
    device: torch.device | None = None
    disable_grouping: bool | None = None
    return_tensors: str | None = None

    def __post_init__(self) -> None:
        """Brings sizes, means, names and devices into one spelling; raises ConfigError for values of wrong
        types, and for those that no picture could be processed with."""
        for name in (
            "do_convert_rgb",
            "do_resize",
            "do_rescale",
            "do_normalize",
            "do_pan_and_scan",
            "default_to_square",
        ):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} is {getattr(self, name)!r}; it must be True or False.")
        self._set("size", ImageSize.of(self.size, self.default_to_square))
        self._set("image_mean", _per_channel("image_mean", self.image_mean))
        self._set("image_std", _per_channel("image_std", self.image_std))
        if 0 in self.image_std:
            raise ConfigError(f"image_std is {self.image_std}; pixels are divided by it, so no number may be 0.")
        for name in ("data_format", "input_data_format", "return_tensors"):  # transformers' enums are strings inside
            self._set(name, getattr(getattr(self, name), "value", getattr(self, name)))
        self._check_choices()
        self._check_numbers()
        self._set("device", None if self.device is None else _device(self.device))

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "ImageProcessorConfig":
        """Null means the published default. Raises UnsupportedOptionError for keys of other processors."""
        given = {key: value for key, value in content.items() if value is not None}
        check_options(given)
        return cls(**{key: value for key, value in given.items() if key in cls.__annotations__})

    def to_dict(self) -> dict[str, Any]:
        """The Hub's spelling, without what belongs to one machine or one call."""
        left_out = {"device", "disable_grouping", "return_tensors", "input_data_format", "default_to_square"}
        values = {name: getattr(self, name) for name in self.__annotations__ if name not in left_out}
        return {
            **values,
            "image_mean": list(self.image_mean),
            "image_processor_type": "Gemma3ImageProcessor",
            "image_std": list(self.image_std),
            "resample": int(self.resample),
            "size": dict(self.size),
        }

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _check_choices(self) -> None:
        if self.data_format not in _CHANNEL_ORDERS:
            raise ConfigError(f"data_format is {self.data_format!r}; it must be one of {', '.join(_CHANNEL_ORDERS)}.")
        if self.input_data_format not in (None, *_CHANNEL_ORDERS):
            raise ConfigError(
                f"input_data_format is {self.input_data_format!r}; it must be one of {', '.join(_CHANNEL_ORDERS)}, "
                "or None to see it from the shape."
            )
        if self.return_tensors not in _TENSOR_KINDS:
            raise UnsupportedOptionError(
                f'return_tensors is {self.return_tensors!r}; use "pt" (torch), "np" (numpy) or None (a list).'
            )
        if self.disable_grouping not in (None, True, False):
            raise ConfigError(f"disable_grouping is {self.disable_grouping!r}; it must be True, False or None.")
        if not _is_whole(self.resample) or self.resample not in list(Image.Resampling):
            names = ", ".join(f"{int(r)} ({r.name.lower()})" for r in sorted(Image.Resampling))
            raise ConfigError(f"resample is {self.resample!r}; Pillow's filters are {names}.")

    def _check_numbers(self) -> None:
        for name in ("pan_and_scan_min_crop_size", "pan_and_scan_max_num_crops"):
            value = getattr(self, name)
            if not _is_whole(value) or value < 1:
                raise ConfigError(f"{name} is {value!r}; it must be a whole number, 1 or more.")
        for name in ("pan_and_scan_min_ratio_to_activate", "rescale_factor"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ConfigError(f"{name} is {value!r}; it must be a number above 0.")


# What other image processors do: a file may say that it isn't wanted.
_NOT_DONE = {"do_center_crop", "crop_size", "do_pad", "pad_size"}
_NAMES = {"image_processor_type", "feature_extractor_type", "processor_class", "image_seq_length"}


def check_options(options: Mapping[str, Any]) -> None:
    """Raises UnsupportedOptionError for options that no Gemma 3 processor has, or that are not done here."""
    for name, value in options.items():
        known = name in ImageProcessorConfig.__annotations__ or name in _NAMES
        if known or value is None or value is False:  # a step that isn't wanted and doesn't exist
            continue
        reason = "Gemma 3 neither crops nor pads pictures" if name in _NOT_DONE else "is not supported"
        raise UnsupportedOptionError(
            f"The image processor's option {name}={value!r}: {reason}. Leave it out; it knows "
            f"{', '.join(ImageProcessorConfig.__annotations__)}."
        )


def _by_edges(height: int, width: int, shortest: int, longest: int | None) -> tuple[int, int]:
    short, long = min(height, width), max(height, width)
    target: float = shortest
    if longest is not None and long / short * shortest > longest:
        target = longest * short / long
    new_short = round(target)
    # equal sides were left alone there, whatever the other side's rounding would give
    new_long = long if new_short == short and longest is not None else int(target * long / short)
    return (new_short, new_long) if height <= width else (new_long, new_short)


def _per_channel(name: str, value: Any) -> tuple[float, ...]:
    numbers = tuple(value) if isinstance(value, list | tuple) else (value,) * 3
    if len(numbers) != 3 or any(isinstance(n, bool) or not isinstance(n, int | float) for n in numbers):
        raise ConfigError(f"{name} is {value!r}; it must be a number, or three: for red, green and blue.")
    return tuple(float(number) for number in numbers)


def _device(device: Any) -> torch.device:
    try:
        return torch.device(device)
    except (RuntimeError, TypeError):
        raise ConfigError(f'device is {device!r}; give one such as "cpu", "cuda" or "cuda:1".') from None


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
