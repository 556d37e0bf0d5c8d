"""RGB pictures -> what the encoder gets: pan & scan crops, squares of one size, normalised pixels.

Two back ends do the same: Gemma3ImageProcessor with tensors, on a GPU where there is one, and
Gemma3ImageProcessorPil with Pillow. Resized bilinear, as published, their squares differ by one 8-bit
step at most (bicubic by more: it overshoots, and they cut that off at different points).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from gemma3_core.errors import ConfigError, UnsupportedOptionError
from gemma3_core.hub import read_json, resolve_folder, write_json
from gemma3_core.images import DEFAULT_LIMITS, ImageLimits, ImageSource, load_image

Square = Image.Image | torch.Tensor
"""An RGB square of 8 bits a color: a picture, or a tensor [3, S, S]."""


@dataclass(frozen=True)
class Box:
    """Part of a picture, in pixels; right and bottom are the first column and row outside it."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class ImageProcessorConfig:
    """preprocessor_config.json; the values here are those of the published Gemma 3 checkpoints.

    `size` is the side of the encoder's square and `pan_and_scan_min_crop_size` the shortest side
    of a crop, both in pixels.
    """

    size: int = 896
    resample: int = Image.Resampling.BILINEAR
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    do_pan_and_scan: bool = False
    pan_and_scan_min_crop_size: int = 256
    pan_and_scan_max_num_crops: int = 4
    pan_and_scan_min_ratio_to_activate: float = 1.2

    def __post_init__(self) -> None:
        """Raises ConfigError for values that no picture could be processed with."""
        if self.size < 1 or self.pan_and_scan_min_crop_size < 1 or self.pan_and_scan_max_num_crops < 1:
            raise ConfigError("size, pan_and_scan_min_crop_size and pan_and_scan_max_num_crops must be 1 or more.")
        if len(self.image_mean) != 3 or len(self.image_std) != 3 or 0 in self.image_std:
            raise ConfigError("image_mean and image_std must be three numbers each, and image_std not 0.")

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "ImageProcessorConfig":
        """Null means the published default. Raises UnsupportedOptionError for keys of other processors."""
        given = {key: value for key, value in content.items() if value is not None}
        for key, value in given.items():
            _check_option(key, value)
        values = {key: value for key, value in given.items() if key in cls.__annotations__}
        if "size" in values:
            values["size"] = _side(values["size"])
        for key in ("image_mean", "image_std"):
            if key in values:
                values[key] = _per_channel(values[key])
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The Hub's spelling."""
        values = {name: getattr(self, name) for name in self.__annotations__}
        return {
            **values,
            "do_convert_rgb": True,
            "do_resize": True,
            "image_mean": list(self.image_mean),
            "image_processor_type": "Gemma3ImageProcessor",
            "image_std": list(self.image_std),
            "resample": int(self.resample),
            "size": {"height": self.size, "width": self.size},
        }


@dataclass(frozen=True)
class ImageInputs:
    """`pixel_values` [N, 3, S, S], float32: each picture followed by its crops; `num_crops` has one
    count per picture. Also readable by key, like the reference's result."""

    pixel_values: torch.Tensor
    num_crops: tuple[int, ...]

    def __getitem__(self, name: str) -> Any:
        return {"pixel_values": self.pixel_values, "num_crops": self.num_crops}[name]


def pan_and_scan_boxes(
    width: int,
    height: int,
    min_crop_size: int = 256,
    max_num_crops: int = 4,
    min_ratio_to_activate: float = 1.2,
) -> list[Box]:
    """One row or one column of equal crops along the longer side; empty where there are none.

    From the Gemma 3 report (arXiv 2503.19786, section 2.1), with the arithmetic of transformers:
    as many crops as the sides' ratio, rounded half up. The last crop may be a few pixels shorter.
    """
    if max(width, height) / min(width, height) < min_ratio_to_activate:
        return []
    columns, rows = _grid(width, height, min_crop_size, max_num_crops)
    crop_width, crop_height = math.ceil(width / columns), math.ceil(height / rows)
    if min(crop_width, crop_height) < min_crop_size:
        return []
    corners = [(x * crop_width, y * crop_height) for y in range(rows) for x in range(columns)]
    return [
        Box(left, top, min(left + crop_width, width), min(top + crop_height, height))
        for left, top in corners
        if left < width and top < height
    ]


def explain_pan_and_scan(
    width: int,
    height: int,
    min_crop_size: int = 256,
    max_num_crops: int = 4,
    min_ratio_to_activate: float = 1.2,
) -> str:
    """One plain sentence: how many crops a picture gets, or why it gets none."""
    picture = f"{width} x {height}"
    if max(width, height) / min(width, height) < min_ratio_to_activate:
        shape = "square" if width == height else "nearly square"
        return f"{picture} is {shape}: crops begin when one side is {min_ratio_to_activate:g} times the other."
    boxes = pan_and_scan_boxes(width, height, min_crop_size, max_num_crops, min_ratio_to_activate)
    if boxes:
        crops = "1 crop" if len(boxes) == 1 else f"{len(boxes)} crops"
        return f"{picture} is {'wide' if width > height else 'tall'}: {crops} beside the whole picture."
    columns, rows = _grid(width, height, min_crop_size, max_num_crops)
    crop = f"{math.ceil(width / columns)} x {math.ceil(height / rows)}"
    return (
        f"{picture} is too small for crops: each would be {crop} pixels, "
        f"and the shorter side must be at least {min_crop_size}."
    )


def _grid(width: int, height: int, min_crop_size: int, max_num_crops: int) -> tuple[int, int]:
    """Columns and rows of crops, before asking whether each is large enough."""
    longer, shorter = max(width, height), min(width, height)
    count = min(longer // min_crop_size, math.floor(longer / shorter + 0.5))
    count = min(max_num_crops, max(2, count))
    return (count, 1) if width >= height else (1, count)


class ImageProcessor(ABC):
    """What both back ends share: settings, crops, and the way from pictures to ImageInputs."""

    def __init__(self, config: ImageProcessorConfig | None = None, limits: ImageLimits = DEFAULT_LIMITS) -> None:
        self.config = config or ImageProcessorConfig()
        self.limits = limits

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        return cls(ImageProcessorConfig.from_dict(content))

    @classmethod
    def from_pretrained(cls, source: str | Path, revision: str | None = None, token: str | None = None) -> Self:
        """Read preprocessor_config.json, or the `image_processor` of processor_config.json (where
        newer transformers writes it); the published values where there is neither."""
        folder = resolve_folder(source, revision, token)
        nested = read_json(folder / "processor_config.json", optional=True).get("image_processor")
        return cls.from_dict(nested or read_json(folder / "preprocessor_config.json", optional=True))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write preprocessor_config.json."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_json(Path(folder) / "preprocessor_config.json", self.config.to_dict())

    def __call__(
        self,
        images: ImageSource | Sequence[ImageSource],
        *,
        do_pan_and_scan: bool | None = None,
        pan_and_scan_min_crop_size: int | None = None,
        pan_and_scan_max_num_crops: int | None = None,
        pan_and_scan_min_ratio_to_activate: float | None = None,
    ) -> ImageInputs:
        """One picture or several, in anything `load_image` reads; None means the config's value."""
        processor = self.with_options(
            do_pan_and_scan=do_pan_and_scan,
            pan_and_scan_min_crop_size=pan_and_scan_min_crop_size,
            pan_and_scan_max_num_crops=pan_and_scan_max_num_crops,
            pan_and_scan_min_ratio_to_activate=pan_and_scan_min_ratio_to_activate,
        )
        pictures: list[Any] = list(images) if isinstance(images, list | tuple) else [images]
        groups = [processor._resized(load_image(picture, self.limits)) for picture in pictures]
        return ImageInputs(
            pixel_values=self.pixel_values([square for group in groups for square in group]),
            num_crops=tuple(len(group) - 1 for group in groups),
        )

    def with_options(self, **options: Any) -> Self:
        """The same processor with other settings (fields of ImageProcessorConfig); None changes nothing."""
        changes = {name: value for name, value in options.items() if value is not None}
        return self._with_config(replace(self.config, **changes)) if changes else self

    def boxes(self, width: int, height: int) -> list[Box]:
        """The crops that a picture of this size gets under the current settings."""
        if not self.config.do_pan_and_scan:
            return []
        return pan_and_scan_boxes(width, height, *_pan_and_scan_settings(self.config))

    def explain(self, width: int, height: int) -> str:
        """One plain sentence on the crops of a picture of this size, if pan & scan is on."""
        return explain_pan_and_scan(width, height, *_pan_and_scan_settings(self.config))

    def squares(self, picture: Image.Image) -> list[Image.Image]:
        """The RGB squares exactly as the encoder sees them: the whole picture, then its crops."""
        return [_as_picture(square) for square in self._resized(picture)]

    @abstractmethod
    def pixel_values(self, squares: Sequence[Square]) -> torch.Tensor:
        """N RGB squares -> [N, 3, S, S], float32, rescaled and normalised (-1 to 1 as published)."""

    @abstractmethod
    def _resized(self, picture: Image.Image) -> list[Square]:
        """The whole picture and its crops as 8-bit squares, in the form that the back end works with."""

    def _with_config(self, config: ImageProcessorConfig) -> Self:
        return type(self)(config, self.limits)


class Gemma3ImageProcessor(ImageProcessor):
    """The back end that resizes tensors, antialiased, on `device`; bilinear, within one 8-bit step of transformers'."""

    def __init__(
        self,
        config: ImageProcessorConfig | None = None,
        limits: ImageLimits = DEFAULT_LIMITS,
        device: torch.device | str = "cpu",
    ) -> None:
        """Raises UnsupportedOptionError where torch can't resize as the config says."""
        super().__init__(config, limits)
        self.device = torch.device(device)
        if self.config.resample not in _TORCH_MODES:
            raise UnsupportedOptionError(
                f"The tensor image processor resizes bilinear (2) or bicubic (3), not resample={self.config.resample}. "
                'Take backend="pil".'
            )

    def to(self, device: torch.device | str) -> Self:
        """The same processor at work on another device."""
        return type(self)(self.config, self.limits, device)

    def pixel_values(self, squares: Sequence[Square]) -> torch.Tensor:
        """N RGB squares -> [N, 3, S, S] on `device`, float32, rescaled and normalised (-1 to 1 as published)."""
        if not squares:
            return torch.empty(0, 3, self.config.size, self.config.size, device=self.device)
        pixels = torch.stack([_as_tensor(square).to(self.device) for square in squares]).float()
        # In one step, as in the reference: 255 levels less the mean's level, over the deviation's.
        scale = self.config.rescale_factor if self.config.do_rescale else 1.0
        if not self.config.do_normalize:
            return pixels * scale
        mean, std = (
            torch.tensor(values, device=self.device)[:, None, None] * (1.0 / scale)
            for values in (self.config.image_mean, self.config.image_std)
        )
        return pixels.sub_(mean).div_(std)

    def _resized(self, picture: Image.Image) -> list[Square]:
        pixels = _as_tensor(picture).to(self.device)
        parts = [pixels, *(pixels[:, b.top : b.bottom, b.left : b.right] for b in self.boxes(*picture.size))]
        resize = _resize_8_bit if self.device.type == "cpu" else _resize_float
        mode = _TORCH_MODES[self.config.resample]
        return [resize(part, self.config.size, mode) for part in parts]

    def _with_config(self, config: ImageProcessorConfig) -> Self:
        return type(self)(config, self.limits, self.device)


class Gemma3ImageProcessorPil(ImageProcessor):
    """The back end that resizes with Pillow; its pixels equal those of transformers' bit for bit."""

    def pixel_values(self, squares: Sequence[Square]) -> torch.Tensor:
        """N RGB squares -> [N, 3, S, S], float32, rescaled and normalised (-1 to 1 as published)."""
        side = self.config.size
        result = np.empty((len(squares), 3, side, side), dtype=np.float32)
        for index, square in enumerate(squares):
            result[index] = _normalised(np.asarray(square), self.config).transpose(2, 0, 1)
        return torch.from_numpy(result)

    def _resized(self, picture: Image.Image) -> list[Square]:
        boxes = self.boxes(*picture.size)
        parts = [picture, *(picture.crop((box.left, box.top, box.right, box.bottom)) for box in boxes)]
        side = self.config.size
        return [part.resize((side, side), resample=self.config.resample) for part in parts]


def image_processor_class(backend: str | None) -> type[ImageProcessor]:
    """The back end by the name that transformers gives it: "torchvision" (tensors; also None) or "pil"."""
    if backend not in _BACKENDS:
        raise UnsupportedOptionError(f'backend={backend!r} is not known; use "torchvision" (tensors) or "pil".')
    return _BACKENDS[backend]


_BACKENDS: dict[str | None, type[ImageProcessor]] = {
    None: Gemma3ImageProcessor,
    "torchvision": Gemma3ImageProcessor,
    "pil": Gemma3ImageProcessorPil,
}
_TORCH_MODES: dict[int, str] = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}


def _as_tensor(square: Square) -> torch.Tensor:
    """An RGB picture as 8-bit [3, H, W]; its memory keeps the order of pixels, which resizing is fastest with."""
    return square if isinstance(square, torch.Tensor) else torch.from_numpy(np.array(square)).permute(2, 0, 1)


def _as_picture(square: Square) -> Image.Image:
    return square if isinstance(square, Image.Image) else Image.fromarray(square.permute(1, 2, 0).cpu().numpy())


def _resize_8_bit(pixels: torch.Tensor, side: int, mode: str) -> torch.Tensor:
    """[3, H, W] -> [3, side, side]; torch resizes 8-bit numbers on CPUs alone, in whole numbers like Pillow."""
    return _interpolated(pixels, side, mode)


def _resize_float(pixels: torch.Tensor, side: int, mode: str) -> torch.Tensor:
    """The same through float32, as every GPU can; bicubic overshoots, so it is cut off at 0 and 255."""
    return _interpolated(pixels.float(), side, mode).round_().clamp_(0, 255).to(torch.uint8)


def _interpolated(pixels: torch.Tensor, side: int, mode: str) -> torch.Tensor:
    return F.interpolate(pixels[None], (side, side), mode=mode, antialias=True, align_corners=False)[0]


def _normalised(pixels: np.ndarray, config: ImageProcessorConfig) -> np.ndarray:
    """[S, S, 3] of 0 to 255. The steps' precisions are the reference's, so that no bit differs:
    rescaling in float64 and rounded to float32, normalising in float32."""
    if config.do_rescale:
        # Equal to rescaling each pixel: there are only 256 values to rescale.
        pixels = (np.arange(256, dtype=np.float64) * config.rescale_factor).astype(np.float32)[pixels]
    if config.do_normalize:
        mean, std = np.array(config.image_mean, np.float32), np.array(config.image_std, np.float32)
        pixels = (pixels.astype(np.float32) - mean) / std
    return pixels


def _pan_and_scan_settings(config: ImageProcessorConfig) -> tuple[int, int, float]:
    return (
        config.pan_and_scan_min_crop_size,
        config.pan_and_scan_max_num_crops,
        config.pan_and_scan_min_ratio_to_activate,
    )


# Keys that say what this processor does anyway, and names of classes.
_FIXED = {
    "do_convert_rgb": True,
    "do_resize": True,
    "default_to_square": True,
    "data_format": "channels_first",
}
_NAMES = {"image_processor_type", "feature_extractor_type", "processor_class", "image_seq_length"}


def _check_option(key: str, value: Any) -> None:
    if key in ImageProcessorConfig.__annotations__ or key in _NAMES:
        return
    if key not in _FIXED and value is False:  # a step that isn't wanted and doesn't exist
        return
    if key not in _FIXED or value != _FIXED[key]:
        raise UnsupportedOptionError(f"The image processor's option {key}={value!r} is not supported.")


def _side(size: Any) -> int:
    sides = [size.get("height"), size.get("width")] if isinstance(size, Mapping) else [size, size]
    if not isinstance(sides[0], int) or sides[0] != sides[1]:
        raise ConfigError(f"size is {size!r}; the encoder needs a square, an equal height and width in pixels.")
    return sides[0]


def _per_channel(value: Any) -> tuple[float, ...]:
    return tuple(float(v) for v in value) if isinstance(value, list | tuple) else (float(value),) * 3
