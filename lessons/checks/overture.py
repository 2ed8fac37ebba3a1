"""What must hold of each function of the overture, whoever wrote it.

`lessons/debug.py` runs these checks on a file that a student has mended. Each check takes the file
as a module, and raises an AssertionError that says what is wrong.
"""

import contextlib
import io
import math
from collections.abc import Callable
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images_survive_being_cut(overture: ModuleType) -> None:
    """`to_images` is the inverse of `to_patches`."""
    images = torch.rand(2, 3, overture.SIDE, overture.SIDE, generator=generator())
    again = overture.to_images(overture.to_patches(images))
    assert torch.equal(again, images), "to_images(to_patches(images)) is another image"


def codes_cover_all_patches(overture: ModuleType) -> None:
    """k-means of forty clusters far apart has a code in each of them."""
    clusters = torch.arange(4 * overture.K) % 40
    patches = clusters[:, None] + 0.01 * torch.randn(4 * overture.K, 3, generator=generator())
    codes = overture.k_means(patches, generator())
    distance = torch.cdist(patches, codes).min(-1).values
    far = len(clusters[distance > 0.1].unique())
    assert far == 0, f"{far} of 40 clusters of patches have no code near them"


def masks_follow_the_cosine(overture: ModuleType) -> None:
    """Of each row cos(pi u / 2) of the tokens are hidden: on average 2 / pi, sometimes all."""
    hidden = overture.hide(torch.zeros(4000, overture.N, dtype=torch.long), generator())
    count = hidden.sum(-1).float()
    assert count.min() >= 1, "a row has no hidden token"
    assert count.max() == overture.N, "no row hides all of its tokens"
    # Rounding up adds half a token.
    mean, expected = float(count.mean()), overture.N * 2 / math.pi + 0.5
    assert abs(mean - expected) < 0.4, (
        f"{mean:.1f} tokens are hidden on average, not {expected:.1f}"
    )


def a_tenth_of_captions_is_dropped(overture: ModuleType) -> None:
    words = torch.arange(1, 1 + overture.T).expand(2000, overture.T)
    left = overture.drop_captions(words, generator())
    dropped = (left == 0).all(-1)
    assert torch.equal(left[~dropped], words[~dropped]), "a caption that is kept was changed"
    share = float(dropped.float().mean())
    assert 0.07 < share < 0.13, f"{share:.2f} of the captions are dropped, not 0.10"


class Spy(nn.Module):
    """A model that remembers what it was given, and answers with given logits (B, N, K)."""

    def __init__(self, logits: Tensor):
        super().__init__()
        self.logits = nn.Parameter(logits)
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, ids: Tensor, words: Tensor) -> Tensor:
        self.seen.append((ids.clone(), words.clone()))
        return self.logits[: len(ids)]


def loss_is_of_hidden_tokens(overture: ModuleType) -> None:
    """The model does not see what it should predict, and the loss is of nothing else."""
    B, N, K = 8, overture.N, overture.K
    ids = torch.randint(K, (B, N), generator=generator(1))
    words = torch.ones(B, overture.T, dtype=torch.long)
    spy = Spy(torch.randn(B, N, K, generator=generator(2)))
    loss = overture.masked_loss(spy, ids, words, generator(3))
    seen = spy.seen[0][0]
    hidden = seen == overture.MASK
    assert hidden.any(), "no token is masked in what the model sees: it can copy the answer"
    assert torch.equal(seen[~hidden], ids[~hidden]), "a visible token was changed"
    expected = F.cross_entropy(spy.logits[hidden], ids[hidden])
    assert torch.allclose(loss, expected, atol=1e-5), (
        f"the loss is {loss:.3f}; the cross-entropy of the hidden tokens is {expected:.3f}"
    )


def guidance_goes_away_from_uncond(overture: ModuleType) -> None:
    cond, uncond = torch.tensor([2.0, 1.0]), torch.tensor([1.0, 1.0])
    assert torch.allclose(overture.guide(cond, uncond, 0.0), cond), "guidance 0 changes the logits"
    guided = overture.guide(cond, uncond, 3.0)
    assert torch.allclose(guided, torch.tensor([5.0, 1.0])), (
        f"cond [2, 1], uncond [1, 1] and t = 3 give {guided.tolist()}, not [5, 1]"
    )


def the_surest_tokens_are_kept(overture: ModuleType) -> None:
    """Without chance in the order, the surest come first, as many as the cosine says."""
    N, K = overture.N, overture.K
    logits = torch.zeros(1, N, K)
    logits[0, :, 0] = torch.linspace(11, 17, N)  # the last token is the surest, and all are sure
    spy = Spy(logits)
    with setting(overture, "CHOICE", 0.0):
        ids = overture.decode(spy, torch.ones(1, overture.T, dtype=torch.long), generator())
    assert (ids < K).all(), "a token is still hidden at the end"
    # Each pass runs the model twice: with the caption and without.
    for step, (seen, _) in enumerate(spy.seen[::2]):
        revealed = (seen[0] != overture.MASK).nonzero().flatten().tolist()
        law = int(N * math.cos(math.pi / 2 * step / overture.PASSES))
        count = N - min(law, N - step)
        assert len(revealed) == count, (
            f"after {step} passes {len(revealed)} tokens are revealed; the cosine says {count}"
        )
        expected = list(range(N - count, N))
        assert revealed == expected, f"tokens {revealed} are kept; the surest are {expected}"


def ids_are_sampled(overture: ModuleType) -> None:
    """Where all codes are as likely, not all tokens get the same one."""
    spy = Spy(torch.zeros(1, overture.N, overture.K))
    ids = overture.decode(spy, torch.ones(1, overture.T, dtype=torch.long), generator())
    assert len(ids.unique()) > 1, "all codes are as likely, but every token gets the same one"


def training_pairs_images_with_their_captions(overture: ModuleType) -> None:
    """Each batch has the captions of its images, and the gradients of its own loss alone."""
    seen = []

    def sum_of_parameters(model: nn.Module, ids: Tensor, words: Tensor, _: object) -> Tensor:
        """A loss whose gradient is 1 for each parameter."""
        seen.append((ids[:, 0], words[:, 0]))
        for parameter in model.parameters():
            # Left over from the step before, unless they were set to zero in the meantime.
            gradient = 0.0 if parameter.grad is None else float(parameter.grad.max())
            assert gradient < 1.5, "the gradients of several steps add up"
        return sum(parameter.sum() for parameter in model.parameters())

    marks = torch.arange(500)[:, None]
    ids, words = marks.expand(500, overture.N), marks.expand(500, overture.T)
    with setting(overture, "masked_loss", sum_of_parameters):
        overture.train(nn.Linear(2, 2), ids, words, 3, generator())
    for step, (first_ids, first_words) in enumerate(seen):
        same = torch.equal(first_ids, first_words)
        assert same, f"in step {step} images have the captions of others"


@contextlib.contextmanager
def setting(module: ModuleType, name: str, value: object):
    """Inside, the module has another value of this name."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


CHECKS: tuple[Callable[[ModuleType], None], ...] = (
    images_survive_being_cut,
    codes_cover_all_patches,
    masks_follow_the_cosine,
    a_tenth_of_captions_is_dropped,
    loss_is_of_hidden_tokens,
    guidance_goes_away_from_uncond,
    the_surest_tokens_are_kept,
    ids_are_sampled,
    training_pairs_images_with_their_captions,
)


def first_fault(overture: ModuleType) -> str | None:
    """What is wrong in the file, in one line; None if all checks accept it."""
    for check in CHECKS:
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # a training prints its losses
                check(overture)
        except AssertionError as error:
            return f"{check.__name__.replace('_', ' ')}: {error}"
        except Exception as error:  # whatever a file under repair may raise
            return f"{check.__name__.replace('_', ' ')}: it raised {error!r}"
    return None
