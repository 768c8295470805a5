"""A study's file: a TOML file that says which runs make a table::

    about = "One sentence."          teacher = "sample"                 [settings]
    data = "sample"                  students = ["resnet18"]            epochs = 12
    seeds = 3                        methods = ["baseline", "kd"]       [[variants]]
                                                                        name = "64 labels"

More keys: `data_root`, `weights`, `preset`, `recipe`, `limit`, `unlabelled` (not for baselines, which have no use for
it) and `[method_options.TERM]`, as `training.fit` takes them. `seeds` is a number or a list. A `[teacher]` table has
the teacher trained first, with the study's settings and its own. A variant may have its own `methods`, `students`,
`limit`, `unlabelled`, `recipe`, `settings`, `method_options`, a `width` of its students, an `about`, and as `baseline`
the name of the variant whose baselines its runs are compared with. Without variants there is one without a name.
"""

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from distill.data.folders import repeated
from distill.errors import DistillError, check_number, nearest
from distill.methods import METHODS, default_options, method_terms
from distill.networks.deeplab import BACKBONES
from distill.networks.timm_backbone import PREFIX

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@contextmanager
def within(place: object) -> Iterator[None]:
    """Put the place before what a DistillError says."""
    try:
        yield
    except DistillError as error:
        raise DistillError(f"{place}: {error}") from None


def variant_folder(name: str) -> str:
    """What the folder of a study's variant is called: its name, with - for all that is awkward in a path."""
    return re.sub(r"[^\w.+-]+", "-", name).strip("-.")


# --------------------------------------------------------------------------------- what values may be


def _check_names(kind: str, names: Iterable[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise DistillError(f"there is no {kind} {name!r}{nearest(name, known)}")


def _each_once(key: str, names: Iterable[object]) -> None:
    if twice := repeated(map(str, names)):
        raise DistillError(f"{key} names {twice} twice; name it once")


def _check_backbones(kind: str, names: list[str]) -> None:
    """timm's networks are known to timm, which need not be here."""
    _check_names(kind, [name for name in names if not name.startswith(PREFIX) or name == PREFIX], BACKBONES)


def _students(names: list[str]) -> list[str]:
    _check_backbones("student", names)
    _each_once("students", names)
    return names


def _methods(names: list[str]) -> list[str]:
    """Each by the one name that its terms give it, baselines first."""
    found = ["+".join(method_terms(name)) or "baseline" for name in names]
    _each_once("methods", found)
    return sorted(found, key=lambda method: method != "baseline")


def _backbone(name: str) -> str:
    _check_backbones("network", [name])
    return name


def _seeds(seeds: int | list[int]) -> int | list[int]:
    if isinstance(seeds, int):
        check_number("seeds", seeds, 1, 1000)
        return seeds
    for seed in seeds:
        check_number("a seed", seed, 0, 2**32 - 1)
    _each_once("seeds", seeds)
    return seeds


def _options(by_term: dict[str, Any]) -> dict[str, Any]:
    with_options = {name: term for name, term in METHODS.items() if term}
    _check_names("method with options", by_term, list(with_options))
    for term, options in by_term.items():
        if not isinstance(options, dict):
            raise DistillError(f"method_options.{term} is {options!r}; give a table, such as {{weight = 1.0}}")
        defaults = default_options(with_options[term])
        _check_names(f"option of {term}", options, list(defaults))
        for name, value in options.items():
            if what := _other_kind(value, defaults[name]):
                raise DistillError(f"method_options.{term}.{name} is {value!r}; give {what}")
    return by_term


def _other_kind(value: object, default: object) -> str:
    """What an option is asked to be, where its default says that `value` is not; empty where it may be."""
    if isinstance(default, bool):
        return "" if isinstance(value, bool) else "true or false"
    if isinstance(default, int | float):
        return "" if isinstance(value, int | float) and not isinstance(value, bool) else "a number"
    if isinstance(default, str):
        return "" if isinstance(value, str) else "a text"
    return "" if isinstance(value, list) or not isinstance(default, tuple | list) else "a list"


# A description is what a sentence asks for.
_TEXT, _WHOLE, _TABLE = (Field(description=words) for words in ("a text", "a whole number", "a table"))
_Text = Annotated[str, _TEXT]
_TextOrNone = Annotated[str | None, _TEXT]
_Limit = Annotated[Annotated[int, Field(ge=1)] | None, Field(description="a whole number of at least 1")]
_Options = Annotated[dict[str, Any], _TABLE]
_Texts = Annotated[list[str], Field(min_length=1, description="a list, each of it a text")]
_Students = Annotated[_Texts, AfterValidator(_students)]
_Methods = Annotated[_Texts, AfterValidator(_methods)]
_MethodOptions = Annotated[_Options, AfterValidator(_options)]


# ------------------------------------------------------------------------------------------ the tables


class _Table(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    settings: _Options = {}
    limit: _Limit = None


class Variant(_Table):
    unlabelled: _TextOrNone = None
    name: _Text = ""
    about: _Text = ""
    recipe: _Text = "matched"
    baseline: _Text = ""
    students: _Students = []
    methods: _Methods = []
    method_options: _MethodOptions = {}
    width: Annotated[float, Field(ge=0.01, le=8, description="a number from 0.01 to 8")] = 1.0


class TrainedTeacher(_Table):
    backbone: Annotated[_Text, AfterValidator(_backbone)]
    data: _Text = ""
    data_root: _TextOrNone = None
    weights: _TextOrNone = None
    seed: Annotated[int, _WHOLE, Field(ge=0, lt=2**32)] = 0


def _teacher(given: object) -> object:
    with within("teacher"):
        if given == "":
            raise DistillError('it is empty; name one, such as "sample", or leave the key out')
        return _read(TrainedTeacher, given) if isinstance(given, dict) else given


def _variants(given: object) -> object:
    if not isinstance(given, list) or not all(isinstance(table, dict) for table in given):
        return given
    variants = []
    for number, table in enumerate(given, 1):
        with within(f"variant {table.get('name', number)}"):
            variants.append(_read(Variant, table))
    return variants


def _check_borrowed(study: "StudyFile", variant: Variant, lender: Variant) -> None:
    """DistillError where a variant's runs could not be compared with another's baselines."""
    if "baseline" in variant.methods:
        raise DistillError(
            f"variant {variant.name} is compared with the baselines of {lender.name} and has baseline among its own "
            f"methods; leave one of the two out"
        )
    lent = lender.students or study.students
    if missing := [name for name in variant.students or study.students if name not in lent]:
        raise DistillError(
            f"variant {variant.name} has the student {missing[0]}, and {lender.name}, with whose baselines it is "
            f"compared, has not; add it to the students of {lender.name}, or leave it out"
        )
    if "baseline" not in (lender.methods or study.methods):
        raise DistillError(
            f"variant {variant.name} is compared with the baselines of {lender.name}, which has none; add baseline to "
            f"its methods, or name another variant"
        )
    if variant.width != lender.width:
        raise DistillError(
            f"variant {variant.name} has students of width {variant.width:g}, and the baselines of {lender.name} have "
            f"{lender.width:g}; name a variant of the same width, or none"
        )


class StudyFile(_Table):
    unlabelled: _TextOrNone = None
    data: _Text
    students: _Students
    methods: _Methods
    seeds: Annotated[
        int | Annotated[list[int], Field(min_length=1)],
        Field(description="a whole number or a list, each of it a whole number"),
        AfterValidator(_seeds),
    ]
    about: _Text = ""
    data_root: _TextOrNone = None
    weights: _TextOrNone = None
    preset: _TextOrNone = None
    recipe: _Text = "matched"
    teacher: Annotated[
        str | TrainedTeacher | None, Field(description="a text or a table"), BeforeValidator(_teacher)
    ] = None
    method_options: _MethodOptions = {}
    variants: Annotated[
        list[Variant], Field(min_length=1, description="a list, each of it a table"), BeforeValidator(_variants)
    ] = [Variant()]

    @model_validator(mode="after")
    def _variants_can_be_told_apart(self) -> "StudyFile":
        if "variants" not in self.model_fields_set:
            return self
        names = [variant.name for variant in self.variants]
        folders = [variant_folder(name).casefold() for name in names]  # not every disk tells A from a
        reserved = {*BACKBONES, "teacher", ""}
        for name, folder in zip(names, folders, strict=True):
            if folder in reserved or folders.count(folder) > 1:
                raise DistillError(f"a variant is called {name!r}; give each a name of its own, other than a network's")
        _check_names("variant", (variant.baseline for variant in self.variants if variant.baseline), names)
        for variant in self.variants:
            if variant.baseline:
                _check_borrowed(self, variant, self.variants[names.index(variant.baseline)])
        return self

    @model_validator(mode="after")
    def _methods_have_a_teacher(self) -> "StudyFile":
        methods = {*self.methods, *(method for variant in self.variants for method in variant.methods)}
        used = sorted({term for method in methods for term in method_terms(method)})
        if used and self.teacher is None:
            raise DistillError(f'teacher is missing, and {" and ".join(used)} learn from one; name it, as "sample"')
        return self

    @model_validator(mode="after")
    def _options_are_used(self) -> "StudyFile":
        of = [variant.methods or self.methods for variant in self.variants]
        tables = [("method_options", self.method_options, [name for methods in of for name in methods])]
        for variant, methods in zip(self.variants, of, strict=True):
            tables.append((f"method_options of variant {variant.name}", variant.method_options, methods))
        for where, options, methods in tables:
            terms = {term for method in methods for term in method_terms(method)}
            if unused := [term for term in options if term not in terms]:
                raise DistillError(f"{where} has {unused[0]}, and no method there has that term; leave it out")
        return self

    @property
    def every_seed(self) -> list[int]:
        return list(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds

    def as_written(self) -> dict[str, Any]:
        """What the file says, and nothing else."""
        return self.model_dump(exclude_unset=True)


# ---------------------------------------------------------------------------------------------- reading

T = TypeVar("T", bound=_Table)


def read_study_file(path: Path) -> StudyFile:
    """The content of a study file. Raises DistillError for everything in it that is not what it should be."""
    try:
        study = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # some editors begin a file with a mark
    except (OSError, ValueError) as error:  # a TOMLDecodeError is a ValueError
        reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise DistillError(f"{path} cannot be read as a study ({reason}); give a TOML file as in studies/") from None
    with within(path):
        return _read(StudyFile, study)


def _read(kind: type[T], table: dict[str, Any]) -> T:
    try:
        return kind.model_validate(table)
    except ValidationError as error:
        raise DistillError(_sentence(error, kind, table)) from None


def _sentence(error: ValidationError, kind: type[_Table], table: dict[str, Any]) -> str:
    """One fault of a table; a key that there is not comes first, as another one may be missing because of it."""
    fault = min(error.errors(include_url=False), key=lambda fault: fault["type"] != "extra_forbidden")
    if fault["type"] == "value_error":
        return str(fault["ctx"]["error"])
    key, fields = str(fault["loc"][0]), kind.model_fields
    if fault["type"] == "extra_forbidden":
        return f"there is no key {key!r}{nearest(key, fields)}"
    if fault["type"] == "missing":
        return f"{key} is missing; needed are {', '.join(name for name in fields if fields[name].is_required())}"
    return f"{key} is {table[key]!r}; give {fields[key].description}"
