"""Lesson 05: what surrounds the base model, and what is at its heart.

Write each function where it says so, then run `minimuse check 05`. Each docstring is a slow, plain specification; yours
should work on whole tensors. `minimuse.schedule` is yours to use: it is lesson 04.
"""

import torch


def grid_positions(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """2-D positions from a vector for each row (h, D) and one for each column (w, D): (h * w, D).

    Slowly: go through the grid as one reads a page, and add to the vector of the row you are in that of the column.
    """
    raise NotImplementedError


def hide(
    ids: torch.Tensor, mask_id: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (B, N) -> the same with some replaced by mask_id (B, N), and which ones: (B, N) bool.

    Slowly: for each picture draw a share to hide from the cosine law, round the number of tokens up (at least one), and draw that
    many places, all alike. The ids that were given stay as they are: the loss needs them.
    """
    raise NotImplementedError


def drop_captions(visible: torch.Tensor, share: float, generator: torch.Generator) -> torch.Tensor:
    """Mask of the captions' words (B, T) bool -> the same, with all words of some captions set to False.

    Slowly: for each caption throw a coin of its own, which says "gone" with probability `share`. `visible` itself stays as it is.
    """
    raise NotImplementedError


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, visible: torch.Tensor | None = None
) -> torch.Tensor:
    """Softmax attention: queries (B, H, N, d), keys and values (B, H, T, d), words to look at (B, T) bool -> (B, H, N, d).

    Slowly, for one query: its product with each visible key, over sqrt(d); the exponential of each; divided by their sum, the
    weights of the values. Without `visible`, every key is. A row of the batch that sees no key gets exactly zero, and so do its
    gradients.
    """
    raise NotImplementedError


def masked_token_loss(
    logits: torch.Tensor, ids: torch.Tensor, hidden: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (M, K) of the M hidden tokens, true ids (B, N), which are hidden (B, N) bool -> loss, and share of tokens guessed right.

    Row m of the logits belongs to the m-th True of `hidden`, read row by row. Slowly: the softmax of each row of the logits; minus
    the logarithm of what it gives the true id; and the mean of all M numbers. A guess is right where the true id has the largest logit.
    """
    raise NotImplementedError


def hide_blocks(
    ids: torch.Tensor, mask_id: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Open-ended: hide one rectangle of each picture's grid, instead of random places. The lesson says what to try with it."""
    raise NotImplementedError
