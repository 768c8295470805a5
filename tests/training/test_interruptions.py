"""What happens when a run is stopped from outside: by Ctrl-C, a full disk, too little memory, or a loss that explodes.

Each leaves one sentence, and a run that the same command takes up where its last whole checkpoint left it.
"""

import contextlib
import functools
import itertools
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import kill
import nbformat
import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file

from distill import Run, fit, open_dataset
from distill.data.transforms import normalise
from distill.errors import Interrupted
from distill.files import held, replace_file
from distill.networks.deeplab import DeepLabV3Plus
from distill.networks.saving import load_model
from distill.terms import KD
from distill.training import loop as training
from distill.training import runs
from distill.training.checkpoint import read_checkpoint, write_checkpoint
from distill.training.interrupt import CtrlC, ctrl_c_after
from studies.run_notebooks import Client

LIMITS = ["--limit", "32", "--batch-size", "8", "--seed", "0", "--device", "cpu", "--evaluate-every", "100"]


@pytest.fixture
def command(tmp_path: Path, tiny_sample: Path) -> Callable[..., list[str]]:
    """The words of a short baseline run on the sample, into `tmp_path/out`."""

    def words(out: str = "run", *more: str) -> list[str]:
        data = ["--dataset", "sample", "--data-root", str(tiny_sample), "--out", str(tmp_path / out)]
        return [sys.executable, "-m", "distill", "train", "--method", "baseline", *data, *LIMITS, *more]

    return words


def start(command: list[str], **options) -> subprocess.Popen:
    """A process that hears Ctrl-C, also where whoever started the tests does not, as behind `nohup` or `&`."""
    return subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )


@pytest.fixture
def hears_ctrl_c() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def wait_for(path: Path, process: subprocess.Popen, seconds: int = 120) -> None:
    for _ in range(10 * seconds):
        if path.exists() or process.poll() is not None:
            return
        time.sleep(0.1)


def interrupt(command: list[str], folder: Path) -> None:
    """Start a run and press Ctrl-C once there is a checkpoint."""
    process = start(command)
    wait_for(folder / "last.pt", process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert not Run(folder).finished, "it was too quick to be interrupted"


def parts(folder: Path) -> list[Path]:
    return list(folder.glob(".*.part"))


# --------------------------------------------------------------------------------------------------- Ctrl-C


@pytest.mark.parametrize("augment", [("--augment", "flip"), ("--augment", "crops", "--workers", "2")])
def test_ctrl_c_in_a_terminal(augment: tuple[str, ...], command: Callable[..., list[str]], tmp_path: Path) -> None:
    # A group of its own, which gets the signal as a whole, as in a terminal.
    process = start(command("run", "--epochs", "5000", *augment), start_new_session=True)
    wait_for(tmp_path / "run" / "last.pt", process)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said[-2000:]
    assert "Traceback" not in said, said[-3000:]
    last = said.strip().splitlines()[-1]
    epochs = len(torch.load(tmp_path / "run" / "last.pt", weights_only=True)["history"])
    assert re.search(r"^distill: training was interrupted after \d+ of 5000 epochs; start it again", last)
    assert f"after {epochs} of" in last and epochs >= 1
    assert parts(tmp_path / "run") == []


def test_an_interrupted_run_resumes_to_the_same_weights(command: Callable[..., list[str]], tmp_path: Path) -> None:
    words = ("--epochs", "24")
    interrupt(command("cut", *words), tmp_path / "cut")
    for out in ("cut", "whole"):
        subprocess.run(command(out, *words), check=True, capture_output=True)
    states = [load_file(tmp_path / out / "student.safetensors") for out in ("cut", "whole")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_run_killed_at_random_moments_ends_as_if_nothing_had_happened(tiny_sample: Path, tmp_path: Path) -> None:
    """Twice here, twenty times by kill.py itself."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    seconds = kill.finish(kill.command(whole, tiny_sample))
    words = kill.command(cut, tiny_sample)
    kills = kill.kill_and_resume(words, cut, 2, 0.75 * seconds, random.Random(1), soon=0.05 * seconds)
    assert any(found["epochs"] or found["steps"] for found in kills), "it was never killed in training"
    assert kill.same_end(whole, cut), kills
    assert parts(cut) == []


def test_the_stop_button_of_a_notebook(tiny_sample: Path, tmp_path: Path) -> None:
    """The cell shows one sentence and no traceback; run again, it goes on."""
    fit = (
        f'distill.fit("resnet18", "baseline", None, "sample", data_root={str(tiny_sample)!r}, limit=16, batch_size=8, '
        f'epochs=3, device="cpu", progress=False, out={str(tmp_path / "run")!r})'
    )
    stopped = """
import os, signal, distill
from distill.training import loop as training
save = training._Loop._save
def saved(loop):
    save(loop)
    if len(loop.history) == 2:
        os.kill(os.getpid(), signal.SIGINT)
training._Loop._save = saved
"""
    sources = (stopped + fit, f"training._Loop._save = save\n{fit}")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    Client(notebook, allow_errors=True, timeout=300).execute()
    output = next(output for output in notebook.cells[0].outputs if output.output_type == "error")
    assert output.ename == "Interrupted"
    assert len(output.traceback) == 1 and "after 2 of 3 epochs; start it again" in output.traceback[0]
    assert not any(output.output_type == "error" for output in notebook.cells[1].outputs)
    assert Run(tmp_path / "run").finished


def test_a_mistake_in_a_notebook_is_a_sentence_without_a_traceback() -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("import distill\ndistill.open_dataset('no')")])
    Client(notebook, allow_errors=True, timeout=300).execute()
    output = notebook.cells[0].outputs[0]
    assert output.ename == "DistillError"
    assert len(output.traceback) == 1 and output.traceback[0].startswith("DistillError: there is no folder no")


@pytest.mark.usefixtures("hears_ctrl_c")
def test_ctrl_c_is_heard_where_python_drops_it(train: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """As while a DataLoader's workers are started: the exception comes where it is swallowed."""
    step, before = training._Loop._step, signal.getsignal(signal.SIGINT)

    def deaf(loop: training._Loop, *batch: object) -> dict:
        if len(loop.history) == 1:
            with contextlib.suppress(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(1)
        return step(loop, *batch)

    monkeypatch.setattr(training._Loop, "_step", deaf)
    with pytest.raises(Interrupted, match="after 1 of 3 epochs"):
        train()
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.usefixtures("hears_ctrl_c")
@pytest.mark.parametrize("written", [False, True])
def test_ctrl_c_while_a_checkpoint_is_written_counts_that_epoch(
    written: bool, train: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = training.write_checkpoint

    def pressed(path: Path, *rest: object) -> None:
        if written:
            write(path, *rest)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)  # Python hears it between two instructions
        if not written:
            write(path, *rest)

    monkeypatch.setattr(training, "write_checkpoint", pressed)
    with pytest.raises(Interrupted, match="after 1 of 3 epochs"):
        train()
    (checkpoint,) = tmp_path.rglob("last.pt")
    assert len(torch.load(checkpoint, weights_only=True)["history"]) == 1


@pytest.mark.usefixtures("hears_ctrl_c")
def test_ctrl_c_pressed_twice_comes_at_once() -> None:
    presses = []
    with pytest.raises(KeyboardInterrupt), ctrl_c_after():
        for press in (1, 2, 3):
            presses.append(press)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
    assert presses == [1, 2]


@pytest.mark.usefixtures("hears_ctrl_c")
def test_a_dropped_ctrl_c_leaves_no_traceback(capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Python drops in a destructor it reports on the error stream."""
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)

    class Raising:
        def __init__(self, error: type[BaseException]) -> None:
            self.error = error

        def __del__(self) -> None:
            raise self.error

    with CtrlC():
        Raising(KeyboardInterrupt)
        assert "KeyboardInterrupt" not in capfd.readouterr().err
        Raising(OSError)
        assert "OSError" in capfd.readouterr().err
    Raising(KeyboardInterrupt)
    assert "KeyboardInterrupt" in capfd.readouterr().err
    assert sys.unraisablehook is sys.__unraisablehook__


@pytest.mark.usefixtures("hears_ctrl_c")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of a fork beside threads
def test_workers_leave_ctrl_c_to_the_run() -> None:
    def work() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.5)
        os._exit(7)

    with CtrlC() as ctrl_c:
        worker = multiprocessing.get_context("fork").Process(target=work)
        worker.start()
        worker.join()
        ctrl_c.check()
    assert worker.exitcode == 7


@pytest.mark.usefixtures("hears_ctrl_c")
def test_workers_that_heard_ctrl_c_first_are_no_error(
    train: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exception is dropped, and what comes instead is the loader's complaint that its workers ended."""

    def deaf(loop: training._Loop, *batch: object) -> dict:
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        raise RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly")

    monkeypatch.setattr(training._Loop, "_step", deaf)
    with pytest.raises(Interrupted, match="after 0 of 3 epochs"):
        train()


def test_a_run_in_a_thread_needs_no_signals(train: Callable[..., Run]) -> None:
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(train).result().finished


def test_interrupted_is_still_a_keyboard_interrupt() -> None:
    assert issubclass(Interrupted, KeyboardInterrupt) and not issubclass(Interrupted, Exception)


# ------------------------------------------------------------------------------------------------- a full disk


def test_a_full_disk_leaves_the_last_checkpoint(command: Callable[..., list[str]], tmp_path: Path) -> None:
    """The second process may write no file of more than 100 kB, which every checkpoint is; then there is room again."""
    words = ("--epochs", "24")
    folder = tmp_path / "run"
    interrupt(command("run", *words), folder)
    before = {path: path.read_bytes() for path in folder.iterdir() if path.suffix in (".pt", ".safetensors")}
    assert len(before) >= 2

    full = subprocess.run(
        command("run", *words),
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    last = full.stderr.strip().splitlines()[-1]
    assert full.returncode == 2 and "Traceback" not in full.stderr, full.stderr[-2000:]
    assert str(folder) in last and "could not be written" in last and "make room" in last
    assert {path: path.read_bytes() for path in before} == before
    assert parts(folder) == []
    assert load_model(folder / "student.safetensors") and torch.load(folder / "last.pt", weights_only=True)

    subprocess.run(command("run", *words), check=True, capture_output=True)
    assert len(Run(folder).history) == 24


@pytest.mark.parametrize(
    "failure", [OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed")]
)
def test_a_file_that_cannot_be_written_stays_as_it_was(failure: Exception, tmp_path: Path, refused) -> None:
    path = tmp_path / "file"
    path.write_text("before")

    def write() -> None:
        with replace_file(path, lasting=True) as temporary:
            temporary.write_text("half")
            raise failure

    refused(path, "make room", call=write)
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "failure",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."),
        RuntimeError("Caught RuntimeError in DataLoader worker process 0."),
        RuntimeError("unable to allocate shared memory(shm) for file"),
    ],
)
def test_what_fails_while_a_file_is_made_is_not_the_disks_fault(failure: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(failure), match=re.escape(str(failure))), replace_file(tmp_path / "file"):
        raise failure
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("failure", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_a_checkpoint_is_not_to_blame_for_a_lack_of_memory(
    failure: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*words: object, **named: object) -> None:
        raise failure

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(type(failure)):
        read_checkpoint(tmp_path / "last.pt", {}, torch.device("cpu"))


def test_a_checkpoint_keeps_the_random_numbers_of_an_apple_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, given, load, mps = torch.arange(4, dtype=torch.uint8), [], torch.load, torch.device("mps")
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: kept)
    monkeypatch.setattr(torch.mps, "set_rng_state", given.append)
    monkeypatch.setattr(torch, "load", lambda source, map_location, **named: load(source, **named))
    write_checkpoint(tmp_path / "last.pt", {}, {"history": [], "best": {}}, mps, None)
    with torch.random.fork_rng(devices=[]):
        read_checkpoint(tmp_path / "last.pt", {}, mps)
    assert torch.equal(given[0], kept)


def test_a_folder_that_vanished_is_named(train: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, refused) -> None:
    """Somebody deletes the run's folder while it is trained."""
    save = training._Loop._save

    def gone(loop: training._Loop) -> None:
        for path in sorted(loop.folder.iterdir()):
            path.unlink()
        loop.folder.rmdir()
        loop.folder.parent.joinpath(loop.folder.name).write_text("a file now")
        save(loop)

    monkeypatch.setattr(training._Loop, "_save", gone)
    refused("run", "choose", call=train)


def test_two_processes_do_not_train_into_one_folder(
    train: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused
) -> None:
    """The second waits a little, for one that was killed needs a moment to be gone, and then says so."""
    first = train(epochs=1)
    (first.path / "scores.json").unlink()
    before = (first.path / "last.pt").read_bytes()
    monkeypatch.setattr(runs, "held", functools.partial(held, patience=0.3))
    with held(first.path / ".lock"):
        (first.path / ".last.pt.x1.part").write_bytes(b"the other's, half written")
        refused("another process is writing into", first.path, call=lambda: train(epochs=1))
    assert parts(first.path) and (first.path / "last.pt").read_bytes() == before
    assert train(epochs=1).finished and not parts(first.path)


def test_of_two_that_start_at_once_one_trains_and_the_other_sees_its_config(
    train: Callable[..., Run], tiny_sample: Path, monkeypatch: pytest.MonkeyPatch, refused
) -> None:
    """The second has looked before the first wrote anything, and looks again once it holds the folder."""
    begun = runs.begun

    def overtaken(folder: Path, *arguments: object) -> contextlib.AbstractContextManager[bool]:
        monkeypatch.setattr(training, "begun", begun)
        train(epochs=1, lr=0.01)
        return begun(folder, *arguments)

    monkeypatch.setattr(training, "begun", overtaken)
    refused("settings", "--out", call=lambda: train(epochs=1, lr=0.02))
    monkeypatch.setattr(training, "begun", overtaken)
    run = train(epochs=1, lr=0.01)  # the very same run: it is finished by then
    assert run.config["settings"]["lr"] == 0.01 and len(run.history) == 1


@pytest.mark.parametrize("name", ["config.json", "scores.json"])
def test_a_file_that_a_power_cut_left_empty_is_written_again(name: str, train: Callable[..., Run]) -> None:
    run = train()
    whole = (run.path / name).read_text()
    (run.path / name).write_bytes(b"")
    assert name == "config.json" or not run.finished
    assert train().path == run.path
    assert (run.path / name).read_text() == whole


def test_a_student_of_ones_own_is_told_how_to_go_on(train: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    save = training._Loop._save

    def stopped(loop: training._Loop) -> None:
        save(loop)
        raise KeyboardInterrupt

    monkeypatch.setattr(training._Loop, "_save", stopped)
    with pytest.raises(Interrupted, match="a student of the same first weights"):
        train()


def test_what_a_killed_process_left_is_removed(train: Callable[..., Run], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".last.pt.x1.part").write_bytes(b"half a checkpoint")
    assert parts(train().path) == []


# --------------------------------------------------------------------------------- training watches itself


@pytest.fixture
def train(
    tmp_path: Path, tiny_sample: Path, tiny_teacher: DeepLabV3Plus, make_student: Callable[..., DeepLabV3Plus]
) -> Callable[..., Run]:
    """Three epochs of two steps on 16 images."""

    def run(method: str = "baseline", **changes) -> Run:
        given = {"data": "sample", "data_root": tiny_sample, "limit": 16, "batch_size": 8, "epochs": 3}
        given |= {"device": "cpu", "progress": False, "out": tmp_path / "run", "teacher": tiny_teacher}
        return fit(make_student(), method, **(given | changes))

    return run


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("augment", ["flip", "crops"])
def test_a_loss_that_is_no_number_stops_the_run(
    augment: str, step: int, train: Callable[..., Run], tmp_path: Path, tiny_sample: Path, monkeypatch, refused
) -> None:
    """KD gives NaN at a step of the third epoch; the sentence names that step and its images."""
    forward, take_step = KD.forward, training._Loop._step
    losses: list[torch.Tensor] = []
    batches: list[torch.Tensor] = []

    def broken(term: KD, *outputs: object) -> torch.Tensor:
        losses.append(forward(term, *outputs))
        return losses[-1] * (torch.nan if len(losses) == 4 + step else 1)

    def watched(loop: training._Loop, pieces: list, frozen: bool) -> dict:
        batches.append(pieces[0][0])
        return take_step(loop, pieces, frozen)

    monkeypatch.setattr(KD, "forward", broken)
    monkeypatch.setattr(training._Loop, "_step", watched)
    message = refused(
        f"at step {step} of epoch 3: kd is nan",
        f"the checkpoint of epoch 2 is kept in {tmp_path / 'run'}",
        "learning rate",
        call=lambda: train("kd", augment=augment, crop_size=64),
    )
    assert len(Run(tmp_path / "run").history) == 2
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert all(value.isfinite().all() for value in state["student"].values())

    names = re.search(r"on the images (.*?);", message)[1].split(", ")
    assert len(set(names)) == 8
    if augment == "flip":  # crops are changed beyond recognition
        dataset = open_dataset("sample", root=tiny_sample)
        for name, image in zip(names, batches[3 + step], strict=True):
            whole = normalise(dataset[dataset.ids.index(name)][0])
            assert torch.allclose(image, whole) or torch.allclose(image, whole.flip(-1))


def test_a_rate_that_is_too_high_is_a_sentence(train: Callable[..., Run], refused) -> None:
    """Without any trick: the weights themselves explode."""
    message = refused(
        "training stopped at step", "lower the learning rate", call=lambda: train(lr=1000.0, epochs=60, clip=0.0)
    )
    assert "ce is" in message


OUT_OF_MEMORY = {
    "GPU": lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")),
    "machine": lambda: torch.empty(2**50),
}


@pytest.mark.parametrize("place", OUT_OF_MEMORY)
def test_too_little_memory_says_what_to_lower(
    place: str, train: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, refused
) -> None:
    monkeypatch.setattr(training._Loop, "_step", lambda *_: OUT_OF_MEMORY[place]())
    refused(place, "--batch-size (8)", "--crop-size (64)", call=train)


def test_several_steps_are_looked_at_together_where_a_gpu_would_have_to_be_waited_for(tmp_path: Path, refused) -> None:
    loop = training._Loop.__new__(training._Loop)
    loop.folder, loop.batches = (
        tmp_path,
        SimpleNamespace(names=lambda epoch, step: [f"{epoch}-{step}-{i}" for i in range(40)]),
    )
    steps = [{"loss": torch.tensor(value), "ce": torch.tensor(value)} for value in (1.0, torch.inf, torch.nan)]
    loop._check_finite(steps[:1], 0, 7)
    message = refused(
        "step 9 of epoch 1: ce is inf, loss is inf", "0-8-0, 0-8-1", call=lambda: loop._check_finite(steps, 0, 9)
    )
    assert "0-8-15 and 24 more; nothing was saved yet" in message


def test_a_faulty_image_is_found_before_training_whenever_it_comes(
    train: Callable[..., Run], tiny_sample: Path, tmp_path: Path, refused
) -> None:
    """Its first epoch may leave it out; once something is trained, mending it would make another run of this."""
    data, more = tmp_path / "data", tmp_path / "more"
    shutil.copytree(tiny_sample, data)
    more.mkdir()
    ImageOps.mirror(Image.open(open_dataset(data).image_path(0))).save(more / "new.png")
    for faulty in (open_dataset(data).image_path(5), more / "new.png"):
        content = faulty.read_bytes()
        faulty.write_bytes(content[: len(content) // 2])
        given = {"data": data, "data_root": None, "augment": "crops", "crop_size": 17, "limit": 7, "batch_size": 4}
        given |= {"unlabelled": more, "method": "kd"}
        refused(f"{faulty} cannot be read", call=lambda given=given: train(**given))
        faulty.write_bytes(content)
    assert train(**given).finished


def test_a_run_whose_data_were_moved_knows_where_they_are_now(
    train: Callable[..., Run], tiny_sample: Path, tmp_path: Path, refused
) -> None:
    class Stopped(Exception):
        pass

    def stop(*_: object) -> None:
        raise Stopped

    places = [tmp_path / name / "mine" for name in ("here", "there", "elsewhere")]
    shutil.copytree(tiny_sample, places[0])
    with pytest.raises(Stopped):
        train(data=places[0], data_root=None, on_epoch=stop)
    for before, place in itertools.pairwise(places):  # of an unfinished run, and of a finished one
        place.parent.mkdir()
        before.rename(place)
        run = train(data=place, data_root=None)
        assert run.data_root == place.resolve() and len(run.images_of("val")) == 6
    shutil.rmtree(place)
    refused("the data of", "called mine", "--data-root", call=lambda: run.images_of("val"))
