"""Properties of a transformer block in plain tensors (`minimuse/transformer.py`, `Block`).

Each takes a function to judge, block(x, text, visible, weights, heads), and raises an
AssertionError with a counterexample if it is wrong. `slow_block` is the reference: plain Python,
one token at a time.
"""

import math
from typing import NamedTuple

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from minimuse.checks.compare import assert_same
from minimuse.checks.properties.attention import slow_attention
from torch import Tensor

# The last matrix of each of the three layers. Where it is zero, the layer adds nothing.
LAST_MATRICES = {"self-attention": "self_out", "cross-attention": "cross_out", "MLP": "mlp_down"}
# Not as near as float64 allows: a layer norm may leave out the 1e-5 that it adds to the variance.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-4}
# A block has many numbers, and a bug shows in nearly every example. More would only be slow.
EXAMPLES = 20

seeds = st.integers(0, 2**31 - 1)


class Case(NamedTuple):
    """The input of a block."""

    x: Tensor  # (B, N, D)
    text: Tensor  # (B, T, E)
    visible: Tensor  # (B, T) bool
    weights: dict[str, Tensor]
    heads: int

    def __str__(self):
        B, N, D = self.x.shape
        return (
            f"B = {B}, N = {N}, D = {D}, heads = {self.heads}, "
            f"text {tuple(self.text.shape)}, visible {self.visible.int().tolist()}"
        )


def random_weights(generator, N, D, E, H):
    """Weights of a block in float64, large enough that every one of them matters."""

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def matrix(rows, columns):
        return 1.5 * rows**-0.5 * normal(rows, columns)

    weights = {name: 1 + 0.5 * normal(D) for name in ("norm_self", "norm_cross", "norm_mlp")}
    for name in ("self_q", "self_k", "self_v", "self_out", "cross_q", "cross_out"):
        weights[name] = matrix(D, D)
    for name in ("cross_k", "cross_v"):
        weights[name] = matrix(E, D)
    weights["mlp_up"] = matrix(D, 4 * D)
    weights["mlp_down"] = matrix(4 * D, D)
    weights["bias"] = normal(H, N, N)
    return weights


def random_case(seed, B, side, T, H):
    """A random case of side * side tokens, with heads of 3 numbers. The text's width is not D."""
    generator = torch.Generator().manual_seed(seed)
    N, D = side**2, 3 * H
    E = D + 1
    # The variance of a vector is large beside the 1e-5 of a layer norm.
    x = 5 + 30 * torch.randn(B, N, D, generator=generator, dtype=torch.float64)
    text = torch.randn(B, T, E, generator=generator, dtype=torch.float64)
    visible = torch.rand(B, T, generator=generator) < 0.7
    return Case(x, text, visible, random_weights(generator, N, D, E, H), H)


def with_layers(case, *layers):
    """The case with the last matrices of all other layers set to zero."""
    weights = dict(case.weights)
    for layer, name in LAST_MATRICES.items():
        if layer not in layers:
            weights[name] = torch.zeros_like(weights[name])
    return case._replace(weights=weights)


def result_of(block, case):
    """What the block returns; it may not change x in place."""
    x = case.x.clone()
    out = block(x, case.text, case.visible, case.weights, case.heads)
    assert torch.equal(x, case.x), f"{case}: the x that was given was changed in place"
    return out


# --- The reference ---
def slow_norm(vector, gain):
    mean = sum(vector) / len(vector)
    variance = sum((a - mean) ** 2 for a in vector) / len(vector)
    scale = 1 / math.sqrt(variance + 1e-5)
    return [(a - mean) * scale * g for a, g in zip(vector, gain, strict=True)]


def slow_product(vector, matrix):
    """vector @ matrix; the matrix is a list of rows."""
    columns = zip(*matrix, strict=True)
    return [sum(a * b for a, b in zip(vector, column, strict=True)) for column in columns]


def slow_gelu(a):
    """a times the probability that a standard normal number is below a."""
    return a * (1 + math.erf(a / math.sqrt(2))) / 2


def slow_heads(query, keys, values, heads, biases=None):
    """Each head attends with its own d numbers of the vectors; the results are put together."""
    d = len(query) // heads
    result = []
    for h in range(heads):
        part = slice(h * d, (h + 1) * d)
        head_biases = None if biases is None else biases[h]
        head_keys, head_values = [key[part] for key in keys], [value[part] for value in values]
        result += slow_attention(query[part], head_keys, head_values, head_biases)
    return result


def slow_block(x, words, weights, heads):
    """One image: x is a list of N vectors, `words` of the visible words' vectors."""

    def add(vectors, results):
        pairs = zip(vectors, results, strict=True)
        return [[a + b for a, b in zip(vector, result, strict=True)] for vector, result in pairs]

    def products(vectors, name):
        return [slow_product(vector, weights[name]) for vector in vectors]

    normed = [slow_norm(vector, weights["norm_self"]) for vector in x]
    keys, values = products(normed, "self_k"), products(normed, "self_v")
    mixed = []
    for n, query in enumerate(products(normed, "self_q")):
        biases = [head[n] for head in weights["bias"]]
        mixed.append(slow_heads(query, keys, values, heads, biases))
    x = add(x, products(mixed, "self_out"))

    normed = [slow_norm(vector, weights["norm_cross"]) for vector in x]
    keys, values = products(words, "cross_k"), products(words, "cross_v")
    queries = products(normed, "cross_q")
    mixed = [slow_heads(query, keys, values, heads) for query in queries]
    x = add(x, products(mixed, "cross_out"))

    normed = [slow_norm(vector, weights["norm_mlp"]) for vector in x]
    hidden = [[slow_gelu(a) for a in vector] for vector in products(normed, "mlp_up")]
    return add(x, products(hidden, "mlp_down"))


def assert_is_slow_block(block, case, said):
    """The block's result is that of the reference, image by image."""
    out = result_of(block, case)
    shape = tuple(case.x.shape)
    assert tuple(out.shape) == shape, f"{case}: the shape is {tuple(out.shape)}, not {shape}"
    lists = {name: weight.tolist() for name, weight in case.weights.items()}
    for b in range(len(case.x)):
        words = case.text[b, case.visible[b]].tolist()
        expected = slow_block(case.x[b].tolist(), words, lists, case.heads)
        image = f"image {b}" if words else f"image {b}, which has no visible word,"
        assert_same(out[b], expected, f"{case}; {said}; {image} (token, number)", **TOLERANCE)


# --- Properties: one layer at a time, then all ---
def check_with_layers(block, layers, said):
    """Compare with the reference, where the last matrices of the other layers are zero."""

    @settings(max_examples=EXAMPLES)
    @given(seeds, st.integers(1, 2), st.integers(1, 2), st.integers(1, 3), st.integers(1, 3))
    @example(0, 1, 2, 3, 2)
    def check(seed, B, side, T, H):
        case = with_layers(random_case(seed, B, side, T, H), *layers)
        assert_is_slow_block(block, case, said)

    check()


def adds_to_x(block):
    """If the last matrix of each layer is zero, every layer adds 0, and the result is x."""
    check_with_layers(
        block, (), "all of self_out, cross_out, mlp_down are 0, so x should come back"
    )


def adds_self_attention(block):
    """Self-attention by itself: the last matrices of the other two are zero."""
    said = "cross_out and mlp_down are 0, so only self-attention adds something"
    check_with_layers(block, ("self-attention",), said)


def adds_cross_attention(block):
    """Cross-attention by itself: the last matrices of the other two are zero."""
    said = "self_out and mlp_down are 0, so only cross-attention adds something"
    check_with_layers(block, ("cross-attention",), said)


def adds_the_mlp(block):
    """The MLP by itself: the last matrices of the other two are zero."""
    said = "self_out and cross_out are 0, so only the MLP adds something"
    check_with_layers(block, ("MLP",), said)


def applies_all_three_in_order(block):
    """Each layer reads what the layer before it has left."""
    check_with_layers(block, tuple(LAST_MATRICES), "all three layers add something")


def adds_zero_for_an_absent_caption(block):
    """Where no word is visible, the text does not matter, bit for bit, and gets a zero gradient.

    The result is that of a block whose cross-attention adds nothing.
    """

    @settings(max_examples=EXAMPLES)
    @given(seeds, st.integers(1, 3))
    @example(0, 2)
    def check(seed, T):
        case = random_case(seed, 2, 2, T, 2)
        case.visible[0] = False
        case.visible[1] = True
        other_text = case.text.clone()
        other_text[0] = 100 * other_text[0].flip(-1) + 1
        out = result_of(block, case)
        assert out.isfinite().all(), f"{case}: not all numbers are finite: {out.tolist()}"
        said = f"{case}: image 0 has no visible word"
        with_other_text = result_of(block, case._replace(text=other_text))
        assert_same(with_other_text[0], out[0], f"{said}, and depends on the text (token, number)")
        without_cross = result_of(block, with_layers(case, "self-attention", "MLP"))
        case_of_zero = f"{said}, so cross-attention should add 0 (token, number)"
        assert_same(out[0], without_cross[0], case_of_zero, **TOLERANCE)

        x, text = case.x.clone().requires_grad_(), case.text.clone().requires_grad_()
        block(x, text, case.visible, case.weights, case.heads).square().sum().backward()
        assert text.grad is not None, f"{case}: the text gets no gradient"
        zero = torch.zeros_like(text[0])
        assert_same(text.grad[0], zero, f"{said}: the gradient of its text (word, number)")
        assert x.grad.isfinite().all(), f"{said}: the gradient of x is {x.grad.tolist()}"

    check()


def treats_each_image_by_itself(block):
    """A permuted batch gives permuted results, and a row alone is what it is beside others."""

    @settings(max_examples=EXAMPLES)
    @given(seeds, st.permutations(range(3)))
    @example(0, [1, 2, 0])
    def check(seed, order):
        case = random_case(seed, 3, 2, 3, 2)
        case.visible[seed % 3] = False
        out = result_of(block, case)

        def rows(which):
            parts = case.x[which], case.text[which], case.visible[which]
            return result_of(block, Case(*parts, case.weights, case.heads))

        said = f"{case}: the images in the order {order} (image, token, number)"
        assert_same(rows(order), out[order], said, **TOLERANCE)
        said = f"{case}: image 1 without the others (image, token, number)"
        assert_same(rows([1]), out[1:2], said, **TOLERANCE)

    check()


def trains_every_weight(block):
    """Each weight gets a gradient that is not zero."""
    case = random_case(0, 2, 2, 3, 2)
    case.visible[:] = True
    weights = {name: weight.clone().requires_grad_() for name, weight in case.weights.items()}
    out = block(case.x, case.text, case.visible, weights, case.heads)
    assert out.requires_grad, "the result has no gradient: is it made of plain numbers?"
    out.square().sum().backward()
    for name, weight in weights.items():
        has_gradient = weight.grad is not None and bool(weight.grad.any())
        assert has_gradient, f"weights[{name!r}] gets no gradient"
