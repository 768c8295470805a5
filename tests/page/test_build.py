"""Building the page: what is refused, and in which words."""

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from distill.files import PROJECT
from studies import page as build

Refused = Callable[..., str]


def test_a_machine_without_npm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, refused: Refused) -> None:
    monkeypatch.setattr(build.shutil, "which", lambda *_, **__: None)
    refused("npm", "pip install", call=lambda: build.fetch_runtime(tmp_path))


def test_a_registry_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, refused: Refused) -> None:
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error network getaddrinfo ENOTFOUND' >&2\nexit 1\n")
    npm.chmod(npm.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(build.shutil, "which", lambda *_, **__: os.fspath(npm))
    refused("ENOTFOUND", build.VERSION, "connect", call=lambda: build.fetch_runtime(tmp_path / "cache"))
    assert not list((tmp_path / "cache").iterdir()), "half a download was left"


def test_another_package_under_the_name(tmp_path: Path, refused: Refused) -> None:
    package = tmp_path / f"{build.RUNTIME}-{build.VERSION}.tgz"
    package.write_bytes(b"something else")
    refused(package, "checksum", "delete", call=lambda: build.fetch_runtime(tmp_path))


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "thesis.txt").write_text("dear to somebody")
    refused(tmp_path, "choose another folder", call=lambda: build.build(tmp_path))
    assert (tmp_path / "thesis.txt").read_text() == "dear to somebody"


def test_halved_weights_compute_in_float32() -> None:
    weight = np.linspace(-1, 1, 96, dtype=np.float32).reshape(8, 12)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 12])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = build.halved(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))
    assert [one.data_type for one in model.graph.initializer] == [TensorProto.FLOAT16]
    session = onnxruntime.InferenceSession(model.SerializeToString())
    x = np.ones((1, 8), dtype=np.float32)
    found = session.run(None, {"x": x})[0]
    assert np.array_equal(found, x @ weight.astype(np.float16).astype(np.float32))
    onnx.checker.check_model(model)


def test_the_record_is_of_these_networks_and_keeps_what_is_promised() -> None:
    record = json.loads((PROJECT / "results" / "page.json").read_text())
    assert record["runtime"] == f"{build.RUNTIME} {build.VERSION}"
    assert list(record["agreement"]) == list(record["bytes"]["networks"]) == list(build.NETWORKS)
    assert all(share["least"] >= 0.99 for network in record["agreement"].values() for share in network.values())
    assert record["bytes"]["all"] <= build.MOST_BYTES
    assert record["one_thread_gives_the_same_masks"]
