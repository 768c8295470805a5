"""Latencies: warm, in turns, of every way to run a network, and what its file and its memory are."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from distill.cli import main
from distill.files import read_json
from distill.lab.latency import latencies, measure, milliseconds
from distill.networks.saving import save_model


def test_latency_is_of_the_image_size(make_student: Callable) -> None:
    small, large = (milliseconds([make_student("resnet18").config], size, 0.1)[0] for size in ((32, 32), (256, 256)))
    assert 0 < 2 * small < large


def test_actions_take_turns_and_the_first_calls_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that the actions move: `a` takes 1 s, `b` 3 s, and ten times as long in the first two calls."""
    now, calls = [0.0], []
    monkeypatch.setattr("distill.lab.latency.time.perf_counter", lambda: now[0])

    def act(name: str, seconds: float) -> None:
        now[0] += seconds * (10 if calls.count(name) < 2 else 1)
        calls.append(name)

    found = latencies({"a": lambda: act("a", 1), "b": lambda: act("b", 3)}, seconds=20)
    assert (found["a"].milliseconds, found["b"].milliseconds) == (1000, 3000)
    assert found["a"].low == found["a"].high == 1000
    assert calls == ["a", "b"] * (2 + 10)  # 40 s at 4 s a turn


def test_every_way_of_a_network(make_student: Callable) -> None:
    network = make_student("resnet18", 21).eval()
    before = torch.get_num_threads()
    rows = measure(network, (32, 32), ("bfloat16", "onnx"), seconds=0.02)
    assert torch.get_num_threads() == before
    assert {row["way"] for row in rows} == {"bfloat16", "onnx"}
    for row in rows:
        assert 0 < row["low"] <= row["milliseconds"] <= row["high"]
        assert row["bytes"] > 4 * sum(weights.numel() for weights in network.parameters())
    peaks = [row["peak_bytes"] for row in rows if row["threads"] == 1 and "peak_bytes" in row]
    assert len(peaks) == (2 if sys.platform == "linux" else 0) and all(10**5 < peak < 10**9 for peak in peaks)


def test_the_command_measures_networks(
    make_student: Callable, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distill.lab.latency.WAYS", ("float32", "onnx"))
    monkeypatch.setattr("distill.lab.latency.peak_bytes", lambda *_: 5_000_000)  # a process for each takes seconds
    save_model(make_student("mobilenetv2", 21), tmp_path / "small.safetensors")
    words = ["bench", "--latency", str(tmp_path / "small.safetensors"), "--crop-size", "32", "--steps", "1"]
    assert main([*words, "--json", str(tmp_path / "latency.json")]) == 0
    printed, record = capsys.readouterr().out, read_json(tmp_path / "latency.json")
    assert printed.startswith("| network") and "small.safetensors | onnx | 1 |" in printed
    assert "| 5 |" in printed
    assert record["size"] == [32, 32] and record["environment"]["processor"]
    assert {row["way"] for row in record["networks"][str(tmp_path / "small.safetensors")]} == {"float32", "onnx"}
