"""Where does distillation help? The conditions that the literature names, as recorded: a table and a chart of each.

A method is compared with the baseline of as many epochs, and with the best of all baselines of its setting, by the mean
on val: one of twice as many epochs, which costs about twice the seconds, and where there are some of other decays. What
is ahead of that one is not only faster.
"""

from dataclasses import dataclass, field

from matplotlib.figure import Figure

from distill.files import PROJECT
from distill.show import charts
from studies.shared import average, gain_of, lead_row, read, recorded_on, score, so_far

RESULTS = PROJECT / "results"
MASKS = "teacher's masks as labels"  # the control of every loss
LONGER = "baseline, twice the epochs"
STUDENT, METHODS = "resnet18", ("kd", "ofd")
Place = tuple[str, str]  # a record in results/, without its ending, and a variant in it


@dataclass
class Setting:
    """Where its runs are, those of the longer baselines if there are any, and its baselines if elsewhere.

    `others` are baselines of other settings, by what differs; `controls` are runs that a teacher had a part in.
    """

    name: str
    runs: Place
    longer: Place | None
    baselines: Place | None = None
    others: dict[str, Place] = field(default_factory=dict)
    controls: dict[str, Place] = field(default_factory=dict)
    student: str = STUDENT

    def found(self) -> dict[str, list[dict]]:
        """Those of its runs that are recorded, by method, baselines first, each other baseline under such a name."""
        places = {"baseline": (self.baselines or self.runs, "baseline")}
        places |= {LONGER: (self.longer, "baseline")} if self.longer else {}
        places |= {f"baseline, {what}": (place, "baseline") for what, place in self.others.items()}
        places |= {method: (self.runs, method) for method in METHODS}
        places |= {what: (place, "baseline") for what, place in self.controls.items()}
        runs = {what: runs_of(place, method, self.student) for what, (place, method) in places.items()}
        return {what: own for what, own in runs.items() if own}

    def teacher(self) -> float:
        return read(f"{self.runs[0]}.json")["teacher"]["val_miou"]


@dataclass
class Condition:
    """A question and the settings that answer it; the first is that of the study `sample`."""

    record: str
    question: str
    settings: list[Setting]

    def table(self) -> str:
        lines = [
            "| setting | method | epochs | decay | processor seconds | mIoU | gain, equal epochs "
            "| lead over the best baseline | seeds |",
            f"|{'---|' * 9}",
        ]
        for setting in self.settings:
            runs = setting.found()
            for method, own in runs.items():
                lines.append(f"| {setting.name} | {' | '.join(_cells(own, runs, method))} |")
        return "\n".join(lines)

    def read_out(self) -> str:
        """What the leads over the best baselines allow to say."""
        said: dict[str, list[str]] = {"better": [], "worse": [], "not settled": []}
        for setting in self.settings:
            runs = setting.found()
            for method in (method for method in METHODS if method in runs):
                said[lead_over(runs[method], runs[best_baseline(runs)])["verdict"]].append(f"{method} ({setting.name})")
        words = {"better": "lies above zero for", "worse": "lies below zero for", "not settled": "includes zero for"}
        told = [f"{words[verdict]} {'; '.join(rows)}" for verdict, rows in said.items() if rows]
        return f"The 95 % interval of the lead over the best baseline {', '.join(told)}. {self.stopping()}"

    def stopping(self) -> str:
        """What the baselines would have if they had been stopped at the right moment, of the settings but the usual."""
        told = []
        for setting in self.settings[1:]:
            runs = setting.found()
            own = runs[best_baseline(runs)]
            more = average(own, "best_val_miou") - average(own, "val_miou")
            told.append(f"{100 * more:+.1f} ({setting.name})")
        return f"Stopped at its best epoch on val, the best baseline would there have gained {', '.join(told)} points."

    def chart(self) -> Figure:
        """mIoU on val against processor seconds, a panel for each setting."""
        histories, seconds = {}, {}
        for setting in self.settings:
            every = setting.found()
            kept = ("baseline", LONGER, best_baseline(every))  # of the baselines; more grey lines cannot be told apart
            runs = {method: own for method, own in every.items() if not method.startswith("baseline") or method in kept}
            histories[setting.name] = {method: [run["history"] for run in own] for method, own in runs.items()}
            seconds |= {(setting.name, method): average(own, "cpu_seconds") for method, own in runs.items()}
        return charts.time_chart(histories, seconds, {one.name: one.teacher() for one in self.settings})


def best_baseline(runs: dict[str, list[dict]]) -> str:
    """The name of the baselines with the highest mean on val: no choice is made on test images."""
    return max((name for name in runs if name.startswith("baseline")), key=lambda name: average(runs[name], "val_miou"))


USUAL = Setting("as in the study sample", ("sample", ""), ("sample-long", ""))
HALF, QUARTER = "half the channels", "a quarter of the channels"
NOISY = Setting(
    "three labels in ten wrong",
    ("label-noise", "three labels in ten wrong"),
    ("label-noise", "twice as long"),
    others={what: ("label-noise", what) for what in ("decay 0.1", "decay 0.3", "decay 0.1, twice as long")},
    controls={MASKS: ("teacher-masks", "")},
)
HALVED = Setting(HALF, ("student-size", HALF), ("student-size", f"{HALF}, twice as long"))
QUARTERED = Setting(
    QUARTER,
    ("student-size", QUARTER),
    ("student-size", f"{QUARTER}, twice as long"),
    others={"four times the epochs": ("student-size", f"{QUARTER}, four times as long")},
)
CROPS = Setting("crops, 192 epochs", ("patience", ""), None, others={"without crops": ("sample-long", "")})
OWN = Setting("a teacher of the same 500 images", ("own-teacher", ""), ("sample-long", ""), ("sample", ""))
CONDITIONS = [
    Condition("label-noise", "Does a teacher help where labels are wrong?", [USUAL, NOISY]),
    Condition("student-size", "Does a smaller student gain more?", [USUAL, HALVED, QUARTERED]),
    Condition("patience", "Do crops and patience help?", [USUAL, CROPS]),
    Condition("own-teacher", "Must the teacher know more than the labels?", [USUAL, OWN]),
]


def recorded() -> list[Condition]:
    return [condition for condition in CONDITIONS if (RESULTS / f"{condition.record}.json").exists()]


def section(condition: Condition) -> str:
    """What results/README.md says of a condition."""
    study = read(f"{condition.record}.json")
    head = (
        f"## {condition.record}: {condition.question}\n\n{study['study']['about']} {charts.network_name(STUDENT)}, "
        f"sample data, test split, beside the runs of the study `sample`. Methods have the weights of "
        f"that study; none was chosen anew. The best baseline of a setting is that with the highest mean on val. The "
        f"teacher has {100 * study['teacher']['miou']:.1f} mIoU"
    )
    usual = read("sample.json")["teacher"]["miou"]
    head += (
        f", and learned from {read('teacher.json')['config']['images']:,} images with right labels, these among them."
        if study["teacher"]["miou"] == usual
        else f", that of the study `sample` {100 * usual:.1f}."
    )
    head += so_far(condition.record)
    picture = f"![mIoU on validation images against processor seconds]({condition.record}.png)"
    return "\n\n".join([head, condition.table(), condition.read_out(), recorded_on(study), picture])


def runs_of(place: Place, method: str, student: str = STUDENT) -> list[dict]:
    """Of one student, by seed, so that curves and tables of several records are in the same order."""
    record, variant = place
    if not (RESULTS / f"{record}.json").is_file():
        return []
    runs = [run for run in read(f"{record}.json")["runs"] if run["backbone"] == student]
    runs = [run for run in runs if (run["variant"] or "", run["method"]) == (variant, method)]
    return sorted(runs, key=lambda run: run["seed"])


def lead_over(runs: list[dict], over: list[dict]) -> dict:
    """The row of `lead_row`, of the seeds that both have."""
    alone = {run["seed"]: run for run in over}
    return lead_row([run for run in runs if run["seed"] in alone], alone)


def _cells(own: list[dict], runs: dict[str, list[dict]], method: str) -> list[str]:
    best, settings = best_baseline(runs), own[0]["settings"]
    gain = "" if method.startswith("baseline") else gain_of(lead_over(own, runs["baseline"]))
    lead = "the best" if method == best else gain_of(lead_over(own, runs[best]))
    cells = [method, f"{settings['epochs']}", f"{settings['weight_decay']:g}"]
    cells += [f"{average(own, 'cpu_seconds'):.0f}", score(own)]
    return [*cells, gain, lead, f"{len(own)}"]
