"""Lesson 12: properties and planted bugs of the exercises on costs and on parts of a batch."""

import math

import torch
from hypothesis import example, given
from hypothesis import strategies as st
from minimuse.checks import Exercise
from minimuse.checks.compare import assert_same
from torch.utils.flop_counter import FlopCounterMode

from minimuse import train
from minimuse.data import Tokens, offsets
from minimuse.transformer import Block

TITLE = "scaling up"


# --- The package's own code for this ---
def our_flops(tokens, text, width):
    """By PyTorch's counter on the meta device, as `minimuse describe` does."""
    with torch.device("meta"):
        block = Block(width, 1, math.isqrt(tokens))
        k, v = torch.zeros(2, 1, 1, text, width)
        visible = torch.ones(1, text, dtype=torch.bool)
        with FlopCounterMode(display=False) as counter:
            block(torch.zeros(1, tokens, width), k, v, visible)
    return counter.get_total_flops()


def our_bytes(parameters, optimizer, gpus):
    bytes_each = {"adamw": 20, "adafactor": 12}[optimizer]
    return -(-parameters * bytes_each // gpus)  # rounded up


def our_loss(means, counts):
    """As `losses.token_loss` puts the parts of a batch together."""
    return torch.where(counts > 0, counts / counts.sum() * means, 0).sum()


def our_rows(batch, processes, size):
    return [
        [rows.tolist() for rows in rows_of_process.split(size)]
        for rows_of_process in torch.arange(batch).chunk(processes)
    ]


def our_places(indices, sizes):
    """`Tokens.locate` with the numbers of shards in place of shards."""
    tokens = Tokens.__new__(Tokens)
    tokens.shards = range(len(sizes))
    tokens.offsets = offsets(sizes)
    places = tokens.locate(indices)
    shards = torch.tensor([shard for shard, _ in places], dtype=torch.int64)
    rows = torch.tensor([row for _, row in places], dtype=torch.int64)
    return shards, rows


# --- Properties ---
def counts_every_product(block_flops):
    """Against a loop that multiplies two matrices the slow way, and counts."""

    def product(m, n, k):
        return 2 * sum(1 for _ in range(m) for _ in range(n) for _ in range(k))

    @given(st.sampled_from([1, 4, 9]), st.integers(1, 4), st.integers(1, 4))  # square grids
    @example(1, 1, 1)
    @example(4, 2, 3)
    def check(N, T, D):
        queries_keys_values = 3 * product(N, D, D)
        scores, mixture, output = product(N, D, N), product(N, N, D), product(N, D, D)
        self_attention = queries_keys_values + scores + mixture + output
        queries, output = product(N, D, D), product(N, D, D)
        scores, mixture = product(N, D, T), product(N, T, D)
        cross_attention = queries + scores + mixture + output
        mlp = product(N, D, 4 * D) + product(N, 4 * D, D)
        expected = self_attention + cross_attention + mlp
        result = block_flops(N, T, D)
        assert result == expected, f"{N} tokens, {T} of text, width {D}: {result}, not {expected}"

    check()


def knows_the_large_block(block_flops):
    assert block_flops(256, 77, 2048) == our_flops(256, 77, 2048), "a block of the 3 B model"


def adds_up_the_tensors(bytes_per_gpu):
    """Four bytes for each number of a model and its optimizer, split over the GPUs, rounded up."""

    @given(st.integers(1, 10**10), st.integers(1, 100))
    @example(10, 3)
    @example(1, 1)
    def check(parameters, gpus):
        for optimizer, numbers_each in (("adamw", 5), ("adafactor", 3)):
            result = bytes_per_gpu(parameters, optimizer, gpus)
            total = 4 * numbers_each * parameters
            expected = -(-total // gpus)
            assert isinstance(result, int) and result == expected, (
                f"{parameters} parameters, {optimizer}, {gpus} GPUs: {result} bytes, not {expected}"
            )

    check()


def is_the_mean_of_all_tokens(combine):
    """Parts may have different numbers of tokens, or none."""
    losses = st.lists(st.floats(0, 20, width=32), max_size=6)

    @given(st.lists(losses, min_size=1, max_size=5).filter(any))
    @example([[1.0], [2.0, 3.0, 4.0]])
    @example([[1.0, 3.0], [], [5.0]])
    @example([[2.0]])
    def check(parts):
        means = torch.tensor([sum(part) / len(part) if part else math.nan for part in parts])
        counts = torch.tensor([len(part) for part in parts])
        result = float(combine(means, counts))
        all_losses = [loss for part in parts for loss in part]
        expected = sum(all_losses) / len(all_losses)
        assert math.isclose(result, expected, rel_tol=1e-4, abs_tol=1e-4), (
            f"tokens' losses {parts}: {result}, not {expected}"
        )

    check()


def each_part_learns_by_its_tokens(combine):
    """It is a loss: each part's gradient is its fraction of all tokens; an empty part has none."""
    means = torch.tensor([1.0, math.nan, 3.0], requires_grad=True)
    loss = combine(means, torch.tensor([1, 0, 3]))
    assert torch.is_tensor(loss) and loss.requires_grad, "the loss has no gradient"
    (gradient,) = torch.autograd.grad(loss, means)
    case = "parts of 1, 0 and 3 tokens: the gradient of their means"
    assert_same(gradient, [0.25, 0, 0.75], case, atol=1e-6)


def every_row_runs_once(rows_of_pass):
    """In order, on its process, in passes of the right size."""

    @given(st.integers(1, 5), st.integers(1, 12), st.integers(1, 9))
    @example(2, 4, 3)
    @example(1, 5, 5)
    def check(processes, each, size):
        batch = processes * each
        result = rows_of_pass(batch, processes, size)
        case = f"{batch} rows, {processes} processes, passes of {size}: {result}"
        assert len(result) == processes and len({len(passes) for passes in result}) == 1, (
            f"{case}; all need the same number of passes, since they wait for each other"
        )
        for rank, passes in enumerate(result):
            assert all(passes), case
            rows = [row for rows_of_one in passes for row in rows_of_one]
            assert rows == [*range(rank * each, (rank + 1) * each)], case
            assert all(len(rows_of_one) == size for rows_of_one in passes[:-1]), case
            assert len(passes[-1]) <= size, case

    check()


def parts_draw_what_the_whole_draws(rows_of_pass):
    """Put together, the rows of all parts are the batch that one process would run."""
    indices = train.batch_at(0, "base", 3, 12, 50)
    for processes, size in ((1, 12), (2, 6), (3, 3), (4, 2)):
        parts = [indices[rows] for passes in rows_of_pass(12, processes, size) for rows in passes]
        assert torch.equal(torch.cat(parts), indices), f"{processes} processes, passes of {size}"


def finds_every_picture(locate):
    """Against a list of all images, in any order, with empty shards."""

    @given(
        st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(any),
        st.randoms(use_true_random=False),
    )
    @example([3, 0, 2], None)
    @example([1], None)
    def check(sizes, random):
        places = [(shard, row) for shard, size in enumerate(sizes) for row in range(size)]
        order = list(range(len(places)))
        if random is not None:
            random.shuffle(order)
        shards, rows = locate(torch.tensor(order), sizes)
        assert shards.dtype == rows.dtype == torch.int64, (
            f"shards are {shards.dtype}, rows {rows.dtype}, not int64"
        )
        result = list(zip(shards.tolist(), rows.tolist(), strict=True))
        expected = [places[i] for i in order]
        assert result == expected, f"shards of {sizes}, images {order}: {result}"

    check()


# --- Planted bugs of block_flops ---
def flops(self_=4, cross=2, mlp=8, own=2, other=2, each=2):
    """Numbers of matrices and of products with N or T; the defaults are right."""

    def count(N, T, D):
        weights = N * (self_ + cross + mlp) * D * D
        return each * (weights + own * N * N * D + other * N * T * D)

    return count


def count_no_attention(N, T, D):
    return 2 * N * 14 * D * D


# --- Planted bugs of bytes_per_gpu ---
def bytes_of(adamw=20, adafactor=12, rounded_up=True, split=True):
    """The defaults are right."""

    def count(parameters, optimizer, gpus):
        total = parameters * (adamw if optimizer == "adamw" else adafactor)
        if not split:
            return total
        if not rounded_up:
            return total // gpus
        return -(-total // gpus)

    return count


# --- Planted bugs of combine ---
def mean_of_means(means, counts):
    return means.nanmean()


def of_all_parts(means, counts):
    return (means.nan_to_num() * counts).sum() / len(counts)


def nan_stays(means, counts):
    return (means * counts).sum() / counts.sum()


def loss_without_gradient(means, counts):
    return our_loss(means.detach(), counts)


def empty_ones_too(means, counts):
    counts = counts.clamp(min=1)
    return (means.nan_to_num() * counts).sum() / counts.sum()


# --- Planted bugs of rows_of_pass ---
def interleaved(batch, processes, size):
    return [
        [rows.tolist() for rows in torch.arange(rank, batch, processes).split(size)]
        for rank in range(processes)
    ]


def all_take_all(batch, processes, size):
    passes = [rows.tolist() for rows in torch.arange(batch).split(size)]
    return [passes for _ in range(processes)]


def so_many_passes(batch, processes, size):
    """`size` passes, not passes of `size`."""
    return [
        [rows.tolist() for rows in part.chunk(size)]
        for part in torch.arange(batch).chunk(processes)
    ]


def the_rest_is_dropped(batch, processes, size):
    each = batch // processes
    size = min(size, each)
    starts = range(0, each - size + 1, size)
    result = []
    for rank in range(processes):
        first = rank * each
        result.append([[*range(first + i, first + i + size)] for i in starts])
    return result


def passes_first(batch, processes, size):
    dealt = [rows.tolist() for rows in torch.arange(batch).split(size)]
    return [dealt[rank::processes] for rank in range(processes)]


# --- Planted bugs of locate ---
def shards_alike(indices, sizes):
    return indices // max(sizes), indices % max(sizes)


def one_too_late(indices, sizes):
    which = torch.searchsorted(offsets(sizes), indices) - 1
    return which, indices - offsets(sizes)[which]


def counted_from_the_end(indices, sizes):
    ends = offsets(sizes)[1:]
    which = torch.searchsorted(ends, indices, right=True)
    return which, indices - ends[which]


def empty_shards_left_out(indices, sizes):
    full = offsets([size for size in sizes if size])
    which = torch.searchsorted(full, indices, right=True) - 1
    return which, indices - full[which]


def sorted_first(indices, sizes):
    return our_places(indices.sort().values, sizes)


EXERCISES = (
    Exercise(
        "block_flops",
        our_flops,
        (counts_every_product, knows_the_large_block),
        hint="list the matrices that meet: three for queries, keys and values, ... ; "
        "then one product each",
        wrong=(
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
        hint="how many numbers are there for each parameter, before anybody optimizes?",
        wrong=(
            bytes_of(adamw=16),
            bytes_of(adafactor=16),
            bytes_of(adafactor=8),
            bytes_of(rounded_up=False),
            bytes_of(split=False),
            bytes_of(adamw=12, adafactor=20),
        ),
    ),
    Exercise(
        "combine",
        our_loss,
        (is_the_mean_of_all_tokens, each_part_learns_by_its_tokens),
        hint="a part's sum is its mean times its count; 0 times not-a-number is not a number",
        wrong=(mean_of_means, of_all_parts, nan_stays, empty_ones_too, loss_without_gradient),
    ),
    Exercise(
        "rows_of_pass",
        our_rows,
        (every_row_runs_once, parts_draw_what_the_whole_draws),
        hint="first over the processes, then over the passes",
        wrong=(interleaved, all_take_all, so_many_passes, the_rest_is_dropped, passes_first),
    ),
    Exercise(
        "locate",
        our_places,
        (finds_every_picture,),
        hint="where does each shard begin? A running sum knows, and torch.searchsorted finds",
        wrong=(
            shards_alike,
            one_too_late,
            counted_from_the_end,
            empty_shards_left_out,
            sorted_first,
        ),
    ),
)
