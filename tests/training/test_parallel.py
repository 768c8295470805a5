"""Several processes train what one would, and only one of them writes."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from kill import command, family, finish, kill_and_resume, same_end, start
from safetensors.torch import load_file
from torch import Tensor, nn
from two_ranks import BACKBONES, RUNS

from distill import Run, fit, open_dataset
from distill.data.sample import make_sample
from distill.files import PROJECT
from distill.networks.deeplab import DeepLabV3Plus
from distill.networks.saving import save_model
from distill.training.batches import CroppedBatches, FlippedBatches
from distill.training.parallel import Ranks, SharedBatchNorm, check_torchrun_is_there, pick_device, shared_layers
from distill.training.settings import Settings

TESTS = Path(__file__).parent.parent
CPU = torch.device("cpu")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, make_student: Callable[..., DeepLabV3Plus]) -> Path:
    """The folder in which two_ranks.py was run in one process and in two."""
    out = tmp_path_factory.mktemp("ranks")
    # Not the tiny sample: in its maps of 2 x 2 places BatchNorm divides by next to nothing, which magnifies rounding.
    sample = make_sample(out / "sample", train=24, val=6, test=6, progress=False)
    save_model(make_student(), out / "student.safetensors")
    parallel = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    for words in ([], parallel):
        subprocess.run(
            [sys.executable, *words, str(TESTS / "two_ranks.py"), str(out), str(sample)],
            check=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        )
    return out


def found(both: Path, name: str) -> tuple[dict[str, Tensor], ...]:
    return tuple(torch.load(both / f"{file}.pt")[name] for file in ("1-0", "2-0", "2-1"))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_step_of_two_processes_is_that_of_one(backbone: str, both: Path) -> None:
    """In float64, so that nothing but rounding can differ; dropout, BatchNorm and the labelled pixels are shared."""
    alone, first, second = found(both, backbone)
    assert alone["loss"] == pytest.approx(first["loss"].item(), rel=1e-12)
    size = sum(value.double().square().sum() for value in alone.values()).sqrt()
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), f"the processes differ in {name}"
        # Biases before another BatchNorm have no gradient but rounding: what counts is the size of all.
        assert (value - first[name]).double().norm() < 1e-9 * value.double().norm() + 1e-12 * size, name
    first_norm = {"resnet18": "bn1", "mobilenetv2": "features.0.1"}.get(backbone, "network.bn1")
    assert alone["method.terms.kd.calls"] == 1
    assert alone[f"student.backbone.{first_norm}.running_mean"].norm() > 0


@pytest.mark.parametrize("split", ["val", "test"])
def test_the_scores_of_two_processes_are_exactly_those_of_one(split: str, both: Path) -> None:
    alone, first, second = found(both, split)
    assert torch.equal(alone["confusion"], first["confusion"]) and torch.equal(first["confusion"], second["confusion"])
    assert alone["confusion"].sum() > 6 * 64 * 64 / 2


@pytest.mark.parametrize("name", RUNS)
def test_a_run_of_two_processes_ends_with_the_losses_and_weights_of_one(name: str, both: Path) -> None:
    """float32, six steps in two epochs."""
    alone, together = (Run(both / f"{name}-{number}") for number in (1, 2))
    for ours, theirs in zip(alone.history, together.history, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5) and ours["ce"] == pytest.approx(
            theirs["ce"], rel=1e-5
        )
    weights, others = (load_file(run.path / "student.safetensors") for run in (alone, together))
    difference = sum((weights[key].double() - others[key].double()).square().sum() for key in weights).sqrt()
    assert difference < 1e-5 * sum(value.double().square().sum() for value in weights.values()).sqrt()
    assert alone.config == together.config, "the number of processes is no setting"
    assert together.environment["processes"] == 2 and alone.environment["processes"] == 1


def test_a_killed_run_of_two_processes_resumes_to_the_bit(tiny_sample: Path, tmp_path: Path) -> None:
    """Once here, twenty times by kill.py itself."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    seconds = finish(command(whole, tiny_sample, 2, free_port()))
    words = command(cut, tiny_sample, 2, free_port())
    kills = kill_and_resume(words, cut, 1, 0.75 * seconds, random.Random(2), soon=0.05 * seconds)
    assert any(found["epochs"] or found["steps"] for found in kills), "it was not killed in training"
    assert same_end(whole, cut), kills


def until(condition: Callable[[], object], seconds: float, every: float = 0.05) -> None:
    latest = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < latest, f"not within {seconds} seconds"
        time.sleep(every)


def state(pid: int) -> list[str]:
    """What Linux says about a process from its state on; of one that ended, Z."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.read_text().rpartition(")")[2].split() if stat.exists() else ["Z"]


def words_of(pid: int) -> bytes:
    """The command of a process: that of its parent, whose open files it shares, until it begins its own."""
    return Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_processes_end_with_a_torchrun_that_is_killed_before_they_met(tiny_sample: Path, tmp_path: Path) -> None:
    """One of them waits for the other, which is held up before it has imported anything."""
    process = start(command(tmp_path / "run", tiny_sample, 2, free_port()))
    ranks: list[int] = []
    try:
        until(lambda: len(family(process.pid)) > 2, 60)
        ranks = family(process.pid)[1:]
        until(lambda: b"torch.distributed.run" not in words_of(ranks[1]), 30)  # till then it holds torchrun's port, too
        os.kill(ranks[1], signal.SIGSTOP)
        spent = [0]
        until(lambda: spent.append(int(state(ranks[0])[11])) or 100 < spent[-2] == spent[-1], 90, every=1.5)  # idle
        process.kill()
        process.wait()
        until(lambda: state(ranks[0])[0] == "Z", 30)  # at once, where the machine has nothing else to do
        os.kill(ranks[1], signal.SIGCONT)
        _, said = process.communicate(timeout=90)  # until no process is left that holds its end; importing takes time
        sentences = [line for line in said.splitlines() if "the torchrun that started this process has ended" in line]
        assert sorted(line.split(":")[0] for line in sentences) == [f"distill (process {rank})" for rank in range(2)]
        assert "Traceback" not in said
    finally:
        for pid in (process.pid, *ranks):
            if state(pid)[0] != "Z":
                os.kill(pid, signal.SIGKILL)


def test_a_port_that_a_killed_torchrun_leaves_open_for_a_moment_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    """It accepts one connection more, after the ranks were told that theirs have ended."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        for name, value in {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "TORCHELASTIC_USE_AGENT_STORE": True,
        }.items():
            monkeypatch.setenv(name, str(value))
        check_torchrun_is_there()
        monkeypatch.setattr("distill.training.parallel.time.sleep", lambda _: listener.close())
        refused("torchrun", "has ended", call=lambda: check_torchrun_is_there(seconds=60))


def test_a_mistake_is_one_sentence_a_process_and_no_folder(tiny_sample: Path, tmp_path: Path) -> None:
    words = command(tmp_path / "run", tiny_sample, 2, free_port())
    process = start([*words, "--batch-size", "5"])
    _, said = process.communicate(timeout=120)
    assert process.returncode and not (tmp_path / "run").exists()
    assert "the batch of 5 cannot be divided equally among 2 processes with 1 parts each; make --batch-size" in said
    assert f'File "{PROJECT / "distill"}' not in said, "a traceback of ours"


@pytest.mark.parametrize("kind", [FlippedBatches, CroppedBatches])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_pieces_of_all_processes_make_the_batch(kind: type, accumulate: int, tiny_sample: Path) -> None:
    dataset = open_dataset("sample", "train", tiny_sample)

    def labels(settings: Settings, ranks: Ranks, first: int = 0) -> list[Tensor]:
        return [labels for _, labels, _ in kind(dataset, settings, 3, CPU, ranks)(1, first)]

    whole = labels(Settings(batch_size=8, crop_size=32), Ranks())
    settings = Settings(batch_size=8, crop_size=32, accumulate=accumulate)
    shares = [labels(settings, Ranks(rank, 2)) for rank in range(2)]
    pieces = [shares[rank][index] for index in range(3 * accumulate) for rank in range(2)]
    assert torch.equal(torch.cat(pieces), torch.cat(whole))
    assert torch.equal(torch.cat(labels(settings, Ranks(), 2)), whole[2]), "from the third step on"


@pytest.mark.parametrize("divisions", ["once", "twice"])
def test_a_batch_in_parts_has_the_gradient_of_the_batch(
    divisions: str,
    tiny_sample: Path,
    tiny_teacher: DeepLabV3Plus,
    make_student: Callable[..., DeepLabV3Plus],
    tmp_path: Path,
) -> None:
    """BatchNorm, which sees a part at a time, and dropout are kept out of it."""
    ends = []
    for accumulate in (1, 2, 4):
        student = make_student().eval()
        student.train = lambda mode=True, student=student: student
        given = {"data_root": tiny_sample, "limit": 16, "batch_size": 8, "epochs": 2, "optimizer": "sgd", "lr": 0.01}
        run = fit(
            student,
            "kd",
            tiny_teacher,
            accumulate=accumulate,
            out=tmp_path / str(accumulate),
            progress=False,
            device="cpu",
            divisions=divisions,
            labelled=11,  # so that the parts have different numbers of labelled pixels
            **given,
        )
        ends.append((run.history[-1]["ce"], load_file(run.path / "student.safetensors")))
    for ce, weights in ends[1:]:
        assert ce == pytest.approx(ends[0][0], rel=1e-5)
        for name, value in weights.items():
            assert torch.allclose(value, ends[0][1][name], rtol=1e-4, atol=1e-6), name


def test_a_single_process_is_left_alone(make_student: Callable[..., DeepLabV3Plus]) -> None:
    student = make_student()
    kinds = [type(layer) for layer in student.modules()]
    with shared_layers(Ranks(), [student], True):
        assert [type(layer) for layer in student.modules()] == kinds
    assert Ranks().sum(torch.tensor(3.0)) == 3 and Ranks().agree("word") == "word"


class OwnNorm(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class NormAct(nn.BatchNorm2d):
    """As timm's BatchNormAct2d."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


@pytest.mark.parametrize(
    "norm, word",
    [
        (nn.BatchNorm2d(4, affine=False), "without weight"),
        (nn.BatchNorm2d(4, track_running_stats=False), "without running_mean"),
        (nn.BatchNorm2d(4, momentum=None), "without momentum"),
        (OwnNorm(4), "of the kind OwnNorm"),
    ],
)
def test_a_norm_that_cannot_be_shared_is_refused_and_all_layers_are_left_alone(
    norm: nn.Module, word: str, refused: Callable[..., str]
) -> None:
    network = nn.Sequential(nn.BatchNorm2d(4), nn.Dropout(), norm)
    kinds = [type(layer) for layer in network]
    refused(word, "--no-sync-batchnorm", call=lambda: shared_layers(Ranks(0, 2), [network], True).__enter__())
    assert [type(layer) for layer in network] == kinds
    with shared_layers(Ranks(0, 2), [network], False):
        assert type(norm) is kinds[2]


def test_a_norm_that_acts_is_shared_acts_once_and_is_restored() -> None:
    norm, images = NormAct(4), torch.randn(2, 4, 8, 8)
    expected = norm.eval()(images)
    with shared_layers(Ranks(0, 2), [norm, nn.Sequential(norm)], True):
        assert isinstance(norm, SharedBatchNorm) and torch.equal(norm(images), expected)
    assert type(norm) is NormAct


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("distill.training.parallel.gpu_computes", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert pick_device("auto") == torch.device("cuda:1")
    monkeypatch.setenv("LOCAL_RANK", "2")
    refused("2 GPUs", "--nproc-per-node", call=lambda: pick_device("auto"))


def test_a_gpu_that_pytorch_was_not_built_for_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80", "sm_90a", "compute_120"])
    for capability, device in {(6, 1): "cpu", (7, 5): "cuda", (12, 0): "cuda"}.items():
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda capability=capability: capability)
        assert pick_device("auto").type == device
    assert pick_device("cuda").type == "cuda", "who names a device gets it"


def test_a_device_is_a_name_a_number_or_torchs_own(monkeypatch: pytest.MonkeyPatch, refused) -> None:
    assert pick_device(torch.device("cpu")) == pick_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused("cuda:0", "no GPU", "--device cpu", call=lambda: pick_device(0))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    refused("cuda:5", "finds 1 GPUs", "--device cpu", call=lambda: pick_device("cuda:5"))
    assert pick_device(0) == pick_device(torch.device("cuda", 0)) == torch.device("cuda:0")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    refused("mps", "Apple", "--device cpu", call=lambda: pick_device("mps"))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device("mps") == torch.device("mps")
    for other in ("meta", "xpu", "hpu:0"):
        refused("cannot train", other, "cpu", call=lambda other=other: pick_device(other))
    for wrong in (None, True, 1.5, -1):
        refused("cuda", call=lambda wrong=wrong: pick_device(wrong))
