"""Images of mean code vectors: their probabilities, their vectors, and who uses them."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from minimuse import Muse, edit
from minimuse.beyond.mean_vectors import vectors_of
from minimuse.cli.figures import decoding_frames
from minimuse.datasets import shapes
from minimuse.decode import Sampling, Step, step
from minimuse.metrics.outline import outline
from minimuse.vq import FSQuantizer

CAPTION = "a small red circle on a grey background"
K = 5


@pytest.fixture(scope="module")
def muse(tiny_model):
    return Muse.load(tiny_model)


# --- One step ---
def problem(seed, B=2, N=9):
    """Arguments of `step`: logits, ids with mask ids, hidden, left, and both kinds of noise."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(B, N, K, generator=generator)
    hidden = torch.rand(B, N, generator=generator) < 0.6
    ids = torch.randint(K, (B, N), generator=generator).masked_fill(hidden, K)
    noise = torch.randn(B, N, K, generator=generator), torch.randn(B, N, generator=generator)
    return logits, ids, hidden, hidden.sum(dim=-1) // 2, *noise


# Code k is large at place k and 0 elsewhere. So the mean vector of a token is its probabilities,
# scaled; it is rounded to sixteenths.
SCALE = 2.0**20
UNIT_CODES = SimpleNamespace(quantizer=SimpleNamespace(lookup=lambda x: SCALE * F.one_hot(x, K)))


def is_right(step):
    """A hidden token has the softmax of its logits, a known one its code."""

    @given(st.integers(0, 1000), st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 2))
    def check(seed, temperature, top_k):
        arguments = problem(seed)
        logits, ids, hidden = arguments[:3]
        sampling = Sampling(temperature=temperature, top_k=top_k, mean_vectors=True)
        vectors = vectors_of(step(*arguments, sampling), UNIT_CODES).flatten(1, 2) / SCALE  # B N K
        for b, n in torch.cartesian_prod(*map(torch.arange, ids.shape)).tolist():
            expected = logits[b, n].exp() / logits[b, n].exp().sum()
            if not hidden[b, n]:
                expected = torch.zeros(K)
                expected[ids[b, n]] = 1
            assert (vectors[b, n] - expected).abs().max() < 1e-5

    check()


def test_vectors_of_a_step():
    is_right(step)


def broken(*arguments, bug):
    """`step`, with one bug at a time in what the mean is made of."""
    logits, ids, hidden, *_, sampling = arguments
    result = step(*arguments)
    if bug == "known tokens are guessed":
        return result._replace(confidence=torch.zeros_like(result.confidence))
    if bug == "temperature":
        tempered = (logits / max(sampling.temperature, 0.1)).softmax(dim=-1)
        return result._replace(probabilities=tempered)
    if bug == "impossible guesses are known":
        return result._replace(confidence=result.confidence.masked_fill(hidden, torch.inf))
    # Of tokens that this step keeps, their guess is certain.
    kept = ~result.hidden[..., None]
    certain = torch.where(kept, F.one_hot(result.ids, K).float(), result.probabilities)
    return result._replace(probabilities=certain)


@pytest.mark.parametrize(
    "bug",
    [
        "known tokens are guessed",
        "temperature",
        "impossible guesses are known",
        "kept tokens are certain",
    ],
)
def test_broken_probabilities(refuses, bug):
    refuses(is_right, lambda *arguments: broken(*arguments, bug=bug))


@given(st.integers(0, 1000))
def test_nothing_else_in_a_step_changes(seed):
    plain = step(*problem(seed), Sampling())
    with_means = step(*problem(seed), Sampling(mean_vectors=True))
    assert plain.probabilities is None
    assert all(torch.equal(a, b) for a, b in zip(plain[:3], with_means[:3], strict=True))


def test_a_guess_of_probability_0_is_not_known():
    """Its log-probability is minus infinity, and that of a known token plus infinity."""
    logits = torch.tensor([[[-torch.inf, 0.0, 0.0, -torch.inf, -torch.inf]]])
    ids, noise = torch.tensor([[0]]), torch.zeros(1, 1)
    result = Step(ids, -torch.inf * torch.ones(1, 1), noise == 1, logits.softmax(dim=-1))
    vectors = vectors_of(result, UNIT_CODES) / SCALE
    assert vectors.flatten().tolist() == [0, 0.5, 0.5, 0, 0]


# --- Vectors ---
def test_a_mean_lies_between_its_codes(muse):
    grid, codes = muse.config.tokenizer_hi.grid, muse.config.tokenizer_hi.codes
    N = grid**2
    ids, confidence = torch.zeros(1, N, dtype=torch.long), torch.zeros(1, N)
    probabilities = torch.zeros(1, N, codes)
    probabilities[..., 3], probabilities[..., 7] = 0.25, 0.75
    codebook = muse.tokenizer_hi.quantizer.codebook
    vectors = vectors_of(Step(ids, confidence, None, probabilities), muse.tokenizer_hi)
    expected = 0.25 * codebook[3] + 0.75 * codebook[7]
    assert (vectors - expected).abs().max() <= 1 / 32  # rounded to sixteenths


@pytest.mark.parametrize("quantizer", ["ema", "fsq"])
def test_places_of_a_grid_are_read_as_a_page(muse, quantizer):
    tokenizer, grid = muse.tokenizer_hi, muse.config.tokenizer_hi.grid
    if quantizer == "fsq":
        tokenizer = SimpleNamespace(quantizer=FSQuantizer((4, 4, 4)))
    ids = torch.arange(grid**2)[None] % 64
    certain = F.one_hot(ids, 64).float()
    expected = tokenizer.quantizer.lookup(ids.view(1, grid, grid))
    for probabilities in (None, certain):
        result = Step(ids, torch.zeros(ids.shape), None, probabilities)
        rounded = expected if probabilities is None else (16 * expected).round() / 16
        assert torch.equal(vectors_of(result, tokenizer), rounded)


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
    vectors = vectors_of(last["high"], muse.tokenizer_hi)
    expected = muse.decoder(vectors.permute(0, 3, 1, 2)).clamp(-1, 1)
    torch.testing.assert_close(high, expected)
    assert not torch.equal(high, muse.pixels(last["high"].ids, "high"))


def test_batches_do_not_change_what_is_drawn(muse):
    together = muse.draw([CAPTION] * 3, seed=4, **with_means(muse))[1]
    by_two = muse.draw([CAPTION] * 3, batch=2, seed=4, **with_means(muse))[1]
    torch.testing.assert_close(together, by_two)


def test_neither_threads_nor_batches_change_an_image():
    """The last bits of logits depend on both, a mean that is rounded hardly ever."""
    muse, threads = Muse.load("toy-shapes"), torch.get_num_threads()
    drawn = []
    try:
        for count, batch in ((1, 8), (2, 8), (2, 3)):
            torch.set_num_threads(count)
            drawn.append(muse.draw([CAPTION] * 8, batch, seed=0)[1])
    finally:
        torch.set_num_threads(threads)
    for other in drawn[1:]:
        same = (other == drawn[0]).flatten(1).all(dim=1)
        assert same.sum() >= 7
    assert ((drawn[0] - drawn[1]).abs() < 0.5).all()


def test_the_last_frame_of_a_film_is_the_drawing(muse):
    _, high = muse.draw([CAPTION], seed=4, **with_means(muse))
    *_, (shown, _) = decoding_frames(muse, [CAPTION], seed=4, **with_means(muse))
    assert torch.equal(shown, high)


def drawn_vectors(muse, monkeypatch):
    """What `decode_vectors` was given last for a high-res image."""
    seen = {}
    decode_vectors = muse.decode_vectors

    def spy(vectors, resolution, *rest):
        seen[resolution] = vectors
        return decode_vectors(vectors, resolution, *rest)

    monkeypatch.setattr(muse, "decode_vectors", spy)
    return seen


def is_a_code(vectors, tokenizer):
    """Which of the vectors (B, h, w, C) are those of a code."""
    codebook = tokenizer.quantizer.codebook  # K C
    differences = (vectors[..., None, :] - codebook).abs().amax(dim=-1)  # B h w K
    return differences.amin(dim=-1) < 1e-6


def test_tokens_around_a_hole_keep_their_own_vectors(muse, monkeypatch):
    seen = drawn_vectors(muse, monkeypatch)
    hole = Image.new("L", (32, 32))
    hole.paste(255, (8, 8, 24, 24))
    edit.inpaint(muse, Image.new("RGB", (32, 32), "red"), hole, CAPTION, mean_vectors=True)
    same = is_a_code(seen["high"], muse.tokenizer_hi)[0]
    inside = torch.zeros_like(same)
    inside[2:6, 2:6] = True  # a high-res token has 4 x 4 pixels
    assert same[~inside].all()
    assert not same[inside].all()


def test_a_window_leaves_the_vectors_of_other_windows(muse, monkeypatch):
    """Of an image that is filled window by window, the later ones know tokens of the earlier."""
    seen = drawn_vectors(muse, monkeypatch)
    before = []
    fill_window = edit.fill_window

    def watched(muse, low, high, vectors, *rest):
        known = high != muse.superres.mask_id
        before.append((vectors.clone(), known))
        fill_window(muse, low, high, vectors, *rest)

    monkeypatch.setattr(edit, "fill_window", watched)
    image = Image.new("RGB", (32, 32), "red")
    edit.outpaint(muse, image, CAPTION, (16, 16, 32, 16), mean_vectors=True, steps=2)
    assert len(before) > 2
    for (vectors, known), (later, _) in zip(
        before, before[1:] + [(seen["high"], None)], strict=True
    ):
        assert torch.equal(vectors[known], later[known])
    mean = ~is_a_code(seen["high"], muse.tokenizer_hi)
    first_known = before[0][1]
    assert not mean[first_known].any() and mean[~first_known].float().mean() > 0.5


def test_editing_without_a_mask_draws_mean_vectors(muse, monkeypatch):
    seen = drawn_vectors(muse, monkeypatch)
    image = Image.new("RGB", (32, 32), "red")
    means = {}
    for mean_vectors in (False, True):
        settings = {"iterations": 4, "share": 0.5, "mean_vectors": mean_vectors}
        edit.edit(muse, image, CAPTION, **settings)
        means[mean_vectors] = int((~is_a_code(seen["high"], muse.tokenizer_hi)).sum())
    assert means[False] == 0 and means[True] > 0


def test_shapes_that_ship_have_better_outlines_with_mean_vectors():
    muse = Muse.load("toy-shapes")
    assert muse.config.sampling_hi.mean_vectors
    captions = [shapes.caption(shapes.scene(seed, "heldout")) for seed in range(24)]
    last = dict(muse.steps(captions, seed=0))
    _, drawn = muse.draw(captions, seed=0)
    likeliest = muse.pixels(last["high"].ids, "high")
    assert outline(drawn)["value"] > outline(likeliest)["value"] + 0.005
