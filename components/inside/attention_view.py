"""Where the model looked and what a word rests on, as light on the pictures; and the effect of hiding a region."""

from collections.abc import Iterable, Sequence
from html import escape

import numpy as np
from PIL import Image

from components.shown.image_strip import picture_html
from components.shown.regions import region_around
from components.shown.token_view import bare, percent
from gemma3_core.engine import AttentionMap, Box, OcclusionReport, PicturePreview, TileMap, WordReport

NO_PICTURES = '<p class="note">This conversation has no pictures: the model saw only the words of the prompt.</p>'

_LONGEST = 640  # pixels of a picture's longer side
_NIGHT = (16, 18, 24)
_DARKEST = 0.86  # opacity of the dark layer where the map is 0
_HINT = "Draw a box on a whole picture, or tap it, to hide that region or to ask about it."
_HINT_TO_HIDE = "Draw a box on a whole picture, or tap it, to hide that region."


def maps_html(attention: AttentionMap, previews: Iterable[PicturePreview], takes_crops: bool = True) -> str:
    """HTML of the picture regions under each tile, lit by its attention weights; one scale for all tiles.

    `previews` are the conversation's pictures, in order. Regions can be asked about where the model `takes_crops`.
    """
    if not attention.tiles:
        return NO_PICTURES
    captions = [f"{tile.tile.label}: {percent(tile.total)} of the attention" for tile in attention.tiles]
    share = "" if len(attention.tiles) == 1 else f"{percent(attention.on_pictures)} of the attention went to pictures. "
    figures, _ = _lit(attention.tiles, previews, "Where the model looked on {}", captions, takes_crops)
    return f'<div class="maps">{figures}</div>{_hints(share, takes_crops)}'


def rests_html(report: WordReport, previews: Iterable[PicturePreview], takes_crops: bool = True) -> str:
    """HTML of what a word rests on, in the same light, with the estimated place of its object.

    The hottest region stands in data-region, as page.js reports one, so that it is this one that is hidden.
    """
    if report.rests_on is None:
        return NO_PICTURES
    tiles, place = report.rests_on.tiles, report.place
    marked = {} if place is None else {place.picture: place.box}
    captions = [tile.tile.label for tile in tiles]
    figures, sizes = _lit(tiles, previews, "What the answer rests on in {}", captions, takes_crops, marked)
    word = escape(bare(report.text))
    where = ""
    if place is not None:
        around = region_around(place.picture, place.box, sizes[place.picture])
        button = f' <button type="button" class="closer-place" data-region="{around}">Look closer there</button>'
        where = (
            f'<p class="note">Where? The dashed box is an estimate of the place that “{word}” is about.'
            f"{button if takes_crops else ''}</p>"
        )
    region = ""
    if report.region is not None:
        number, box = report.region
        width, height = sizes[number]
        shares = (box.left / width, box.top / height, box.right / width, box.bottom / height)
        region = f' data-region="{number} {" ".join(f"{share:.5f}" for share in shares)}"'
    return f'<div class="maps"{region}>{figures}</div>{where}{_hints("", takes_crops)}'


def _lit(
    tiles: Sequence[TileMap],
    previews: Iterable[PicturePreview],
    name: str,
    captions: Sequence[str],
    takes_crops: bool,
    marked: dict[int, Box] | None = None,
) -> tuple[str, list[tuple[int, int]]]:
    """Figures of all tiles, brightest at the largest of all values; and the pictures' sizes. `marked` has a box to draw
    on a picture, by its number."""
    most, figures, sizes = max(max(map(max, tile.grid)) for tile in tiles), "", []
    for number, preview in enumerate(previews):  # one at a time, because each holds its picture in memory
        sizes.append((preview.width, preview.height))
        for tile, caption in zip(tiles, captions, strict=True):
            if tile.tile.picture == number:
                box = (marked or {}).get(number) if tile.tile.crop is None else None
                mark = "" if box is None else _mark(preview, box, "place")
                crops = [one.tile.box for one in tiles if one.tile.picture == number and one.tile.crop is not None]
                if tile.tile.crop is None and len(crops) == 1:  # the region that was asked about
                    mark += _mark(preview, crops[0], "asked")
                image = picture_html(spotlit(tile, preview, most), name.format(tile.tile.label), _LONGEST)
                figures += _figure(tile, image + mark, caption, takes_crops)
    return figures, sizes


def _hints(text: str, takes_crops: bool) -> str:
    return (
        f'<p class="note">{text}{_HINT if takes_crops else _HINT_TO_HIDE}</p>'
        '<p class="sr-only" id="region-help">Arrow keys place and move a box, Shift with arrow keys sizes it, Enter '
        "hides it, Escape removes it.</p>"
    )


def _figure(tile_map: TileMap, image: str, caption: str, takes_crops: bool) -> str:
    label = tile_map.tile.label
    # On whole pictures page.js lets visitors draw a region, and reports it in shares of the picture's sides.
    drawable, controls = "", ""
    if tile_map.tile.crop is None:
        drawable = (
            f' class="drawable" data-picture="{tile_map.tile.picture}" tabindex="0" role="application" '
            f'aria-label="Region to hide on {escape(label)}" aria-describedby="region-help"'
        )
        controls = (
            '<p class="note" role="status"></p><button type="button" class="hide-box" hidden>Hide this region</button>'
        )
        closer = (
            ' <button type="button" class="closer-box" hidden>Look closer at it</button>'
            '<form class="ask-box" hidden><input required maxlength="2000" autocomplete="off" '
            'aria-label="Question about this region" placeholder="Ask about it"><button>Ask</button></form>'
        )
        controls += closer if takes_crops else ""
    return f"<figure><div{drawable}>{image}</div><figcaption>{escape(caption)}</figcaption>{controls}</figure>"


def occlusion_html(report: OcclusionReport, preview: PicturePreview, value: str = "", is_alike: bool = True) -> str:
    """HTML of the effect of hiding a region: the region on the picture, and the word's probability before and after.

    `value` is the field's, of an answer in fields, to which the word belongs. Unless the new answer `is_alike`, in the
    form of the first, it is left out.
    """
    image = picture_html(preview.original, "The picture with the hidden region marked", _LONGEST)
    word = escape(bare(report.text))
    word = f"“{word}” in “{escape(value)}”" if value and value != bare(report.text) else f"“{word}”"
    becomes = f" The answer becomes: “{escape(report.answer.strip())}”" if is_alike else ""
    return (
        f'<figure class="hidden-region"><div>{image}{_mark(preview, report.box)}</div></figure>'
        f'<p role="status">With this region hidden, the probability of {word} goes from '
        f"<b>{percent(report.before)}</b> to <b>{percent(report.after)}</b>.{becomes}</p>"
    )


def spotlit(tile_map: TileMap, preview: PicturePreview, most: float) -> Image.Image:
    """The tile's part of its picture, bright where its weights are high and dark elsewhere; `most` is fully bright.

    A color map would be mistaken for the picture's own colors; brightness keeps them.
    """
    box, picture = tile_map.tile.box, preview.original
    across, down = picture.width / preview.width, picture.height / preview.height
    part = picture.resize(
        (max(1, round(across * (box.right - box.left))), max(1, round(down * (box.bottom - box.top)))),
        box=(across * box.left, down * box.top, across * box.right, down * box.bottom),
    )
    part.thumbnail((_LONGEST, _LONGEST))
    grid = np.array(tile_map.grid, dtype=np.float32) / (most or 1.0)
    weights = np.asarray(Image.fromarray(grid).resize(part.size, Image.Resampling.BICUBIC))
    night = _DARKEST * (1.0 - np.clip(weights, 0.0, 1.0))
    return Image.composite(Image.new("RGB", part.size, _NIGHT), part, Image.fromarray((255 * night).astype(np.uint8)))


def _mark(picture: PicturePreview, box: Box, kind: str = "box") -> str:
    style = (
        f"left:{100 * box.left / picture.width:.2f}%;top:{100 * box.top / picture.height:.2f}%;"
        f"width:{100 * (box.right - box.left) / picture.width:.2f}%;"
        f"height:{100 * (box.bottom - box.top) / picture.height:.2f}%"
    )
    return f'<span class="{kind}" style="{style}"></span>'
