"""Sections of results/README.md, one function each; see report.py. Those of larger studies have files of their own."""

from statistics import median

from distill.lab import latency
from distill.lab.curves import interval95, late_rise, twice_as_long
from distill.lab.tables import compare, markdown_table, plus_minus, read_study, results_file, seconds_of
from distill.show import charts
from studies.shared import gain_of, over_longer, read, recorded_on, said, tried_alone


def schedule() -> str:
    """How much of a baseline is its settings: the runs that chose them."""
    runs = read("sample-schedule.json")["runs"]
    lines = [
        "| images | epochs | decay | rate | batch | views | mIoU, val | rise in the last quarter "
        "| added by twice the epochs | mIoU, test | seconds |",
        f"|{'---|' * 11}",
    ]
    for run in sorted(runs, key=lambda run: (run["images"], run["settings"]["epochs"])):
        own, twice = run["settings"], twice_as_long(run, runs)
        cells = [run["images"], own["epochs"], f"{own['weight_decay']:g}", f"{own['lr']:g}", own["batch_size"]]
        cells += [own["augment"]]
        cells += [f"{100 * run['val_miou']:.1f}", f"{100 * (late_rise(run) or 0):+.1f}"]
        cells += ["" if twice is None else f"{100 * twice:+.1f}", f"{100 * run['miou']:.1f}"]
        lines.append(f"| {' | '.join(map(str, cells))} | {run['cpu_seconds']:.0f} |")
    run = {run["variant"]: run for run in runs}
    usual, other = (100 * run[name]["val_miou"] for name in ("186 epochs", "186 epochs, decay 0.3"))
    short, longest = (100 * run[f"500 labels, {epochs} epochs"]["val_miou"] for epochs in (96, 192))
    best = max(100 * one["val_miou"] for name, one in run.items() if name.startswith("500 labels, 96 epochs, "))
    longer = [
        f"{2 * epochs} epochs instead of {epochs} add "
        f"{100 * twice_as_long(run[f'500 labels, {epochs} epochs'], runs):.1f} points on val and "
        f"{100 * twice_as_long(run[f'500 labels, {epochs} epochs'], runs, 'miou'):.1f} on test"
        for epochs in (96, 192)
    ]
    head = (
        f"A setting can be worth more than a teacher. {charts.network_name('resnet18')} on the first 128 images "
        f"reaches {usual:.1f} mIoU on val in 186 epochs with the sample's usual weight decay, 0.02, and {other:.1f} "
        f"with 0.3. All rows are the baseline alone, one run each, with a seed that the tables of gains do not use. "
        f"The rate falls to zero along a cosine, and scores usually rise as it does; a rise at the end is therefore no "
        f"proof that a run was too short, and a flat end none that it was long enough. Twice the epochs are the better "
        f"test. On all 500 images, {' and '.join(longer)}, in one run each. Of other rates, batches and decays in 96 "
        f"epochs the best has {best:.1f} on val, where the usual one has {short:.1f} and 192 epochs {longest:.1f}. The "
        f"main study has 96."
    )
    return "\n\n".join(["## sample-schedule: what is the baseline worth?", head, "\n".join(lines)])


def small_schedule() -> str:
    """The runs that looked for better settings of the smallest student's baseline."""
    study = read("student-size-schedule.json")
    usual = next(run["settings"] for run in study["runs"] if run["variant"] == "96 epochs")
    lines = tried_alone("setting", sorted(study["runs"], key=lambda run: -run["val_miou"]))
    head = (
        f"## student-size-schedule: the settings of the smallest baseline\n\n{study['study']['about']} One run each, "
        f"on val, with a seed that no table reports; unless the row says otherwise {usual['epochs']} epochs, decay "
        f"{usual['weight_decay']:g}, rate {usual['lr']:g} and batches of {usual['batch_size']}."
    )
    return "\n\n".join([head, "\n".join(lines), recorded_on(study)])


def speed() -> str:
    study, teacher = read("speed.json"), read("teacher.json")
    run = study["runs"][0]
    teacher_miou, teacher_images = study["teacher"]["miou"], teacher["config"]["images"]
    head = (
        f"## speed: the same students after 24 epochs\n\n"
        f"Sample data, test split; {run['images']} training images, {run['samples']:,} samples per run. The teacher, "
        f"trained on {teacher_images:,} images, has **{100 * teacher_miou:.1f}** mIoU. Mean and 95 % interval over "
        f"seeds, in points. The gap is that between baseline and teacher."
    )
    rows = compare(*read_study(results_file("speed.json")))
    tuned = dict.fromkeys(run["method"] for run in read("speed-weights.json")["runs"] if run["method"] != "baseline")
    foot = (
        f"{recorded_on(study)} The seconds of runs of equal work differ by up to a factor of "
        f"{_spread(study['runs']):.1f}. The weights of {', '.join(tuned)} were chosen on the val split with another "
        f"seed, from equally many candidates ([speed-weights.json](speed-weights.json))."
    )
    return f"{head}\n\n{markdown_table(rows)}\n\n{foot}\n\n![Gain of every method over the baseline](speed-gains.png)"


def _spread(runs: list[dict]) -> float:
    """The longest of several runs of equal work over the shortest, in the row where this is largest."""
    rows: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        rows.setdefault((run["backbone"], run["method"]), []).append(run["seconds"])
    return max(max(seconds) / min(seconds) for seconds in rows.values())


def reading() -> str:
    """What the short study says, and whether it is about speed or about what is reached."""
    rows = compare(*read_study(results_file("speed.json")))
    longer = {row["backbone"]: row for row in compare(read("sample.json")["runs"]) if row["method"] == "baseline"}
    later = [
        f"the baseline of {charts.network_name(row['backbone'])} from {100 * row['miou']:.1f} to "
        f"{100 * longer[row['backbone']]['miou']:.1f}"
        for row in rows
        if row["method"] == "baseline" and row["backbone"] in longer
    ]
    epochs = next(iter(longer.values()))["epochs"]
    return (
        f"{said(rows)} **These gains are about speed**: {epochs} epochs instead of {rows[0]['epochs']} take "
        f"{' and '.join(later)}. Nothing here says that a student becomes better with a teacher when it is trained to "
        f"the end."
    )


def sakd() -> str:
    """SAKD by weight and by variant, each against the baseline of the same seed and schedule."""
    tried = read("speed-weights.json")["runs"]
    short = {run["backbone"]: run["val_miou"] for run in tried if run["method"] == "baseline" and run["epochs"] == 12}
    scores: dict[str, dict[str, float]] = {}
    for run in tried:
        if run["method"] == "sakd":
            scores.setdefault(f"weight {run['value']:g}", {})[run["backbone"]] = run["val_miou"]
    for run in read("sample-sakd.json")["runs"]:
        scores.setdefault(f"weight 150, {run['variant']}", {})[run["backbone"]] = run["val_miou"]
    lines = [f"| SAKD, half schedule | {' | '.join(short)} |", f"|---|{'---|' * len(short)}"]
    for name, row in scores.items():
        gains = [f"{100 * (row[backbone] - miou):+.1f}" for backbone, miou in short.items()]
        lines.append(f"| {name} | {' | '.join(gains)} |")
    head = (
        "### SAKD by weight, schedule and positions\n\nGain over the baseline on val, with one seed and half the "
        "schedule each, so differences of a few points are noise. 150 is the published weight."
    )
    return head + "\n\n" + "\n".join(lines)


def controls() -> str:
    lines = [
        f"- {control['what']}: {100 * control['miou']:.1f}" for control in read("sample-controls.json")["controls"]
    ]
    head = (
        "### Size and images, after 750 steps\n\nTest mIoU, one run each, same trainer, as many steps as in this "
        "study. No network has converged by then, so this does not tell what the gap after many epochs consists of:"
    )
    return head + "\n\n" + "\n".join(lines)


def as_long(name: str) -> str:
    """Have the baselines of a study converged, and what is left of the gains once they train twice as long?"""
    lines = ["| student | method | epochs | processor seconds | mIoU | lead over the longer baseline | seeds |"]
    lines.append(f"|{'---|' * 7}")
    rows = over_longer(name)
    several = len({machine for row in rows for machine in row["seconds_on"]}) > 1
    for row in rows:
        miou = plus_minus(sum(row["scores"]) / len(row["scores"]), interval95(row["scores"]))
        seconds = seconds_of(row["seconds_on"]) if several else f"{row['seconds']:.0f}"
        cells = [row["backbone"], row["method"], row["epochs"], seconds, miou, gain_of(row)]
        lines.append(f"| {' | '.join(map(str, cells))} | {len(row['scores'])} |")
    methods = {run["method"] for run in read(f"{name}-long.json")["runs"]}
    head = (
        "**Would the baseline gain as much by training longer?** Its epochs twice, a whole schedule of their own, for "
        "about twice the seconds, and over that longer baseline the lead of every row, of the seeds that both have"
        + ("" if len(methods) == 1 else ". Which method got twice the epochs too was decided on val")
        + ":"
    )
    return head + "\n\n" + "\n".join(lines)


def weights(name: str = "sample", where: str = "val") -> str:
    """The runs that chose the weights of a study, scored on the images that `where` says."""
    runs, of_seeds = read(f"{name}-weights.json")["runs"], {}
    for run in (run for run in read(f"{name}.json")["runs"] if run["method"] == "baseline"):
        of_seeds.setdefault(run["backbone"], []).append(100 * run["val_miou"])
    spread = max(max(scores) - min(scores) for scores in of_seeds.values())
    alone = next(run for run in runs if run["method"] == "baseline")
    lines = [f"| method | weight: mIoU on {where} |", "|---|---|"]
    edge, far, below = [], [], []
    for method in dict.fromkeys(run["method"] for run in runs if run is not alone):
        tried = [run for run in runs if run["method"] == method]
        best = max(tried, key=lambda run: run["val_miou"])
        cells = [f"{run['terms'][method]['weight']:g}: {100 * run['val_miou']:.1f}" for run in tried]
        marked = [f"**{c}**" if run is best else c for run, c in zip(tried, cells, strict=True)]
        lines.append(f"| {method} | {', '.join(marked)} |")
        edge += [method] if best is min(tried, key=lambda run, m=method: run["terms"][m]["weight"]) else []
        far += [method] if best is max(tried, key=lambda run, m=method: run["terms"][m]["weight"]) else []
        below += [method] if round(best["val_miou"], 3) < round(alone["val_miou"], 3) else []  # as printed
    methods = dict.fromkeys(run["method"] for run in runs if run is not alone)
    head = (
        f"The weights of {', '.join(methods)} were chosen on {where}, with a seed that no table reports and equally "
        f"many candidates for each: {charts.network_name(alone['backbone'])}, {alone['settings']['epochs']} epochs, "
        f"one run per weight. The baseline of that seed has {100 * alone['val_miou']:.1f}. Baselines of the study that "
        f"differ in nothing but the seed lie up to {spread:.1f} points apart, so smaller differences decide nothing. "
        f"{_beyond(edge, far)} For {' and '.join(below) or 'no method'} every weight tried scores below the baseline."
    )
    return head + "\n\n" + "\n".join(lines)


def _beyond(smallest: list[str], largest: list[str]) -> str:
    """Methods whose best weight is at the edge of those tried."""
    sides = {"smallest": smallest, "largest": largest}
    said = [f"the {side} weight tried was best for {' and '.join(names)}" for side, names in sides.items() if names]
    if not said:
        return "For no method was the smallest or the largest weight best."
    return f"{', '.join(said).capitalize()}; a better one may lie beyond."


def page() -> str:
    """The page of `make page`: what it weighs, how fast it is, and whether it says what Python says."""
    record = read("page.json")
    environment, size = record["environment"], record["bytes"]
    visits, agreement = record["visits"].values(), record["agreement"]
    columns = [f"ms, {visit['threads']}" for visit in visits]
    lines = [f"| network | MB to load | {' | '.join(columns)} | as onnxruntime, % | as PyTorch, % |"]
    lines.append(f"|---|---|{'---|' * len(columns)}---|---|")
    for name, weight in size["networks"].items():
        times = [visit["milliseconds"][name] for visit in visits]
        cells = [f"{weight / 1e6:.1f}", *(f"{time['median']:.1f} ({time['least']:.1f})" for time in times)]
        cells += [f"{100 * agreement[name][other]['mean']:.3f}" for other in ("onnxruntime", "pytorch")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    least = min(shares["least"] for network in agreement.values() for shares in network.values())
    loads = [f"{median(visit['load_seconds']):.1f} s with {visit['threads']}" for visit in visits]
    head = (
        f"The page of `make page` loads {size['all'] / 1e6:.1f} MB in all, {size['runtime'] / 1e6:.1f} of them "
        f"{record['runtime']}, and is ready after {' and '.join(loads)} (median of "
        f"{len(next(iter(visits))['load_seconds'])} loads, from a server on the same machine). Per network: the median "
        f"of one pass over an image of 64 x 64 pixels, in brackets the shortest, and the share of the pixels of "
        f"{record['scenes']} test scenes that get the same class from onnxruntime in Python, from the same file, and "
        f"from PyTorch, from the shipped weights; in the worst image {100 * least:.3f} %. The "
        f"student alone takes fewer MB because its weight decay left most of its weights at zero, which packs well."
    )
    busy = f" Other programs ran too (load average {record['load_average']}), so the times are too long."
    foot = (
        f"Recorded {record['date']} on {environment['cores']} cores of an {environment['processor']}, "
        f"{record['browser']}, onnxruntime {record['packages']['onnxruntime']}, PyTorch {environment['torch']}."
        f"{busy if record['load_average'] > environment['cores'] else ''}"
    )
    return "\n\n".join(["## page: the networks in a browser", head, "\n".join(lines), foot])


def exported() -> str:
    """What is lost by exporting, and what is gained."""
    record = read("export.json")
    lines = [
        "| network | trained | precision | pixels as in PyTorch | mIoU, val | in PyTorch | file, MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, network in record["networks"].items():
        for way, found in network["files"].items():
            cells = [charts.network_name(name), network["trained"], {"onnx": "float32"}.get(way, way)]
            cells += [f"{100 * found['agreement']:.2f} %", f"{100 * found['miou']:.2f}"]
            cells += [f"{100 * found['miou_pytorch']:.2f}", f"{found['bytes'] / 1e6:.2f}"]
            lines.append(f"| {' | '.join(cells)} |")
    most = max(network["files"]["onnx"]["max_difference"] for network in record["networks"].values())
    first = next(iter(record["networks"].values()))["files"]
    height, width = record["size"]
    machine, busy = record["environment"], max(record["load_average"])
    head = (
        f"## export: networks in files of their own\n\nEach network as an ONNX file (opset {first['onnx']['opset']}) "
        f"for images of {height} x {width} pixels, and quantised to int8, compared with PyTorch on "
        f"{first['int8']['images']} images of the sample's val split. The float32 files' logits differ from PyTorch's "
        f"by at most {most:.0e}. Networks that were trained for a few epochs only show what export does to them, not "
        f"how good they can be."
    )
    foot = (
        f"One image, warm, on {machine['cores']} cores of an {machine['processor']}: median and middle half of the "
        f"times, and by how much a process grows that loads the network and answers once. PyTorch {machine['torch']}, "
        f"ONNX Runtime {machine['onnxruntime']}, {record['date']}; `compiled` is torch.compile; where there is no "
        f"file, its size is that of the weights in memory."
    )
    if "note" in record:
        foot += f" {record['note']}"
    elif busy > machine["cores"] + 0.5:  # the script itself keeps the cores busy
        foot += f" Other programs kept the machine busy (load average {busy:.0f}), so these times are too long."
    foot += _threads_worth(record)
    table = latency.table(
        {charts.network_name(name): network["latency"] for name, network in record["networks"].items()}
    )
    alt = "mIoU against milliseconds per image and against megabytes: each network in PyTorch, ONNX and int8."
    return "\n\n".join([head, "\n".join(lines), f"![{alt}](export.png)", foot, table])


def _threads_worth(record: dict) -> str:
    """In how many rows more threads than one take longer than one."""
    slower, rows = 0, 0
    for network in record["networks"].values():
        times = {(row["way"], row["threads"]): row["milliseconds"] for row in network["latency"]}
        several = [(way, threads) for way, threads in times if threads > 1]
        rows += len(several)
        slower += sum(times[way, threads] > times[way, 1] for way, threads in several)
    if not slower:
        return ""
    return (
        f" In {slower} of {rows} rows the median of more than one thread is above that of one. Where its middle half "
        f"is wide, something else ran beside it; why threads do not help was not looked into. Measure before you give "
        f"a network more than one."
    )


def losses() -> str:
    """What the loss of every method costs."""
    record = read("losses.json")
    lines = [
        "| method | step, ms | loss and connectors | loss alone | kept for backward, MB |",
        "|---|---|---|---|---|",
    ]
    for row in record["steps"]:
        found = row["ours"]
        parts, step = found["parts"], found["seconds"]
        cells = [row["method"], f"{1000 * step:.0f}"]
        cells += [
            f"{parts[part] / step:.1%}" if row["method"] != "baseline" else "" for part in ("distillation", "loss")
        ]
        cells.append(f"{found['saved_for_backward_bytes'] / 1e6:.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    machine, options = record["environment"], record["options"]
    head = (
        f"### The loss of every method\n\nSlim ResNet-18, {options['batch_size']} images of {options['crop_size']} "
        f"pixels, {options['precision']}: a whole step, the teacher's pass included, and the share of it that goes to "
        f"the distillation loss, forwards and backwards, with its connectors and without. Medians of "
        f"{options['steps']} steps, {machine['threads']} threads of an {machine['processor']}, PyTorch "
        f"{machine['torch']}; `python benchmarks/losses.py`."
    )
    return "\n\n".join([head, "\n".join(lines)])


def kept_memory() -> str:
    """What a run on a CPU gains by keeping the memory that its steps free."""
    record = read("allocator.json")
    machine = record["environment"]
    lines = ["| run | seconds, as a share | system seconds | without | most memory, MB | without |", f"|{'---|' * 6}"]
    for row in record["runs"]:
        both, ratios = (row["kept"], row["usual"]), row["ratios"]
        cells = [row["run"], f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"]
        cells += [f"{one['system_seconds']:.1f}" for one in both] + [f"{one['peak_megabytes']:.0f}" for one in both]
        lines.append(f"| {' | '.join(cells)} |")
    head = (
        f"### Memory that a step frees\n\nOn Linux a run on a CPU keeps the large blocks that it frees, which glibc "
        f"would give back to the system and ask for anew (`distill/training/allocator.py`). Its processor seconds as a "
        f"share of those without: whole short runs, {record['repeats']} pairs in turns, one thread of an "
        f"{machine['processor']}, PyTorch {machine['torch']}, {record['date']}, load average "
        f"{record['load_average']:.0f}; `python benchmarks/allocator.py`. Older seconds are without."
    )
    return "\n\n".join([head, "\n".join(lines)])


def waiting_threads() -> str:
    """What it saves that threads which wait go to sleep sooner."""
    record = read("waiting.json")
    machine = record["environment"]
    lines = ["| machine | seconds | usually | ratio |", f"|{'---|' * 4}"]
    for row in record["runs"]:
        ratios = row["ratios"]
        spread = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        lines.append(f"| {row['machine']} | {row['ours']:.1f} | {row['usual']:.1f} | {spread} |")
    head = (
        f"### Threads that wait\n\nOn Linux the threads that share a convolution wait for each other in a loop, which "
        f"takes many times as long where a program of another terminal wants a processor. `import distill`, before "
        f"PyTorch is imported, lets them go to sleep sooner (`GOMP_SPINCOUNT`, unless set). Seconds of a short "
        f"run, {record['repeats']} pairs in turns, {machine['threads']} threads on {machine['cores']} cores of an "
        f"{machine['processor']}, PyTorch {machine['torch']}, {record['date']}; `python benchmarks/waiting.py`."
    )
    return "\n\n".join([head, "\n".join(lines)])


def export_points() -> list[dict]:
    """The points of `charts.export_chart`: one core."""
    points = []
    for name, network in read("export.json")["networks"].items():
        for row in network["latency"]:
            if row["threads"] == 1 and row["way"] in charts.WAYS:
                found = network["files"]["int8" if row["way"] == "int8" else "onnx"]
                miou = found["miou_pytorch"] if row["way"] == "float32" else found["miou"]
                points.append({"network": name, "miou": miou, "trained": network["trained"] == "shipped", **row})
    return points
