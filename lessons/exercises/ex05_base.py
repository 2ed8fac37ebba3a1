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
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    visible: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Softmax attention -> (B, H, N, d).

    q: queries (B, H, N, d). k, v: keys and values (B, H, T, d). visible: words to look at (B, T)
    bool; without it, every key is visible. bias: (H, N, T), a number for each head, query and key;
    without it, 0.

    Slowly, for one query: take its product with each visible key, over sqrt(d), add the bias, and
    take the exponential of each. Divided by their sum, they are the weights of the values. A row of
    the batch that sees no key gets exactly zero, and so do its gradients.
    """
    raise NotImplementedError


def block(
    x: torch.Tensor,
    text: torch.Tensor,
    visible: torch.Tensor,
    weights: dict[str, torch.Tensor],
    heads: int,
) -> torch.Tensor:
    """A transformer block: self-attention, cross-attention, MLP. (B, N, D) -> (B, N, D).

    x: vectors of the image's tokens (B, N, D). text: vectors of the words (B, T, E). visible: words
    to look at (B, T) bool. heads: H; a head has d = D / H numbers.

    weights: a vector @ an (a, b) matrix has b numbers in place of a.

        norm_self (D,)   self_q, self_k, self_v, self_out (D, D)           bias (H, N, N)
        norm_cross (D,)  cross_q, cross_out (D, D), cross_k, cross_v (E, D)
        norm_mlp (D,)    mlp_up (D, 4 D), mlp_down (4 D, D)

    Slowly: each of three layers reads x through a norm, and adds its result to x. The next layer
    reads the sum. The x that was given stays as it is.

    The norm of a vector: subtract the mean of its D numbers, divide by the root of (their variance
    + 1e-5), multiply by the norm's D weights. (PyTorch: `layer_norm`.)

    1. Self-attention. The q, k and v of each token are its normed vector @ the three matrices. Head
       h has the h-th d of their numbers. It attends to all tokens, with its bias. The results of
       the heads, one behind the other, are D numbers again. The layer adds these @ self_out.
    2. Cross-attention. The same, but k and v come from the words, which are not normed; only
       visible words count, and there is no bias. An absent caption (no word visible) adds exactly
       zero, whatever the text is. (The package computes this k and v before, once for all passes.)
    3. MLP. Each normed vector @ mlp_up, then GELU of each number, then @ mlp_down. GELU(a) is a
       times the probability that a standard normal number is below a. (PyTorch: `gelu`.)
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
