"""Lesson 03: the parts of T5 that are easy to get almost right.

Write each function where it says so, then run `minimuse check 03`. Each docstring is a slow, plain
specification; your function may be faster. No exercise here needs weights.

Letters: B batch, T text tokens, S tokens attended to, E text width, H heads, d width of a head.
"""

import torch


def pad_batch(rows: list[list[int]], max_length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of word ids of unequal length -> ids (B, T) int64 and mask (B, T) bool.

    The mask is True at every real token. Every row that has a word is closed with eos, which is 1
    and real. After it comes pad, which is 0 and not real. A row without words is a null caption: it
    has nothing but pad. A row that would have more than max_length tokens, eos counted, keeps its
    first words and its eos, max_length tokens in all. T is the length of the longest row, and at
    least 1.
    """
    raise NotImplementedError


def masked_mean(embeddings: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """One vector per caption: embeddings (B, T, E), mask (B, T) -> (B, E).

    Slowly: for each row, collect the vectors where the mask is True, add them up, and divide by how
    many there are. Where there are none the result is zero. The vectors at other places may be
    anything, and have no influence.
    """
    raise NotImplementedError


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x (..., E), weight (E,) -> (..., E), in the precision of weight.

    Slowly, for each vector by itself: take the mean of the squares of its E numbers, add eps, take
    the square root, divide each number by it, and multiply it by its weight. The vectors may be
    float16 and thousands long; the result must be right all the same.
    """
    raise NotImplementedError


def relative_position_bucket(
    distance: torch.Tensor, num_buckets: int, max_distance: int
) -> torch.Tensor:
    """The bucket of each distance = key position - query position; int64 -> int64, any shape.

    The attention looks both ways. Buckets 0 to num_buckets / 2 - 1 are for keys at or before the
    query. The rest, in the same order, are for keys after it. Of one such half, let
    n = num_buckets / 4. The first n buckets hold the distances 0 to n - 1, one each. Bucket n + i
    begins at n (max_distance / n)^(i / n), for i from 0 to n - 1, and ends where the next begins.
    The last one never ends.

    Slowly: count how many buckets of its half begin at or below |distance|, and subtract one.
    """
    raise NotImplementedError


def t5_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """q (B, H, T, d), k and v (B, H, S, d), bias -> (B, H, T, d). bias broadcasts to (B, H, T, S).

    Slowly, for each query: its score with each key is the sum of the products of their numbers,
    plus the bias of that pair. The weights are proportional to e to the power of the score, and sum
    to 1 over the keys. The result is the sum of the values with these weights. Scores may be in the
    thousands. The bias of a hidden key is the lowest finite float32. A query whose keys are all
    hidden must still get something finite.
    """
    raise NotImplementedError


def question_of_your_own(t5, split: str, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Open-ended: vectors (M, E) at some word of the captions, and the answers (M,).

    A linear probe should read the answers in the vectors. `minimuse check` does not look at it. The
    lesson says what to try with it.
    """
    raise NotImplementedError
