"""What each saving of decoding is worth, alone, against a plain loop in the same run; the ids must be the same.

    OMP_NUM_THREADS=1 python tests/bench/decoding.py --model toy-shapes

Plain: text keys and values made anew in every step, conditional and unconditional rows in two passes, both in every step even
where the guidance is zero (here in the first half of the steps), and the head on every token. "One batch" has both rows in one up to
decode.ONE_BATCH_TOKENS tokens, as `decode` does. Factors: the median over rounds in which all ways take turns, and the middle half of the rounds.
"""

import argparse
import statistics
import time
from dataclasses import replace

import torch

from minimuse import Muse, decode, schedule
from minimuse.device import autocast

SAVINGS = ("keys once", "one batch", "no idle unconditional rows", "head where hidden")


def loop(muse, model, ids, asked, low, sampling, generator, savings):
    """decode.decode for one prompt, with each saving on or off."""
    hidden, mask_id = ids == model.mask_id, model.mask_id
    below = () if low is None else (low,)
    after = [schedule.masked_after(int(n), sampling.steps, sampling.law) for n in hidden.sum(-1)]
    once = muse.contexts(model, asked, 1.0, *below)
    for k in range(sampling.steps):
        left = torch.tensor([row[k] for row in after])
        if bool((hidden.sum(-1) == left).all()):
            continue
        t = schedule.guidance_at(
            k, sampling.steps, sampling.guidance, sampling.ramp, sampling.guided
        )
        cond, uncond = once if "keys once" in savings else muse.contexts(model, asked, 1.0, *below)
        inputs, where = (
            ids.masked_fill(hidden, mask_id),
            hidden if "head where hidden" in savings else torch.ones_like(hidden),
        )
        with torch.no_grad():
            if t == 0 and "no idle unconditional rows" in savings:
                logits = model(inputs, cond, where)
            elif "one batch" in savings and ids.numel() <= decode.ONE_BATCH_TOKENS:
                logits = decode.guide(
                    *model(inputs.repeat(2, 1), cond.join(uncond), where.repeat(2, 1)).chunk(2), t
                )
            else:
                logits = decode.guide(model(inputs, cond, where), model(inputs, uncond, where), t)
        full = logits.new_zeros(*ids.shape, logits.shape[-1])
        full[where] = logits
        noises = (
            decode.gumbel(full.shape, generator),
            schedule.noise_at(k, sampling.steps, sampling.choice_temperature)
            * decode.gumbel(ids.shape, generator),
        )
        ids, _, hidden = decode.step(full, ids, hidden, left, *noises, sampling)
    return ids


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--model", default="toy-shapes")
    p.add_argument("--rounds", type=int, default=20)
    args = p.parse_args()
    muse = Muse.load(args.model)
    ways = {"plain": (), **{s: (s,) for s in SAVINGS}, "all": SAVINGS}
    print(
        "| | plain | " + " | ".join([*SAVINGS, "all"]) + " |\n" + "|---" * (len(SAVINGS) + 3) + "|"
    )
    for name, model, grid, sampling in (
        ("base", muse.base, muse.config.tokenizer.grid, muse.config.sampling),
        ("superres", muse.superres, muse.config.tokenizer_hi.grid, muse.config.sampling_hi),
    ):
        sampling = replace(sampling, guidance=2.0, guided=(0.5, 1.0))
        for B in (1, 16):
            asked = muse.embed_prompts(
                ["a large red circle left of a small blue square on a white background"] * B
            )
            low = (
                None
                if model is muse.base
                else torch.randint(
                    muse.base.mask_id,
                    (B, muse.config.tokenizer.grid**2),
                    generator=torch.Generator().manual_seed(0),
                )
            )
            times, ids = {way: [] for way in ways}, {}
            for _ in range(args.rounds + 1):  # the first is to warm up
                for way, savings in ways.items():
                    begun = time.perf_counter()
                    with autocast("cpu"):
                        ids[way] = loop(
                            muse,
                            model,
                            torch.full((B, grid**2), model.mask_id),
                            asked,
                            low,
                            sampling,
                            torch.Generator().manual_seed(0),
                            savings,
                        )
                    times[way].append(time.perf_counter() - begun)
            print(
                f"| {name}, batch {B} | {1000 * statistics.median(times['plain'][1:]):.0f} ms",
                end="",
            )
            for way in [*SAVINGS, "all"]:
                factors = [p / t for p, t in zip(times["plain"][1:], times[way][1:])]
                least, middle, most = statistics.quantiles(factors, n=4)
                same = (
                    (ids[way] == ids["plain"]).float().mean()
                )  # in half precision a batch can round otherwise
                print(
                    f" | {middle:.2f} ({least:.2f} to {most:.2f})"
                    + ("" if same == 1 else f", {same:.3f} of ids same"),
                    end="",
                )
            print(" |", flush=True)


if __name__ == "__main__":
    main()
