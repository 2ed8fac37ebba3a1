"""Faults that many people make in a masked image generator: what do they look like?

    pip install -e '.[lessons]'
    python lessons/faults.py --out runs/faults           # two minutes for each fault
    python lessons/faults.py --out runs/faults leak      # only this one

Each fault is one change in the text of `overture.py`. Writes for each fault OUT/NAME.py, which is
the overture with this fault, what it printed (NAME.txt), the sheet that it drew (NAME-sheet.png),
and a figure: wrong-NAME.png for `what-goes-wrong.md`, or debug-1.png for `debug.md`. A run whose
NAME.txt is there is not repeated.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

OVERTURE = Path(__file__).with_name("overture.py")


class Fault(NamedTuple):
    """A change in the overture: the right lines, and the wrong ones."""

    right: str
    wrong: str


# The faults of the page. Each name is also that of a figure.
FAULTS = {
    "leak": Fault(
        "logits = model(ids.masked_fill(hidden, MASK), drop_captions(words, generator))",
        "logits = model(ids, drop_captions(words, generator))",
    ),
    "visible": Fault(
        "return F.cross_entropy(logits[hidden], ids[hidden])",
        "return F.cross_entropy(logits.flatten(0, 1), ids.flatten())",
    ),
    "dropout": Fault(
        "dropped = torch.rand(len(words), 1, generator=generator) < 0.1",
        "dropped = torch.rand(len(words), 1, generator=generator) > 0.1",
    ),
    "ratio": Fault(
        "count = (N * torch.cos(math.pi / 2 * u)).ceil().clamp(min=1)",
        "count = torch.full_like(u, 0.15 * N).ceil()",
    ),
    "codebook": Fault(
        "codes = patches[torch.randperm(len(patches), generator=generator)[:K]].clone()",
        "codes = patches[:1] + 0.001 * torch.randn(K, patches.shape[1], generator=generator)",
    ),
    "one-pass": Fault(
        "PASSES, GUIDANCE, TOP, CHOICE = 12, 1.0", "PASSES, GUIDANCE, TOP, CHOICE = 1, 1.0"
    ),
    "guidance": Fault(
        "PASSES, GUIDANCE, TOP, CHOICE = 12, 1.0", "PASSES, GUIDANCE, TOP, CHOICE = 12, 30.0"
    ),
    "greedy": Fault(
        "guess = torch.multinomial(log_p.exp().flatten(0, 1), 1, generator=generator).view_as(ids)",
        "guess = log_p.argmax(-1)",
    ),
}

# The faults of `debug.md`. Try to find them from their figures before you read on here.
CASES = {
    "case-1": Fault(
        '"b (h w) (c p q) -> b c (h p) (w q)"',
        '"b (w h) (c p q) -> b c (h p) (w q)"',
    ),
    "case-2": Fault(
        "ids.scatter_(-1, confidence.argsort(-1)[:, :count], MASK)",
        "ids.scatter_(-1, confidence.argsort(-1, descending=True)[:, :count], MASK)",
    ),
    "case-3": Fault("optimizer.zero_grad()", "pass"),
    "case-4": Fault("return (1 + t) * cond - t * uncond", "return (1 + t) * uncond - t * cond"),
    "case-5": Fault(
        "rows = torch.randint(len(ids), (BATCH,), generator=generator)\n"
        "        loss = masked_loss(model, ids[rows], words[rows], generator)",
        "rows = torch.randint(len(ids), (BATCH,), generator=generator)\n"
        "        loss = masked_loss(model, ids[rows], words[:BATCH], generator)",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="faults (default: all of them)")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, help="of each training (default: the overture's)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    faults = FAULTS | CASES
    names = args.names or list(faults)
    unknown = sorted(set(names) - set(faults))
    if unknown:
        parser.error(f"there is no fault {unknown[0]!r}; choose among {', '.join(faults)}")

    healthy = run(OVERTURE.read_text(), "healthy", args.out, args.steps)
    draw("healthy", healthy, healthy, args.out)
    for name in names:
        printed = run(with_fault(faults[name]), name, args.out, args.steps)
        draw(name, printed, healthy, args.out)


def with_fault(fault: Fault) -> str:
    """The text of the overture with a fault; an error if the right lines are not there once."""
    text = OVERTURE.read_text()
    count = text.count(fault.right)
    if count != 1:
        raise ValueError(f"overture.py has {fault.right!r} {count} times, not once")
    return text.replace(fault.right, fault.wrong)


def run(text: str, name: str, out: Path, steps: int | None) -> str:
    """Run a version of the overture, unless that was done already; what it printed."""
    script, printed = out / f"{name}.py", out / f"{name}.txt"
    if not printed.exists():
        script.write_text(text)
        command = [sys.executable, str(script), "--out", str(out / f"{name}-sheet.png")]
        if steps is not None:
            command += ["--steps", str(steps)]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        printed.write_text(result.stdout)
    return printed.read_text()


def losses_of(printed: str) -> tuple[list[int], list[float]]:
    """The steps and the losses that a run printed."""
    lines = re.findall(r"step +(\d+): loss ([\d.]+|nan)", printed)
    return [int(step) for step, _ in lines], [float(loss) for _, loss in lines]


def measures_of(printed: str) -> str:
    """What a run printed about its images, in one line."""
    found = re.findall(r"(\w+) +right in ([\d.]+)", printed)
    return ", ".join(f"{part} {float(value):.2f}" for part, value in found)


def draw(name: str, printed: str, healthy: str, out: Path) -> None:
    """Draw the losses of a run and of the healthy one, and five images of the run."""
    import matplotlib.pyplot as plt
    from PIL import Image

    figure, (left, right) = plt.subplots(
        1, 2, figsize=(9, 2.1), width_ratios=(1, 3), layout="constrained"
    )
    left.plot(*losses_of(healthy), "o-", markersize=3, color="#888888", label="healthy")
    if name != "healthy":
        left.plot(*losses_of(printed), "o-", markersize=3, color="#c44e52", label="this one")
    left.set(xlabel="step", ylabel="loss", ylim=(0, None))
    left.legend(fontsize=8)
    with Image.open(out / f"{name}-sheet.png") as sheet:
        # Five images of the third row, whose captions ask for all three backgrounds.
        right.imshow(sheet.crop((0, 2 * 190, 5 * 150, 3 * 190)))
    right.set_title(measures_of(printed), fontsize=9)
    right.set_axis_off()
    path = out / figure_name(name)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)
    print(f"{path} is written")


def figure_name(name: str) -> str:
    """The file of a figure: that of a case must not say which fault it is."""
    if name in CASES:
        return f"debug-{name.removeprefix('case-')}.png"
    return f"wrong-{name}.png"


if __name__ == "__main__":
    main()
