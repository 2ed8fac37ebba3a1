"""Images of mean code vectors: their probabilities, their vectors, and who uses them."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from minimuse import Muse, edit
from minimuse.beyond.mean_vectors import code_vectors
from minimuse.cli.figures import decoding_frames
from minimuse.datasets import shapes
from minimuse.decode import Sampling, Step, step
from minimuse.metrics.outline import outline

CAPTION = "a small red circle on a grey background"
K = 5


@pytest.fixture(scope="module")
def muse(tiny_model):
    return Muse.load(tiny_model)


# --- One step ---
def problem(seed, B=2, N=6):
    """Arguments of `step`: logits, ids with mask ids, hidden, left, and both kinds of noise."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(B, N, K, generator=generator)
    hidden = torch.rand(B, N, generator=generator) < 0.6
    ids = torch.randint(K, (B, N), generator=generator).masked_fill(hidden, K)
    noise = torch.randn(B, N, K, generator=generator), torch.randn(B, N, generator=generator)
    return logits, ids, hidden, hidden.sum(dim=-1) // 2, *noise


def is_right(step):
    """Hidden tokens have the softmax of their logits, known ones are certain."""

    @given(st.integers(0, 1000), st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 2))
    def check(seed, temperature, top_k):
        arguments = problem(seed)
        logits, ids, hidden = arguments[:3]
        sampling = Sampling(temperature=temperature, top_k=top_k, mean_vectors=True)
        probabilities = step(*arguments, sampling).probabilities
        for b, n in torch.cartesian_prod(*map(torch.arange, ids.shape)).tolist():
            expected = logits[b, n].exp() / logits[b, n].exp().sum()
            if not hidden[b, n]:
                expected = torch.zeros(K)
                expected[ids[b, n]] = 1
            torch.testing.assert_close(probabilities[b, n], expected, rtol=0, atol=1e-6)

    check()


def test_the_probabilities_of_a_step():
    is_right(step)


def broken(*arguments, bug):
    """`step`, with one bug at a time in its probabilities."""
    logits, ids, hidden, *_, sampling = arguments
    result = step(*arguments)
    if bug == "known tokens are guessed":
        return result._replace(probabilities=logits.softmax(dim=-1))
    if bug == "temperature":
        tempered = (logits / max(sampling.temperature, 0.1)).softmax(dim=-1)
        probabilities = torch.where(hidden[..., None], tempered, result.probabilities)
        return result._replace(probabilities=probabilities)
    # Of tokens that this step keeps, their guess is certain.
    guess = torch.nn.functional.one_hot(result.ids, K).float()
    kept = ~result.hidden[..., None]
    return result._replace(probabilities=torch.where(kept, guess, result.probabilities))


@pytest.mark.parametrize("bug", ["known tokens are guessed", "temperature", "kept are certain"])
def test_broken_probabilities(refuses, bug):
    refuses(is_right, lambda *arguments: broken(*arguments, bug=bug))


@given(st.integers(0, 1000))
def test_nothing_else_in_a_step_changes(seed):
    plain = step(*problem(seed), Sampling())
    with_means = step(*problem(seed), Sampling(mean_vectors=True))
    assert plain.probabilities is None
    assert all(torch.equal(a, b) for a, b in zip(plain[:3], with_means[:3], strict=True))


# --- Vectors ---
def test_a_mean_lies_between_its_codes(muse):
    grid, codes = muse.config.tokenizer_hi.grid, muse.config.tokenizer_hi.codes
    N = grid**2
    ids = torch.zeros(1, N, dtype=torch.long)
    probabilities = torch.zeros(1, N, codes)
    probabilities[..., 3], probabilities[..., 7] = 0.25, 0.75
    codebook = muse.tokenizer_hi.quantizer.codebook
    vectors = code_vectors(Step(ids, None, None, probabilities), muse.tokenizer_hi)
    expected = 0.25 * codebook[3] + 0.75 * codebook[7]
    torch.testing.assert_close(vectors, expected.expand(1, grid, grid, -1))


def test_places_of_a_grid_are_read_as_a_page(muse):
    grid, codes = muse.config.tokenizer_hi.grid, muse.config.tokenizer_hi.codes
    ids = torch.arange(grid**2)[None] % codes
    certain = torch.nn.functional.one_hot(ids, codes).float()
    expected = muse.tokenizer_hi.quantizer.lookup(ids.view(1, grid, grid))
    for probabilities in (None, certain):
        vectors = code_vectors(Step(ids, None, None, probabilities), muse.tokenizer_hi)
        torch.testing.assert_close(vectors, expected)


# --- Drawing ---
def with_means(muse):
    """The sampling of both models; super-resolution has mean vectors."""
    return {
        "sampling": muse.config.sampling,
        "sampling_hi": replace(muse.config.sampling_hi, mean_vectors=True),
    }


def test_drawing_decodes_the_vectors_of_the_last_step(muse):
    arguments = [CAPTION, CAPTION]
    last = dict(muse.steps(arguments, seed=4, **with_means(muse)))
    low, high = muse.draw(arguments, seed=4, **with_means(muse))
    assert torch.equal(low, muse.pixels(last["low"].ids, "low"))
    vectors = code_vectors(last["high"], muse.tokenizer_hi)
    expected = muse.decoder(vectors.permute(0, 3, 1, 2)).clamp(-1, 1)
    torch.testing.assert_close(high, expected)
    assert not torch.equal(high, muse.pixels(last["high"].ids, "high"))


def test_batches_do_not_change_what_is_drawn(muse):
    together = muse.draw([CAPTION] * 3, seed=4, **with_means(muse))[1]
    by_two = muse.draw([CAPTION] * 3, batch=2, seed=4, **with_means(muse))[1]
    torch.testing.assert_close(together, by_two)


def test_the_last_frame_of_a_film_is_the_drawing(muse):
    _, high = muse.draw([CAPTION], seed=4, **with_means(muse))
    *_, (shown, _) = decoding_frames(muse, [CAPTION], seed=4, **with_means(muse))
    assert torch.equal(shown, high)


def test_tokens_around_a_hole_keep_their_own_vectors(muse, monkeypatch):
    seen = {}
    pixels = muse.pixels

    def spy(ids, resolution, vectors=None):
        seen["ids"], seen["vectors"] = ids, vectors
        return pixels(ids, resolution, vectors=vectors)

    monkeypatch.setattr(muse, "pixels", spy)
    hole = Image.new("L", (32, 32))
    hole.paste(255, (8, 8, 24, 24))
    edit.inpaint(muse, Image.new("RGB", (32, 32), "red"), hole, CAPTION, mean_vectors=True)
    of_ids = muse.tokenizer_hi.quantizer.lookup(seen["ids"])  # 1 h w C
    same = (of_ids - seen["vectors"]).abs().amax(dim=-1)[0] < 1e-6
    inside = torch.zeros_like(same)
    inside[2:6, 2:6] = True  # a high-res token has 4 x 4 pixels
    assert same[~inside].all()
    assert not same[inside].all()


def test_shapes_that_ship_have_better_outlines_with_mean_vectors():
    muse = Muse.load("toy-shapes")
    assert muse.config.sampling_hi.mean_vectors
    captions = [shapes.caption(shapes.scene(seed, "heldout")) for seed in range(24)]
    last = dict(muse.steps(captions, seed=0))
    _, drawn = muse.draw(captions, seed=0)
    likeliest = muse.pixels(last["high"].ids, "high")
    assert outline(drawn)["value"] > outline(likeliest)["value"] + 0.005
