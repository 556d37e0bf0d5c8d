"""Arrays and tensors that hold pictures -> channels first, RGB, in numbers that both back ends work with."""

from typing import Any

import numpy as np
import torch

from gemma3_core.errors import ImageError
from gemma3_core.images.limits import ImageLimits, check_pixels
from gemma3_core.images.options import ImageProcessorConfig

_CHANNELS = (1, 3, 4)
_BAND_VALUES = 500_000  # levels are computed in bands of rows, so that large pictures need no wide copies
Pixels = np.ndarray | torch.Tensor


def is_array(source: Any) -> bool:
    return isinstance(source, np.ndarray | torch.Tensor)


def flat_pictures(images: Any) -> list[Any]:
    """One picture, a batch [N, …] of them, a list, or a list of lists -> a flat list of pictures."""
    if is_array(images) and images.ndim == 4:
        return list(images)
    if isinstance(images, list | tuple):
        return [picture for item in images for picture in flat_pictures(item)]
    return [images]


def open_array(array: Pixels, config: ImageProcessorConfig, limits: ImageLimits) -> Pixels:
    """[H, W], [H, W, C] or [C, H, W] -> [C, H, W], uint8 or float, RGB if the config says so.

    Whole numbers become levels from 0 to 255 (`as_8_bit`). Floats keep their values, with two exceptions under
    `do_rescale`: colors from 0 to 1 become levels, because rescaling them again would turn every picture black, and
    those above 255 are scaled by their own range. Raises ImageError for arrays that are not pictures.
    """
    pixels = channels_first(array, config.input_data_format)
    check_pixels(pixels.shape[-1], pixels.shape[-2], limits)
    if not _is_float(pixels):
        return _rgb(_integers(pixels), white=255.0) if config.do_convert_rgb else _integers(pixels)
    if isinstance(pixels, torch.Tensor):
        pixels = pixels.detach().float()
    elif pixels.dtype.itemsize < 4:
        pixels = pixels.astype(np.float32)
    low, high = float(pixels.min()), float(pixels.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ImageError(f"The array's values go from {low:g} to {high:g}; colors are finite numbers.")
    if config.do_rescale and low >= 0.0 and high <= 1.0:
        pixels = pixels * 255.0
    if config.do_rescale and high > 255.0 and high > low:
        pixels = (pixels - low) * (255.0 / (high - low))
    return _rgb(pixels, white=255.0 if config.do_rescale else 1.0) if config.do_convert_rgb else pixels


def channels_first(array: Any, order: str | None = None) -> Any:
    """-> [C, H, W]. Where both ends could be channels, the first is, as in the reference. Raises ImageError."""
    if array.ndim == 2:
        return array[None]
    if array.ndim != 3:
        raise ImageError(f"An array of shape {list(array.shape)} is no picture; give [H, W], [H, W, C] or [C, H, W].")
    if order is None:
        order = "channels_first" if array.shape[0] in _CHANNELS else "channels_last"
    channels = array.shape[0] if order == "channels_first" else array.shape[-1]
    if channels not in _CHANNELS:
        raise ImageError(
            f"An array of shape {list(array.shape)}, read {order.replace('_', ' ')}, has {channels} channels; "
            "1 (gray), 3 (RGB) or 4 (RGBA) are expected. Say input_data_format, or change the array."
        )
    if order == "channels_first":
        return array
    return array.permute(2, 0, 1) if isinstance(array, torch.Tensor) else np.moveaxis(array, -1, 0)


def as_8_bit(values: np.ndarray) -> np.ndarray:
    """Numbers of any type -> uint8 levels.

    Values from 0 to 255 are levels already, in a container of any width; floats from 0 to 1 are shares of white, and
    so is a bool. Larger numbers of 16 bits are scaled by what 16 bits can hold. Wider numbers and floats, and any that
    are negative, have no white of their own: they are scaled so that the least becomes black and the greatest white.
    Raises ImageError where values are not finite, or are all alike and are no levels.
    """
    if values.dtype == np.uint8 or values.size == 0:
        return values.astype(np.uint8)
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype.kind not in "iuf":
        raise ImageError(f"An array of {values.dtype} is no picture; give 8-bit numbers, or floats from 0 to 1.")
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(high - low):
        raise ImageError(f"The array's values go from {low:g} to {high:g}; colors are finite numbers.")
    black, white = _black_and_white(values.dtype, low, high)
    levels = np.empty(values.shape, np.uint8)
    rows = max(1, _BAND_VALUES * values.shape[-2] // values.size)
    for top in range(0, values.shape[-2], rows):
        band = values[..., top : top + rows, :].astype(np.float64)
        levels[..., top : top + rows, :] = np.rint((band - black) * (255.0 / (white - black)))
    return levels


def _black_and_white(kind: np.dtype, low: float, high: float) -> tuple[float, float]:
    """The numbers that stand for black and for white in an array whose values go from `low` to `high`."""
    if low >= 0.0 and high <= 255.0:
        return 0.0, 1.0 if kind.kind == "f" and high <= 1.0 else 255.0
    if low >= 0.0 and kind.kind != "f" and kind.itemsize == 2:
        return 0.0, float(np.iinfo(kind).max)
    if low == high:
        raise ImageError(
            f"All of the array's values are {low:g}, which is no level of gray. Give 0 to 255, or floats from 0 to 1."
        )
    return low, high


def _is_float(pixels: Pixels) -> bool:
    return pixels.is_floating_point() if isinstance(pixels, torch.Tensor) else pixels.dtype.kind == "f"


def _integers(pixels: Pixels) -> Pixels:
    """Whole numbers of any type -> uint8, on the same device."""
    if isinstance(pixels, np.ndarray):
        return as_8_bit(pixels)
    return pixels if pixels.dtype == torch.uint8 else torch.from_numpy(as_8_bit(pixels.cpu().numpy())).to(pixels.device)


def _rgb(pixels: Any, white: float) -> Pixels:
    """Gray three times; transparency on white."""
    is_tensor = isinstance(pixels, torch.Tensor)
    if pixels.shape[0] == 3:
        return pixels
    if pixels.shape[0] == 1:
        return pixels.expand(3, -1, -1) if is_tensor else np.repeat(pixels, 3, axis=0)
    low, high = float(pixels.min()), float(pixels.max())
    if low < 0 or high > white:
        raise ImageError(f"An array with transparency must hold 0 to {white:g}, got {low:g} to {high:g}.")
    opacity = (pixels[3:].double() if is_tensor else pixels[3:]) / white
    blended = opacity * pixels[:3] + (1 - opacity) * white
    if not _is_float(pixels):
        blended = blended.round()
    return blended.to(pixels.dtype) if is_tensor else blended.astype(pixels.dtype)
