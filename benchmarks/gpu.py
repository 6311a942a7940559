"""All that waits for a GPU, in order of worth: `make gpu`, or some parts: `python benchmarks/gpu.py speed inversion`.

Each part is a command with eight minutes, and leaves a file of its own, NAME.json, with what it printed, where and when. A part
that fails or runs out of time does not stop those after it. Needs torch, torchvision, numpy, Pillow, tqdm and safetensors; the
tests also pytest. `--rehearse` runs the same parts on a CPU with the smallest models, to see that all of it works.
"""
import argparse
import json
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import torch
from timing import where

HERE = Path(__file__).resolve().parent
LIMIT = 480  # seconds a part


def parts_of(out: Path, tarflow: str | None, photos: str | None, cifar10: str | None, rehearse: bool) -> dict[str, list[str]]:
    "The command of each part, by its name."
    device = "cpu" if rehearse else "cuda"
    small = ["--preset", "digits", "--batches", "8", "--steps", "8"]
    small_colour = ["--preset", "photos", *small[2:]]
    large = lambda what, *options: ["large.py", what, *(small if rehearse else options)]
    train = lambda preset, data, batch: [
        "large.py", "train", *(small if rehearse else ["--preset", preset, "--batches", batch]), "--minutes", "0.1" if rehearse else "6",
        *(["--data", data] if data else []), "--out", str(out / preset),
    ]  # fmt: skip
    parts = {
        "tests": ["-m", "pytest", "-m", "gpu", str(HERE.parent / "tests")],
        "inversion": ["inversion_time.py", "--device", device],
        "guidance": ["guidance_time.py", "--device", device],
        "speed": large("speed", "--batches", "16", "32", "48", "64"),
        "speed, patch 8": large("speed", "--preset", "imagenet256-1.1b-p8", "--batches", "4", "8", "16"),
        "precision": large("precision", "--batches", "16"),
        "recipe": large("recipe", "--batches", "64"),
        "feed": ["large.py", "feed", *(small_colour if rehearse else ["--batches", "32"])],
        "photos": train("photos", photos, "64"),
        "cifar10": train("cifar10", cifar10, "256"),
    }
    if tarflow:
        parts["beside TarFlow"] = ["flow.py", "--tarflow", tarflow, "--device", device]
    return {name: [word if word.startswith("-") or not word.endswith(".py") else str(HERE / word) for word in command] for name, command in parts.items()}


def run(name: str, command: list[str], out: Path, device: str) -> bool:
    "One part; its file says how it went."
    started, begun = time.perf_counter(), datetime.now(UTC).isoformat(timespec="seconds")
    try:
        done = subprocess.run([sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=LIMIT, check=False)
        status, printed = done.returncode, done.stdout
    except subprocess.TimeoutExpired as error:
        status, printed = f"stopped after {LIMIT} s", (error.stdout or b"").decode()
    facts = {"part": name, "command": command, "where": where(device), "date": begun, "seconds": round(time.perf_counter() - started, 1), "status": status}
    lines = [line.rstrip() for line in printed.replace("\r", "\n").splitlines() if line.strip() and not any(bar in line for bar in ("it/s", "step/s", "images/s]"))]
    (out / f"{name.replace(', ', '-').replace(' ', '-')}.json").write_text(json.dumps(facts | {"printed": lines}, indent=1) + "\n", "utf-8")
    print(f"== {name}: {'done' if status == 0 else f'ended with {status}'} after {facts['seconds']:.0f} s", *lines[-12:], sep="\n", flush=True)
    return status == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="all if none is named")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="a folder for the results")
    parser.add_argument("--tarflow", help="transformer_flow.py of TarFlow, to compare with")
    parser.add_argument("--photos", help="a folder of images in place of the data set `photos`, which needs scikit-image")
    parser.add_argument("--cifar10", help="a folder with CIFAR-10's images, if they are not downloaded")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with the smallest models")
    asked = parser.parse_args()
    if not asked.rehearse and not torch.cuda.is_available():
        parser.error("no CUDA device here; --rehearse runs the same on the CPU")
    parts = parts_of(asked.out, asked.tarflow, asked.photos, asked.cifar10, asked.rehearse)
    if unknown := set(asked.parts) - parts.keys():
        parser.error(f"{', '.join(sorted(unknown))}: unknown; there are {', '.join(parts)}")
    asked.out.mkdir(parents=True, exist_ok=True)
    ended = [run(name, parts[name], asked.out, "cpu" if asked.rehearse else "cuda") for name in asked.parts or parts]
    sys.exit(not all(ended))


if __name__ == "__main__":
    main()
