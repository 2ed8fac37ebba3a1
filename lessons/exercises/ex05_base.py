"""Lesson 05: what surrounds the base model, and its core.

Write each function where it says so, then run `minimuse check 05`. Each docstring is a slow, plain
specification; your function should work on whole tensors. You may use `minimuse.schedule`: it is
lesson 04.
"""

import torch


def grid_positions(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """2-D positions from a vector for each row (h, D) and one for each column (w, D): (h * w, D).

    Slowly: go through the grid as one reads a page, and add the vector of the row and the vector of
    the column.
    """
    raise NotImplementedError


def hide(
    ids: torch.Tensor, mask_id: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (B, N) -> the same with some replaced by mask_id (B, N), and which: (B, N) bool.

    Slowly: for each image draw the fraction to hide from the cosine schedule, round the number of
    tokens up (at least one), and draw that many places, all equally likely. The ids that are given
    stay as they are: the loss needs them.
    """
    raise NotImplementedError


def drop_captions(visible: torch.Tensor, share: float, generator: torch.Generator) -> torch.Tensor:
    """Mask of the captions' words (B, T) bool -> the same, with some captions all False.

    Slowly: for each caption throw a coin of its own, which says "drop" with probability `share`.
    `visible` itself stays as it is.
    """
    raise NotImplementedError


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, visible: torch.Tensor | None = None
) -> torch.Tensor:
    """Softmax attention -> (B, H, N, d).

    q: queries (B, H, N, d). k, v: keys and values (B, H, T, d). visible: words to look at (B, T)
    bool; without it, every key is visible.

    Slowly, for one query: take its product with each visible key, over sqrt(d), and the exponential
    of each. Divided by their sum, they are the weights of the values. A row of the batch that sees
    no key gets exactly zero, and so do its gradients.
    """
    raise NotImplementedError


def masked_token_loss(
    logits: torch.Tensor, ids: torch.Tensor, hidden: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss, and the fraction of tokens that are guessed right.

    logits: (M, K) of the M hidden tokens. ids: the true ones (B, N). hidden: which are hidden
    (B, N) bool. Row m of the logits belongs to the m-th True of `hidden`, read row by row.

    Slowly: take the softmax of each row of the logits, then minus the logarithm of what it gives
    the true id, and the mean of all M numbers. A guess is right where the true id has the largest
    logit.
    """
    raise NotImplementedError


def hide_blocks(
    ids: torch.Tensor, mask_id: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Open-ended: hide one rectangle of each image's grid, instead of random places.

    The lesson says what to try with it.
    """
    raise NotImplementedError
