"""Lesson 06: parallel decoding, from the noise to the loop.

Write each function where it says so, then run `minimuse check 06`. Each docstring is a slow, plain
specification; your function may be faster. No exercise here needs a trained model: the checks bring
a table of logits.

Letters: B batch, N image tokens, K codes, S steps, k = 0 .. S-1 the step.
"""

from collections.abc import Callable, Iterator, Sequence

import torch

from minimuse.decode import Sampling, Step


def noise_at(k: int, steps: int, choice_temperature: float) -> float:
    """The scale of the Gumbel noise on confidences at step k.

    It falls linearly: by choice_temperature / steps with each step. It has fallen once already when
    step 0 uses it, so the last step has 0. Every step computes it from the given value.
    """
    raise NotImplementedError


def gumbel(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Independent standard Gumbel noise, float32, of any shape: P(noise <= x) = exp(-exp(-x)).

    Slowly: draw a uniform u with torch.rand (all of them in one call, so that the same generator
    gives the same noise to all), and look for the x at which exp(-exp(-x)) reaches u. The noise is
    always finite: torch.rand draws 0 about once in 16 million times.
    """
    raise NotImplementedError


def tempered_draw(logits: torch.Tensor, noise: torch.Tensor, temperature: float) -> torch.Tensor:
    """A code for every position: logits (N, K), standard Gumbel noise (N, K) -> ids (N,) int64.

    Each id is a draw from softmax(logits / temperature) of its row, by the Gumbel-max trick. The
    noise that is given is all the randomness there is. At temperature 0 it is the most likely code.
    """
    raise NotImplementedError


def hidden_again(scores: torch.Tensor, hidden: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
    """Which tokens are hidden after a step: scores (B, N), hidden (B, N) bool, left (B,) -> (B, N).

    Slowly, row by row: list the hidden positions, the highest score first; of equal scores, the
    leftmost position first. Reveal from the beginning of the list until left[b] positions remain.
    They are the answer. `left[b]` is never more than are hidden. The scores of positions that are
    not hidden mean nothing.
    """
    raise NotImplementedError


def step(
    logits: torch.Tensor,
    ids: torch.Tensor,
    hidden: torch.Tensor,
    left: torch.Tensor,
    token_noise: torch.Tensor,
    choice_noise: torch.Tensor,
    temperature: float,
) -> Step:
    """One whole step of MaskGIT's decoding, without a model and without random numbers of its own.

    logits (B, N, K), ids (B, N), hidden (B, N) bool, left (B,) how many of a row stay hidden;
    token_noise (B, N, K) standard Gumbel; choice_noise (B, N) Gumbel noise that is already scaled.

    Returns Step(ids, confidence, hidden):

    ids         (B, N): a hidden position gets a tempered draw, from its logits and its token_noise;
                other positions keep their id
    confidence  (B, N): the log-probability of that id by the softmax of the logits, without
                temperature and without noise; infinite where the token was not hidden
    hidden      (B, N): the `left[b]` hidden positions of row b with the lowest
                confidence + choice_noise; ties as in hidden_again
    """
    raise NotImplementedError


def decode(
    model: Callable[[torch.Tensor, object], torch.Tensor],
    ids: torch.Tensor,
    mask_id: int,
    context: object,
    sampling: Sampling,
    generators: Sequence[torch.Generator],
) -> Iterator[Step]:
    """The loop: fill the positions of ids (B, N) that hold mask_id. Yield each Step.

    After the last step no token is hidden. Guidance is left out: it is lesson 07. For each of
    sampling.steps steps:

    - `minimuse.schedule.masked_after` says how many tokens stay hidden in each row. It gets the
      number hidden in *that row* at the start. (Yours of lesson 04 may differ by one at a tie.)
    - First draw noise for the tokens (N, K) of each row, then noise for the choice (N,) of each
      row. Draw both with `gumbel`, from the generator of that row: `generators` has one for each. K
      is the mask id. Scale the second by noise_at. A row is then filled in the same way in a batch
      of any size.
    - If no row would reveal anything in this step, skip the rest of it: no pass through the model,
      nothing to yield.
    - model(inputs, context) gives logits (B, N, K). `inputs` has the mask id wherever a token is
      hidden, whether there is a guess or not. `ids` as it was given is not changed in place.
    - Then take your `step`, with sampling.temperature. Its ids hold a guess for every position.
      These are what is yielded, and they never contain the mask id.
    """
    raise NotImplementedError


def order_of_your_own(
    confidence: torch.Tensor, hidden: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Open-ended: other scores (B, N) for `hidden_again` than confidence and noise.

    `minimuse check` does not look at it. The lesson says what to try with it.
    """
    raise NotImplementedError
