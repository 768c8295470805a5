"""How long a network takes for one image, how large its file is, and how much memory it needs: every latency of the
project is measured by `latencies`.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.errors import DistillError, first_line, nearest
from distill.files import usable_cores
from distill.lab.export import Export, FromPixels, export, from_pixels
from distill.lab.steps import in_threads
from distill.networks.deeplab import build_model
from distill.networks.onnx_file import INPUT, OUTPUT, session_of
from distill.training.runs import Run, open_network

WAYS = ("float32", "bfloat16", "compiled", "onnx", "int8")


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one call: the median, and the quarters below and above which the others lie."""

    milliseconds: float
    low: float
    high: float


def latencies(actions: Mapping[str, Callable[[], object]], seconds: float = 1.0) -> dict[str, Latency]:
    """The time of each action once it is warm.

    They take turns, about `seconds` each in all, so that whatever else the machine does slows all of them down alike.
    The first two calls of each set things up and are not counted; at least six are.
    """
    times: dict[str, list[float]] = {name: [] for name in actions}
    for action in 2 * list(actions.values()):
        action()
    end = time.perf_counter() + seconds * len(actions)
    while min(map(len, times.values()), default=6) < 6 or time.perf_counter() < end:
        for name, action in actions.items():
            start = time.perf_counter()
            action()
            times[name].append(1000 * (time.perf_counter() - start))
    found = {name: statistics.quantiles(own, n=4) for name, own in times.items()}
    return {name: Latency(middle, low, high) for name, (low, middle, high) in found.items()}


def milliseconds(configs: Sequence[dict[str, Any]], size: tuple[int, int], seconds: float = 1.0) -> list[float]:
    """The median time that each network, built from its config, takes in PyTorch for one normalised image (H, W)."""
    networks = [build_model(**config).eval().to(memory_format=torch.channels_last) for config in configs]
    image = torch.rand(1, 3, *size).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        found = latencies({str(index): partial(network, image) for index, network in enumerate(networks)}, seconds)
    return [latency.milliseconds for latency in found.values()]


# ----------------------------------------------------------------------------------------------- one network


def measure(
    source: Run | str | Path | nn.Module,
    size: tuple[int, int],
    ways: Sequence[str] = WAYS,
    seconds: float = 1.0,
    data: str | Path | None = None,
) -> list[dict[str, Any]]:
    """A network in every way and with one core and all: `way`, `threads`, `milliseconds`, `low`, `high`, the file's
    `bytes`, and with one core `peak_bytes`, by which a process grows that loads it and answers once.

    The networks take images of one size, (H, W), as they are, uint8. `data`: for int8, as in `export`. Raises
    DistillError where a network cannot be exported, or torch.compile does not work here.
    """
    unknown = [way for way in ways if way not in WAYS]
    if unknown:
        raise DistillError(f"there is no way {unknown[0]!r} to run a network{nearest(str(unknown[0]), WAYS)}")
    with tempfile.TemporaryDirectory() as folder:
        files = {
            way: export(source, Path(folder) / f"{way}.onnx", size=size, int8=way == "int8", data=data)
            for way in ("onnx", "int8")
            if way in ways
        }
        return measure_files(source, files, size, ways, seconds)


def measure_files(
    source: Run | str | Path | nn.Module,
    files: Mapping[str, Export],
    size: tuple[int, int],
    ways: Sequence[str] = WAYS,
    seconds: float = 1.0,
) -> list[dict[str, Any]]:
    """`measure` with files that were exported before, by `onnx` and `int8`."""
    network, rows = from_pixels(open_network(source)), []
    image = torch.randint(256, (1, 3, *size), dtype=torch.uint8)
    weights = sum(value.nbytes for value in network.state_dict().values())
    peaks = {way: peak_bytes(network, files.get(way), way, size) for way in ways if way != "compiled"}
    for threads in dict.fromkeys((1, usable_cores())):
        with in_threads(threads), torch.inference_mode():
            asks = {way: _ask(way, network, files.get(way)) for way in ways}
            found = latencies({way: partial(ask, image) for way, ask in asks.items()}, seconds)
        for way, latency in found.items():
            row = {"way": way, "threads": threads, **asdict(latency)}
            row["bytes"] = files[way].path.stat().st_size if way in files else weights
            rows.append(row | ({"peak_bytes": peaks[way]} if threads == 1 and peaks.get(way) else {}))
    return rows


def _ask(way: str, network: FromPixels | None, file: Export | None) -> Callable[[Tensor], object]:
    """The network in one of the ways, as a function of images (1, 3, H, W) uint8."""
    if file is not None:
        session = session_of(str(file.path))
        return lambda image: session.run([OUTPUT], {INPUT: image.numpy()})
    assert network is not None
    network = network.to(memory_format=torch.channels_last)
    if way == "bfloat16":

        def mixed(image: Tensor) -> object:
            with torch.autocast("cpu", torch.bfloat16):
                return network(image)

        return mixed
    return _compiled(network) if way == "compiled" else network


def _compiled(network: nn.Module) -> Callable[[Tensor], object]:
    def ask(image: Tensor) -> object:
        try:
            return fast(image)
        except Exception as error:
            raise DistillError(f"torch.compile does not work here ({first_line(error)}); leave it out") from None

    fast = torch.compile(network, options={"cpp.dynamic_threads": True})  # one compilation for one core and for all
    return ask


# ---------------------------------------------------------------------------------------------------- memory


def peak_bytes(network: FromPixels, file: Export | None, way: str, size: tuple[int, int]) -> int | None:
    """By how much a process grows that loads a network, or its file, and answers once, in one thread; None where the
    system does not tell.
    """
    with ProcessPoolExecutor(1, _processes()) as pool:  # a process of its own, without what is loaded here
        try:
            before = pool.submit(_resident, True).result()
        except BrokenProcessPool:  # the new process ran the calling script from its top
            raise DistillError(
                "memory is measured in a process of its own, which imports the script that asks for it; put the call "
                "below `if __name__ == '__main__':`"
            ) from None
        if before is None:
            return None
        pool.submit(_answer_once, way, None if file else network, file, size).result()
        after = pool.submit(_resident).result()
    return after - before if before and after else None


def _processes() -> BaseContext:
    """New processes in which this package is imported already, where the system can fork one that is."""
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _answer_once(way: str, network: FromPixels | None, file: Export | None, size: tuple[int, int]) -> None:
    torch.set_num_threads(1)
    with torch.inference_mode():
        _ask(way, network, file)(torch.zeros(1, 3, *size, dtype=torch.uint8))


def _resident(restart: bool = False) -> int | None:
    """The most bytes that this process has held, or from now on, as Linux counts them."""
    try:
        if restart:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), None)


# ----------------------------------------------------------------------------------------------------- table


def table(found: Mapping[str, Sequence[dict[str, Any]]]) -> str:
    """A Markdown table of what `measure` found for each network."""
    lines = [
        "| network | way | threads | ms per image (middle half) | file, MB | peak memory, MB |",
        "|---|---|---|---|---|---|",
    ]
    for name, rows in found.items():
        for row in rows:
            time = f"{row['milliseconds']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
            peak = f"{row['peak_bytes'] / 1e6:.0f}" if "peak_bytes" in row else ""
            lines.append(f"| {name} | {row['way']} | {row['threads']} | {time} | {row['bytes'] / 1e6:.2f} | {peak} |")
    return "\n".join(lines)
