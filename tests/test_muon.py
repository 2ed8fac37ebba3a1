"""Muon: its effect on singular vectors and values; its steps are those of PyTorch's Muon.

python -m pytest -q tests/test_muon.py
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minimuse.plumbing import muon
from minimuse.plumbing.muon import Muon, gains_by_bf16, orthogonalize


@pytest.fixture(autouse=True)
def in_float32(monkeypatch):
    """Steps are compared to more digits than bf16 has, which some CPUs would use."""
    monkeypatch.setattr(muon, "gains_by_bf16", lambda matrix: False)


def matrix(
    m: int, n: int, values: torch.Tensor, seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A random matrix (m, n) with these singular values, and its singular vectors."""
    generator = torch.Generator().manual_seed(seed)
    k = len(values)
    u = torch.linalg.qr(torch.randn(m, k, generator=generator, dtype=torch.float64))[0]
    v = torch.linalg.qr(torch.randn(n, k, generator=generator, dtype=torch.float64))[0]
    return (u * values) @ v.T, u, v


@given(
    m=st.integers(1, 40),
    n=st.integers(1, 40),
    seed=st.integers(0, 2**31),
    scale=st.sampled_from([1e-4, 1.0, 1e4]),
)
def test_singular_values_go_to_one_and_vectors_stay(m, n, seed, scale):
    values = torch.logspace(0, -1, min(m, n), dtype=torch.float64)
    x, u, v = matrix(m, n, values * scale, seed)
    y = orthogonalize(x)
    core = u.T @ y @ v  # diagonal exactly when the singular vectors are still u and v
    assert torch.allclose(core, torch.diag(core.diagonal()), atol=1e-6)
    assert torch.allclose(y, u @ core @ v.T, atol=1e-6)
    assert 0.6 < core.diagonal().min() and core.diagonal().max() < 1.25


def test_a_plain_normalisation_would_fail():
    x, u, v = matrix(8, 8, torch.logspace(0, -1, 8, dtype=torch.float64), 0)
    assert (u.T @ (x / x.norm()) @ v).diagonal().min() < 0.1


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="came with torch 2.9")
@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (16, 16)])
def test_steps_are_those_of_pytorchs_muon_up_to_its_bf16(shape):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    our_muon = Muon([ours], lr=0.1)
    their_muon = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.0)
    for _ in range(5):
        ours.grad = torch.randn(shape, generator=generator)
        theirs.grad = ours.grad.clone()
        our_muon.step()
        their_muon.step()
    assert (ours - theirs).norm() < 0.02 * (ours - start).norm()


def test_all_updates_are_equally_long_whatever_the_gradient():
    p, q = (torch.nn.Parameter(torch.zeros(8, 8)) for _ in range(2))
    p.grad = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    q.grad = 1e-3 * p.grad
    Muon([p, q], lr=0.1).step()
    assert torch.allclose(p, q, rtol=0.01, atol=1e-4) and p.norm() > 0.1


@pytest.mark.parametrize(
    "shape, amx, in_bf16",
    [
        ((128, 512), True, False),
        ((255, 1024), True, False),
        ((256, 256), True, True),
        ((1024, 256), True, True),
        ((128, 512), False, True),
    ],
)
def test_which_matrices_a_cpu_with_bf16_multiplies_in_it(shape, amx, in_bf16, monkeypatch):
    """With AMX the large ones, with AVX512-BF16 alone all of them."""
    seen = []

    def note_autocast(update):
        seen.append(torch.is_autocast_enabled("cpu"))
        return update

    monkeypatch.setattr(muon, "gains_by_bf16", gains_by_bf16)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr("minimuse.plumbing.muon.orthogonalize", note_autocast)
    p = torch.nn.Parameter(torch.zeros(shape))
    p.grad = torch.ones(shape)
    Muon([p], lr=0.1).step()
    assert seen == [in_bf16]
    assert not torch.is_autocast_enabled("cpu")


# --- Taking turns ---


def moves(matrices: list[torch.nn.Parameter], optimizer: Muon, steps: int) -> list[list[bool]]:
    """Which of the matrices moved, for each of some steps."""
    moved = []
    for _ in range(steps):
        before = [p.detach().clone() for p in matrices]
        optimizer.step()
        moved.append([not torch.equal(p, old) for p, old in zip(matrices, before, strict=True)])
    return moved


def random_matrices(count: int) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    matrices = [torch.nn.Parameter(torch.zeros(4, 6)) for _ in range(count)]
    for p in matrices:
        p.grad = torch.randn(4, 6, generator=generator)
    return matrices


@given(count=st.integers(1, 9), every=st.integers(1, 5), first=st.integers(0, 20))
def test_each_matrix_moves_once_in_so_many_steps(count, every, first):
    """And as few as possible of them move in one step."""
    matrices = random_matrices(count)
    optimizer = Muon(matrices, lr=0.1, every=every)
    optimizer.param_groups[0]["step"] = first
    moved = torch.tensor(moves(matrices, optimizer, every))  # steps, matrices
    assert (moved.sum(dim=0) == 1).all()
    assert moved.sum(dim=1).max() == -(-count // every)


@pytest.mark.parametrize("every", [2, 4])
def test_taking_turns_goes_as_far(every):
    """With a gradient that stays the same, to the same place as without turns."""
    plain, taking_turns = random_matrices(5), random_matrices(5)
    moves(plain, Muon(plain, lr=0.01), 3 * every)
    moves(taking_turns, Muon(taking_turns, lr=0.01, every=every), 3 * every)
    for p, q in zip(plain, taking_turns, strict=True):
        assert torch.allclose(p, q, atol=1e-6)


def test_a_matrix_that_waits_takes_in_its_gradients():
    matrices = random_matrices(2)
    optimizer = Muon(matrices, lr=0.1, every=2)
    optimizer.step()
    mean = optimizer.state[matrices[1]]["mean"]
    assert torch.allclose(mean, 0.05 * matrices[1].grad)


@pytest.mark.parametrize("every", [1, 2])
def test_weights_decay_as_much(every):
    p = torch.nn.Parameter(torch.ones(4, 6))
    p.grad = torch.zeros(4, 6)
    moves([p], Muon([p], lr=0.1, weight_decay=0.1, every=every), 4)
    assert torch.allclose(p, torch.full((4, 6), (1 - 0.01 * every) ** (4 / every)))
