"""A study's file: a TOML file that says which runs make a table, and the plan that follows from it.

    about = "One sentence."          teacher = "sample"                 [settings]
    data = "sample"                  students = ["resnet18"]            epochs = 12
    seeds = 3                        methods = ["baseline", "kd"]       [[variants]]
                                                                        name = "64 labels"

More keys: `data_root`, `weights`, `preset`, `recipe`, `limit` and `[method_options.TERM]`, as `training.fit` takes
them. `seeds` is a number or a list. A `[teacher]` table has the teacher trained first, with the study's settings and
its own. A variant may have its own `methods`, `students`, `limit`, `recipe`, `settings`, an `about`, and as `baseline`
the name of the variant whose baselines its runs are compared with. Without variants there is one without a name.
"""

import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.data.folders import repeated
from distill.errors import DistillError, check_number, nearest
from distill.methods import METHODS, method_terms
from distill.networks.deeplab import BACKBONES
from distill.training.parallel import pick_device
from distill.training.presets import choose_options, choose_settings, defaults_for
from distill.training.runs import run_folder
from distill.training.settings import Settings, for_device

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Keys and what they may hold; a list says what it holds.
TEXT, NUMBER, TABLE = (str,), (int,), (dict,)
VARIANT = {
    **dict.fromkeys(("name", "about", "recipe", "baseline"), TEXT),
    **dict.fromkeys(("students", "methods"), ([str],)),
    "limit": NUMBER,
    "settings": TABLE,
}
TEACHER = {
    **dict.fromkeys(("backbone", "data", "data_root", "weights"), TEXT),
    **dict.fromkeys(("limit", "seed"), NUMBER),
    "settings": TABLE,
}
STUDY = {
    **dict.fromkeys(("about", "data", "data_root", "weights", "preset", "recipe"), TEXT),
    "teacher": (str, dict),
    **dict.fromkeys(("students", "methods"), ([str],)),
    "seeds": (int, [int]),
    "limit": NUMBER,
    **dict.fromkeys(("settings", "method_options"), TABLE),
    "variants": ([dict],),
}
NEEDED = ("data", "students", "methods", "seeds")


@dataclass(frozen=True)
class Planned:
    """One run: where it lies, and the keywords with which `fit` trains it. `variant` is "" where there are none."""

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
        return (self.folder / "config.json").exists()

    @property
    def finished(self) -> bool:
        return (self.folder / "scores.json").exists()

    def epochs(self) -> int:
        """How many are trained; it may be asked while they are."""
        history = self.folder / "history.jsonl"
        return history.read_bytes().count(b"\n") if history.exists() else 0


# ------------------------------------------------------------------------------------------------ the file


def load_study(path: Path) -> dict[str, Any]:
    """The content of a study file. Raises DistillError for everything in it that is not what it should be."""
    try:
        study = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # a TOMLDecodeError is a ValueError
        reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise DistillError(f"{path} cannot be read as a study ({reason}); give a TOML file as in studies/") from None
    with _in(path):
        _check_keys(study, STUDY)
        for key in (key for key in NEEDED if key not in study):
            raise DistillError(f"{key} is missing; a study needs {', '.join(NEEDED)}")
        for number, variant in enumerate(study.get("variants", ())):
            with _in(f"variant {variant.get('name', number + 1)}"):
                _check_keys(variant, VARIANT)
        if isinstance(study.get("teacher"), dict):
            with _in("teacher"):
                _check_keys(study["teacher"], TEACHER)
                if "backbone" not in study["teacher"]:
                    raise DistillError("backbone is missing; name one, such as resnet101")
        _check_values(study)
        plan(study, Path())  # which looks at every setting
        plan_teacher(study, Path())
    return study


@contextmanager
def _in(place: object) -> Iterator[None]:
    """Put the place before what a DistillError says."""
    try:
        yield
    except DistillError as error:
        raise DistillError(f"{place}: {error}") from None


def _check_keys(table: dict[str, Any], known: dict[str, Any]) -> None:
    for key, value in table.items():
        if key not in known:
            raise DistillError(f"there is no key {key!r}{nearest(key, known)}")
        if not any(_is_a(value, kind) for kind in known[key]):
            raise DistillError(f"{key} is {value!r}; give {' or '.join(map(_called, known[key]))}")


def _is_a(value: object, kind: type | list[Any]) -> bool:
    if isinstance(kind, list):
        return isinstance(value, list) and bool(value) and all(_is_a(item, kind[0]) for item in value)
    return isinstance(value, kind) and not isinstance(value, bool)


def _called(kind: type | list[Any]) -> str:
    words = {str: "a text", int: "a whole number", dict: "a table"}
    return f"a list, each of it {words[kind[0]]}" if isinstance(kind, list) else words[kind]


def _check_values(study: dict[str, Any]) -> None:
    variants = study.get("variants", [])
    names = [variant.get("name", "") for variant in variants]
    folders = [variant_folder(name) for name in names]
    reserved = {*BACKBONES, "teacher", ""}
    for name, folder in zip(names, folders, strict=True):
        if folder in reserved or folders.count(folder) > 1:
            raise DistillError(f"a variant is called {name!r}; give each a name of its own, other than a network's")
    for variant in variants:
        if variant.get("baseline", names[0]) not in names:
            raise DistillError(f"there is no variant {variant['baseline']!r}{nearest(variant['baseline'], names)}")
    for seed in seeds_of(study):
        check_number("a seed", seed, 0, 2**32 - 1)
    used: set[str] = set()
    for table in (study, *variants):
        _check_names("student", table.get("students", ()), BACKBONES)
        used |= {term for method in table.get("methods", ()) for term in method_terms(method)}
        for key, names in (("students", table.get("students", ())), ("methods", _canonical(table.get("methods", ())))):
            if twice := repeated(names):
                raise DistillError(f"{key} names {twice} twice; name it once")
    _check_options(study.get("method_options", {}))
    if used and "teacher" not in study:
        raise DistillError(f'teacher is missing, and {" and ".join(sorted(used))} learn from one; name it, as "sample"')


def _check_options(by_term: dict[str, Any]) -> None:
    _check_names("method with options", by_term, [name for name in METHODS if METHODS[name]])
    for term, options in by_term.items():
        if not isinstance(options, dict):
            raise DistillError(f"method_options.{term} is {options!r}; give a table, such as {{weight = 1.0}}")
        parameters = inspect.signature(METHODS[term]).parameters.values()
        _check_names(f"option of {term}", options, [p.name for p in parameters if p.kind is p.KEYWORD_ONLY])


def _canonical(methods: Iterable[str]) -> list[str]:
    return ["+".join(method_terms(method)) or "baseline" for method in methods]


def _check_names(kind: str, names: Iterable[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise DistillError(f"there is no {kind} {name!r}{nearest(name, known)}")


def seeds_of(study: dict[str, Any]) -> list[int]:
    seeds = study["seeds"]
    if isinstance(seeds, int):
        check_number("seeds", seeds, 1, 1000)
        return list(range(seeds))
    if twice := repeated(map(str, seeds)):
        raise DistillError(f"seeds names {twice} twice; name it once")
    return seeds


# ------------------------------------------------------------------------------------------------ the plan


def plan(study: dict[str, Any], folder: Path, data_root: str | None = None, device: str = "auto") -> list[Planned]:
    """Every run of a study in the order in which they are trained: after each seed there is a whole table.

    `folder` is that of the study's runs. Raises DistillError for settings that there are not.
    """
    source, runs = teacher_source(study, folder), []
    for seed in seeds_of(study):
        for variant in study.get("variants", [{"name": ""}]):
            both = study | variant | {"settings": study.get("settings", {}) | variant.get("settings", {})}
            for student in both["students"]:
                for method in sorted(_canonical(both["methods"]), key=lambda method: method != "baseline"):
                    taught = {"method": method, "teacher": source if method != "baseline" else None}
                    taught["method_options"] = _options(study, method)
                    out = run_folder(folder, variant_folder(variant["name"]), student, method, seed)
                    with _in(f"variant {variant['name']}" if variant["name"] else "settings"):
                        runs.append(_planned(both, out, student, seed, data_root, device, **taught))
    return runs


def plan_teacher(
    study: dict[str, Any], folder: Path, data_root: str | None = None, device: str = "auto"
) -> Planned | None:
    """The run that trains the teacher, where the file has a table for it: a baseline, without the study's limit."""
    if not isinstance(study.get("teacher"), dict):
        return None
    own = study["teacher"]
    same = own.get("data", study["data"]) == study["data"]
    inherited = ("data", "data_root", "weights", "preset") if same else ("weights", "preset")
    table = {key: study[key] for key in inherited if key in study} | own
    table["settings"] = study.get("settings", {}) | own.get("settings", {})
    with _in("teacher"):
        _check_names("network", [own["backbone"]], BACKBONES)
        out, seed = folder / "teacher", own.get("seed", 0)
        return _planned(table, out, own["backbone"], seed, data_root if same else None, device)


def _planned(
    table: dict[str, Any],
    out: Path,
    student: str,
    seed: int,
    data_root: str | None,
    device: str,
    method: str = "baseline",
    teacher: str | None = None,
    method_options: dict[str, Any] | None = None,
) -> Planned:
    """`table` has the keys of the file that are `fit`'s too, and the settings."""
    target, recipe = pick_device(device), table.get("recipe", "matched")
    preset = table.get("preset") or defaults_for(table["data"]).preset
    keywords = {
        **{"student": student, "method": method, "teacher": teacher, "method_options": method_options, "seed": seed},
        **{key: table.get(key) for key in ("data", "limit", "weights")},
        **{"data_root": data_root or table.get("data_root"), "preset": preset, "recipe": recipe, "out": str(out)},
        **{"device": target.type, "progress": False},
        **table["settings"],
    }
    chosen = for_device(choose_settings(preset, recipe, table["settings"], table["data"]), target)
    return Planned(out, table.get("name", ""), keywords, chosen)


def teacher_source(study: dict[str, Any], folder: Path) -> str | None:
    """What `load_teacher` takes; None where no method needs one."""
    given = study.get("teacher")
    return str(folder / "teacher" / "student.safetensors") if isinstance(given, dict) else given


def _options(study: dict[str, Any], method: str) -> dict[str, dict[str, Any]]:
    """The file's options for the method's terms, over those that were tuned for the data."""
    terms, given = method_terms(method), study.get("method_options", {})
    return choose_options(terms, study["data"], {term: given[term] for term in terms if term in given})


def variant_folder(name: str) -> str:
    """What the folder of a study's variant is called: its name, with - for all that is awkward in a path."""
    return re.sub(r"[^\w.+-]+", "-", name).strip("-.")
