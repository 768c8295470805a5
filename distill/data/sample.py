"""The sample data: small procedural scenes in VOC folder layout, so that nothing has to be downloaded.

Twenty cut-out shapes are placed on a dull, cluttered background. Three classes share each hue, so colour alone
narrows the choice and shape must decide; one object in twenty has a hue drawn from all families. Textures,
light, shadows and occlusion are drawn independently of the class.
"""

import colorsys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from tqdm.auto import tqdm

from distill.data.layout import IMAGES, MASKS, make_folders, mask_image, write_class_names, write_list
from distill.errors import DistillError, check_number, nearest
from distill.files import make_folder, replace_file, write_text

SPLITS = ("train", "val", "test")
SAMPLE_SIZES = {"train": 500, "val": 300, "test": 500}
VOID = 255

# Hue families (in turns of the colour circle). Classes of one family can be told apart by shape only.
FAMILIES: dict[float, tuple[str, ...]] = {
    0.98: ("heart", "mushroom", "house"),
    0.07: ("fish", "bell", "kite"),
    0.14: ("sun", "star", "bolt"),
    0.34: ("tree", "leaf", "cactus"),
    0.48: ("boat", "cup", "arrow"),
    0.60: ("drop", "cloud", "moon"),
    0.80: ("flower", "key"),
}
SAMPLE_CLASSES = ("background", *(name for family in FAMILIES.values() for name in family))
_HUES = tuple(FAMILIES)
_FAMILY_OF = {name: hue for hue, names in FAMILIES.items() for name in names}

WRONG_HUE = 0.05  # share of objects whose hue is drawn from all families, their own among them
RADIUS = (0.18, 0.32)  # of the image side
TILT = 0.25  # radians either way

Points = np.ndarray  # (n, 2): x to the right, y downwards, the unit circle around the origin
Piece = tuple[bool, Points]  # True: add this polygon to the shape, False: cut it out


# ---------------------------------------------------------------------------------------------- shapes


def _polygon(*points: tuple[float, float]) -> Points:
    return np.array(points, dtype=float)


def _curve(radius: Callable[[np.ndarray], np.ndarray], count: int = 64) -> Points:
    """Closed curve given by its radius as a function of the angle (0 is up, clockwise)."""
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    length = radius(angle)
    return np.stack([length * np.sin(angle), -length * np.cos(angle)], axis=1)


def _ellipse(x: float, y: float, width: float, height: float) -> Points:
    return _curve(np.ones_like, 40) * (width, height) + (x, y)


def _zigzag(points: int, inner: float) -> Points:
    length = np.tile([1.0, inner], points)
    return _curve(lambda angle: length, 2 * points)


def _heart() -> Points:
    t = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x / 17, -(y + 2) / 17], axis=1)


def _add(*outlines: Points) -> list[Piece]:
    return [(True, outline) for outline in outlines]


@cache
def shape_pieces(name: str) -> list[Piece]:
    """Polygons that make up the class `name`, to be added or cut out in this order."""
    match name:
        case "heart":
            return _add(_heart())
        case "mushroom":
            cap = _ellipse(0, -0.1, 0.95, 0.8)
            cap[:, 1] = np.minimum(cap[:, 1], 0.0)
            return _add(cap, _polygon((-0.28, 0), (0.28, 0), (0.36, 0.9), (-0.36, 0.9)))
        case "house":
            walls = _polygon((-0.68, -0.1), (0.68, -0.1), (0.68, 0.85), (-0.68, 0.85))
            return [
                *_add(_polygon((-0.95, 0), (0, -0.95), (0.95, 0)), walls),
                (False, _polygon((-0.18, 0.3), (0.18, 0.3), (0.18, 0.85), (-0.18, 0.85))),
            ]
        case "fish":
            return _add(_ellipse(-0.2, 0, 0.75, 0.52), _polygon((0.3, 0), (0.98, -0.6), (0.8, 0), (0.98, 0.6)))
        case "bell":
            dome = _polygon(
                (-0.3, -0.75),
                (0.3, -0.75),
                (0.5, -0.3),
                (0.55, 0.2),
                (0.9, 0.6),
                (-0.9, 0.6),
                (-0.55, 0.2),
                (-0.5, -0.3),
            )
            return _add(dome, _ellipse(0, -0.72, 0.3, 0.22), _ellipse(0, 0.72, 0.22, 0.22))
        case "kite":
            tail = _polygon((-0.08, 0.5), (0.3, 0.75), (0.05, 0.98), (-0.3, 0.9))
            return _add(_polygon((0, -1), (0.7, -0.3), (0, 0.65), (-0.7, -0.3)), tail)
        case "sun":
            return _add(_zigzag(11, 0.68))
        case "star":
            return _add(_zigzag(5, 0.42))
        case "bolt":
            return _add(
                _polygon((0.2, -1), (-0.6, 0.15), (-0.08, 0.15), (-0.3, 1), (0.6, -0.25), (0.08, -0.25), (0.5, -1))
            )
        case "tree":
            layers = [
                _polygon((-w, y + 0.62), (0, y), (w, y + 0.62)) for w, y in ((0.5, -1), (0.65, -0.62), (0.8, -0.2))
            ]
            return _add(*layers, _polygon((-0.16, 0.4), (0.16, 0.4), (0.16, 0.95), (-0.16, 0.95)))
        case "leaf":
            t = np.linspace(-1, 1, 24)
            side = 0.55 * np.cos(t * np.pi / 2) ** 0.8
            blade = np.concatenate([np.stack([side, t * 0.8 - 0.2], 1), np.stack([-side, t * 0.8 - 0.2], 1)[::-1]])
            return _add(blade, _polygon((-0.06, 0.4), (0.06, 0.4), (0.16, 1), (0.02, 1)))
        case "cactus":
            trunk = _polygon((-0.24, -0.8), (0, -0.98), (0.24, -0.8), (0.24, 0.95), (-0.24, 0.95))
            left = _polygon((-0.8, -0.45), (-0.5, -0.45), (-0.5, 0.1), (0, 0.1), (0, 0.42), (-0.8, 0.42))
            right = _polygon((0.8, -0.6), (0.5, -0.6), (0.5, -0.05), (0, -0.05), (0, 0.25), (0.8, 0.25))
            return _add(trunk, left, right)
        case "boat":
            hull = _polygon((-0.95, 0.35), (0.95, 0.35), (0.6, 0.85), (-0.6, 0.85))
            return _add(
                hull,
                _polygon((0.06, -0.95), (0.75, 0.22), (0.06, 0.22)),
                _polygon((-0.06, -0.7), (-0.06, 0.22), (-0.62, 0.22)),
                _polygon((-0.06, 0.1), (0.06, 0.1), (0.06, 0.4), (-0.06, 0.4)),
            )
        case "cup":
            body = _polygon((-0.75, -0.7), (0.45, -0.7), (0.3, 0.8), (-0.6, 0.8))
            return [(True, _ellipse(0.45, -0.05, 0.5, 0.48)), (False, _ellipse(0.45, -0.05, 0.27, 0.25)), (True, body)]
        case "arrow":
            return _add(
                _polygon(
                    (-0.95, -0.28), (0.05, -0.28), (0.05, -0.75), (0.98, 0), (0.05, 0.75), (0.05, 0.28), (-0.95, 0.28)
                )
            )
        case "drop":
            return _add(_polygon((0, -1), (0.52, 0.02), (-0.52, 0.02)), _ellipse(0, 0.32, 0.62, 0.62))
        case "cloud":
            return _add(
                _ellipse(-0.5, 0.2, 0.46, 0.42),
                _ellipse(0, -0.15, 0.52, 0.52),
                _ellipse(0.52, 0.15, 0.45, 0.46),
                _polygon((-0.5, 0.1), (0.5, 0.1), (0.5, 0.6), (-0.5, 0.6)),
            )
        case "moon":
            return [(True, _ellipse(0, 0, 0.92, 0.92)), (False, _ellipse(0.42, -0.12, 0.72, 0.72))]
        case "flower":
            petals = _curve(lambda angle: 0.66 + 0.3 * np.cos(5 * angle), 80)
            return [(True, petals), (False, _ellipse(0, 0, 0.2, 0.2))]
        case "key":
            shaft = _polygon(
                (-0.1, -0.13),
                (0.98, -0.13),
                (0.98, 0.45),
                (0.75, 0.45),
                (0.75, 0.13),
                (0.55, 0.13),
                (0.55, 0.4),
                (0.32, 0.4),
                (0.32, 0.13),
                (-0.1, 0.13),
            )
            return [(True, _ellipse(-0.52, 0, 0.46, 0.46)), (False, _ellipse(-0.56, 0, 0.18, 0.18)), (True, shaft)]
    raise DistillError(f"there is no shape named {name!r}; the shapes are {', '.join(SAMPLE_CLASSES[1:])}")


# --------------------------------------------------------------------------------------------- drawing


def _coverage(pieces: list[Piece], size: int, supersample: int = 4) -> np.ndarray:
    """Share of each pixel that the shape covers, (size, size) in 0…1; points are in pixels."""
    canvas = Image.new("L", (size * supersample, size * supersample))
    draw = ImageDraw.Draw(canvas)
    for add, points in pieces:
        draw.polygon([tuple(point) for point in points * supersample], fill=255 if add else 0)
    return np.asarray(canvas.reduce(supersample), dtype=np.float32) / 255


def _place(pieces: list[Piece], centre: np.ndarray, scale: np.ndarray, angle: float) -> list[Piece]:
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return [(add, (points * scale) @ turn + centre) for add, points in pieces]


def _smooth_noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Soft random relief of about `cells` bumps per side, (size, size) in -1…1."""
    coarse = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))


def _pattern(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A surface texture in -1…1, the same shape as the coordinates: plain, stripes, checks or dots."""
    angle, period = rng.uniform(0, np.pi), rng.uniform(0.06, 0.16)
    u = (x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period
    v = (y * np.cos(angle) - x * np.sin(angle)) * 2 * np.pi / period
    kind = rng.integers(4)
    if kind == 0:
        return np.zeros_like(x)
    if kind == 1:
        return np.sin(u)
    if kind == 2:
        return np.sign(np.sin(u) * np.sin(v))
    return np.where(np.sin(u) * np.sin(v) > 0.5, 1.0, -0.3)


def _colour(
    rng: np.random.Generator, hue: float, saturation: tuple[float, float], value: tuple[float, float]
) -> np.ndarray:
    rgb = colorsys.hsv_to_rgb(hue % 1.0, rng.uniform(*saturation), rng.uniform(*value))
    return np.array(rgb, dtype=np.float32)


def _background(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Two dull tones blended along a direction, textured, with leftovers strewn about, (size, size, 3)."""
    size = len(x)
    tones = [_colour(rng, rng.random(), (0.05, 0.3), (0.3, 0.8)) for _ in range(2)]
    angle = rng.uniform(0, 2 * np.pi)
    blend = np.clip(
        0.5 + np.cos(angle) * (x - 0.5) + np.sin(angle) * (y - 0.5) + 0.3 * _smooth_noise(rng, size, 5), 0, 1
    )
    ground = tones[0] * blend[..., None] + tones[1] * (1 - blend[..., None])
    ground = ground * (1 + rng.uniform(0, 0.1) * _pattern(rng, x, y) + 0.08 * _smooth_noise(rng, size, 24))[..., None]
    for _ in range(rng.integers(3, 8)):  # clutter: scraps with corners, and sticks, in the ground's own dull tones
        ground = _paint(
            ground, _coverage([(True, _scrap(rng, size))], size), _colour(rng, rng.random(), (0.05, 0.35), (0.25, 0.85))
        )
    return ground


def _scrap(rng: np.random.Generator, size: int) -> Points:
    corners = rng.integers(3, 7)
    angle = np.sort(rng.uniform(0, 2 * np.pi, corners))
    stretch = np.array([1.0, rng.uniform(0.15, 1.0)])
    outline = np.stack([np.cos(angle), np.sin(angle)], 1) * stretch * rng.uniform(0.05, 0.2) * size
    turn = rng.uniform(0, np.pi)
    return outline @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]) + rng.uniform(0, size, 2)


def _paint(image: np.ndarray, cover: np.ndarray, colour: np.ndarray) -> np.ndarray:
    return image * (1 - cover[..., None]) + colour * cover[..., None]


def _positions(rng: np.random.Generator, radii: np.ndarray) -> np.ndarray:
    """Centres (n, 2) in 0…1 that overlap somewhat but never hide each other; best of a few draws."""
    best, best_gap = np.zeros((len(radii), 2)), -np.inf
    for _ in range(12):
        centres = rng.uniform(0.14, 0.86, (len(radii), 2))
        distance = np.linalg.norm(centres[:, None] - centres[None], axis=-1) + 9 * np.eye(len(radii))
        gap = (distance / (radii[:, None] + radii[None])).min()
        if gap > best_gap:
            best, best_gap = centres, gap
        if gap > 0.75:
            break
    return best


def draw_scene(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """One scene of `size` pixels per side.

    Returns the image, (size, size, 3) uint8, and its mask, (size, size) uint8: 0 is background, 1…20 index
    `SAMPLE_CLASSES`, 255 is the void line around every object.
    """
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    image = _background(rng, x, y)
    mask = np.zeros((size, size), dtype=np.uint8)
    radii = rng.uniform(*RADIUS, rng.integers(2, 5))
    light = rng.uniform(0, 2 * np.pi)
    for radius, centre in zip(radii, _positions(rng, radii), strict=True):
        image, mask = _add_object(rng, image, mask, x, y, radius, centre, light)
    return _photograph(rng, image, x, y, light), _mark_void(mask)


def _add_object(
    rng: np.random.Generator,
    image: np.ndarray,
    mask: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    radius: float,
    centre: np.ndarray,
    light: float,
) -> tuple[np.ndarray, np.ndarray]:
    size = len(mask)
    label = int(rng.integers(1, len(SAMPLE_CLASSES)))
    name = SAMPLE_CLASSES[label]
    pieces = _place(
        shape_pieces(name), centre * size, rng.uniform(0.85, 1.1, 2) * radius * size, rng.uniform(-TILT, TILT)
    )
    cover = _coverage(pieces, size)

    towards = np.array([np.cos(light), np.sin(light)])
    shift = np.round(-towards * rng.uniform(0.02, 0.05) * size).astype(int)
    blurred = Image.fromarray((cover * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(size / 50))
    shadow = np.roll(np.asarray(blurred, dtype=np.float32) / 255, (shift[1], shift[0]), axis=(0, 1))
    image = image * (1 - rng.uniform(0.25, 0.55) * shadow)[..., None]

    hue = _HUES[rng.integers(len(_HUES))] if rng.random() < WRONG_HUE else _FAMILY_OF[name]
    colour = _colour(rng, hue + rng.uniform(-0.03, 0.03), (0.5, 0.9), (0.6, 0.95))
    shade = (
        1
        + 0.9 * ((x - centre[0]) * towards[0] + (y - centre[1]) * towards[1])
        + rng.uniform(0, 0.16) * _pattern(rng, x, y)
    )
    image = image * (1 - cover[..., None]) + (colour * shade[..., None]) * cover[..., None]
    return image, np.where(cover >= 0.5, np.uint8(label), mask)


def _photograph(rng: np.random.Generator, image: np.ndarray, x: np.ndarray, y: np.ndarray, light: float) -> np.ndarray:
    """Uneven light, exposure and sensor noise; (size, size, 3) uint8."""
    fall_off = 1 + rng.uniform(0, 0.35) * ((x - 0.5) * np.cos(light) + (y - 0.5) * np.sin(light))
    exposed = image * (fall_off * rng.uniform(0.8, 1.12))[..., None]
    grain = rng.normal(0, rng.uniform(0.005, 0.035), image.shape)
    return (np.clip(exposed + grain, 0, 1) * 255).astype(np.uint8)


def _mark_void(mask: np.ndarray) -> np.ndarray:
    """Draw the void line along every change of label, a hundredth of the image side and at least a pixel wide."""
    width = max(1, round(len(mask) / 100))
    padded = np.pad(mask, (0, width), mode="edge")
    border = np.zeros(mask.shape, dtype=bool)
    for dy in range(width + 1):
        for dx in range(width + 1):
            border |= padded[dy : dy + mask.shape[0], dx : dx + mask.shape[1]] != mask
    return np.where(border, np.uint8(VOID), mask)


# --------------------------------------------------------------------------------------------- writing


def scene(split: str, index: int, size: int = 64, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Image and mask `index` of a split: the same on every machine, and different for every split and seed."""
    if split not in SPLITS:
        raise DistillError(f"there is no split {split!r}{nearest(split, SPLITS)}")
    return draw_scene(np.random.default_rng([seed, SPLITS.index(split), index]), size)


def make_sample(
    root: str | Path,
    train: int = SAMPLE_SIZES["train"],
    val: int = SAMPLE_SIZES["val"],
    test: int = SAMPLE_SIZES["test"],
    size: int = 64,
    seed: int = 0,
    progress: bool = True,
    *,
    label_noise: float = 0.0,
) -> Path:
    """Write the sample in VOC layout under `root` and return it; what is already there and the same is kept.

    The first images of a larger sample are those of a smaller one. `size`: pixels per side. `label_noise`: with this
    probability a class that is seen in a scene of the train split is labelled as another one.
    Raises DistillError when `root` holds another sample, or the numbers make no sense.
    """
    root = Path(root)
    limits = {"train": (train, 1, 10**6), "val": (val, 0, 10**6), "test": (test, 0, 10**6)}
    limits |= {"size": (size, 16, 1024), "seed": (seed, 0, 2**32 - 1)}
    for name, (value, least, most) in limits.items():
        check_number(name, value, least, most)
    check_number("label_noise", label_noise, 0, 1, whole=False)
    train, val, test, size, seed = (int(value) for value in (train, val, test, size, seed))
    counts = {"train": train, "val": val, "test": test}
    noise = f", label noise {label_noise:g}" if label_noise else ""
    recipe = f"distill sample 1: {counts}, size {size}, seed {seed}{noise}\n"
    stamp = root / "sample.txt"
    if stamp.exists():
        found = stamp.read_text(encoding="utf-8", errors="replace")
        if found == recipe:
            return root
        raise DistillError(f"{root} holds another sample ({found.strip()!r}); choose another folder or delete it")
    make_folder(root)
    strange = any(path.suffix != ".part" for path in root.iterdir())  # .part: of a process that was killed as it began
    if strange and not (root / "sample.partial").exists():
        raise DistillError(f"{root} is not empty and holds no sample; choose another folder")
    write_text(root / "sample.partial", recipe)
    make_folders(root)
    _write_images(root, counts, size, seed, label_noise, progress)
    write_class_names(root, SAMPLE_CLASSES)
    write_text(stamp, recipe)  # last, so that an interrupted making starts again
    (root / "sample.partial").unlink(missing_ok=True)
    return root


def _mislabelled(mask: np.ndarray, rng: np.random.Generator, share: float) -> np.ndarray:
    """The mask with each of its classes called another one with probability `share`; background and void stay."""
    names = np.arange(256, dtype=np.uint8)
    for label in np.unique(mask[(mask > 0) & (mask < VOID)]):
        if rng.random() < share:
            other = rng.integers(1, len(SAMPLE_CLASSES) - 1)
            names[label] = other + (other >= label)
    return names[mask]


def _write_images(root: Path, counts: dict[str, int], size: int, seed: int, label_noise: float, progress: bool) -> None:
    with tqdm(total=sum(counts.values()), desc="making the sample", unit="image", disable=not progress) as bar:
        for split, count in counts.items():
            names = [f"{split}_{index:05d}" for index in range(count)]
            for index, name in enumerate(names):
                image, mask = scene(split, index, size, seed)
                if label_noise and split == "train":
                    mask = _mislabelled(mask, np.random.default_rng([seed, len(SPLITS), index]), label_noise)
                with replace_file(root / IMAGES / f"{name}.jpg") as temporary:
                    Image.fromarray(image).save(temporary, format="JPEG", quality=92)
                with replace_file(root / MASKS / f"{name}.png") as temporary:
                    mask_image(mask).save(temporary, format="PNG")
                bar.update()
            write_list(root, split, names)
