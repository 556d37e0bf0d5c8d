"""RGB pictures -> what the encoder gets: pan & scan crops, tiles of one size, normalised pixels.

Two back ends do the same: Gemma3ImageProcessor with tensors, on a GPU where there is one, and
Gemma3ImageProcessorPil with Pillow. Resized bilinear, as published, their tiles differ by one 8-bit
step at most (bicubic by more: it overshoots, and they cut that off at different points).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from gemma3_core.errors import ImageError, UnsupportedOptionError
from gemma3_core.files.hub import pop_hub_options, read_json, resolve_folder
from gemma3_core.files.saving import folder_to_save_in, write_json
from gemma3_core.images.arrays import flat_pictures, is_array, open_array
from gemma3_core.images.load import DEFAULT_LIMITS, ImageLimits, ImageSource, as_8_bit, load_image
from gemma3_core.images.options import ImageProcessorConfig, check_options
from gemma3_core.images.pan_and_scan import Box, explain_pan_and_scan, pan_and_scan_boxes
from gemma3_core.model_inputs import ModelInputs

Tile = Image.Image | np.ndarray | torch.Tensor
"""A part of a picture: a PIL picture, an array [H, W, C] or a tensor [C, H, W]; of 8 bits a color as a rule."""

_CLASS_SIZE = 224  # of the reference's classes; the published config files say 896


class ImageProcessor(ABC):
    """What both back ends share: settings, crops, and the way from pictures to ImageInputs."""

    backend: str

    def __init__(
        self, config: ImageProcessorConfig | None = None, limits: ImageLimits = DEFAULT_LIMITS, **options: Any
    ) -> None:
        """`options` are fields of ImageProcessorConfig, by their names in transformers; without a config the
        size is 224, as there. Raises ConfigError and UnsupportedOptionError for what can't be."""
        check_options(options)
        known = {name: value for name, value in options.items() if name in _OPTIONS and value is not None}
        if config is None:
            config = ImageProcessorConfig(**{"size": _CLASS_SIZE, **known})
        elif known:
            config = replace(config, **known)
        self.config = config
        self.limits = limits

    def __getattr__(self, name: str) -> Any:
        """The settings, by their names in transformers: `processor.size`, `processor.do_pan_and_scan`, …"""
        if name in _OPTIONS and "config" in self.__dict__:
            return getattr(self.config, name)
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        """`processor.do_pan_and_scan = True` changes the setting of this processor."""
        if name in _OPTIONS:
            changed = self._with_config(replace(self.config, **{name: value}))
            name, value = "config", changed.config
        super().__setattr__(name, value)

    @property
    def model_input_names(self) -> list[str]:
        return ["pixel_values", "num_crops"]

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        return cls(ImageProcessorConfig.from_dict(content))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:
        """Read preprocessor_config.json, or the `image_processor` of processor_config.json (where
        newer transformers writes it); the published values where there is neither. `options` win over both."""
        folder = resolve_folder(pretrained_model_name_or_path, weights=False, **pop_hub_options(options))
        nested = read_json(folder / "processor_config.json", optional=True).get("image_processor")
        content = nested or read_json(folder / "preprocessor_config.json", optional=True)
        return cls.from_dict({**content, **options})

    def to_dict(self) -> dict[str, Any]:
        """What preprocessor_config.json holds."""
        return self.config.to_dict()

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> list[str]:
        """Write preprocessor_config.json; returns its path. Raises CheckpointError, UnsupportedOptionError."""
        path = folder_to_save_in(save_directory, options) / "preprocessor_config.json"
        write_json(path, self.to_dict())
        return [str(path)]

    def __call__(self, images: ImageSource | Sequence[Any], **options: Any) -> ModelInputs:
        """See `preprocess`."""
        return self.preprocess(images, **options)

    def preprocess(self, images: ImageSource | Sequence[Any], **options: Any) -> ModelInputs:
        """`pixel_values`, each picture followed by its crops, and `num_crops`, one count per picture.

        `images` is one picture, a batch [N, …] or a list (of lists) of them, in anything `load_image`
        reads. `options` hold for this call; None means the processor's own. `pixel_values` is a list
        [3, H, W] by default and one tensor [N, 3, H, W] with `return_tensors="pt"` or "np".
        """
        processor = self.with_options(**options)
        groups = [processor._resized(processor._open(picture)) for picture in flat_pictures(images)]
        parts = [part for group in groups for part in group]
        return ModelInputs(
            {
                "pixel_values": processor._finished(parts),
                "num_crops": [len(group) - 1 for group in groups],
            },
            tensor_type=processor.config.return_tensors,
        )

    def with_options(self, **options: Any) -> Self:
        """The same processor with other settings (fields of ImageProcessorConfig); None changes nothing."""
        if options.get("image_seq_length") is not None:
            raise UnsupportedOptionError("image_seq_length is the Gemma3Processor's: give it when that is made.")
        check_options(options)
        changes = {name: value for name, value in options.items() if value is not None and name in _OPTIONS}
        return self._with_config(replace(self.config, **changes)) if changes else self

    def boxes(self, width: int, height: int) -> list[Box]:
        """The crops that a picture of this size gets under the current settings."""
        if not self.config.do_pan_and_scan:
            return []
        return pan_and_scan_boxes(width, height, *_pan_and_scan_settings(self.config))

    def explain(self, width: int, height: int) -> str:
        """One plain sentence on the crops of a picture of this size, if pan & scan is on."""
        return explain_pan_and_scan(width, height, *_pan_and_scan_settings(self.config))

    def tiles(self, picture: Image.Image) -> list[Tile]:
        """The tiles exactly as the encoder sees them, the whole picture, then its crops: `pixel_values` takes them."""
        return self._resized(picture)

    def tile_pictures(self, picture: Image.Image) -> list[Image.Image]:
        """The same as RGB pictures."""
        return [_as_picture(tile) for tile in self._resized(picture)]

    @abstractmethod
    def pixel_values(self, tiles: Sequence[Tile]) -> torch.Tensor:
        """N parts of one size -> [N, 3, H, W], rescaled and normalised (-1 to 1, float32, as published)."""

    @abstractmethod
    def _resized(self, picture: Tile) -> list[Tile]:
        """The whole picture and its crops, resized, in the form that the back end works with."""

    def _open(self, source: Any) -> Tile:
        """A picture of 8-bit RGB; or an array [C, H, W] where the caller gave one, or wants other colors."""
        if is_array(source):
            return open_array(source, self.config, self.limits)
        if isinstance(source, Image.Image) and not self.config.do_convert_rgb and source.mode != "RGB":
            # as it lies there: [H, W] or [H, W, C]
            raw = replace(self.config, input_data_format="channels_last")
            return open_array(np.asarray(source), raw, self.limits)
        return load_image(source, self.limits)

    def _finished(self, parts: Sequence[Tile]) -> Any:
        """[N, C, H, W] where all parts are of one size and a tensor was asked for, else a list [C, H, W]."""
        one_size = len({_size_of(part) for part in parts}) <= 1
        if self.config.return_tensors is not None and one_size:
            return self._in_data_format(self.pixel_values(parts))
        values = [self._in_data_format(self.pixel_values([part])[0]) for part in parts]
        return values if isinstance(self, Gemma3ImageProcessor) else [value.numpy() for value in values]

    def _in_data_format(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels if self.config.data_format == "channels_first" else pixels.movedim(-3, -1)

    def _check_channels(self, channels: int) -> None:
        if self.config.do_normalize and channels != 3:
            raise ImageError(
                f"The picture has {channels} channels and image_mean has 3 numbers; leave do_convert_rgb on, "
                "or set do_normalize=False."
            )

    def _with_config(self, config: ImageProcessorConfig) -> Self:
        return type(self)(config, self.limits)


class Gemma3ImageProcessor(ImageProcessor):
    """The back end that resizes tensors, antialiased, on `device`; bilinear, within one 8-bit step of transformers'."""

    backend = "torchvision"

    def __init__(
        self, config: ImageProcessorConfig | None = None, limits: ImageLimits = DEFAULT_LIMITS, **options: Any
    ) -> None:
        """Raises UnsupportedOptionError where torch can't resize as the config says."""
        super().__init__(config, limits, **options)
        if self.config.resample not in _TORCH_MODES:
            raise UnsupportedOptionError(
                "The tensor image processor resizes to the nearest pixel (0), bilinear (2) or bicubic (3), not "
                f'resample={self.config.resample}. Take backend="pil".'
            )

    def to(self, device: torch.device | str) -> Self:
        """The same processor at work on another device."""
        return self.with_options(device=device)

    def pixel_values(self, tiles: Sequence[Tile]) -> torch.Tensor:
        """N parts of one size -> [N, 3, H, W] on `device`, rescaled and normalised (-1 to 1, float32, as published)."""
        config = self.config
        if not tiles:
            return torch.empty(0, 3, *config.size.for_picture(1, 1), device=config.device)
        tensors = [_as_tensor(tile) for tile in tiles]
        where = config.device or tensors[0].device
        pixels = torch.stack([tensor.to(where) for tensor in tensors])
        scale = config.rescale_factor if config.do_rescale else 1.0
        if not config.do_normalize:
            return pixels * scale if config.do_rescale else pixels
        self._check_channels(pixels.shape[1])
        # In one step, as in the reference: 255 levels less the mean's level, over the deviation's.
        mean, std = (
            torch.tensor(values, device=where)[:, None, None] * (1.0 / scale)
            for values in (config.image_mean, config.image_std)
        )
        return pixels.float().sub_(mean).div_(std)

    def _resized(self, picture: Tile) -> list[Tile]:
        on_cpu = self.config.device is None or self.config.device.type == "cpu"
        if isinstance(picture, Image.Image) and on_cpu and self.config.do_resize and self.config.resample in _BANDED:
            whole = Box(0, 0, *picture.size)
            return [self._resize_in_bands(picture, box) for box in (whole, *self.boxes(*picture.size))]
        pixels = _as_tensor(picture)
        pixels = pixels.to(self.config.device or pixels.device)
        height, width = pixels.shape[-2:]
        boxes = self.boxes(width, height)
        parts = [pixels, *(pixels[:, box.top : box.bottom, box.left : box.right] for box in boxes)]
        return list(self._resize(parts)) if self.config.do_resize else list(parts)

    def _resize_in_bands(self, picture: Image.Image, box: Box) -> torch.Tensor:
        """A part of a picture, resized across and then down, which is what torch does with 8-bit numbers anyhow.

        Across it goes band by band, so that a large picture never lies in memory a second time.
        """
        width, height = box.right - box.left, box.bottom - box.top
        size, mode = self.config.size.for_picture(height, width), _TORCH_MODES[self.config.resample]
        rows = max(1, _BAND_PIXELS // width)
        narrow = []
        for top in range(box.top, box.bottom, rows):
            band = _as_tensor(picture.crop((box.left, top, box.right, min(top + rows, box.bottom))))
            narrow.append(_resize_8_bit(band[None], (band.shape[1], size[1]), mode))
        return _resize_8_bit(torch.cat(narrow, dim=2), size, mode)[0]

    def _resize(self, parts: list[torch.Tensor]) -> list[torch.Tensor]:
        """Parts of one shape at once where that is faster: everywhere but on CPUs, unless said otherwise."""
        on_cpu = parts[0].device.type == "cpu"
        apart = on_cpu if self.config.disable_grouping is None else self.config.disable_grouping
        groups: dict[Any, list[int]] = {}
        for index, part in enumerate(parts):
            groups.setdefault(index if apart else tuple(part.shape), []).append(index)
        resize = _resize_real if parts[0].is_floating_point() else _resize_8_bit if on_cpu else _resize_float
        resized: dict[int, torch.Tensor] = {}
        for indices in groups.values():
            batch = parts[indices[0]][None] if len(indices) == 1 else torch.stack([parts[i] for i in indices])
            size = self.config.size.for_picture(*batch.shape[-2:])
            resized |= zip(indices, resize(batch, size, _TORCH_MODES[self.config.resample]), strict=True)
        return [resized[index] for index in range(len(parts))]


class Gemma3ImageProcessorPil(ImageProcessor):
    """The back end that resizes with Pillow; its pixels equal those of transformers' bit for bit."""

    backend = "pil"

    def __init__(
        self, config: ImageProcessorConfig | None = None, limits: ImageLimits = DEFAULT_LIMITS, **options: Any
    ) -> None:
        """Raises UnsupportedOptionError for a device other than the CPU."""
        super().__init__(config, limits, **options)
        if self.config.device is not None and self.config.device.type != "cpu":
            raise UnsupportedOptionError(
                f'backend="pil" works on the CPU, not on {self.config.device}; leave one of them out.'
            )

    def pixel_values(self, tiles: Sequence[Tile]) -> torch.Tensor:
        """N parts of one size -> [N, 3, H, W], rescaled and normalised (-1 to 1, float32, as published)."""
        if not tiles:
            return torch.empty(0, 3, *self.config.size.for_picture(1, 1))
        arrays = [_with_channels(np.asarray(tile)) for tile in tiles]
        self._check_channels(arrays[0].shape[-1])
        first = _normalised(arrays[0], self.config)
        height, width, channels = first.shape
        result = np.empty((len(arrays), channels, height, width), dtype=first.dtype)
        result[0] = first.transpose(2, 0, 1)
        for index, array in enumerate(arrays[1:], 1):
            result[index] = _normalised(array, self.config).transpose(2, 0, 1)
        return torch.from_numpy(result)

    def _open(self, source: Any) -> Tile:
        """A PIL picture wherever it is 8-bit RGB; else an array [H, W, C]."""
        picture = super()._open(source.detach().cpu().numpy() if _is_plain_tensor(source) else source)
        if isinstance(picture, torch.Tensor):
            picture = picture.cpu().numpy()
        if not isinstance(picture, np.ndarray):
            return picture
        pixels = np.ascontiguousarray(picture.transpose(1, 2, 0))
        if pixels.dtype.kind == "f" and self.config.do_rescale and self.config.do_resize:
            pixels = as_8_bit(pixels / np.float32(255.0) if float(pixels.max()) <= 1.0 else pixels)
        return Image.fromarray(pixels) if pixels.dtype == np.uint8 and pixels.shape[-1] == 3 else pixels

    def _resized(self, picture: Tile) -> list[Tile]:
        if isinstance(picture, Image.Image):
            width, height = picture.size
            cuts = [(box.left, box.top, box.right, box.bottom) for box in self.boxes(width, height)]
            parts: list[Tile] = [picture, *(picture.crop(cut) for cut in cuts)]
        else:
            height, width = picture.shape[:2]
            boxes = self.boxes(width, height)
            parts = [picture, *(picture[box.top : box.bottom, box.left : box.right] for box in boxes)]
        return [self._resize(part) for part in parts] if self.config.do_resize else parts

    def _resize(self, part: Any) -> Tile:
        if isinstance(part, Image.Image):
            height, width = self.config.size.for_picture(part.height, part.width)
            return part.resize((width, height), resample=self.config.resample)
        picture, was_unit = _levels(part)
        height, width = self.config.size.for_picture(*part.shape[:2])
        resized = np.asarray(picture.resize((width, height), resample=self.config.resample))
        return (resized.astype(np.float64) * (1 / 255)).astype(np.float32) if was_unit else resized


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
_TORCH_MODES: dict[int, str] = {
    Image.Resampling.NEAREST: "nearest-exact",
    Image.Resampling.BILINEAR: "bilinear",
    Image.Resampling.BICUBIC: "bicubic",
}
_BANDED = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
_BAND_PIXELS = 4_000_000
_OPTIONS = frozenset(ImageProcessorConfig.__annotations__)


def _is_plain_tensor(source: Any) -> bool:
    """bfloat16 has no counterpart in numpy."""
    return isinstance(source, torch.Tensor) and source.dtype != torch.bfloat16


def _size_of(part: Tile) -> tuple[int, ...]:
    return part.size if isinstance(part, Image.Image) else tuple(part.shape)


def _with_channels(array: np.ndarray) -> np.ndarray:
    return array if array.ndim == 3 else array[..., None]


def _as_tensor(tile: Tile) -> torch.Tensor:
    """A picture as [C, H, W]; its memory keeps the order of pixels, which resizing is fastest with."""
    if isinstance(tile, torch.Tensor):
        return tile
    if isinstance(tile, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(tile))
    return torch.from_numpy(np.array(tile)).permute(2, 0, 1)


def _as_picture(tile: Tile) -> Image.Image:
    if isinstance(tile, Image.Image):
        return tile
    assert isinstance(tile, torch.Tensor), "pictures stay pictures in Pillow's back end"
    return Image.fromarray(tile.permute(1, 2, 0).cpu().numpy())


def _levels(part: np.ndarray) -> tuple[Image.Image, bool]:
    """[H, W, C] -> a picture of 8 bits, and whether its values went from 0 to 1. Each part is looked at by
    itself and fractions of a level are cut off, as in the reference. Raises ImageError for other values."""
    whole = part.dtype == np.uint8 or np.allclose(part, part.astype(int))
    low, high = float(part.min()), float(part.max())
    if low < 0 or high > (255 if whole else 1):
        raise ImageError(
            f"The array's values go from {low:g} to {high:g}; for resizing with Pillow they must be whole numbers "
            "from 0 to 255, or from 0 to 1. The tensor back end takes any."
        )
    levels = part if whole else (part.astype(np.float64) * 255).astype(np.float32)
    levels = levels.astype(np.uint8)
    return Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels), not whole


def _resize_8_bit(pixels: torch.Tensor, size: tuple[int, int], mode: str) -> torch.Tensor:
    """[N, C, H, W] -> [N, C, *size]; torch resizes 8-bit numbers on CPUs alone, in whole numbers like Pillow."""
    return _interpolated(pixels, size, mode)


def _resize_float(pixels: torch.Tensor, size: tuple[int, int], mode: str) -> torch.Tensor:
    """The same through float32, as every GPU can; bicubic overshoots, so it is cut off at 0 and 255."""
    return _interpolated(pixels.float(), size, mode).round_().clamp_(0, 255).to(torch.uint8)


def _resize_real(pixels: torch.Tensor, size: tuple[int, int], mode: str) -> torch.Tensor:
    """Pictures of real numbers, which stay so."""
    return _interpolated(pixels, size, mode)


def _interpolated(pixels: torch.Tensor, size: tuple[int, int], mode: str) -> torch.Tensor:
    if mode == "nearest-exact":
        return F.interpolate(pixels, size, mode=mode)
    return F.interpolate(pixels, size, mode=mode, antialias=True, align_corners=False)


def _normalised(pixels: np.ndarray, config: ImageProcessorConfig) -> np.ndarray:
    """[H, W, C] of 0 to 255. The steps' precisions are the reference's, so that no bit differs:
    rescaling in float64 and rounded to float32, normalising in float32 (in the array's own floats)."""
    if config.do_rescale and pixels.dtype == np.uint8:
        # Equal to rescaling each pixel: there are only 256 values to rescale.
        pixels = (np.arange(256, dtype=np.float64) * config.rescale_factor).astype(np.float32)[pixels]
    elif config.do_rescale:
        pixels = (pixels.astype(np.float64) * config.rescale_factor).astype(np.float32)
    if config.do_normalize:
        pixels = pixels if pixels.dtype.kind == "f" else pixels.astype(np.float32)
        mean, std = np.array(config.image_mean, pixels.dtype), np.array(config.image_std, pixels.dtype)
        pixels = (pixels - mean) / std
    return pixels


def _pan_and_scan_settings(config: ImageProcessorConfig) -> tuple[int, int, float]:
    return (
        config.pan_and_scan_min_crop_size,
        config.pan_and_scan_max_num_crops,
        config.pan_and_scan_min_ratio_to_activate,
    )
