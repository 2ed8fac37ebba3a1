import math

import torch
from hypothesis import example, given
from hypothesis import strategies as st
from minimuse.checks import Exercise
from torch.utils.flop_counter import FlopCounterMode

from minimuse import train
from minimuse.data import Tokens, offsets
from minimuse.transformer import Block

TITLE = "scaling up"

# Ours


def our_flops(tokens, text, width):
    """By PyTorch's counter, on the meta device: as `minimuse describe` does."""
    with torch.device("meta"):
        block = Block(width, 1, math.isqrt(tokens))
        k, v = torch.zeros(2, 1, 1, text, width)
        with FlopCounterMode(display=False) as counter:
            block(torch.zeros(1, tokens, width), k, v, torch.ones(1, text, dtype=torch.bool))
    return counter.get_total_flops()


def our_bytes(parameters, optimizer, gpus):
    return -(-parameters * {"adamw": 20, "adafactor": 12}[optimizer] // gpus)


def our_loss(means, counts):
    """As the parts of `losses.token_loss` are put together."""
    return torch.where(counts > 0, counts / counts.sum() * means, 0).sum()


def our_rows(batch, processes, size):
    return [
        [rows.tolist() for rows in torch.arange(batch).chunk(processes)[rank].split(size)]
        for rank in range(processes)
    ]


def our_places(indices, sizes):
    tokens = Tokens.__new__(Tokens)
    tokens.shards, tokens.offsets = range(len(sizes)), offsets(sizes)
    found = tokens.locate(indices)
    return tuple(torch.tensor([pair[i] for pair in found], dtype=torch.int64) for i in (0, 1))


# Properties


def counts_every_product(block_flops):
    """Against a loop that multiplies two matrices the slow way, and counts."""

    def product(m, n, k):
        return 2 * sum(1 for _ in range(m) for _ in range(n) for _ in range(k))

    @given(st.sampled_from([1, 4, 9]), st.integers(1, 4), st.integers(1, 4))  # square grids
    @example(1, 1, 1)
    @example(4, 2, 3)
    def check(N, T, D):
        qkv, mlp = 3 * product(N, D, D), product(N, D, 4 * D) + product(N, 4 * D, D)
        own = qkv + product(N, D, N) + product(N, N, D) + product(N, D, D)
        other = product(N, D, D) + product(N, D, T) + product(N, T, D) + product(N, D, D)
        got = block_flops(N, T, D)
        assert got == own + other + mlp, (
            f"{N} tokens, {T} of text, width {D}: {got}, not {own + other + mlp}"
        )

    check()


def knows_the_large_block(block_flops):
    assert block_flops(256, 77, 2048) == our_flops(256, 77, 2048), "a block of the 3 B model"


def adds_up_the_tensors(bytes_per_gpu):
    """Four bytes for each number of a model and its optimizer, shared by all GPUs, and never less."""

    @given(st.integers(1, 10**10), st.integers(1, 100))
    @example(10, 3)
    @example(1, 1)
    def check(parameters, gpus):
        for optimizer, each in (("adamw", 5), ("adafactor", 3)):
            got, whole = bytes_per_gpu(parameters, optimizer, gpus), 4 * each * parameters
            wanted = -(-whole // gpus)
            assert isinstance(got, int) and got == wanted, (
                f"{parameters} parameters, {optimizer}, {gpus} GPUs: {got} bytes, not {wanted}"
            )

    check()


def is_the_mean_of_all_tokens(combine):
    @given(
        st.lists(st.lists(st.floats(0, 20, width=32), max_size=6), min_size=1, max_size=5).filter(
            any
        )
    )
    @example([[1.0], [2.0, 3.0, 4.0]])
    @example([[1.0, 3.0], [], [5.0]])
    @example([[2.0]])
    def check(parts):
        means = torch.tensor([sum(p) / len(p) if p else math.nan for p in parts])
        got = float(combine(means, torch.tensor([len(p) for p in parts])))
        everything = [x for p in parts for x in p]
        wanted = sum(everything) / len(everything)
        assert math.isclose(got, wanted, rel_tol=1e-4, abs_tol=1e-4), (
            f"tokens' losses {parts}: {got}, not {wanted}"
        )

    check()


def every_row_runs_once(rows_of_pass):
    @given(st.integers(1, 5), st.integers(1, 12), st.integers(1, 9))
    @example(2, 4, 3)
    @example(1, 5, 5)
    def check(processes, each, size):
        batch = processes * each
        got = rows_of_pass(batch, processes, size)
        asked = f"{batch} rows, {processes} processes, passes of {size}: {got}"
        assert len(got) == processes and len({len(passes) for passes in got}) == 1, (
            f"{asked}; all need as many passes: they wait for each other"
        )
        for rank, passes in enumerate(got):
            assert all(passes) and [row for rows in passes for row in rows] == [
                *range(rank * each, (rank + 1) * each)
            ], asked
            assert all(len(rows) == size for rows in passes[:-1]) and len(passes[-1]) <= size, asked

    check()


def parts_draw_what_the_whole_draws(rows_of_pass):
    """Put together, the rows of all parts are the batch that one process would run."""
    indices = train.batch_at(0, "base", 3, 12, 50)
    for processes, size in ((1, 12), (2, 6), (3, 3), (4, 2)):
        got = [indices[rows] for passes in rows_of_pass(12, processes, size) for rows in passes]
        assert torch.equal(torch.cat(got), indices), f"{processes} processes, passes of {size}"


def finds_every_picture(locate):
    """Against a list of all pictures, in any order, with empty shards."""

    @given(
        st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(any),
        st.randoms(use_true_random=False),
    )
    @example([3, 0, 2], None)
    @example([1], None)
    def check(sizes, random):
        places = [(shard, row) for shard, size in enumerate(sizes) for row in range(size)]
        order = [*range(len(places))]
        if random:
            random.shuffle(order)
        shards, rows = locate(torch.tensor(order), sizes)
        assert shards.dtype == rows.dtype == torch.int64, (
            f"shards are {shards.dtype}, rows {rows.dtype}, not int64"
        )
        got = [*zip(shards.tolist(), rows.tolist())]
        assert got == [places[i] for i in order], f"shards of {sizes}, pictures {order}: {got}"

    check()


# Planted bugs


def flops(self_=4, cross=2, mlp=8, own=2, other=2, each=2):
    return lambda N, T, D: (
        each * (N * (self_ + cross + mlp) * D * D + own * N * N * D + other * N * T * D)
    )


def count_no_attention(N, T, D):
    return 2 * N * 14 * D * D


def bytes_of(adamw=20, adafactor=12, up=True, shared=True):
    def wrong(parameters, optimizer, gpus):
        whole = parameters * (adamw if optimizer == "adamw" else adafactor)
        return -(-whole // gpus) if up and shared else whole // gpus if shared else whole

    return wrong


def mean_of_means(means, counts):
    return means.nanmean()


def of_all_parts(means, counts):
    return (means.nan_to_num() * counts).sum() / len(counts)


def nan_stays(means, counts):
    return (means * counts).sum() / counts.sum()


def empty_ones_too(means, counts):
    return (means.nan_to_num() * counts.clamp(min=1)).sum() / counts.clamp(min=1).sum()


def interleaved(batch, processes, size):
    return [
        [rows.tolist() for rows in torch.arange(rank, batch, processes).split(size)]
        for rank in range(processes)
    ]


def all_take_all(batch, processes, size):
    return [[rows.tolist() for rows in torch.arange(batch).split(size)] for _ in range(processes)]


def so_many_passes(batch, processes, size):
    return [
        [rows.tolist() for rows in part.chunk(size)]
        for part in torch.arange(batch).chunk(processes)
    ]


def the_rest_is_dropped(batch, processes, size):
    each = batch // processes
    size = min(size, each)
    return [
        [[*range(rank * each + i, rank * each + i + size)] for i in range(0, each - size + 1, size)]
        for rank in range(processes)
    ]


def passes_first(batch, processes, size):
    dealt = [rows.tolist() for rows in torch.arange(batch).split(size)]
    return [dealt[rank::processes] for rank in range(processes)]


def shards_alike(indices, sizes):
    return indices // max(sizes), indices % max(sizes)


def one_too_late(indices, sizes):
    which = torch.searchsorted(offsets(sizes), indices) - 1
    return which, indices - offsets(sizes)[which]


def counted_from_the_end(indices, sizes):
    which = torch.searchsorted(offsets(sizes)[1:], indices, right=True)
    return which, indices - offsets(sizes)[1:][which]


def empty_shards_left_out(indices, sizes):
    full = [s for s in sizes if s]
    which = torch.searchsorted(offsets(full), indices, right=True) - 1
    return which, indices - offsets(full)[which]


def sorted_first(indices, sizes):
    return our_places(indices.sort().values, sizes)


EXERCISES = (
    Exercise(
        "block_flops",
        our_flops,
        (counts_every_product, knows_the_large_block),
        "list the matrices that meet: three for queries, keys and values, ... ; then one product each",
        (
            flops(each=1),
            flops(self_=3),
            flops(cross=4),
            flops(mlp=4),
            flops(own=1),
            flops(other=0),
            count_no_attention,
        ),
    ),
    Exercise(
        "bytes_per_gpu",
        our_bytes,
        (adds_up_the_tensors,),
        "how many numbers are there for each parameter, before anybody optimizes?",
        (
            bytes_of(adamw=16),
            bytes_of(adafactor=16),
            bytes_of(adafactor=8),
            bytes_of(up=False),
            bytes_of(shared=False),
            bytes_of(adamw=12, adafactor=20),
        ),
    ),
    Exercise(
        "combine",
        our_loss,
        (is_the_mean_of_all_tokens,),
        "a part's sum is its mean times its count; 0 times not-a-number is not a number",
        (mean_of_means, of_all_parts, nan_stays, empty_ones_too),
    ),
    Exercise(
        "rows_of_pass",
        our_rows,
        (every_row_runs_once, parts_draw_what_the_whole_draws),
        "first over the processes, then over the passes",
        (interleaved, all_take_all, so_many_passes, the_rest_is_dropped, passes_first),
    ),
    Exercise(
        "locate",
        our_places,
        (finds_every_picture,),
        "where does each shard begin? A running sum knows, and torch.searchsorted finds",
        (shards_alike, one_too_late, counted_from_the_end, empty_shards_left_out, sorted_first),
    ),
)
