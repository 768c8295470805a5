"""The plan of a study: its runs in order, each with the arguments of `fit`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.files import is_whole
from distill.lab.study_file import StudyFile, TrainedTeacher, Variant, read_study_file, variant_folder, within
from distill.methods import BUILT_IN, build_method, method_terms
from distill.training.parallel import pick_device, seeded
from distill.training.presets import choose_options, choose_settings, defaults_for, make_student
from distill.training.runs import epochs_trained, keeps_nothing, run_folder
from distill.training.settings import Settings, for_device


@dataclass(frozen=True)
class Planned:
    """One run: its folder, and the keywords with which `fit` trains it. `variant` is "" where there are none."""

    folder: Path
    variant: str
    keywords: dict[str, Any]
    settings: Settings

    @property
    def name(self) -> str:
        words = (self.variant, *(self.keywords[key] for key in ("student", "method")), f"seed{self.keywords['seed']}")
        return "/".join(word for word in words if word)

    @property
    def begun(self) -> bool:
        return is_whole(self.folder / "config.json") and not keeps_nothing(self.folder)

    @property
    def finished(self) -> bool:
        return is_whole(self.folder / "scores.json") and is_whole(self.folder / "config.json")

    def epochs(self) -> int:
        """How many are trained; it may be asked while they are."""
        return epochs_trained(self.folder)


def load_study(path: Path) -> StudyFile:
    """A study file whose runs can all be planned. Raises DistillError for every fault in it."""
    study = read_study_file(path)
    with within(path):
        runs = plan(study, Path())  # which looks at every setting
        plan_teacher(study, Path())
        _check_options(runs)
    return study


def _check_options(runs: list[Planned]) -> None:
    """DistillError for options that a method of the package cannot take, before others are trained beside it."""
    asked = {(run.variant, run.keywords["method"]): run.keywords["method_options"] for run in runs}
    networks = [make_student("resnet18", 21, seed=seed) for seed in (0, 1)]
    for (variant, method), options in asked.items():
        if options and BUILT_IN.issuperset(method_terms(method)):
            with within(f"variant {variant}" if variant else "method_options"), seeded(0):  # connectors are drawn
                build_method(method, *networks, **options)


def plan(study: StudyFile, folder: Path, data_root: str | None = None, device: str = "auto") -> list[Planned]:
    """Every run of a study in training order: after each seed there is a whole table.

    `folder` is that of the study's runs. Raises DistillError for unknown settings.
    """
    source, runs = teacher_source(study, folder), []
    for seed in study.every_seed:
        for variant in study.variants:
            both = _joined(study, variant)
            for student in variant.students or study.students:
                for method in _methods_of(study, variant):
                    teacher, options = source if method != "baseline" else None, _options(study, variant, method)
                    taught = {"method": method, "teacher": teacher, "method_options": options}
                    out = run_folder(folder, variant_folder(variant.name), student, method, seed)
                    with within(f"variant {variant.name}" if variant.name else "settings"):
                        runs.append(_planned(both, out, student, seed, data_root, device, taught))
    return runs


def _methods_of(study: StudyFile, variant: Variant) -> list[str]:
    """A variant's methods; one that borrows its baselines inherits none from the study."""
    return variant.methods or [name for name in study.methods if not (variant.baseline and name == "baseline")]


def plan_teacher(study: StudyFile, folder: Path, data_root: str | None = None, device: str = "auto") -> Planned | None:
    """The run that trains the teacher, where the file has a table for it: a baseline, without the study's limits."""
    own = study.teacher
    if not isinstance(own, TrainedTeacher):
        return None
    same = (own.data or study.data) == study.data
    table = _joined(study, own)
    for key in ("limit", "recipe", *(() if same else ("data_root",))):
        if key not in own.model_fields_set:
            table.pop(key, None)
    if "labelled" not in own.settings:
        table["settings"].pop("labelled", None)
    with within("teacher"):
        taught = {"method": "baseline", "teacher": None, "method_options": None}
        return _planned(table, folder / "teacher", own.backbone, own.seed, data_root if same else None, device, taught)


def _joined(study: StudyFile, own: Variant | TrainedTeacher) -> dict[str, Any]:
    """What the study says and over it what one of its tables says, each only where it says something."""
    table = study.model_dump(exclude_unset=True) | own.model_dump(exclude_unset=True)
    return table | {"settings": study.settings | own.settings}


def _planned(
    table: dict[str, Any],
    out: Path,
    student: str,
    seed: int,
    data_root: str | None,
    device: str,
    taught: dict[str, Any],
) -> Planned:
    """`table` has the keys of the file that are `fit`'s too, and the settings; `taught` is how, and by whom."""
    target, recipe = pick_device(device), table.get("recipe", "matched")
    preset = table.get("preset") or defaults_for(table["data"]).preset
    keywords = {
        **{"student": student, "seed": seed, **taught},
        **{key: table.get(key) for key in ("data", "limit", "weights")},
        "width": table.get("width", 1.0),
        "unlabelled": table.get("unlabelled") if taught["method"] != "baseline" else None,
        **{"data_root": data_root or table.get("data_root"), "preset": preset, "recipe": recipe, "out": str(out)},
        **{"device": target.type, "progress": False},
        **table["settings"],
    }
    chosen = for_device(choose_settings(preset, recipe, table["settings"], table["data"]), target)
    return Planned(out, table.get("name", ""), keywords, chosen)


def teacher_source(study: StudyFile, folder: Path) -> str | None:
    """What `load_teacher` takes; None where no method needs one."""
    if isinstance(study.teacher, TrainedTeacher):
        return str(folder / "teacher" / "student.safetensors")
    return study.teacher


def _options(study: StudyFile, variant: Variant, method: str) -> dict[str, dict[str, Any]]:
    """The options of the file and of its variant for the method's terms, over those that were tuned for the data."""
    terms = method_terms(method)
    given = {term: study.method_options.get(term, {}) | variant.method_options.get(term, {}) for term in terms}
    return choose_options(terms, study.data, given)
