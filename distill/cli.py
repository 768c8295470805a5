"""Command line: python -m distill COMMAND.

train, evaluate, predict, export; study, tune, compare, diagnose; data, bench, doctor.
"""

import argparse
import glob
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from traceback import walk_tb
from typing import Any, NoReturn, TypeAlias

import numpy as np
import torch
from PIL import Image

from distill.data.camvid import download_camvid
from distill.data.check import check_dataset, unlisted
from distill.data.download import download
from distill.data.folders import make_default_sample, open_dataset, read_class_names, repeated, split_names
from distill.data.labelme import import_labelme
from distill.data.layout import mask_image
from distill.data.pictures import read_image
from distill.data.resize import resize_dataset
from distill.data.sample import SAMPLE_SIZES, make_sample
from distill.doctor import examine
from distill.errors import DistillError, check_number, enough_memory, first_line, nearest
from distill.files import make_folder, replace_file, write_json, write_text
from distill.lab import bench, latency, tune
from distill.lab.comparison import Findings, at_equal_time, draw, markdown, read_findings, report, tables
from distill.lab.diagnose import diagnose
from distill.lab.export import FORMATS, export
from distill.lab.label import label_by_teacher
from distill.lab.study import Study
from distill.methods import METHODS, load_methods, method_terms
from distill.training.evaluation import PROTOCOLS, evaluate, predict
from distill.training.loop import fit
from distill.training.parallel import pick_device, this_rank
from distill.training.presets import PRESETS, RECIPES
from distill.training.runs import environment, open_network, run_of
from distill.training.settings import Settings, choices_of


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; see `explained`."""
    for stream in (sys.stdout, sys.stderr):  # not every encoding has every name of a class or a file
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    options = _parser().parse_args(arguments)

    def run() -> int | None:
        for path in getattr(options, "own_methods", ()):
            load_methods(path)
        return options.command(options)

    return explained(run)


def explained(run: Callable[[], int | None]) -> int:
    """0 after success, 2 after a mistake that one sentence on the error stream explains, 130 after Ctrl-C."""
    try:
        with enough_memory("use smaller images or a smaller network"):
            code = run()
            print(end="", flush=True)  # here, where a closed pipe is no mistake
    except BrokenPipeError as error:
        if not _printed(error):
            _say(first_line(error))
            return 2
        # Whoever read the output has seen enough, as `head` has. Python writes what is left of it once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except DistillError as error:
        _say(str(error))
        return 2
    except UnicodeEncodeError as error:  # a file name of other days, which no list in UTF-8 can hold
        _say(f"the name {error.object!r} is not UTF-8; rename that file")
        return 2
    except OSError as error:  # whatever a disk or a network has to say that nobody foresaw
        place = f"{error.filename} cannot be used ({error.strerror}); choose a place that can be read and written"
        _say(place if error.filename else first_line(error))
        return 2
    except KeyboardInterrupt as stopped:
        if this_rank().first:
            _say(str(stopped) or "interrupted; start the same command again to continue")
        return 130
    return code or 0


def _printed(error: BaseException) -> bool:
    """Whether a `print` of this file failed, and not a pipe to another process."""
    *_, (frame, _) = walk_tb(error.__traceback__)
    return frame.f_code.co_filename == __file__


def _say(sentence: str) -> None:
    ranks = this_rank()
    print(f"distill{'' if ranks.world == 1 else f' (process {ranks.rank})'}: {sentence}", file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        wrong = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message)
        if wrong:
            known = wrong[2].replace("'", "").split(", ")
            message = f"{message[: wrong.start()]}there is no {wrong[1]!r}{nearest(wrong[1], known)}"
        self.exit(2, f"distill: {message}; see {self.prog} --help\n")


class _Defaults(argparse.ArgumentDefaultsHelpFormatter):
    """Adds a default where there is one and the text does not say it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        said = not action.default or "default" in (action.help or "")
        return action.help if said else super()._get_help_string(action)


Commands: TypeAlias = "argparse._SubParsersAction[_Parser]"


def _command(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], None], help: str, defaults: bool = False
) -> _Parser:
    """A command that `run` does; with `defaults`, its help says what every option is by default."""
    formatter = _Defaults if defaults else argparse.HelpFormatter
    command = commands.add_parser(name, help=help, formatter_class=formatter)
    command.set_defaults(command=run)
    return command


def _own_methods(command: _Parser) -> None:
    command.add_argument(
        "--own-methods",
        metavar="FILE",
        action="append",
        default=[],
        help="a Python file that registers methods of yours",
    )


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m distill", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    _add_train(commands)
    _add_evaluate(commands)
    _add_predict(commands)
    _add_export(commands)
    _add_study(commands)
    _add_tune(commands)
    _add_compare(commands)
    _add_diagnose(commands)
    _add_data(commands)
    _add_bench(commands)
    _command(commands, "doctor", _doctor, "check that the course has everything it needs: [OK], or what to do")
    return parser


def _add_train(commands: Commands) -> None:
    train = _command(commands, "train", _train, "train a student, with or without a teacher", defaults=True)
    train.add_argument("--backbone", default="resnet18", help="resnet18, mobilenetv2, resnet101 or timm:NAME")
    train.add_argument("--method", default="sakd", help=f"{', '.join(METHODS)}, or several joined with +")
    _own_methods(train)
    train.add_argument("--teacher", default="sample", help="sample, torchvision, or a .safetensors or .pth.tar file")
    train.add_argument("--dataset", default="sample", help="sample, pascal, or a folder in VOC layout")
    train.add_argument("--use-sbd", action="store_true", help="with --dataset pascal: train on SBD's images too")
    train.add_argument("--data-root", help="where the data set is, if not in data/")
    train.add_argument(
        "--preset", choices=PRESETS, help="where other defaults come from (default: voc for pascal, else sample)"
    )
    train.add_argument(
        "--recipe", choices=RECIPES, default="matched", help="published: restore four faults of the published code"
    )
    train.add_argument(
        "--unlabelled",
        metavar="DIR",
        help="a folder of further images without masks, on which the student learns from the teacher only",
    )
    train.add_argument(
        "--weights",
        help="ImageNet weights to start from. DEFAULT: torchvision's (full width only) or timm's; package: installed",
    )
    train.add_argument(
        "--width", type=float, default=1.0, help="factor on the channels that the preset gives a student"
    )
    train.add_argument("--limit", type=int, help="use only the first images of the train split")
    train.add_argument("--seed", type=int, default=0, help="seed of initial weights, order and augmentation")
    train.add_argument("--device", default="auto", help="auto, cpu or cuda")
    train.add_argument("--out", help="folder of the run (default: runs/DATASET/BACKBONE/METHOD/seedK)")
    train.add_argument("--weight", type=float, help="weight of the distillation loss (one method only)")
    train.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="continue an unfinished run; with --no-resume, refuse one",
    )
    _add_settings(train.add_argument_group("settings (default: the preset's)"))
    _add_scale(train.add_argument_group("speed and scale (defaults: what suits the device)"))
    _add_faults(train.add_argument_group("faults of the published code, one by one (--recipe published: all four)"))


def _add_settings(group: argparse._ArgumentGroup) -> None:
    for flag, kind in (
        ("--epochs", int),
        ("--batch-size", int),
        ("--crop-size", int),
        ("--scale-from", float),
        ("--scale-to", float),
        ("--lr", float),
        ("--weight-decay", float),
        ("--workers", int),
        ("--evaluate-every", int),
    ):
        group.add_argument(flag, type=kind, default=argparse.SUPPRESS)
    group.add_argument("--out-stride", dest="output_stride", type=int, default=argparse.SUPPRESS)
    group.add_argument("--augment", choices=choices_of("augment"), default=argparse.SUPPRESS)
    group.add_argument("--nesterov", action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS)
    group.add_argument(
        "--labelled", type=int, default=argparse.SUPPRESS, help="only this many images keep their labels (0: all)"
    )
    group.add_argument(
        "--class-weights",
        choices=choices_of("class_weights"),
        default=argparse.SUPPRESS,
        help="log: rare classes count for more in cross-entropy",
    )


def _add_faults(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--distilled-dropout",
        action=argparse.BooleanOptionalAction,
        default=argparse.SUPPRESS,
        help="whether students that have a teacher use ASPP's dropout, as baselines do",
    )
    for flag, meaning in (
        ("--teacher-mode", "train: batch statistics and dropout in the teacher"),
        ("--divisions", "twice: cross-entropy and KD divided by the batch once more"),
        ("--padding", "label of what crops add beyond an image"),
    ):
        choices = choices_of(flag[2:].replace("-", "_"))
        group.add_argument(flag, choices=choices, default=argparse.SUPPRESS, help=meaning)


def _add_scale(group: argparse._ArgumentGroup) -> None:
    for flag, meaning in (
        ("--precision", "of the networks' forward passes"),
        ("--crop-on", "where crops are cut, scaled and blurred"),
    ):
        name = flag[2:].replace("-", "_")
        group.add_argument(flag, choices=choices_of(name), default=argparse.SUPPRESS, help=meaning)
    for flag, meaning in (
        ("--compile", "both networks through torch.compile"),
        ("--sync-batchnorm", "under torchrun: the statistics of the whole batch, so that results are one process's"),
        ("--tensorboard", "losses and scores for TensorBoard, in the run's folder"),
    ):
        group.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=meaning)
    group.add_argument(
        "--accumulate", type=int, default=argparse.SUPPRESS, help="compute a batch in this many parts, to save memory"
    )
    group.add_argument("--cache", metavar="DIR", default=argparse.SUPPRESS, help="keep decoded images in a file there")
    group.add_argument(
        "--checkpoint-minutes",
        type=float,
        default=argparse.SUPPRESS,
        help="the most minutes of work that an interruption costs",
    )


def _train(options: argparse.Namespace) -> None:
    settings = _settings(options)
    if options.use_sbd and options.dataset != "pascal":
        raise DistillError(f"--use-sbd belongs to --dataset pascal, not to {options.dataset}; leave one of them out")
    data = "pascal+sbd" if options.use_sbd else options.dataset
    weight = None if options.weight is None else {"weight": options.weight}
    if weight and len(method_terms(options.method)) > 1:
        raise DistillError(
            f"--weight belongs to a method of one term, not to {options.method}; write a study file, whose "
            f"method_options has a weight for each"
        )
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
        unlabelled=options.unlabelled,
        weights=options.weights,
        width=options.width,
        device=options.device,
        resume=options.resume,
        method_options=weight,
        **settings,
    )
    if not this_rank().first:
        return
    for split in ("val", "test"):
        if split in run.scores:
            print(f"{split} mIoU {100 * run.scores[split]['miou']:.2f}")
    print(f"run: {run.path}")


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given."""
    return {field.name: getattr(options, field.name) for field in fields(Settings) if hasattr(options, field.name)}


def _add_evaluate(commands: Commands) -> None:
    command = _command(commands, "evaluate", _evaluate, "score a run, a weights file or a teacher")
    command.add_argument(
        "run",
        help="a run's folder, a .safetensors, .pth.tar or .onnx file, or a teacher: `sample` (shipped), `torchvision`",
    )
    command.add_argument("--dataset", help="default: the data that the run was trained on, else the sample")
    command.add_argument("--data-root")
    command.add_argument("--split", default="val", help="train, val or test (default: val)")
    command.add_argument("--protocol", default="native", choices=PROTOCOLS)
    command.add_argument("--device", default="auto")
    command.add_argument("--json", action="store_true", help="print scores for programs")


def _evaluate(options: argparse.Namespace) -> None:
    model = open_network(options.run).to(pick_device(options.device))
    run = run_of(options.run)
    if run and not options.dataset:
        images = run.images_of(options.split, options.data_root)
    else:
        images = open_dataset(options.dataset or "sample", options.split, options.data_root)
    scores = evaluate(model, images, options.protocol, progress=True)
    if options.json:
        print(json.dumps(scores.to_json()))
        return
    for name, iou in scores.per_class_iou.items():
        print(f"{name:>16} {'absent' if np.isnan(iou) else format(100 * iou, '6.2f')}")
    print(f"{'mIoU':>16} {100 * scores.miou:6.2f}\n{'pixel accuracy':>16} {100 * scores.pixel_accuracy:6.2f}")


def _add_predict(commands: Commands) -> None:
    command = _command(commands, "predict", _predict, "coloured masks and overlays of any images")
    command.add_argument("run", help="a run's folder, a weights file, an .onnx file, or a teacher: sample, torchvision")
    command.add_argument("images", nargs="+", type=Path)
    command.add_argument(
        "--side", type=int, help="shrink the longer side to so many pixels first, as for training (default: no)"
    )
    command.add_argument("--out", type=Path, default=Path("predictions"))
    command.add_argument("--device", default="auto")


def _predict(options: argparse.Namespace) -> None:
    images = _matching(options.images)
    twice = repeated(path.stem.casefold() for path in images)  # not every disk tells A from a
    if twice:
        raise DistillError(f"several images are called {twice}; predict them one by one, each with another --out")
    written = {(options.out / f"{path.stem}_{kind}.png").resolve() for path in images for kind in ("mask", "overlay")}
    if lost := next((path for path in images if path.resolve() in written), None):
        raise DistillError(f"{lost} would be replaced by a picture of the same name; choose another --out")
    model = open_network(options.run).to(pick_device(options.device))
    make_folder(options.out)
    for path in images:
        image = read_image(path)
        mask = mask_image(predict(model, image, options.side))
        overlay = Image.blend(Image.fromarray(image), mask.convert("RGB"), 0.5)
        for picture, name in ((mask, f"{path.stem}_mask.png"), (overlay, f"{path.stem}_overlay.png")):
            with replace_file(options.out / name) as temporary:
                picture.save(temporary, format="PNG")
        print(options.out / f"{path.stem}_mask.png", options.out / f"{path.stem}_overlay.png")


def _matching(paths: list[Path]) -> list[Path]:
    """The paths, and what matches those that are patterns, which Windows' shells hand on as they are."""
    found = {path: [] if path.exists() else sorted(glob.glob(str(path))) for path in paths}
    return [Path(name) for path in paths for name in found[path] or [str(path)]]


def _add_export(commands: Commands) -> None:
    command = _command(commands, "export", _export, "a network alone in one file, for programs without this package")
    command.add_argument("run", help="a run's folder, a weights file, or a shipped network: sample, student-resnet18-…")
    command.add_argument("--format", choices=FORMATS, default="onnx", help="onnx (default), or torch's own .pt2")
    command.add_argument("--int8", action="store_true", help="8-bit weights and activations, calibrated on images")
    command.add_argument(
        "--size",
        nargs=2,
        type=int,
        metavar=("H", "W"),
        help="fixed image size, one image at a time (default: any size and number)",
    )
    command.add_argument(
        "--dataset", help="for --int8 (default: the data that the run was trained on, else the sample)"
    )
    command.add_argument("--data-root")
    command.add_argument("--out", type=Path, default=Path("exported"), help="folder (default: exported)")


def _export(options: argparse.Namespace) -> None:
    if not options.int8 and (options.dataset or options.data_root):
        raise DistillError("--dataset and --data-root are images for --int8; add it, or leave them out")
    name = f"student{'-int8' if options.int8 else ''}{FORMATS[options.format]}"
    chosen = {"format": options.format, "int8": options.int8, "data": options.dataset, "data_root": options.data_root}
    done = export(options.run, options.out / name, size=options.size and tuple(options.size), **chosen)
    print(f"{done.path}: {done.path.stat().st_size / 1e6:.2f} MB, {done.sentence}")


def _add_study(commands: Commands) -> None:
    meaning = "train the runs of a study file that are not finished; continues after an interruption"
    command = _command(commands, "study", _study, meaning, defaults=True)
    command.add_argument("file", type=Path, help="a TOML file, as in studies/")
    _own_methods(command)
    command.add_argument("--runs", type=Path, help="folder for the runs of all studies (default: runs, of the clone)")
    command.add_argument(
        "--results",
        type=Path,
        help="where it is recorded (default: beside its runs, or, of the clone's studies, results/)",
    )
    command.add_argument("--data-root", help="where the data set is, if not where the file says")
    command.add_argument("--jobs", type=int, help="runs at a time (default: one per GPU, or one per core)")
    command.add_argument("--threads", type=int, help="of each run (default: 1 on the CPU)")
    command.add_argument("--device", default="auto", help="auto, cpu or cuda")
    command.add_argument(
        "--shard", metavar="K/N", help="only the K-th of N parts: machines that share a disk divide a study"
    )
    command.add_argument(
        "--only", metavar="PATTERN", help="only runs with such names as --dry-run prints, e.g. '*/kd/*'"
    )
    command.add_argument(
        "--keep-recorded", action="store_true", help="continue from the record, without the folders of its runs"
    )
    command.add_argument("--dry-run", action="store_true", help="only print what would be done, in order")


def _study(options: argparse.Namespace) -> None:
    where = options.runs, options.results, options.data_root, options.device
    study = Study(options.file, *where, options.shard, options.keep_recorded, options.only)
    if options.dry_run:
        print(study.to_do())
    else:
        print(markdown(study.run(options.jobs, options.threads)))
        stays = f"{study.results} holds more runs than are there yet, and stays as it is until they are"
        print(f"recorded in {study.results}" if study.is_recorded else stays, file=sys.stderr)
        print(f"the runs are in {study.folder}", file=sys.stderr)


def _add_tune(commands: Commands) -> None:
    meaning = "choose the weights of methods: equally many candidates each, on images held out from train"
    command = _command(commands, "tune", _tune, meaning, defaults=True)
    single = "single ones, such as kd ofd (default: kd)"
    command.add_argument("--methods", nargs="+", default=["kd"], metavar="NAME", help=single)
    _own_methods(command)
    command.add_argument("--backbone", default="resnet18", help="resnet18, mobilenetv2, resnet101 or timm:NAME")
    command.add_argument("--teacher", default="sample", help="as for train")
    command.add_argument("--dataset", default="sample", help="sample, pascal, or a folder in VOC layout")
    command.add_argument("--data-root", help="where the data set is, if not in data/")
    command.add_argument("--preset", choices=PRESETS, help="default: voc for pascal, else sample")
    command.add_argument("--budget", type=int, default=4, help="candidates for each method")
    command.add_argument("--spread", type=float, default=1.0, help="powers of ten from one candidate to the next")
    command.add_argument("--seed", type=int, default=100, help="of all runs; none that a study has")
    command.add_argument("--jobs", type=int, help="runs at a time (default: one per GPU, or one per core)")
    command.add_argument("--device", default="auto", help="auto, cpu or cuda")
    command.add_argument("--out", type=Path, default=Path("tune"), help="folder of the runs and of tune.json")
    _add_settings(command.add_argument_group("settings (default: the preset's; --epochs are those of the last two)"))
    _add_scale(command.add_argument_group("speed and scale (defaults: what suits the device)"))


def _tune(options: argparse.Namespace) -> None:
    record = tune.tune(
        options.methods,
        options.backbone,
        options.teacher,
        options.dataset,
        options.data_root,
        **{name: getattr(options, name) for name in ("budget", "spread", "seed", "out", "preset", "device", "jobs")},
        **_settings(options),
    )
    print(tune.table(record))


def _add_compare(commands: Commands) -> None:
    command = _command(commands, "compare", _compare, "a table from many runs: mean, 95 %% interval, paired gain")
    command.add_argument("runs", nargs="+", type=Path, help="folders with runs below them, or a recorded study (.json)")
    command.add_argument("--json", action="store_true", help="print the tables for programs")
    command.add_argument(
        "--markdown",
        type=Path,
        metavar="FILE",
        help="write tables and gains by class there, and the figures of --figures",
    )
    command.add_argument("--figures", type=Path, metavar="DIR", help="draw every figure there, as PNG and SVG")


def _add_diagnose(commands: Commands) -> None:
    command = _command(commands, "diagnose", _diagnose, "look for the usual causes of a missing gain, in order")
    command.add_argument(
        "runs", nargs="+", type=Path, help="folders with runs below them: a baseline and methods of one student"
    )
    _own_methods(command)
    command.add_argument("--teacher", help="of the methods (default: that of their study, or the sample's)")
    command.add_argument("--data-root", help="where the data are, if they have moved")


def _diagnose(options: argparse.Namespace) -> None:
    for finding in diagnose(options.runs, options.teacher, options.data_root):
        print(f"{finding.check:>14}  {'fine' if finding.fine else 'LOOK'}  {finding.sentence}.", flush=True)


def _compare(options: argparse.Namespace) -> None:
    found = read_findings(options.runs)
    if options.markdown:
        make_folder(options.markdown.parent)
    drawn, missing = draw(found, options.figures) if options.figures else ([], [])
    if options.markdown:
        write_text(options.markdown, report(found, drawn, options.markdown.parent))
    for sentence in missing:
        print(f"distill: {sentence}", file=sys.stderr)
    if options.json:  # printed last: whoever reads it may stop reading
        rows = [row for name, table in tables(found).items() for row in _for_programs(found, name, table)]
        print(json.dumps(rows, indent=1))
    else:
        print(markdown(found))


def _for_programs(found: Findings, name: str, table: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows of a variant's table, each with that of the second table, over a longer baseline, where it has one."""
    timed = {(row["backbone"], row["method"]): _no_nan(row) for row in at_equal_time(found, name)}
    for row in table:
        over = timed.get((row["backbone"], row["method"]))
        yield {"variant": name, **_no_nan(row), **({"over_longer_baseline": over} if over else {})}


def _no_nan(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: the interval of a single seed is null."""
    return {name: None if isinstance(value, float) and np.isnan(value) else value for name, value in row.items()}


def _add_data(commands: Commands) -> None:
    data = commands.add_parser("data", help="make the sample; check, resize, import or label a folder; download")
    kinds = data.add_subparsers(required=True, metavar="what")
    sample = _command(kinds, "sample", _make_sample, "make the sample data", defaults=True)
    sample.add_argument("--out", type=Path, help="folder (default: data/sample)")
    for split, count in SAMPLE_SIZES.items():
        sample.add_argument(f"--{split}", type=int, default=count, help="number of images")
    sample.add_argument("--size", type=int, default=64, help="pixels per side")
    sample.add_argument("--seed", type=int, default=0)
    sample.add_argument(
        "--label-noise", type=float, default=0.0, help="share of classes called another, image by image"
    )
    check = _command(kinds, "check", _check, "read every image and mask of a folder in VOC layout")
    check.add_argument("folder", type=Path)
    check.add_argument("--json", action="store_true")
    resize = _command(kinds, "resize", _resize, "copy a folder in VOC layout with smaller images")
    resize.add_argument("folder", type=Path)
    resize.add_argument("--side", type=int, required=True, help="pixels that the longer side has at most")
    resize.add_argument("--out", type=Path, required=True, help="the new folder")
    resize.add_argument(
        "--shuffle", action="store_true", help="mix the list of train, of which --labelled keeps the first"
    )
    labelme = _command(kinds, "labelme", _import, "turn a folder of labelme's into one in VOC layout")
    labelme.add_argument("folder", type=Path, help="images, with a JSON file beside each that is labelled")
    labelme.add_argument("--out", type=Path, required=True, help="the new folder")
    labelme.add_argument("--classes", nargs="+", metavar="NAME", help="their order, background first")
    label = _command(kinds, "label", _label, "copy a folder, with a teacher's masks for images without labels")
    label.add_argument("folder", type=Path)
    label.add_argument("--teacher", default="sample", help="as for train")
    label.add_argument("--keep", type=int, help="only so many training images keep their labels (default: all)")
    label.add_argument("--device", default="auto", help="auto, cpu or cuda")
    label.add_argument("--out", type=Path, required=True, help="the new folder")
    meaning = "download Pascal VOC 2012, SBD or CamVid; continues where it stopped"
    fetch = _command(kinds, "download", _download, meaning)
    fetch.add_argument("name", choices=("voc", "sbd", "camvid"))
    fetch.add_argument("--root", type=Path, help="the folder for it, which --data-root names later (default: data/)")


def _add_bench(commands: Commands) -> None:
    meaning = "measure the speed and memory of training, beside a plain implementation"
    command = _command(commands, "bench", _bench, meaning)
    for flag, names in (("--methods", bench.METHODS), ("--backbones", bench.STUDENTS)):
        command.add_argument(flag, nargs="+", default=names, metavar="NAME", help=f"default: {', '.join(names)}")
    command.add_argument(
        "--preset", choices=PRESETS, default="sample", help="slim networks (default), or those of full width"
    )
    for flag, meaning in (("--batch-size", "images per step"), ("--crop-size", "pixels per side")):
        command.add_argument(flag, type=int, default=argparse.SUPPRESS, help=f"{meaning} (default: the preset's)")
    command.add_argument(
        "--precision",
        choices=choices_of("precision"),
        default="auto",
        help="of our forward passes (default: what suits the device)",
    )
    command.add_argument("--compile", action="store_true", help="measure our networks through torch.compile as well")
    command.add_argument("--cache", action="store_true", help="measure what caching the teacher's answers saves")
    command.add_argument(
        "--data", type=Path, metavar="FOLDER", help="load these images, in VOC layout (default: generated ones)"
    )
    command.add_argument(
        "--latency",
        nargs="+",
        metavar="RUN",
        help="instead: what one image takes in these networks, in PyTorch and exported (takes --crop-size, --compile, "
        "--preset, --steps, --data for int8, --json; on the CPU)",
    )
    command.add_argument("--steps", type=int, default=5, help="number of measurements (default: 5)")
    command.add_argument("--seed", type=int, default=0, help="of images and weights (default: 0)")
    command.add_argument("--device", default="auto", help="auto, cpu or cuda")
    command.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")


def _bench(options: argparse.Namespace) -> None:
    if options.latency:
        return _latency(options)
    methods, backbones = (
        [name.strip() for name in ",".join(words).split(",")] for words in (options.methods, options.backbones)
    )
    names = ("batch_size", "crop_size", "precision", "compile")
    settings = {name: getattr(options, name) for name in names if hasattr(options, name)}
    chosen = bench.choose(methods, backbones, options.preset, options.device, options.seed, options.steps, **settings)
    if options.json:
        make_folder(options.json.parent)  # now: measuring takes minutes
    result = bench.measure(chosen, options.data, options.cache)
    print(bench.report(result))
    if options.json:
        write_json(options.json, result)


# What says nothing of one image in a finished network, and its default.
_OF_TRAINING: dict[str, object] = {
    "methods": bench.METHODS,
    "backbones": bench.STUDENTS,
    "batch_size": None,
    "precision": "auto",
    "cache": False,
    "seed": 0,
}


def _latency(options: argparse.Namespace) -> None:
    unused = [name for name, usual in _OF_TRAINING.items() if getattr(options, name, usual) != usual]
    if unused:
        raise DistillError(f"--{unused[0].replace('_', '-')} has no effect with --latency; leave it out")
    if options.device not in ("auto", "cpu"):
        raise DistillError(f"--latency measures on the CPU; leave out --device {options.device}")
    check_number("steps", options.steps, 1, 10_000)
    if options.json:
        make_folder(options.json.parent)
    side = getattr(options, "crop_size", PRESETS[options.preset].crop_size)
    ways = [way for way in latency.WAYS if way != "compiled" or options.compile]
    found = {run: latency.measure(run, (side, side), ways, options.steps / 5, options.data) for run in options.latency}
    print(latency.table(found))
    if options.json:
        surroundings = environment(torch.device("cpu"))
        write_json(options.json, {"environment": surroundings, "size": [side, side], "networks": found})


def _make_sample(options: argparse.Namespace) -> None:
    counts = {split: getattr(options, split) for split in SAMPLE_SIZES}
    asked = {**counts, "size": options.size, "seed": options.seed, "label_noise": options.label_noise}
    if options.out is None and asked == {**SAMPLE_SIZES, "size": 64, "seed": 0, "label_noise": 0.0}:
        print(make_default_sample())
    elif options.out is None:
        raise DistillError("a sample other than the default needs a folder of its own; add --out")
    else:
        print(make_sample(options.out, **asked))


def _resize(options: argparse.Namespace) -> None:
    print(resize_dataset(options.folder, options.out, options.side, shuffle=options.shuffle))


def _label(options: argparse.Namespace) -> None:
    print(label_by_teacher(options.folder, options.out, options.teacher, options.keep, options.device))


def _import(options: argparse.Namespace) -> None:
    print(import_labelme(options.folder, options.out, options.classes))


def _download(options: argparse.Namespace) -> None:
    print(download_camvid(options.root) if options.name == "camvid" else download(options.name, options.root))


def _doctor(options: argparse.Namespace) -> None:
    wanting = 0
    for finding in examine():
        print(finding, flush=True)
        wanting += bool(finding.advice)
    if wanting:
        raise DistillError(f"{wanting} of these lines begin with [TO DO]; do what they say, and run doctor again")


def _check(options: argparse.Namespace) -> None:
    report = check_dataset(options.folder)
    if options.json:
        print(json.dumps(report, indent=1))
    else:
        print(f"{options.folder}: {len(read_class_names(options.folder))} classes")
        if not split_names(options.folder):
            print("no lists in ImageSets/Segmentation: about every fifth image, chosen by name, is val")
        for split, found in report.items():
            _print_split(split, found)
        others, labelled = unlisted(options.folder)
        if others:
            print(f"{others} images in no list, {labelled} of them with a mask")
    problems = sum(len(found["problems"]) for found in report.values())
    if problems:
        raise DistillError(f"{options.folder} has faults, {problems} in all; correct what is listed above")


def _print_split(split: str, found: dict[str, Any]) -> None:
    sizes = " to ".join(f"{width} x {height}" for width, height in found["sizes"])
    print(f"{split}: {found['images']} images, {sizes} pixels, {found['void_share']:.1%} void")
    for name, share in found["class_share"].items():
        print(f"  {name:>16} {share:7.2%}")
    for problem in found["problems"]:
        print(f"  problem: {problem}")
