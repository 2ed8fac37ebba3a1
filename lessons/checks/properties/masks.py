"""Properties of random masks, of hiding tokens and of dropping captions (`schedule.py`, `maskgit.py`)."""

import itertools
import math
from collections import Counter

import numpy as np
import torch
from hypothesis import example, given
from hypothesis import strategies as st

seeds = st.integers(0, 2**31 - 1)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def exact_count_in_every_row(random_masks):
    """Row b has exactly counts[b] True, whatever the batch, from 0 to N; and the generator alone decides which.

    random_masks(counts (B,), tokens, generator) -> (B, N).
    """

    @st.composite
    def cases(draw):
        tokens = draw(st.integers(1, 20))
        return tokens, draw(st.lists(st.integers(0, tokens), min_size=1, max_size=6)), draw(seeds)

    @given(cases())
    @example((1, [1], 0))
    @example((4, [1, 4], 0))
    @example((3, [0, 1, 2, 3], 1))
    def check(case):
        tokens, counts, seed = case
        masks = random_masks(torch.tensor(counts), tokens, generator(seed))
        assert masks.dtype == torch.bool and masks.shape == (len(counts), tokens), (
            f"masks are {tuple(masks.shape)} {masks.dtype}, not {(len(counts), tokens)} bool"
        )
        assert masks.sum(dim=-1).tolist() == counts, f"rows have {masks.sum(dim=-1).tolist()}"
        assert torch.equal(masks, random_masks(torch.tensor(counts), tokens, generator(seed))), (
            "the same generator gave other masks"
        )

    check()


def uniform_over_positions(random_masks):
    """Every position is masked equally often, within 5 sigma: a small share and a large one, in one batch and row by row."""
    tokens = 9
    for count, batch, times in (
        (1, 4000, 1),
        (4, 4000, 1),
        (8, 4000, 1),
        (4, 1, 1500),
        (4, 3, 500),
    ):
        draw, share = generator(count), count / tokens
        masks = torch.cat(
            [random_masks(torch.full((batch,), count), tokens, draw) for _ in range(times)]
        )
        hits, sigma = masks.double().mean(dim=0), math.sqrt(share * (1 - share) / len(masks))
        assert (hits - share).abs().max() < 5 * sigma, (
            f"{count} of {tokens}, batches of {batch}: positions are masked with shares {hits.tolist()}"
        )


def sets_come_as_often(masks):
    """Of all masks (M, N) with k True, every set of k positions has the same share, within 5 sigma.

    A run that begins anywhere and goes round the end has each position as often as any other, and is no random mask.
    """
    tokens = masks.shape[1]
    for count in range(1, tokens):
        seen = Counter(
            tuple(row.nonzero()[:, 0].tolist()) for row in masks[masks.sum(dim=-1) == count]
        )
        share, rows = 1 / math.comb(tokens, count), seen.total()
        for places in itertools.combinations(range(tokens), count):
            off = abs(seen[places] - rows * share)
            assert off <= 5 * math.sqrt(rows * share * (1 - share)), (
                f"of {rows} rows with {count} of {tokens} True, {seen[places]} have just {places}, not {rows * share:.0f}"
            )


def every_set_is_as_likely(random_masks):
    """Not positions alone: every set of them comes as often as any other of its size."""
    for count in (2, 3):
        sets_come_as_often(random_masks(torch.full((3000,), count), 6, generator(count)))


def rows_are_independent(random_masks):
    """Two rows overlap as often as chance says: k^2/N positions on average, within 5 sigma."""
    pairs, tokens, count = 3000, 12, 4
    masks = random_masks(torch.full((2 * pairs,), count), tokens, generator())
    overlap = (masks[0::2] & masks[1::2]).sum(dim=-1).double()
    share = count / tokens  # the overlap is hypergeometric
    sigma = math.sqrt(count * share * (1 - share) * (tokens - count) / (tokens - 1) / pairs)
    assert abs(overlap.mean() - count * share) < 5 * sigma, (
        f"neighbours share {overlap.mean():.3f} positions, not {count * share:.3f}"
    )


def hides_by_replacing(hide):
    """Hidden tokens become the mask id and nothing else changes; at least one per row. hide(ids, mask_id, generator) -> (ids, hidden)."""

    @given(st.integers(1, 5), st.integers(1, 20), st.integers(1, 9), seeds)
    @example(1, 1, 1, 0)
    def check(batch, tokens, codes, seed):
        ids = torch.randint(codes, (batch, tokens), generator=generator(seed))
        before = ids.clone()
        masked, hidden = hide(ids, codes, generator(seed + 1))
        assert torch.equal(ids, before), "the ids given were changed in place"
        assert hidden.dtype == torch.bool and hidden.any(dim=-1).all(), (
            "a row without a hidden token"
        )
        assert torch.equal(hide(ids, codes, generator(seed + 1))[1], hidden), (
            "the same generator hid other tokens"
        )
        assert torch.equal(masked, torch.where(hidden, codes, ids)), (
            f"{ids.tolist()} became {masked.tolist()}, hidden {hidden.tolist()}"
        )

    check()


def hides_any_places(hide):
    """Whatever the count of a row, every set of so many places is hidden as often as any other."""
    sets_come_as_often(hide(torch.zeros(6000, 6, dtype=torch.long), 1, generator())[1])


def shares_differ_within_a_batch(hide):
    """Every image has a ratio of its own: in one batch the hidden shares spread as the arcsine law does (Muse, section 2.6)."""
    batch, tokens = 4000, 256
    _, hidden = hide(torch.zeros(batch, tokens, dtype=torch.long), 1, generator())
    shares = hidden.double().mean(dim=-1).sort().values.numpy()
    # rounding up moves a share by at most one token: compare with the law on both sides of that
    seen = (np.arange(batch) + 0.5) / batch
    low, high = (2 / np.pi * np.arcsin(np.clip(shares + d, 0, 1)) for d in (-1 / tokens, 0))
    gap = np.maximum(low - seen, seen - high).max()
    assert gap < 2.7 / batch**0.5, f"the shares of one batch are off the law by {gap:.3f}"


def hidden_tokens_do_not_matter(predict):
    """Logits depend on the masked input only: change every hidden token, and they stay, bit for bit.

    predict(ids (B, N), generator) -> (logits, hidden (B, N)): a training forward pass, masking included.
    Otherwise the loss falls to 0 and the samples are noise.
    """

    @given(seeds, st.integers(1, 4))
    def check(seed, change):
        ids = torch.randint(5, (3, 16), generator=generator(seed))
        logits, hidden = predict(ids, generator(seed))
        others, again = predict(torch.where(hidden, (ids + change) % 5, ids), generator(seed))
        assert torch.equal(hidden, again) and torch.equal(logits, others), (
            f"logits moved by up to {(logits - others).abs().max():.2g}"
        )

    check()


def drops_the_share_of_captions(drop_captions):
    """A `share` of the rows loses its whole caption, the others lose nothing; 10 % in Muse, section 2.7.

    drop_captions(visible (B, T), share, generator) -> (B, T). Counted within 5 sigma: dropping with 1 - share
    is a published bug. Each row has a coin of its own, so that how many of a batch go varies as it does with coins.
    """
    rows = 4000
    visible = torch.arange(6)[None] < torch.randint(1, 7, (rows, 1), generator=generator())
    for share in (0.0, 0.1, 0.5, 1.0):
        kept = drop_captions(visible, share, generator(1))
        dropped = ~kept.any(dim=-1)
        assert torch.equal(kept, visible & ~dropped[:, None]), "a caption was dropped in part"
        assert torch.equal(drop_captions(visible, share, generator(1)), kept), (
            "the same generator dropped other captions"
        )
        sigma = math.sqrt(share * (1 - share) / rows)
        seen = float(dropped.double().mean())
        assert abs(seen - share) <= 5 * sigma, f"{seen:.3f} of the captions are gone, not {share}"
    draw, batch, times, share = generator(2), 8, 1000, 0.3
    gone = [
        int((~drop_captions(torch.ones(batch, 2, dtype=torch.bool), share, draw).any(dim=-1)).sum())
        for _ in range(times)
    ]
    variance = batch * share * (1 - share)
    sigma = variance * math.sqrt(
        (2 + (1 / variance - 6 / batch)) / times
    )  # of a variance: by the fourth moment of a binomial law
    off = abs(np.var(gone) - variance)
    assert off <= 5 * sigma, (
        f"batches of {batch}, share {share}: the number that is gone has variance {np.var(gone):.2f}, not {variance:.2f}; the first are {gone[:8]}"
    )
