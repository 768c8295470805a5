"""Readers of data in VOC layout, the sample included.

    JPEGImages/NAME.jpg  SegmentationClass/NAME.png  ImageSets/Segmentation/SPLIT.txt  class_names.txt

Masks are palette or grey PNG files whose pixel values are the class indices; 255 is void. Images may be of any kind
that Pillow reads with 8 bits per channel. What labelme's labelme2voc writes is read as it is: a list of classes may
begin with `__ignore__`, which stands for void; masks may lie in SegmentationClassPNG; and a folder without any list is
divided by name (see `read_split`).
"""

import glob
import hashlib
import os
import re
import zlib
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from pathlib import Path

import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors

from distill.data.layout import IMAGES, LISTS, MASKS
from distill.data.pictures import read_image, read_mask
from distill.data.sample import SAMPLE_SIZES, make_sample
from distill.errors import DistillError, check_number, meant, nearest
from distill.files import PROJECT

VOC_CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
IMAGE_ENDINGS = tuple(name for ending in _ENDINGS for name in (ending, ending.upper()))  # as cameras write them
_MASK_ENDINGS = (".png", ".PNG", ".Png")
MASK_FOLDERS = (MASKS, "SegmentationClassPNG")
AUGMENTED_LISTS = ("trainaug.txt", "train_aug.txt")
DATASETS, PASCAL = ("sample", "pascal"), ("pascal", "pascal+sbd")


def data_root() -> Path:
    """The folder for data: $DISTILL_DATA, or the `data` folder of this clone, or `data` in the working folder."""
    if "DISTILL_DATA" in os.environ:
        return Path(os.environ["DISTILL_DATA"])
    return PROJECT / "data" if (PROJECT / "pyproject.toml").exists() else Path("data")


class VOCFolder(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """One split of a folder in VOC layout.

    `dataset[i]` is an image (3, H, W) uint8 and its labels (H, W) int64, both tv_tensors. `limit` keeps the first
    images only. Without a `class_names.txt` the classes are VOC's 21.
    Raises DistillError when the folder, its lists or its files are not what they should be.
    """

    def __init__(self, root: str | Path, split: str = "train", limit: int | None = None) -> None:
        _check_limit(limit)
        self.root, self.split = Path(root), split
        self.class_names = read_class_names(self.root)
        self.num_classes = len(self.class_names)
        self.ids = read_split(self.root, split)[: None if limit is None else int(limit)]

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[tuple[tv_tensors.Image, tv_tensors.Mask]]:
        return (self[index] for index in range(len(self)))

    def image_path(self, index: int) -> Path:
        """The file of an image; where there is none, the one that is expected."""
        path = _first_existing([self.root / IMAGES / f"{self.ids[index]}{ending}" for ending in IMAGE_ENDINGS])
        if not os.path.exists(path):  # with an ending such as .Jpg
            alike = (p for p in path.parent.glob(f"{glob.escape(path.stem)}.*") if p.suffix.lower() in IMAGE_ENDINGS)
            return next((p for p in alike if p.stem == path.stem), path)
        return path

    def mask_path(self, index: int) -> Path:
        """The file of its mask; where there is none, the one that is expected."""
        return mask_of(self.root, self.ids[index])

    def has_masks(self) -> bool:
        """Whether any image has a mask: a test split may come without, as VOC's; one that lacks some is at fault."""
        return any(self.mask_path(index).exists() for index in range(len(self)))

    def fingerprint(self) -> str:
        """16 hexadecimal digits that change when the list, the classes, an image or a mask of this split does.

        Of every file the size and both ends are read, which tells exports and drawings apart without reading gigabytes;
        when a file was written, and where it lies, does not count. Raises DistillError, as reading does, for a missing
        file.
        """
        digest = hashlib.sha256(repr((self.class_names, self.ids)).encode())
        for index in range(len(self)):
            try:
                for path in (self.image_path(index), self.mask_path(index)):
                    digest.update(ends(path))
            except OSError:
                self[index]  # which says what is missing
                raise
        return digest.hexdigest()[:16]

    def check_proportions(self, index: int, labels: torch.Tensor) -> None:
        """DistillError for an image (H, W) that would be gigantic once its short side is scaled to a fixed length."""
        height, width = labels.shape[-2:]
        if max(height, width) > 100 * min(height, width):
            raise DistillError(
                f"{self.image_path(index)} is {width} x {height} pixels, too long and thin to be scaled; cut it into "
                f"pieces, or take it out"
            )

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        if isinstance(index, slice):
            raise DistillError(
                "a data set gives one image at a time; for a part of it take torch.utils.data.Subset(dataset, "
                "range(FROM, TO)), or open_dataset(…, limit=N) for the first N"
            )
        paths = self.image_path(index), self.mask_path(index)
        for path in paths:
            _check_link(path, self.ids[index])
        image, labels = read_image(paths[0]), read_mask(paths[1], self.num_classes)
        if image.shape[:2] != labels.shape:
            raise DistillError(
                f"{paths[1]} is {labels.shape[1]} x {labels.shape[0]} pixels and its image "
                f"{image.shape[1]} x {image.shape[0]}; export the mask again at the image's size"
            )
        return (
            tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1)),
            tv_tensors.Mask(torch.from_numpy(labels).long()),
        )


def _check_limit(limit: int | None) -> None:
    if limit is not None:
        check_number("limit", limit, 1, 10**9)


def ends(path: Path, length: int = 4096) -> bytes:
    """The size of a file and its first and last bytes."""
    with path.open("rb") as file:
        first, size = file.read(length), file.seek(0, os.SEEK_END)
        file.seek(max(0, size - length))
        return b"%d " % size + first + file.read()


def _check_link(path: Path, name: str) -> None:
    """DistillError where a file of a data set is a link to elsewhere; its whole folder may be one, from another set."""
    folder = path.parents[name.count("/")]
    if not os.path.islink(path) and path.parent == folder:  # as nearly all are
        return
    target = path.resolve()
    homes = (folder.parent.resolve(), folder.resolve(), folder.resolve().parent)
    if not any(target.is_relative_to(home) for home in homes):
        raise DistillError(
            f"{path} is a link to {target}, outside of {folder.parent}; copy the file there, or make the whole folder "
            f"{folder.name} a link"
        )


def _first_existing(paths: list[Path]) -> Path:
    """The first path that is there; the very first if none is, so that an error names the usual place."""
    return next((path for path in paths if os.path.exists(path)), paths[0])


def mask_of(root: Path, name: str) -> Path:
    """The file of an image's mask; where there is none, the one that is expected."""
    return _first_existing(masks_of(root, name))


def masks_of(root: Path, name: str) -> list[Path]:
    """Where an image's mask may be, the usual place first."""
    return [root / folder / f"{name}{ending}" for folder in MASK_FOLDERS for ending in _MASK_ENDINGS]


def images_below(folder: Path) -> list[Path]:
    """The image files of a folder and of those in it, by their paths, but for hidden ones."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_ENDINGS and not path.is_dir())
    return sorted(path for path in found if not any(p.startswith(".") for p in path.relative_to(folder).parts))


def unlisted_images(folder: Path, listed: Container[str]) -> dict[str, Path]:
    """The images below a folder that are not listed, by their names in lists: the path there, without ending.

    Raises DistillError where two of them would have one name.
    """
    named = [(path.relative_to(folder).with_suffix("").as_posix(), path) for path in images_below(folder)]
    others = [(name, path) for name, path in named if name not in listed]
    if twice := repeated(name for name, _ in others):
        raise DistillError(f"several images in {folder} are called {twice}, with different endings; rename one of them")
    return dict(others)


def read_class_names(root: Path) -> tuple[str, ...]:
    """The lines of class_names.txt, or VOC's classes where there is none.

    A first line `__ignore__` is left out: labelling tools give it the index -1, which a mask of bytes holds as 255.
    """
    path = root / "class_names.txt"
    if not path.exists():
        return VOC_CLASSES
    names = tuple(_read_lines(path))
    names = names[1:] if names[:1] == ("__ignore__",) else names
    if not 1 <= len(names) <= 255:
        raise DistillError(f"{path} names {len(names)} classes, and 1 to 255 are allowed; write one name per line")
    twice = repeated(names)
    if twice:
        raise DistillError(f"{path} names {twice!r} twice; give every class a name of its own")
    return names


def read_split(root: Path, split: str) -> list[str]:
    """The image names that ImageSets/Segmentation/SPLIT.txt lists, in its order.

    A folder without any list is divided into `train` and `val`: about every fifth mask, by a checksum of its name, is
    val. Further images do not move those that are there, unless val has only one, for want of such a checksum.
    """
    if not root.is_dir():
        near = meant(str(root), [name for name in DATASETS if name != str(root)])
        raise DistillError(
            f"there is no folder {root}{near}; give the folder that holds JPEGImages, SegmentationClass and ImageSets"
        )
    path = _list_path(root, split)
    if not path.exists():
        there = split_names(root)
        if not there and split in ("train", "val"):
            return _split_by_name(root, split)
        raise DistillError(
            f"{path} is missing (splits found: {', '.join(there) or 'none'}); write it, one image name per line"
        )
    names = _read_lines(path)
    if not names:
        raise DistillError(f"{path} lists no images; write one image name per line, without the ending")
    twice = repeated(names)
    if twice:
        raise DistillError(f"{path} lists {twice!r} twice; remove one of the two lines")
    for name in names:
        _check_name(path, name)
    first, *more = names[0].split()
    if Path(first).suffix.lower() in IMAGE_ENDINGS and (more or (root / IMAGES / names[0]).exists()):
        raise DistillError(
            f"{path} lists {names[0]!r}, and an image is listed by its name in JPEGImages alone, without the ending; "
            f"write {Path(first).stem!r}, and so all others"
        )
    return names


def split_names(root: Path) -> list[str]:
    """The names of the lists in a folder, but for hidden files, such as macOS's, which begin with `._`.

    A list of test images that is empty, as of a sample that was made without, is none.
    """
    names = sorted(path.stem for path in (root / LISTS).glob("*.txt") if not path.name.startswith("."))
    return [name for name in names if name != "test" or _read_lines(_list_path(root, name))]


def _list_path(root: Path, split: str) -> Path:
    return root / LISTS / f"{split}.txt"


def repeated(names: Iterable[str]) -> str | None:
    """The first name that occurs twice."""
    return next((name for name, count in Counter(names).items() if count > 1), None)


def _check_name(path: Path, name: str) -> None:
    """DistillError where a name of a list leads out of the folder, on this system or on another."""
    parts = name.replace("\\", "/").split("/")
    if {"", ".", ".."} & set(parts) or re.match("[A-Za-z]:", name) or re.search("[\x00-\x1f\x7f]", name):
        raise DistillError(
            f"{path} lists {name!r}, which leaves the folder of the images or names none; write names as they are in "
            f"JPEGImages, without the ending"
        )


def _split_by_name(root: Path, split: str) -> list[str]:
    masks: dict[Path, str] = {}  # and the names of their images, with the folders that they lie in
    for folder in MASK_FOLDERS:
        for path in (root / folder).rglob("*.*"):
            below = path.relative_to(root / folder)
            if path.is_file() and not any(part.startswith(".") for part in below.parts):
                masks[path] = below.with_suffix("").as_posix()
    others = {*IMAGE_ENDINGS, ".gif"} - {".png"}
    strange = next((path for path in masks if path.suffix.lower() in others), None)
    if strange:
        raise DistillError(f"{strange} is no PNG, and masks are; save it as one again, or move it elsewhere")
    names = sorted({name for path, name in masks.items() if path.suffix in _MASK_ENDINGS})
    if len(names) < 2:
        raise DistillError(
            f"{root} has no list ImageSets/Segmentation/{split}.txt, and {len(names)} masks in SegmentationClass; put "
            f"at least two there, and their images into JPEGImages"
        )
    checksum = {name: zlib.crc32(os.fsencode(name)) for name in names}
    val = [name for name in names if checksum[name] % 5 == 0] or [min(names, key=checksum.__getitem__)]
    val = val[:-1] if len(val) == len(names) else val
    return val if split == "val" else [name for name in names if name not in val]


def _read_lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise DistillError(f"{path} is not UTF-8 text; save it as UTF-8, one name per line") from None
    except OSError as error:
        raise DistillError(f"{path} cannot be read ({error.strerror}); give a text file, one name per line") from None


class AugmentedVOC(VOCFolder):
    """VOC 2012's train split and SBD's images together, less VOC's val: 10,582 images, the published training set.

    SBD (Hariharan et al. 2011) labels more images of VOC. Where VOC has a mask, that is used. The others come from
    `root`/SegmentationClassAug, PNG files with the list trainaug.txt, as they are often handed on; or from `sbd`, the
    folder of SBD's own .mat files.
    Raises DistillError when neither is there.
    """

    def __init__(self, root: str | Path, sbd: str | Path | None = None, limit: int | None = None) -> None:
        _check_limit(limit)
        super().__init__(root, "train")
        self.sbd = Path(sbd) if sbd else None
        self.own = frozenset(self.ids)
        self.ids = augmented_ids(self.ids, self._further_ids(), read_split(self.root, "val"))
        self.ids = self.ids[: None if limit is None else int(limit)]

    def _further_ids(self) -> list[str]:
        if (self.root / "SegmentationClassAug").is_dir():
            lists = [self.root / LISTS / name for name in AUGMENTED_LISTS]
            return _read_list(next((path for path in lists if path.exists()), lists[0]))
        if self.sbd and (self.sbd / "cls").is_dir():
            return [name for split in ("train", "val") for name in _read_list(self.sbd / f"{split}.txt")]
        raise DistillError(
            f"SBD is neither in {self.root / 'SegmentationClassAug'} nor in {self.sbd or 'a folder sbd'}; put its "
            f"masks there, or leave out --use-sbd"
        )

    def image_path(self, index: int) -> Path:
        path = super().image_path(index)
        elsewhere = self.sbd / "img" / path.name if self.sbd else path
        return path if path.exists() or not elsewhere.exists() else elsewhere

    def mask_path(self, index: int) -> Path:
        name = self.ids[index]
        if name in self.own:
            return super().mask_path(index)
        png = self.root / "SegmentationClassAug" / f"{name}.png"
        return png if png.parent.is_dir() or self.sbd is None else self.sbd / "cls" / f"{name}.mat"


def augmented_ids(voc_train: list[str], sbd: list[str], voc_val: list[str]) -> list[str]:
    """VOC's train list, then SBD's without repetition, less VOC's val list."""
    held_out = set(voc_val)
    return [name for name in dict.fromkeys([*voc_train, *sbd]) if name not in held_out]


def _read_list(path: Path) -> list[str]:
    """Image names of a list; a line may also be a pair of paths, as in many copies of trainaug.txt."""
    if not path.exists():
        raise DistillError(f"{path} is missing; write it, one image name per line")
    return [Path(line.split()[0]).stem for line in _read_lines(path)]


def open_dataset(
    data: str | Path, split: str = "train", root: str | Path | None = None, limit: int | None = None
) -> VOCFolder:
    """The split of a data set: `"sample"`, `"pascal"`, `"pascal+sbd"`, or a folder in VOC layout.

    The sample lies in `root`, or by default in `data_root()/sample`, where it is made on first use. Pascal VOC is
    looked for under `root`, in the folder that its archive unpacks to (VOCdevkit/VOC2012) or directly; SBD beside
    VOCdevkit, in `sbd` or the folder that its own archive unpacks to (benchmark_RELEASE/dataset). These names count as
    a `Path` too, so a folder of your own that has one of them is given as the string `"./sample"`, or by its whole
    path. For such a folder `root` is where it is: the folder itself, whatever its name there, or one that holds it.

    Raises DistillError when the data are not there, and as `VOCFolder` does.
    """
    if not isinstance(data, str | Path):
        raise DistillError(f"the data are a {type(data).__name__}; give a folder, or the name {' or '.join(DATASETS)}")
    if str(data) == "sample":
        return VOCFolder(make_default_sample(root), split, limit)
    if str(data) in PASCAL:
        folder = Path(root) if root else data_root()
        voc = _find_voc(folder)
        if str(data) == "pascal+sbd" and split == "train":
            return AugmentedVOC(voc, _find_sbd(folder), limit)
        return VOCFolder(voc, split, limit)
    return VOCFolder(_own_folder(Path(data), root), split, limit)


def _own_folder(data: Path, root: str | Path | None) -> Path:
    """A folder of one's own: the root in its place, or what it is called in there."""
    if not root:
        return data
    inside = Path(root) / data
    if inside.is_dir() and not data.is_absolute():
        return inside
    if Path(root).is_dir() and not any((Path(root) / part).is_dir() for part in (IMAGES, *MASK_FOLDERS)):
        there = [path.name for path in Path(root).iterdir() if (path / IMAGES).is_dir()]
        raise DistillError(
            f"{root} holds neither JPEGImages nor a folder {data.name}{nearest(data.name, there)}; give the folder of "
            f"the data, or one that holds it"
        )
    return Path(root)


def scored_splits(data: str | Path, root: str | Path | None = None) -> Iterator[tuple[str, VOCFolder]]:
    """What a network is scored on: val, and test where there is one whose masks are there (VOC's come without)."""
    val = open_dataset(data, "val", root)
    yield "val", val
    if "test" not in split_names(val.root):  # as in most folders
        return
    test = open_dataset(data, "test", root)
    if test.has_masks():
        yield "test", test


def splits_to_score(root: Path) -> Iterator[VOCFolder]:
    """val and test of a folder, those that are there, with masks or without."""
    listed = split_names(root) or ["val"]  # without lists, val is chosen by name
    for split in ("val", "test"):
        if split in listed:
            yield VOCFolder(root, split)


def _find_voc(folder: Path) -> Path:
    inside = folder / "VOCdevkit" / "VOC2012"
    if inside.is_dir():
        return inside
    if any((folder / part).is_dir() for part in (IMAGES, "ImageSets", *MASK_FOLDERS)):
        return folder
    raise DistillError(
        f"Pascal VOC is neither in {inside} nor in {folder} itself; fetch it with "
        f"`python -m distill data download voc --root {folder}`, or give --data-root the folder where it is"
    )


def _find_sbd(folder: Path) -> Path | None:
    """SBD's folder under `folder`; or beside VOCdevkit where `folder` is VOC's own in there, as runs record it."""
    whole = Path(os.path.abspath(folder))
    homes = [folder, *([whole.parents[1]] if whole.parts[-2:] == ("VOCdevkit", "VOC2012") else [])]
    places = [home / name for home in homes for name in ("sbd", "benchmark_RELEASE/dataset")]
    return next((place for place in places if place.is_dir()), None)


def make_default_sample(root: str | Path | None = None) -> Path:
    """The sample that the course uses: by default in `data_root()/sample`, where it is made on first use.

    A folder `root` that holds a sample is taken as it is. Raises DistillError where it holds none: training
    on other images than those in the named folder would be a surprise.
    """
    if not root:
        root = data_root() / "sample"
        if (root / "sample.txt").exists():
            return root
        return make_sample(root, SAMPLE_SIZES["train"], SAMPLE_SIZES["val"], SAMPLE_SIZES["test"])
    root = Path(root)
    if (root / "sample.txt").exists():
        return root
    unfinished = (root / "sample.partial").exists()
    if any((root / folder).is_dir() for folder in (IMAGES, *MASK_FOLDERS)) and not unfinished:
        raise DistillError(f"{root} holds images, but not the sample; to use these, name them: --dataset {root}")
    found = f"{root} holds no sample" if root.is_dir() else f"there is no folder {root}"
    taken = root.is_dir() and any(root.iterdir()) and not unfinished
    raise DistillError(
        f"{found}; give --data-root a folder that holds it, such as "
        f"`python -m distill data sample --out {root / 'sample' if taken else root}` makes"
    )
