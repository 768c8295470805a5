"""Measure the page in a browser and write results/page.json: python studies/page_load.py

Bytes and seconds to load it, how many of its masks' pixels agree with Python's, and milliseconds per pass, with threads
and with one. The page is built first; the browser is the machine's Chromium. Nothing else should run meanwhile.
"""

import argparse
import base64
import gzip
import io
import json
import os
import shutil
import threading
from datetime import date
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime
import torch
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from distill import predict
from distill.cli import explained
from distill.data.sample import scene
from distill.errors import DistillError
from distill.files import PROJECT, read_json, write_json
from distill.training.runs import environment
from studies.page import NETWORKS, OUT, SCENES, VERSION, folder_size

ROUNDS = 3  # loads, and times each scene is shown


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def measure(folder: Path) -> dict:
    """Everything that results/page.json holds."""
    busy = os.getloadavg()[0]
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        raise DistillError("there is no Chromium to measure the page in; install it (Debian: apt install chromium)")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        visits = {
            name: visits_of(browser, f"http://127.0.0.1:{server.server_port}/", workers)
            for name, workers in (("threads", "allow"), ("one thread", "block"))
        }
        browser_version = browser.version
        browser.close()
    server.shutdown()
    masks = visits["threads"].pop("masks")
    same = all(np.array_equal(a, b) for a, b in zip(masks, visits["one thread"].pop("masks"), strict=True))
    manifest = read_json(folder / "page.json")
    return {
        "command": "python studies/page_load.py",
        "date": f"{date.today()}",
        "environment": environment(torch.device("cpu")),
        "load_average": round(busy, 1),  # of the minute before; above the number of cores, other programs ran too
        "browser": f"Chromium {browser_version}",
        "packages": {name: version(name) for name in ("onnx", "onnxscript", "onnxruntime", "playwright")},
        "runtime": f"onnxruntime-web {VERSION}",
        "bytes": {
            "all": folder_size(folder),
            "runtime": manifest["runtime"]["bytes"],
            "networks": {network["name"]: network["bytes"] for network in manifest["networks"]},
        },
        "scenes": SCENES,
        "agreement": agreement(folder, manifest, masks),
        "one_thread_gives_the_same_masks": same,
        "visits": visits,
    }


def visits_of(browser: Browser, address: str, service_workers: str) -> dict:
    """Load the page a few times, and in the last visit show every scene a few times."""
    seconds = []
    for _ in range(ROUNDS):
        context = browser.new_context(service_workers=service_workers)  # with nothing kept from the visit before
        page = context.new_page()
        page.goto(address)
        expect(page.locator("main[data-shown]")).to_be_visible(timeout=120_000)
        seconds.append(float(page.locator("html").get_attribute("data-ready")))
        if len(seconds) < ROUNDS:
            context.close()
    milliseconds: dict[str, list[float]] = {name: [] for name in NETWORKS}
    masks = []
    for round_ in range(ROUNDS):
        for index in range(SCENES):
            _show(page, (index + 1) % SCENES)
            for name, values in milliseconds.items():
                facts = page.locator("figure", has_text=name).locator(".facts").inner_text()
                values.append(float(facts.split(" ms")[0]))
            masks += [_masks(page)] if round_ == 0 else []
    threads = page.locator("#engine").inner_text().split("WebAssembly on ")[1].split(".")[0]
    context.close()
    return {
        "threads": threads,
        "load_seconds": seconds,
        "milliseconds": {
            name: {"median": median(values), "least": min(values)} for name, values in milliseconds.items()
        },
        "masks": [masks[-1], *masks[:-1]],  # in the order of the scenes
    }


def _show(page: Page, index: int) -> None:
    main = page.locator("main")
    before = main.get_attribute("data-shown")
    page.locator("[name=scene]").nth(index).check(force=True)
    expect(main).not_to_have_attribute("data-shown", before, timeout=60_000)
    expect(main).to_have_attribute("aria-busy", "false")


def _masks(page: Page) -> np.ndarray:
    """The colours of all masks that the page shows, (networks, H, W, 3)."""
    addresses = page.evaluate(
        """() => [...document.querySelectorAll("#figures canvas[aria-label^='Mask,']")].map((c) => c.toDataURL())"""
    )
    return np.stack(
        [np.array(Image.open(io.BytesIO(base64.b64decode(one.split(",")[1]))).convert("RGB")) for one in addresses]
    )


def agreement(folder: Path, manifest: dict, masks: list[np.ndarray]) -> dict:
    """Shares of pixels on which the page agrees with onnxruntime (the same file) and PyTorch (the shipped weights)."""
    palette, result = np.array(manifest["palette"]), {}
    for place, network in enumerate(manifest["networks"]):
        session = onnxruntime.InferenceSession(gzip.decompress((folder / network["file"]).read_bytes()))
        model = NETWORKS[network["name"]]()
        shares: dict[str, list[float]] = {"onnxruntime": [], "pytorch": []}
        for index, shown in enumerate(masks):
            image, _ = scene("test", index)
            found = (shown[place][:, :, None] == palette).all(-1).argmax(-1)
            theirs = session.run(None, {"image": image.transpose(2, 0, 1)[None]})[0][0].argmax(0)
            shares["onnxruntime"].append(float((found == theirs).mean()))
            shares["pytorch"].append(float((found == predict(model, image)).mean()))
        result[network["name"]] = {
            other: {"mean": float(np.mean(values)), "least": min(values)} for other, values in shares.items()
        }
    return result


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    if not OUT.exists():
        raise DistillError(f"there is no page in {OUT}; make it first: make page")
    result = measure(OUT)
    write_json(PROJECT / "results" / "page.json", result)
    print(json.dumps({key: result[key] for key in ("bytes", "agreement", "visits")}, indent=1))


if __name__ == "__main__":
    raise SystemExit(explained(main))
