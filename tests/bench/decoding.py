"""What each saving of decoding is worth alone, against a plain loop in the same run.

    OMP_NUM_THREADS=1 python tests/bench/decoding.py --model toy-shapes

The ids must be the same. The plain loop computes text keys and values anew in every step, runs
conditional and unconditional rows in two passes, runs both in every step even where guidance is
zero (here in the first half of the steps), and applies the head to every token. "One batch" has
both rows in one pass up to guidance.ONE_BATCH_TOKENS tokens, as `decode` does. The table has
factors of speed: the median over rounds in which all ways take turns, and the middle half of the
rounds.
"""

import argparse
import statistics
import time
from dataclasses import replace

import torch
from torch import nn

from minimuse import Muse, decode, guidance, schedule
from minimuse.decode import Sampling
from minimuse.muse import Prompts
from minimuse.plumbing.device import autocast, generator_at

SAVINGS = ("keys once", "one batch", "no idle unconditional rows", "head where hidden")
PROMPT = "a large red circle left of a small blue square on a white background"


def guided_logits(model, inputs, where, contexts, t: float, savings) -> torch.Tensor:
    """The logits (M, K) of the tokens that `where` (B, N) selects, with guidance t."""
    cond, uncond = contexts
    if t == 0 and "no idle unconditional rows" in savings:
        return model(inputs, cond, where)
    if "one batch" in savings and inputs.numel() <= guidance.ONE_BATCH_TOKENS:
        both = model(inputs.repeat(2, 1), cond.join(uncond), where.repeat(2, 1))
        return guidance.guide(*both.chunk(2), t)
    return guidance.guide(model(inputs, cond, where), model(inputs, uncond, where), t)


def loop(
    muse: Muse,
    model: nn.Module,
    ids: torch.Tensor,
    prompts: Prompts,
    low: tuple[torch.Tensor, ...],
    sampling: Sampling,
    generators: list[torch.Generator],
    savings: tuple[str, ...],
) -> torch.Tensor:
    """decode.decode for one prompt, with each saving on or off. ids: (B, N)."""
    mask_id = model.mask_id
    steps = sampling.steps
    hidden = ids == mask_id  # B N
    counts = hidden.sum(-1).tolist()
    masked_after = [schedule.masked_after(n, steps, sampling.law) for n in counts]
    contexts = muse.contexts(model, prompts, 1.0, *low)
    for k in range(steps):
        left = torch.tensor([row[k] for row in masked_after])  # B
        if bool((hidden.sum(-1) == left).all()):
            continue
        t = schedule.guidance_at(k, steps, sampling.guidance, sampling.ramp, sampling.guided)
        if "keys once" not in savings:
            contexts = muse.contexts(model, prompts, 1.0, *low)
        where = hidden if "head where hidden" in savings else torch.ones_like(hidden)
        inputs = ids.masked_fill(hidden, mask_id)  # B N
        with torch.no_grad():
            logits = guided_logits(model, inputs, where, contexts, t, savings)  # M K
        full = logits.new_zeros(*ids.shape, logits.shape[-1])  # B N K
        full[where] = logits
        token_noise, choice_noise = decode.noise_of(generators, *full.shape[1:])  # B N K, B N
        choice_noise *= schedule.noise_at(k, steps, sampling.choice_temperature)
        step = decode.step(full, ids, hidden, left, token_noise, choice_noise, sampling)
        ids, hidden = step.ids, step.hidden
    return ids


def measure(
    muse: Muse, model: nn.Module, B: int, sampling: Sampling, rounds: int
) -> tuple[dict[str, list[float]], dict[str, torch.Tensor]]:
    """Seconds of each round, and the ids, by way. All ways take turns."""
    prompts = muse.embed_prompts([PROMPT] * B)
    if model is muse.base:
        N = muse.config.tokenizer.grid**2
        low = ()
    else:
        N = muse.config.tokenizer_hi.grid**2
        shape = (B, muse.config.tokenizer.grid**2)
        generator = torch.Generator().manual_seed(0)
        low = (torch.randint(muse.base.mask_id, shape, generator=generator),)
    ways = {"plain": (), **{saving: (saving,) for saving in SAVINGS}, "all": SAVINGS}
    times = {way: [] for way in ways}
    ids = {}
    for _ in range(rounds + 1):
        for way, savings in ways.items():
            begun = time.perf_counter()
            blank = torch.full((B, N), model.mask_id)
            generators = [generator_at("bench", b) for b in range(B)]
            with autocast("cpu"):
                ids[way] = loop(muse, model, blank, prompts, low, sampling, generators, savings)
            times[way].append(time.perf_counter() - begun)
    # The first round warms up.
    return {way: seconds[1:] for way, seconds in times.items()}, ids


def row(title: str, times: dict[str, list[float]], ids: dict[str, torch.Tensor]) -> str:
    cells = [title, f"{1000 * statistics.median(times['plain']):.0f} ms"]
    for way in (*SAVINGS, "all"):
        factors = [plain / own for plain, own in zip(times["plain"], times[way], strict=True)]
        low, middle, high = statistics.quantiles(factors, n=4)
        cell = f"{middle:.2f} ({low:.2f} to {high:.2f})"
        # In half precision, a batch of another size can round differently.
        same = (ids[way] == ids["plain"]).float().mean()
        if same < 1:
            cell += f", {same:.3f} of ids same"
        cells.append(cell)
    return "| " + " | ".join(cells) + " |"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="toy-shapes")
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    muse = Muse.load(args.model)
    print("| | plain | " + " | ".join([*SAVINGS, "all"]) + " |")
    print("|---" * (len(SAVINGS) + 3) + "|")
    models = (
        ("base", muse.base, muse.config.sampling),
        ("superres", muse.superres, muse.config.sampling_hi),
    )
    for name, model, sampling in models:
        sampling = replace(sampling, guidance=2.0, guided=(0.5, 1.0))
        for B in (1, 16):
            times, ids = measure(muse, model, B, sampling, args.rounds)
            print(row(f"{name}, batch {B}", times, ids), flush=True)


if __name__ == "__main__":
    main()
