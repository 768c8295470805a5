"""Command line: python -m distill train | evaluate | predict | compare | data | doctor."""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np
from PIL import Image
from torch import nn

from distill.datasets import check_dataset, make_default_sample, open_dataset, read_class_names, read_image, repeated
from distill.doctor import examine
from distill.download import download
from distill.errors import DistillError, enough_memory, first_line, nearest
from distill.evaluation import PROTOCOLS, evaluate, predict
from distill.files import make_folder, replace_file
from distill.models import load_model
from distill.runs import Run, compare, find_runs, markdown_table, read_study, record
from distill.sample import SAMPLE_SIZES, make_sample, voc_palette
from distill.teachers import load_teacher
from distill.training import PRESETS, RECIPES, fit, pick_device


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; see `explained`."""
    options = _parser().parse_args(arguments)
    return explained(lambda: options.command(options))


def explained(run: Callable[[], int | None]) -> int:
    """0 after success, 2 after a mistake that one sentence on the error stream explains, 130 after Ctrl-C."""
    try:
        with enough_memory("use smaller images or a smaller network"):
            code = run()
    except DistillError as error:
        print(f"distill: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # whatever a disk or a network has to say that nobody foresaw
        print(f"distill: {first_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:
        print(f"distill: {str(stopped) or 'interrupted; start the same command again to go on'}", file=sys.stderr)
        return 130
    return code or 0


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        wrong = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message)
        if wrong:
            known = wrong[2].replace("'", "").split(", ")
            message = f"{message[: wrong.start()]}there is no {wrong[1]!r}{nearest(wrong[1], known)}"
        self.exit(2, f"distill: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m distill", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    _add_train(commands)
    _add_evaluate(commands)
    _add_predict(commands)
    _add_compare(commands)
    _add_data(commands)
    doctor = commands.add_parser("doctor", help="is everything there that the course needs? [OK], or what to do")
    doctor.set_defaults(command=_doctor)
    return parser


def _add_train(commands: argparse._SubParsersAction) -> None:
    train = commands.add_parser(
        "train",
        help="train a student, with or without a teacher",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    train.set_defaults(command=_train)
    train.add_argument("--backbone", default="resnet18", help="resnet18, mobilenetv2 or resnet101")
    train.add_argument("--method", default="sakd", help="baseline, kd, at, ofd, sakd, or several joined with +")
    train.add_argument("--teacher", default="sample", help="sample, torchvision, or a .safetensors or .pth.tar file")
    train.add_argument("--dataset", default="sample", help="sample, pascal, or a folder in VOC layout")
    train.add_argument("--use-sbd", action="store_true", help="with --dataset pascal: train on SBD's images too")
    train.add_argument("--data-root", help="where the data set lies, if not in data/")
    train.add_argument(
        "--preset", choices=PRESETS, help="where other defaults come from (default: voc for pascal, else sample)"
    )
    train.add_argument(
        "--recipe", choices=RECIPES, default="matched", help="published: put four faults of the published code back"
    )
    train.add_argument("--weights", help="DEFAULT: begin with torchvision's ImageNet weights (full width only)")
    train.add_argument("--limit", type=int, help="use only the first images of the train split")
    train.add_argument("--seed", type=int, default=0, help="of initial weights, order and augmentation")
    train.add_argument("--device", default="auto", help="auto, cpu or cuda")
    train.add_argument("--out", help="folder of the run (default: runs/DATASET/BACKBONE/METHOD/seedK)")
    train.add_argument("--weight", type=float, help="weight of the distillation loss (one method only)")
    train.add_argument(
        "--resume", action=argparse.BooleanOptionalAction, default=True, help="go on with an unfinished run"
    )
    settings = train.add_argument_group("settings (default: the preset's)")
    for flag, kind in (
        ("--epochs", int),
        ("--batch-size", int),
        ("--crop-size", int),
        ("--lr", float),
        ("--workers", int),
        ("--evaluate-every", int),
    ):
        settings.add_argument(flag, type=kind, default=argparse.SUPPRESS)
    settings.add_argument("--out-stride", dest="output_stride", type=int, default=argparse.SUPPRESS)
    settings.add_argument("--augment", choices=("flip", "crops"), default=argparse.SUPPRESS)
    settings.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        default=argparse.SUPPRESS,
        help="of the networks' forward passes; float32 where none is given",
    )
    settings.add_argument("--nesterov", action="store_true", default=argparse.SUPPRESS)
    faults = train.add_argument_group("faults of the published code, one by one (--recipe published: all four)")
    faults.add_argument(
        "--distilled-dropout",
        action=argparse.BooleanOptionalAction,
        default=argparse.SUPPRESS,
        help="whether students that have a teacher use ASPP's dropout, as baselines do",
    )
    for flag, choices, meaning in (
        ("--teacher-mode", ("eval", "train"), "train: batch statistics and dropout in the teacher"),
        ("--divisions", ("once", "twice"), "twice: cross-entropy and KD divided by the batch once more"),
        ("--padding", ("void", "background"), "label of what crops add beyond an image"),
    ):
        faults.add_argument(flag, choices=choices, default=argparse.SUPPRESS, help=meaning)


_SETTINGS = (
    "epochs",
    "batch_size",
    "crop_size",
    "lr",
    "workers",
    "evaluate_every",
    "output_stride",
    "augment",
    "precision",
    "nesterov",
    "distilled_dropout",
    "teacher_mode",
    "divisions",
    "padding",
)


def _train(options: argparse.Namespace) -> None:
    settings = {name: getattr(options, name) for name in _SETTINGS if hasattr(options, name)}
    if options.use_sbd and options.dataset != "pascal":
        raise DistillError(f"--use-sbd belongs to --dataset pascal, not to {options.dataset}; leave one of them out")
    data = "pascal+sbd" if options.use_sbd else options.dataset
    if data != "sample":
        settings.setdefault("augment", "crops")
    weight = None if options.weight is None else {"weight": options.weight}
    run = fit(
        options.backbone,
        options.method,
        options.teacher,
        data,
        seed=options.seed,
        out=options.out,
        preset=options.preset,
        recipe=options.recipe,
        data_root=options.data_root,
        limit=options.limit,
        weights=options.weights,
        device=options.device,
        resume=options.resume,
        method_options=weight,
        **settings,
    )
    for split in ("val", "test"):
        if split in run.scores:
            print(f"{split} mIoU {100 * run.scores[split]['miou']:.2f}")
    print(f"run: {run.path}")


def _add_evaluate(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("evaluate", help="score a run, a weights file or a teacher")
    command.set_defaults(command=_evaluate)
    command.add_argument(
        "run", help="a run's folder, a .safetensors or .pth.tar file, or a teacher: `sample` (shipped), `torchvision`"
    )
    command.add_argument("--dataset", help="default: the data that the run was trained on, else the sample")
    command.add_argument("--data-root")
    command.add_argument("--split", default="val")
    command.add_argument("--protocol", default="native", choices=PROTOCOLS)
    command.add_argument("--device", default="auto")
    command.add_argument("--json", action="store_true", help="print scores for programs")


def _evaluate(options: argparse.Namespace) -> None:
    model = _network(options.run).to(pick_device(options.device))
    data, root = options.dataset or "sample", options.data_root
    if not options.dataset and Path(options.run).is_dir():
        run = Run(Path(options.run))
        data, root = run.config["data"], root or run.data_root
    scores = evaluate(model, open_dataset(data, options.split, root), options.protocol, progress=True)
    if options.json:
        print(json.dumps(scores.to_json()))
        return
    for name, iou in scores.per_class_iou.items():
        print(f"{name:>16} {'absent' if np.isnan(iou) else format(100 * iou, '6.2f')}")
    print(f"{'mIoU':>16} {100 * scores.miou:6.2f}\n{'pixel accuracy':>16} {100 * scores.pixel_accuracy:6.2f}")


def _network(source: str) -> nn.Module:
    path = Path(source)
    if path.is_dir():
        return Run(path).student()
    return load_model(path).eval() if path.suffix == ".safetensors" else load_teacher(source)


def _add_predict(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("predict", help="coloured masks and overlays of any images")
    command.set_defaults(command=_predict)
    command.add_argument("run", help="a run's folder, a weights file, or a teacher: sample, torchvision")
    command.add_argument("images", nargs="+", type=Path)
    command.add_argument("--out", type=Path, default=Path("predictions"))
    command.add_argument("--device", default="auto")


def _predict(options: argparse.Namespace) -> None:
    twice = repeated(path.stem for path in options.images)
    if twice:
        raise DistillError(f"several images are called {twice}; predict them one by one, each with another --out")
    model = _network(options.run).to(pick_device(options.device))
    make_folder(options.out)
    for path in options.images:
        image = read_image(path)
        mask = Image.fromarray(predict(model, image)).convert("P")
        mask.putpalette(voc_palette())
        overlay = Image.blend(Image.fromarray(image), mask.convert("RGB"), 0.5)
        for picture, name in ((mask, f"{path.stem}_mask.png"), (overlay, f"{path.stem}_overlay.png")):
            with replace_file(options.out / name) as temporary:
                picture.save(temporary, format="PNG")
        print(options.out / f"{path.stem}_mask.png", options.out / f"{path.stem}_overlay.png")


def _add_compare(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("compare", help="a table from many runs: mean, 95 %% interval, paired gain")
    command.set_defaults(command=_compare)
    command.add_argument("runs", nargs="+", type=Path, help="folders with runs below them, or a recorded study (.json)")
    command.add_argument("--json", action="store_true")


def _compare(options: argparse.Namespace) -> None:
    records, teacher = [], None
    for path in options.runs:
        if path.suffix == ".json":
            study, score = read_study(path)
            records += study
            teacher = teacher if score is None else score
        else:
            records += [record(run) for run in find_runs(path)]
    rows = compare(records, teacher)
    print(json.dumps([_no_nan(row) for row in rows], indent=1) if options.json else markdown_table(rows))


def _no_nan(row: dict) -> dict:
    """JSON has no NaN: the interval of a single seed is null."""
    return {name: None if isinstance(value, float) and np.isnan(value) else value for name, value in row.items()}


def _add_data(commands: argparse._SubParsersAction) -> None:
    data = commands.add_parser("data", help="make the sample, check a folder, or download Pascal VOC")
    kinds = data.add_subparsers(required=True, metavar="what")
    sample = kinds.add_parser(
        "sample", help="make the sample data", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    sample.set_defaults(command=_make_sample)
    sample.add_argument("--out", type=Path, help="folder (default: data/sample)")
    for split, count in SAMPLE_SIZES.items():
        sample.add_argument(f"--{split}", type=int, default=count, help="number of images")
    sample.add_argument("--size", type=int, default=64, help="pixels a side")
    sample.add_argument("--seed", type=int, default=0)
    check = kinds.add_parser("check", help="read every image and mask of a folder in VOC layout")
    check.set_defaults(command=_check)
    check.add_argument("folder", type=Path)
    check.add_argument("--json", action="store_true")
    fetch = kinds.add_parser("download", help="fetch and unpack Pascal VOC 2012 or SBD; goes on where it stopped")
    fetch.set_defaults(command=_download)
    fetch.add_argument("name", choices=("voc", "sbd"))
    fetch.add_argument("--root", type=Path, help="where it goes, and later --data-root (default: data/)")


def _make_sample(options: argparse.Namespace) -> None:
    counts = {split: getattr(options, split) for split in SAMPLE_SIZES}
    default = {"size": 64, "seed": 0, **SAMPLE_SIZES}
    if options.out is None and default == {"size": options.size, "seed": options.seed, **counts}:
        print(make_default_sample())
    elif options.out is None:
        raise DistillError("a sample other than the default needs a folder of its own; add --out")
    else:
        print(make_sample(options.out, **counts, size=options.size, seed=options.seed))


def _download(options: argparse.Namespace) -> None:
    print(download(options.name, options.root))


def _doctor(options: argparse.Namespace) -> None:
    wanting = 0
    for finding in examine():
        print(finding, flush=True)
        wanting += bool(finding.advice)
    if wanting:
        raise DistillError(f"{wanting} of these lines begin with [TO DO]; do what they say, and ask the doctor again")


def _check(options: argparse.Namespace) -> None:
    report = check_dataset(options.folder)
    if options.json:
        print(json.dumps(report, indent=1))
    else:
        print(f"{options.folder}: {len(read_class_names(options.folder))} classes")
        if not any((options.folder / "ImageSets" / "Segmentation").glob("*.txt")):
            print("no lists in ImageSets/Segmentation: about every fifth image, chosen by name, is val")
        for split, found in report.items():
            _print_split(split, found)
    problems = sum(len(found["problems"]) for found in report.values())
    if problems:
        raise DistillError(f"{options.folder} has {problems} faulty files; mend them as listed above")


def _print_split(split: str, found: dict) -> None:
    sizes = " to ".join(f"{width} x {height}" for width, height in found["sizes"])
    print(f"{split}: {found['images']} images, {sizes} pixels, {found['void_share']:.1%} void")
    for name, share in found["class_share"].items():
        print(f"  {name:>16} {share:7.2%}")
    for problem in found["problems"]:
        print(f"  problem: {problem}")
