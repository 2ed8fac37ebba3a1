"""Properties of random masks, of hidden tokens and of dropped captions.

They judge `schedule.random_masks`, `maskgit.hide` and `maskgit.drop_captions`.
"""

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
    """Row b has exactly counts[b] True, from 0 to N; the generator alone decides which.

    random_masks(counts (B,), tokens, generator) -> (B, N).
    """

    @st.composite
    def cases(draw):
        tokens = draw(st.integers(1, 20))
        counts = draw(st.lists(st.integers(0, tokens), min_size=1, max_size=6))
        return tokens, counts, draw(seeds)

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
        repeated = random_masks(torch.tensor(counts), tokens, generator(seed))
        assert torch.equal(masks, repeated), "the same generator gave other masks"

    check()


def uniform_over_positions(random_masks):
    """Every position is masked equally often, within 5 sigma.

    Checked for a small fraction and a large one, in one batch and row by row.
    """
    tokens = 9
    for count, batch, times in (
        (1, 4000, 1),
        (4, 4000, 1),
        (8, 4000, 1),
        (4, 1, 1500),
        (4, 3, 500),
    ):
        draw = generator(count)
        masks = torch.cat(
            [random_masks(torch.full((batch,), count), tokens, draw) for _ in range(times)]
        )
        expected = count / tokens
        sigma = math.sqrt(expected * (1 - expected) / len(masks))
        observed = masks.double().mean(dim=0)
        assert (observed - expected).abs().max() < 5 * sigma, (
            f"{count} of {tokens}, batches of {batch}: "
            f"positions are masked with frequencies {observed.tolist()}"
        )


def sets_come_as_often(masks):
    """Of all masks (M, N) with k True, every set of k positions is as frequent, within 5 sigma.

    A run of neighbours that starts anywhere and wraps around has every position equally often, but
    it is no random mask.
    """
    tokens = masks.shape[1]
    for count in range(1, tokens):
        rows_of_count = masks[masks.sum(dim=-1) == count]
        seen = Counter(tuple(row.nonzero()[:, 0].tolist()) for row in rows_of_count)
        p = 1 / math.comb(tokens, count)
        rows = seen.total()
        for positions in itertools.combinations(range(tokens), count):
            off = abs(seen[positions] - rows * p)
            assert off <= 5 * math.sqrt(rows * p * (1 - p)), (
                f"of {rows} rows with {count} of {tokens} True, "
                f"{seen[positions]} have just {positions}, not {rows * p:.0f}"
            )


def every_set_is_as_likely(random_masks):
    """Not only positions: every set of them comes as often as any other of its size."""
    for count in (2, 3):
        sets_come_as_often(random_masks(torch.full((3000,), count), 6, generator(count)))


def rows_are_independent(random_masks):
    """Two rows overlap as often as by chance: in k^2/N positions on average, within 5 sigma."""
    pairs, tokens, count = 3000, 12, 4
    masks = random_masks(torch.full((2 * pairs,), count), tokens, generator())
    overlap = (masks[0::2] & masks[1::2]).sum(dim=-1).double()
    p = count / tokens  # the overlap is hypergeometric
    sigma = math.sqrt(count * p * (1 - p) * (tokens - count) / (tokens - 1) / pairs)
    assert abs(overlap.mean() - count * p) < 5 * sigma, (
        f"neighbours share {overlap.mean():.3f} positions, not {count * p:.3f}"
    )


def hides_by_replacing(hide):
    """Hidden tokens become the mask id and nothing else changes; each row has at least one.

    hide(ids, mask_id, generator) -> (ids, hidden).
    """

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
        _, repeated = hide(ids, codes, generator(seed + 1))
        assert torch.equal(repeated, hidden), "the same generator hid other tokens"
        assert torch.equal(masked, torch.where(hidden, codes, ids)), (
            f"{ids.tolist()} became {masked.tolist()}, hidden {hidden.tolist()}"
        )

    check()


def hides_any_places(hide):
    """For each count of hidden tokens, every set of so many positions is hidden equally often."""
    _, hidden = hide(torch.zeros(6000, 6, dtype=torch.long), 1, generator())
    sets_come_as_often(hidden)


def shares_differ_within_a_batch(hide):
    """Every image has a ratio of its own: within one batch they follow the arcsine law.

    Source: Muse, section 2.6.
    """
    batch, tokens = 4000, 256
    _, hidden = hide(torch.zeros(batch, tokens, dtype=torch.long), 1, generator())
    ratios = hidden.double().mean(dim=-1).sort().values.numpy()
    # Rounding up changes a ratio by at most one token: compare with the law on both sides of that.
    observed = (np.arange(batch) + 0.5) / batch
    low = arcsine_law(ratios - 1 / tokens)
    high = arcsine_law(ratios)
    gap = np.maximum(low - observed, observed - high).max()
    assert gap < 2.7 / batch**0.5, f"the ratios of one batch are off the law by {gap:.3f}"


def arcsine_law(ratios):
    """The distribution function of the cosine schedule's ratios."""
    return 2 / np.pi * np.arcsin(np.clip(ratios, 0, 1))


def hidden_tokens_do_not_matter(predict):
    """Logits depend on the masked input only, not on the hidden tokens, bit for bit.

    predict(ids (B, N), generator) -> (logits, hidden (B, N)): a training forward pass with masking.
    Otherwise the loss falls to 0 and the samples are noise.
    """

    @given(seeds, st.integers(1, 4))
    def check(seed, change):
        ids = torch.randint(5, (3, 16), generator=generator(seed))
        logits, hidden = predict(ids, generator(seed))
        changed = torch.where(hidden, (ids + change) % 5, ids)
        others, hidden_again = predict(changed, generator(seed))
        assert torch.equal(hidden, hidden_again) and torch.equal(logits, others), (
            f"logits moved by up to {(logits - others).abs().max():.2g}"
        )

    check()


def drops_the_share_of_captions(drop_captions):
    """The fraction `share` of the rows lose their whole caption, and the others lose nothing.

    drop_captions(visible (B, T), share, generator) -> (B, T). Muse drops 10 % (section 2.7).
    Counted within 5 sigma: dropping with 1 - share is a published bug. Each row is decided on its
    own, so how many are dropped varies from batch to batch as a binomial does.
    """
    rows = 4000
    visible = torch.arange(6)[None] < torch.randint(1, 7, (rows, 1), generator=generator())
    for share in (0.0, 0.1, 0.5, 1.0):
        kept = drop_captions(visible, share, generator(1))
        dropped = ~kept.any(dim=-1)
        assert torch.equal(kept, visible & ~dropped[:, None]), "a caption was dropped in part"
        repeated = drop_captions(visible, share, generator(1))
        assert torch.equal(repeated, kept), "the same generator dropped other captions"
        sigma = math.sqrt(share * (1 - share) / rows)
        observed = float(dropped.double().mean())
        assert abs(observed - share) <= 5 * sigma, (
            f"{observed:.3f} of the captions are gone, not {share}"
        )
    number_dropped_is_binomial(drop_captions)


def number_dropped_is_binomial(drop_captions, batch=8, times=1000, share=0.3):
    """How many of a batch are dropped has the variance of a binomial, within 5 sigma."""
    draw = generator(2)
    visible = torch.ones(batch, 2, dtype=torch.bool)
    gone = []
    for _ in range(times):
        kept = drop_captions(visible, share, draw)
        gone.append(int((~kept.any(dim=-1)).sum()))
    variance = batch * share * (1 - share)
    # The standard deviation of a variance, from the fourth moment of a binomial.
    sigma = variance * math.sqrt((2 + (1 / variance - 6 / batch)) / times)
    assert abs(np.var(gone) - variance) <= 5 * sigma, (
        f"batches of {batch}, share {share}: the number that is gone has variance "
        f"{np.var(gone):.2f}, not {variance:.2f}; the first are {gone[:8]}"
    )
