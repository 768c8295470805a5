"""What labelme saves, images with a JSON file of polygons beside each, as a folder in VOC layout.

labelme's own script labelme2voc does the same, and what it writes is read as it is (see `folders`); this one needs no
labelme, and keeps the images that nobody has labelled yet, from which a student can learn by a teacher.
"""

import base64
import io
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from PIL import Image, ImageDraw
from pydantic import Field
from tqdm.auto import tqdm
from typing_extensions import NotRequired, TypedDict

from distill.data.folders import IMAGE_ENDINGS, repeated
from distill.data.layout import IMAGES, MASKS, left_out, mask_image, new_folder, write_class_names
from distill.data.pictures import read_image
from distill.errors import DistillError, first_line
from distill.files import Number, checked, read_json
from distill.losses import IGNORE_INDEX

_UNREAD = (".heic", ".heif", ".avif", ".gif", ".jfif", ".dng")  # pictures that are not read
BACKGROUND, IGNORE = "_background_", "__ignore__"  # labelme's names for what is no object, and for void

Point = Annotated[list[Number], Field(min_length=2, max_length=2)]  # x, y


class _Shape(TypedDict):
    label: str
    points: list[Point]
    shape_type: NotRequired[str | None]
    mask: NotRequired[str | None]  # of shape_type "mask": a PNG in base64, at the first of its points


class _File(TypedDict):
    shapes: list[_Shape]
    imageHeight: NotRequired[int | None]
    imageWidth: NotRequired[int | None]


def import_labelme(
    source: str | Path, out: str | Path, class_names: Sequence[str] | None = None, progress: bool = True
) -> Path:
    """Write a folder as labelme leaves it to `out`, in VOC layout; `out` is returned.

    Images lie beside the JSON files in `source`. All are copied, those without a JSON file too: these have no mask, and
    belong to no split. Polygons, rectangles (turned ones too), circles and labelme's masks are painted in the order of
    the file, so that later ones cover earlier ones; where nothing is painted is background, and the label `__ignore__`
    is void. `class_names` is the order of the classes, background first, as in labelme's labels.txt, whose `__ignore__`
    may stand before it; without it, the labels in alphabetical order. Files in folders below are left out, and told.

    Raises DistillError for a folder without labels, a JSON file that is not labelme's or whose image is missing or of
    another size, a shape that covers no area, a label that is not in `class_names`, and names that are no classes.
    """
    source, out = Path(source), Path(out)
    images = _images(source)
    files = _files(source, images)
    names = _class_names(source, files) if class_names is None else _given_names(list(class_names))
    with new_folder(out) as whole:
        for stem, image in tqdm(images.items(), desc="importing", unit="image", disable=not progress):
            if stem in files:
                mask = paint(files[stem], names, read_image(image).shape[:2], source / f"{stem}.json")
                mask_image(mask).save(whole / MASKS / f"{stem}.png")
            shutil.copyfile(image, whole / IMAGES / f"{stem}{image.suffix.lower()}")
        write_class_names(whole, names)
    return out


def _images(source: Path) -> dict[str, Path]:
    """The images of a folder by their names without ending."""
    if not source.is_dir():
        raise DistillError(f"there is no folder {source}; give the one with the images and labelme's JSON files")
    found: dict[str, Path] = {}
    below = [path for path in source.rglob("*") if path.suffix.lower() == ".json" and path.parent != source]
    strange = [path for path in source.iterdir() if path.suffix.lower() in _UNREAD]
    for paths, what in ((below, "JSON files in folders below"), (strange, "files of other kinds")):
        if paths:
            left_out(f"{len(paths)} {what}, such as {min(paths)}")
    for path in sorted(path for path in source.iterdir() if path.suffix.lower() in IMAGE_ENDINGS):
        if path.name.startswith("."):  # hidden, as macOS's, which begin with ._
            continue
        if path.stem in found:
            raise DistillError(f"{found[path.stem]} and {path} differ in their ending only; rename one of them")
        found[path.stem] = path
    return found


def _files(source: Path, images: dict[str, Path]) -> dict[str, _File]:
    """labelme's files by the names of their images."""
    paths = sorted(path for path in source.iterdir() if path.suffix.lower() == ".json" and path.name[0] != ".")
    if not paths:
        raise DistillError(f"{source} holds no JSON file; label some images in labelme, and save them there")
    for path in paths:
        if path.stem not in images:
            raise DistillError(f"{path} has no image of its name beside it; put {path.stem}.jpg (or .png) there")
    return {path.stem: checked(read_json(path), _File, path, "a file of labelme's") for path in paths}


def _class_names(source: Path, files: dict[str, _File]) -> list[str]:
    """Background, and the labels in alphabetical order."""
    found = sorted({shape["label"] for file in files.values() for shape in file["shapes"]} - {BACKGROUND, IGNORE})
    if not found:
        raise DistillError(f"the files of {source} have 0 labels, and 1 to 254 are possible; label anew")
    names = ["background", *(name for name in found if name != "background")]
    _check_names(names, f"the files of {source} have")
    return names


def _given_names(names: list[str]) -> list[str]:
    """The classes of a caller, less a first `__ignore__`, which `read_class_names` leaves out too."""
    names = names[1:] if names[:1] == [IGNORE] else names
    if names[:1] not in (["background"], [BACKGROUND]):
        raise DistillError(
            f"the classes begin with {names[0] if names else 'none'!r}, and what is not painted is the first of them; "
            f"put background (or {BACKGROUND}) first"
        )
    misplaced = next((name for name in names[1:] if name in ("background", BACKGROUND, IGNORE)), None)
    if misplaced:
        raise DistillError(f"the classes hold {misplaced!r} after the first, which is no object; remove it")
    _check_names(names, "the classes have")
    return names


def _check_names(names: list[str], found: str) -> None:
    """DistillError for names that class_names.txt cannot hold, or not tell apart."""
    for name in names:
        if name.splitlines() != [name] or name.strip() != name:
            raise DistillError(f"{found} the label {name!r}; rename it to one line without blanks at its ends")
    if len(names) > 255:
        raise DistillError(f"{found} {len(names) - 1} labels beside the background, and 254 are possible; take fewer")
    twice = repeated(names)
    if twice:
        raise DistillError(f"{found} the label {twice!r} twice; give every class a name of its own")


def paint(file: _File, class_names: Sequence[str], size: tuple[int, int], path: Path) -> np.ndarray:
    """The shapes of one of labelme's files, `path`, as class indices (H, W) uint8 for an image of `size` (H, W)."""
    height, width = size
    told = file.get("imageHeight") or height, file.get("imageWidth") or width
    if told != size:
        raise DistillError(
            f"{path} was drawn on an image of {told[1]} x {told[0]} pixels, and the one beside it has {width} x "
            f"{height}; put the image there that was labelled"
        )
    canvas = Image.new("L", (width, height))
    draw = ImageDraw.Draw(canvas)
    for shape in file["shapes"]:
        points = [(x, y) for x, y in shape["points"]]
        if any(not (-width <= x <= 2 * width and -height <= y <= 2 * height) for x, y in points):
            raise DistillError(f"{path} has a {shape['label']!r} far outside of its image; draw it anew")
        _draw(draw, shape, points, _value(shape["label"], class_names, path), path)
    return np.array(canvas)


def _draw(draw: ImageDraw.ImageDraw, shape: _Shape, points: list[tuple[float, float]], value: int, path: Path) -> None:
    match shape.get("shape_type") or "polygon", points:
        case "polygon" | "rectangle" | "oriented_rectangle", [_, _, _, *_]:
            draw.polygon(points, fill=value)
        case "rectangle", [(x, y), (u, v)]:
            draw.rectangle((min(x, u), min(y, v), max(x, u), max(y, v)), fill=value)
        case "circle", [(x, y), (u, v)]:
            radius = float(np.hypot(u - x, v - y))
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=value)
        case "mask", [(x, y), *_]:
            draw.bitmap((round(x), round(y)), _stencil(shape, path), fill=value)
        case kind, _:
            raise DistillError(
                f"{path} has a {kind} of {len(points)} points labelled {shape['label']!r}, which covers no area; draw "
                f"it as a polygon"
            )


def _value(label: str, class_names: Sequence[str], path: Path) -> int:
    if label == IGNORE:
        return IGNORE_INDEX
    if label == BACKGROUND:
        return 0
    if label not in class_names:
        raise DistillError(f"{path} has the label {label!r}, and the classes are {', '.join(class_names)}; correct one")
    return list(class_names).index(label)


def _stencil(shape: _Shape, path: Path) -> Image.Image:
    """The picture of a shape that is a mask, 1 where it covers."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(shape.get("mask") or ""))) as picture:
            return picture.convert("L").point(lambda value: 255 * (value > 0)).convert("1")
    except Exception as error:  # a damaged picture can raise anything
        raise DistillError(f"{path} has a mask that cannot be read ({first_line(error)}); draw it anew") from None
