"""Does another version of minimuse compute the same as this one? Compare both on this machine.

    python tests/bench/before_after.py                       # everything; several minutes
    python tests/bench/before_after.py --only draw train     # some of it

Floats differ between kinds of CPU, so their values cannot be a test that runs everywhere. This
script therefore unpacks another commit (by default the one before the redesign) beside the present
code, runs the same probes in both, each in a process of its own, and compares what they wrote:

    draw       both shipped models, eight prompts: token ids equal, pixels within 1e-6
    edit       inpainting, outpainting, mask-free editing: token ids and 8-bit images equal
    train      `train all --preset tiny` on shapes and on emoji: weights within 1e-6
    evaluate   `evaluate`: the same report.json, numbers within 1e-6

Probes use the command line and names that both versions have. Exit code 1 if anything differs.
"""

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]
BEFORE = "93ebd67"
TOLERANCE = 1e-6
PROMPTS = {
    "toy-shapes": [
        "a small red circle on a grey background",
        "two large blue squares on a white background",
        "a large green ring above a small yellow cross on a black background",
        "a small purple triangle left of a large cyan circle on a white background",
        "three small yellow crosses on a black background",
        "a large red square below a small green triangle on a grey background",
        "four small cyan rings on a white background",
        "a small blue cross right of a large purple ring on a black background",
    ],
    "toy": [
        "a red apple, noto style",
        "a snowman, fluent 3d style",
        "a birthday cake, twemoji style",
        "a green heart, openmoji style",
        "a dog face, openmoji style",
        "a smiling face with sunglasses, noto style",
        "pizza, fluent flat style",
        "a blue fish",
    ],
}


# --- Probes: each runs in a process of one version, and writes what it found into a folder ---
def probe_draw(folder: Path) -> None:
    from minimuse import Muse

    for name, prompts in PROMPTS.items():
        muse = Muse.load(name)
        found = {}
        for resolution, step in muse.steps(prompts, seed=3):
            found[f"{resolution} ids"] = step.ids
        found["low pixels"] = muse.pixels(found["low ids"], "low")
        found["high pixels"] = muse.pixels(found["high ids"], "high")
        save_file({k: v.contiguous() for k, v in found.items()}, folder / f"{name}.safetensors")


def probe_edit(folder: Path) -> None:
    import numpy as np
    from PIL import Image

    from minimuse import Muse, edit

    muse = Muse.load("toy-shapes")
    ids_seen = []
    pixels_from_ids = muse.pixels

    def remember(ids, *arguments):
        ids_seen.append(ids.flatten(1))
        return pixels_from_ids(ids, *arguments)

    muse.pixels = remember
    prompt = PROMPTS["toy-shapes"][2]
    image = muse.generate(prompt, seed=1)[0]
    mask = Image.new("L", image.size, 0)
    mask.paste(255, (8, 8, 40, 30))
    images = edit.inpaint(muse, image, mask, prompt, n=2, seed=5)
    images += edit.inpaint(muse, image, mask, prompt, n=1, seed=5, keep_pixels=True)
    images += edit.outpaint(muse, image, prompt, (16, 5, 40, 16), seed=6)
    images += edit.edit(muse, image, PROMPTS["toy-shapes"][0], iterations=6, n=2, seed=7)
    found = {f"ids {i}": ids.contiguous() for i, ids in enumerate(ids_seen)}
    for i, drawn in enumerate(images):
        found[f"image {i}"] = torch.from_numpy(np.array(drawn))
    save_file(found, folder / "edit.safetensors")


def probe_train(folder: Path) -> None:
    for data in ("shapes", "emoji"):
        command("train", "all", "--preset", "tiny", "--data", data, "--out", str(folder / data))


def probe_evaluate(folder: Path) -> None:
    command("evaluate", "--model", "toy-shapes", "--n", "24", "--out", str(folder / "shapes"))
    command("evaluate", "--model", "toy", "--n", "16", "--out", str(folder / "emoji"))


PROBES = {"draw": probe_draw, "edit": probe_edit, "train": probe_train, "evaluate": probe_evaluate}


def command(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "minimuse", *arguments], check=True)


# --- Comparing ---
def tensor_difference(a: torch.Tensor, b: torch.Tensor) -> str | None:
    """What is different between two tensors, or None."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return f"{a.dtype} {tuple(a.shape)}, now {b.dtype} {tuple(b.shape)}"
    if not a.is_floating_point():
        different = int((a != b).sum())
        return f"{different} of {a.numel()} integers differ" if different else None
    largest = float((a.double() - b.double()).abs().max()) if a.numel() else 0.0
    return f"largest difference {largest:.3g}" if not largest <= TOLERANCE else None


def json_differences(a, b, path: str = "") -> list[str]:
    """Where two JSON values differ; numbers may differ by the tolerance."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [line for key in a for line in json_differences(a[key], b[key], f"{path}/{key}")]
    both_numbers = isinstance(a, (int, float)) and isinstance(b, (int, float))
    if both_numbers and abs(a - b) <= TOLERANCE * max(1.0, abs(a)):
        return []
    return [] if a == b else [f"{path}: {a}, now {b}"]


def tensors_differences(before: Path, after: Path) -> tuple[int, list[str]]:
    """Compare two safetensors files: the number of tensors, and every difference."""
    old, new = load_file(before), load_file(after)
    differences = []
    if old.keys() != new.keys():
        differences.append(f": other tensors: {sorted(old.keys() ^ new.keys())}")
    for key in old.keys() & new.keys():
        difference = tensor_difference(old[key], new[key])
        if difference:
            differences.append(f" {key}: {difference}")
    return len(old), differences


def compare(before: Path, after: Path) -> tuple[int, list[str]]:
    """Compare the files of two folders: the number of values, and every difference."""
    differences = []
    compared = 0
    names = set()
    for folder in (before, after):
        names |= {p.relative_to(folder) for p in folder.rglob("*.safetensors")}
        names |= {p.relative_to(folder) for p in folder.rglob("*.json")}
    for name in sorted(names):
        if not (before / name).is_file() or not (after / name).is_file():
            differences.append(f"{name}: written by one version only")
            continue
        if name.suffix == ".json":
            old, new = (json.loads((folder / name).read_text()) for folder in (before, after))
            count, lines = 1, json_differences(old, new)
        else:
            count, lines = tensors_differences(before / name, after / name)
        compared += count
        differences += [f"{name}{line}" for line in lines]
    return compared, differences


def unpack(commit: str, folder: Path) -> None:
    """The files of a commit, without history."""
    archive = subprocess.run(
        ["git", "-C", str(ROOT), "archive", commit], check=True, stdout=subprocess.PIPE
    ).stdout
    with tarfile.open(fileobj=BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    # Where minimuse is installed as a link to a clone, the packages of data/ and lessons/checks
    # would be those of that clone.
    for package, place in (("assets", "data"), ("checks", "lessons/checks")):
        link = folder / "minimuse" / package
        if not link.exists():
            link.symlink_to(folder.resolve() / place)


def run_probe(name: str, folder: Path, code: Path | None, keep: Path) -> Path:
    """Run one probe with the code in the folder `code`, or with the version that is installed."""
    out = folder / name
    if out.is_dir() and code:
        return out  # kept from an earlier call: the other commit does not change
    out.mkdir(parents=True)
    environment = dict(os.environ)
    if code:
        environment["PYTHONPATH"] = str(code)
    arguments = [sys.executable, __file__, "--probe", name, "--into", str(out)]
    with open(keep / f"{folder.name}-{name}.log", "w") as log:
        done = subprocess.run(
            arguments, env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT
        )
    if done.returncode:
        raise SystemExit(f"probe {name} failed:\n{Path(log.name).read_text()[-3000:]}")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", default=BEFORE, help=f"a commit (default {BEFORE})")
    parser.add_argument("--only", nargs="+", choices=PROBES, default=list(PROBES))
    parser.add_argument(
        "--work", type=Path, help="keep what the other commit wrote here, for the next call"
    )
    parser.add_argument("--probe", choices=PROBES, help=argparse.SUPPRESS)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.probe:
        PROBES[args.probe](args.into)
        return
    with tempfile.TemporaryDirectory() as temporary:
        kept = (args.work or Path(temporary)).resolve() / args.before
        fresh = Path(temporary).resolve() / "after"
        code = kept / "code"
        if not code.is_dir():
            unpack(args.before, code)
        fresh.mkdir()
        failed = False
        for name in args.only:
            old = run_probe(name, kept, code, Path(temporary))
            new = run_probe(name, fresh, None, Path(temporary))
            compared, differences = compare(old, new)
            failed = failed or bool(differences) or not compared
            print(
                f"{name}: {compared} tensors and reports compared, {len(differences)} differences"
            )
            for line in differences[:20]:
                print(f"  {line}")
    raise SystemExit(int(failed))


if __name__ == "__main__":
    main()
