"""Run a study: train the runs of its file (see `plan`) that are not finished, and record the results.

Runs are in RUNS/STUDY[/VARIANT]/BACKBONE/METHOD/seedK, the teacher that a study trains in RUNS/STUDY/teacher. Each is
trained in a process of its own, resumed where it was begun, and left alone where it is finished, so that the same
command goes on after any interruption. Runs that could not be in one table are refused before anything is trained.

Machines that share a disk divide a study: shard K/N is every N-th run of the plan from the K-th on. The first shard
trains and scores the teacher. All shards write one record, each time with all that is finished.
"""

import datetime
import json
from collections.abc import Mapping
from dataclasses import asdict
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from distill.data.folders import open_dataset, scored_splits
from distill.data.unlabelled import WithUnlabelled
from distill.errors import DistillError, Interrupted, check_number
from distill.files import PROJECT, checked, make_folder, read_json, write_json
from distill.lab.comparison import STUDY_FILE, Findings, rows_of
from distill.lab.plan import Planned, load_study, plan, plan_teacher, teacher_source
from distill.lab.pool import Job, progress_bar, run_all, slots
from distill.lab.study_file import StudyFile
from distill.lab.tables import RecordedTeacher, check_comparable, described, machine_of, read_study, record
from distill.methods import check_known_elsewhere, code_of, method_terms, with_every_option
from distill.networks.teachers import fingerprint, load_teacher
from distill.training.evaluation import check_classes, evaluate
from distill.training.parallel import pick_device
from distill.training.presets import make_student
from distill.training.runs import Run, name_of

# What may change a score.
_SAME = ("python", "torch", "torchvision", "system", "processor", "cores", "threads", "device")


class Study:
    """A study file, the folder of its runs, and the file with its record.

    `runs` is the folder of all studies' runs, by default `runs` of the clone, or of the working folder. `results` is by
    default results/STUDY.json of the clone for a file in its studies/, else results.json beside the runs. `own` are
    the runs that are trained here: all, or those of the `shard`, which is a text such as "1/3", or those with a name
    like `only`, a pattern such as `resnet18/*`. With `keep_recorded`, runs that the record holds are not trained again,
    though their folders are not here.
    """

    def __init__(
        self,
        path: str | Path,
        runs: str | Path | None = None,
        results: str | Path | None = None,
        data_root: str | Path | None = None,
        device: str = "auto",
        shard: str | None = None,
        keep_recorded: bool = False,
        only: str | None = None,
    ) -> None:
        data_root = None if data_root is None else str(data_root)  # which JSON can hold
        self.path, self.device, self.data_root = Path(path), device, data_root
        self.content = load_study(self.path)
        clone = PROJECT if (PROJECT / "pyproject.toml").exists() else Path()
        self.folder = Path(runs or clone / "runs") / self.path.stem
        recorded = self.path.resolve().parent == PROJECT / "studies" and (PROJECT / "results").is_dir()
        usual = PROJECT / "results" / f"{self.path.stem}.json" if recorded else self.folder / "results.json"
        self.results = Path(results or usual)
        self.teacher_run = plan_teacher(self.content, self.folder, data_root, device)
        self.runs = plan(self.content, self.folder, data_root, device)
        self.number, self.of = _shard(shard, len(self.runs)) if shard is not None else (1, 1)
        part = _parts(self.content, self.runs, self.of)
        self.chosen = [run for run in self.runs if fnmatchcase(run.name, only or "*") or run.name == only]
        self.own = [run for run in self.chosen if part[run.folder] == self.number - 1]
        if self.chosen and not self.own:
            raise DistillError(f"no run with a name like {only} is in shard {shard} of {self.path}; give another shard")
        if not self.own:
            raise DistillError(
                f"no run of {self.path} has a name like {only}; names are such as {self.runs[0].name}, patterns such "
                "as 'resnet18/*'"
            )
        self.shard = shard
        self.before, self.keep_recorded = self._recorded(), keep_recorded
        self.records: dict[Path, dict[str, Any]] = self._kept() if keep_recorded else {}
        self.environments: list[dict[str, Any]] = _environments(self.before) if self.records else []
        self.is_recorded = False
        self.weights: str | None = None  # the teacher's fingerprint
        self.scored_on: dict[str, str] | None = None  # the images' fingerprints by split
        self.image_size: list[int] | None = None

    def _recorded(self) -> dict[str, Any]:
        known = self.results.exists()
        return checked(read_json(self.results), dict[str, Any], self.results, "a record") if known else {}

    def _kept(self) -> dict[Path, dict[str, Any]]:
        """By their folders, the runs of the plan that the record holds and that are not here."""
        if self.before:
            read_study(self.results)  # which checks it; the marks that it adds do not belong into the file
        known = {_key(entry): entry for entry in self.before.get("runs", ())}
        there = {run.folder: known.get(_key_of(run)) for run in self.runs if not run.begun}
        return {folder: entry for folder, entry in there.items() if entry is not None}

    def done(self, run: Planned) -> bool:
        return run.finished or run.folder in self.records

    @property
    def root(self) -> str | None:
        return self.data_root or self.content.data_root

    def run(self, jobs: int | None = None, threads: int | None = None) -> Findings:
        """Train what is missing, `jobs` runs at a time (default: one per GPU, or one per core), and record it.

        `threads` are each run's, on the CPU 1 by default. Raises DistillError when a run fails, and Interrupted at
        Ctrl-C; what was finished by then is recorded.
        """
        check_known_elsewhere(run.keywords["method"] for run in self.runs)
        self._check_nothing_is_lost()
        places = slots(self.device, jobs)
        if threads is not None:
            check_number("threads", threads, 1, 1000)
            threads = int(threads)
        elif pick_device(self.device).type == "cpu":
            threads = 1
        self._check_teacher_is_there()
        everything = [*self._own_teacher(), *self.own]
        make_folder(self.folder)
        if self.keep_recorded and all(map(self.done, self.runs)):
            self.check()
            self.record()
            return self.findings()
        self._look_at_data()
        total = sum(run.settings.epochs for run in everything)
        done = sum(run.settings.epochs for run in everything if self.done(run))
        log = "failed.txt" if self.shard is None else f"failed-{self.number}.txt"
        try:
            with progress_bar(total, done) as bar:
                for stage in (self._first_jobs, self._jobs):
                    run_all(stage(), places, threads, bar, self.folder / log)
        except KeyboardInterrupt:
            raise Interrupted(f"the study was interrupted {self._so_far()}") from None
        self.record()
        return self.findings()

    def _check_nothing_is_lost(self) -> None:
        """Before a study file that names fewer runs than it did takes the others out of the record."""
        planned = {_key_of(run): name_of(run.keywords["data"]) for run in self.runs}
        there = read_study(self.results)[0] if self.before else []  # which says what is wrong with a damaged one
        lost = [entry for entry in there if _key(entry) not in planned]
        if lost:
            variant, backbone, method, seed = _key(lost[0])
            name = "/".join([*([variant] if variant else []), backbone, method, f"seed{seed}"])
            raise DistillError(
                f"{self.results} records {len(lost)} runs that {self.path} does not name, such as {name}; give another "
                f"file with --results"
            )
        if other := next((entry["data"] for entry in there if entry["data"] != planned[_key(entry)]), None):
            raise DistillError(
                f"{self.results} records runs on {other}, and {self.path} asks for {self.content.data}; give another "
                f"file with --results"
            )

    def _so_far(self) -> str:
        """Record what there is, and say how much it is."""
        self.record()
        return f"after {sum(map(self.done, self.own))} of {len(self.own)} runs; the same command continues"

    def _own_teacher(self) -> list[Planned]:
        teacher = self.teacher_run
        if teacher is None or self.number > 1:
            return []
        taught = any(run.keywords["teacher"] and not self.done(run) for run in self.chosen)
        return [teacher] if teacher.finished or taught else []

    def _check_teacher_is_there(self) -> None:
        if all(map(self.done, self.own)):
            return
        if self.number > 1 and self.teacher_run is not None and not self.teacher_run.finished:
            first = f"--shard 1/{self.of}"
            raise DistillError(
                f"the teacher of the study {self.path} is not trained yet, and shard {self.shard} does not train it; "
                f"train the teacher first with {first}, and start this shard when {self.teacher_run.folder} is finished"
            )

    def _look_at_data(self) -> None:
        """Before all processes do, of which several would make the sample; and its size, for figures."""
        if self.teacher_run is not None:
            asked = self.teacher_run.keywords
            open_dataset(asked["data"], "train", asked["data_root"])
        image, _ = open_dataset(self.content.data, "val", self.root)[0]
        self.image_size = list(image.shape[-2:])

    def _first_jobs(self) -> list[Job]:
        return [self._job(run, "teacher") for run in self._own_teacher() if not run.finished]

    def _jobs(self) -> list[Job]:
        """Scoring the teacher, which takes no epochs, and then the runs that are not finished."""
        jobs = []
        source = teacher_source(self.content, self.folder)
        there = self.teacher_run is None or self.teacher_run.finished  # not where nothing is left to be taught
        if source is not None and there and any(run.keywords["teacher"] for run in self.chosen):
            teacher = load_teacher(source)
            check_classes("teacher", teacher, open_dataset(self.content.data, "train", self.root))
            self.weights, self.scored_on = fingerprint(teacher), _images(self.content.data, self.root)
            if self.number == 1 and self._teacher_scores() is None:
                asked = {"source": source, "data": self.content.data, "data_root": self.root}
                asked |= {"device": pick_device(self.device).type, "out": str(self.folder / "teacher.json")}
                jobs.append(Job("scoring the teacher", "distill.lab.study.score_teacher", asked))
        self.check()
        self.record()
        return jobs + [self._job(run, run.name) for run in self.own if not self.done(run)]

    def _job(self, run: Planned, name: str) -> Job:
        def finished() -> None:
            score = Run(run.folder).scores
            split = "test" if "test" in score else "val"
            tqdm.write(f"{name}: {split} mIoU {100 * score[split]['miou']:.2f}")
            self.record()

        return Job(name, "distill.training.loop.fit", run.keywords, run.settings.epochs, run.epochs, finished)

    def check(self) -> None:
        """DistillError where runs that are there differ from each other, or from the file, in more than they may."""
        there = [(run, described(Run(run.folder)) | {"variant": run.variant}) for run in self.runs if run.begun]
        there += [(run, self.records[run.folder]) for run in self.runs if not run.begun and run.folder in self.records]
        asked = {name: self._asked(run) for name, run in {run.variant: run for run in self.runs}.items()}
        variants = self.content.as_written().get("variants", [])
        findings = Findings([*asked.values(), *(entry for _, entry in there)], variants)
        for variant in asked:
            rows_of(findings, variant)
        for run, entry in there:
            self._check_network(run, entry)
            options = _options_of(run)
            every = with_every_option(entry["terms"])
            found = {term: {name: every.get(term, {}).get(name) for name in own} for term, own in options.items()}
            asked_for = {"terms": options, "code": code_of(method_terms(run.keywords["method"]))}
            check_comparable([entry | asked_for | {"name": f"the study {self.path}"}, entry | {"terms": found}])
        teacher = self.teacher_run
        if teacher is not None and teacher.begun:
            self._check_network(teacher, described(Run(teacher.folder)))
            check_comparable([self._asked(teacher), described(Run(teacher.folder)) | {"name": "its teacher's run"}])

    def _check_network(self, run: Planned, entry: dict[str, Any]) -> None:
        """DistillError where a run that is there has another network or seed than the file asks for."""
        asked, model = run.keywords, entry.get("model") or {}
        pairs = {"seed": (entry.get("seed"), asked["seed"]), "backbone": (entry.get("backbone"), asked["student"])}
        if "initial_weights" in entry:  # older runs do not say
            pairs["initial weights"] = (entry["initial_weights"], asked["weights"] or "random")
        if model.get("backbone") == asked["student"]:
            shape = asked["student"], model["num_classes"], asked["preset"], run.settings.output_stride, asked["width"]
            pairs |= {f"model's {key}": (model.get(key), value) for key, value in _model_config(*shape).items()}
        for name, (found, value) in pairs.items():
            if found not in (None, value):
                raise DistillError(
                    f"{run.folder} holds a run whose {name} is {found}, and {self.path} asks for {value}; give another "
                    f"folder with --runs, or delete this one"
                )

    def _asked(self, run: Planned) -> dict[str, Any]:
        """What the file says about all runs of a variant, as a record does."""
        asked = run.keywords
        known: dict[str, Any] = {}
        if self.image_size is not None:  # the data were looked at
            train = open_dataset(asked["data"], "train", asked["data_root"], asked["limit"])
            val = open_dataset(asked["data"], "val", asked["data_root"])
            known |= {"images": len(train), "class_names": list(train.class_names)}
            if asked["unlabelled"]:
                train = WithUnlabelled(train, asked["unlabelled"])
                known["unlabelled"] = len(train.extra)
            known["content"] = {"train": train.fingerprint(), "val": val.fingerprint()}
        return {
            "name": f"the study {self.path}",
            "variant": run.variant,
            "method": "",
            "data": name_of(asked["data"]),
            "preset": asked["preset"],
            **known,
            "teacher": {"weights": self.weights},
            "settings": asdict(run.settings),
        }

    def to_do(self) -> str:
        """What `run` would do, in order, and what is there."""
        self.check()
        lines = [(run, "teacher") for run in self._own_teacher()] + [(run, run.name) for run in self.own]
        finished, begun = sum(map(self.done, self.own)), sum(run.begun or self.done(run) for run in self.own)
        where = f"{self.folder}, shard {self.shard}" if self.shard is not None else self.folder
        head = f"{where}: {len(self.own)} runs, {finished} of them finished, {begun - finished} begun"
        return "\n".join([head, *(f"{self._state(run):>18}  {name}" for run, name in lines)])

    def _state(self, run: Planned) -> str:
        if self.done(run):
            return "finished"
        return f"{run.epochs()} of {run.settings.epochs} epochs" if run.begun else f"{run.settings.epochs} epochs"

    # ------------------------------------------------------------------------------------------ the record

    def findings(self) -> Findings:
        findings = Findings()
        findings.add(self._finished(), self._described(), self.path)
        return findings

    def record(self) -> None:
        """Write what is finished, and beside the runs what the study is.

        A record with runs that are not there yet, such as one that came with the clone, stays until all are there.
        """
        found = self._finished(), self._described()
        self._write(*found)
        # Another shard may have written in between, and this one an older record over its newer one. As whoever writes
        # looks again afterwards, the last record written has all that is finished.
        while found != (again := (self._finished(), self._described())):
            self._write(*again)
            found = again

    def _write(self, runs: list[dict[str, Any]], described: dict[str, Any]) -> None:
        write_json(self.folder / STUDY_FILE, described)
        before, there = (set(map(_key, found)) for found in (self.before.get("runs", ()), runs))
        self.is_recorded = bool(runs) and (len(runs) == len(self.runs) or before <= there)
        if not self.is_recorded:
            return
        content = {
            "command": self._command(),
            "date": datetime.date.today().isoformat(),
            "environment": self.environments[0],
            **({"environments": self.environments} if len(self.environments) > 1 else {}),
            **described,
        }
        kept = {key: value for key, value in self.before.items() if key not in (*content, "environments", "runs")}
        whole = {**content, **kept, "runs": runs}
        if {**json.loads(json.dumps(whole)), "date": ""} == {**self.before, "date": ""}:
            return  # nothing is new, nor is the date
        make_folder(self.results.parent)
        write_json(self.results, whole)

    def _command(self) -> str:
        own = code_of(term for run in self.runs for term in method_terms(run.keywords["method"]))
        return f"python -m distill study {self._shown_path()}{' --own-methods FILE' if own else ''}"

    def _shown_path(self) -> str:
        path = self.path.resolve()
        return path.relative_to(PROJECT).as_posix() if path.is_relative_to(PROJECT) else path.name

    def _described(self) -> dict[str, Any]:
        size = self.image_size or (self.before.get("image_size") if self.keep_recorded else None)
        return {"study": self.content.as_written(), "image_size": size, "teacher": self._teacher_scores()}

    def _teacher_scores(self) -> dict[str, Any] | None:
        """What `score_teacher` found, if it was this teacher."""
        path = self.folder / "teacher.json"
        found = checked(read_json(path), RecordedTeacher, path, "a teacher's scores") if path.exists() else None
        recorded = self.before.get("teacher") if self.keep_recorded else None
        return next((one for one in (found, recorded) if one and self._is_of_this_teacher(one)), None)

    def _is_of_this_teacher(self, scores: Mapping[str, Any]) -> bool:
        """As far as is known: teacher and data may not have been looked at yet, and old files do not say the data."""
        alike = self.weights in (None, scores.get("weights"))
        return alike and (None in (self.scored_on, scores.get("images")) or self.scored_on == scores["images"])

    def _finished(self) -> list[dict[str, Any]]:
        for run in self.runs:
            if run.finished and run.folder not in self.records:
                done = Run(run.folder)
                self.records[run.folder] = {"variant": run.variant} | record(done)
                surroundings = done.environment
                alike = [{key: there.get(key) for key in _SAME} for there in self.environments]
                if {key: surroundings.get(key) for key in _SAME} not in alike:
                    self.environments.append(surroundings)
        # Records that do not say their machine get that of the study, once there is another one.
        known = machine_of(self.before) if len(self.environments) > 1 else {}
        return [known | self.records[run.folder] for run in self.runs if run.folder in self.records]


@cache
def _model_config(student: str, classes: int, preset: str, stride: int, width: float) -> dict[str, Any]:
    config = make_student(student, classes, preset, stride, width=width).config
    return dict(json.loads(json.dumps(config)))  # as a record has it


def _shard(text: str, runs: int) -> tuple[int, int]:
    """K and N of "K/N". Raises DistillError where a study of so many runs has no such shard."""
    number, slash, of = text.partition("/")
    if not (slash and number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of) <= runs):
        raise DistillError(
            f"the shard is {text!r}, and the study has {runs} runs; give K/N, such as 1/2, with K from 1 to N and N at "
            f"most {runs}"
        )
    return int(number), int(of)


def _parts(study: StudyFile, runs: list[Planned], of: int) -> dict[Path, int]:
    """By a run's folder the number of its shard, from 0.

    Runs that are compared stay together, because seconds of two machines cannot be: all methods of a student and seed.
    Where there are fewer of these than shards, every run is dealt out by itself.
    """
    lent = any(variant.baseline for variant in study.variants)
    compared = {
        run.folder: ("" if lent else run.variant, run.keywords["student"], run.keywords["seed"]) for run in runs
    }
    places = {key: place for place, key in enumerate(dict.fromkeys(compared.values()))}
    if len(places) < of:
        return {run.folder: place % of for place, run in enumerate(runs)}
    return {folder: places[key] % of for folder, key in compared.items()}


def _options_of(run: Planned) -> dict[str, dict[str, Any]]:
    """Every option that a run's terms get, as a record has it, but for those that the network decides (None)."""
    every = json.loads(json.dumps(with_every_option(run.keywords["method_options"] or {})))
    return {term: {name: value for name, value in own.items() if value is not None} for term, own in every.items()}


def _key(entry: dict[str, Any]) -> tuple[Any, ...]:
    return entry.get("variant") or "", entry["backbone"], entry["method"], entry["seed"]


def _key_of(run: Planned) -> tuple[Any, ...]:
    return run.variant, *(run.keywords[name] for name in ("student", "method", "seed"))


def _environments(record: dict[str, Any]) -> list[dict[str, Any]]:
    return list(record.get("environments") or [record.get("environment", {})])


def score_teacher(source: str, data: str, data_root: str | None, device: str, out: str) -> None:
    """Score a teacher on val and, where there is one, on test, as a run is, and write that to the file `out`."""
    teacher = load_teacher(source, device)
    scores = {split: evaluate(teacher, dataset).to_json() for split, dataset in scored_splits(data, data_root)}
    split = "test" if "test" in scores else "val"
    content = {
        "miou": scores[split]["miou"],
        "val_miou": scores["val"]["miou"],
        "per_class_iou": scores[split]["per_class_iou"],
        "parameters": sum(parameter.numel() for parameter in teacher.parameters()),
        "split": split,
        "weights": fingerprint(teacher),
        "images": _images(data, data_root),
    }
    write_json(Path(out), content)


def _images(data: str, data_root: str | None) -> dict[str, str]:
    """The fingerprints of the splits that are scored."""
    return {split: dataset.fingerprint() for split, dataset in scored_splits(data, data_root)}
