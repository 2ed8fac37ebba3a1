"""The rivals of lessons/claims, autoregression and latent diffusion, compute what they should.

Otherwise a comparison with them would be worth nothing.
"""

import importlib
from pathlib import Path

import pytest
import torch

from minimuse import Muse
from minimuse.guidance import guide
from minimuse.maskgit import BaseConfig

SIZE = BaseConfig(width=16, layers=2, heads=4)
CODES, GRID, E, T = 7, 4, 6, 5
N = GRID**2


@pytest.fixture
def script(monkeypatch):
    """Import a script of lessons/claims."""
    pytest.importorskip("matplotlib", reason="pip install 'minimuse[lessons]' brings it")
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "lessons" / "claims")
    return importlib.import_module


@torch.no_grad()
def with_large_weights(model):
    """Weights so large that every part of the model has a visible effect."""
    for p in model.parameters():
        p.normal_(std=0.5)
    return model.eval().requires_grad_(False)


def contexts(model, B, dtype=torch.float32):
    """A context with captions of different lengths, and one without caption."""
    text = torch.randn(B, T, E, dtype=dtype)
    visible = torch.arange(T) < torch.randint(1, T + 1, (B, 1))
    return model.context(text, visible), model.context(text, torch.zeros_like(visible))


def seeded(seed=1):
    return torch.Generator().manual_seed(seed)


# --- Autoregression ---


@pytest.fixture
def raster(script):
    torch.manual_seed(0)
    model = script("autoregression").Autoregressive(SIZE, CODES, GRID, E)
    return with_large_weights(model.double())


@pytest.mark.parametrize("chunk", [1, 3, 16])
def test_with_kept_keys_and_values_come_the_logits_of_a_full_pass(raster, chunk):
    B = 3
    ids = torch.randint(CODES, (B, N))
    context, _ = contexts(raster, B, torch.float64)
    full = raster(ids, context)
    # NaN would show if a place of the cache were read before it is written.
    shape = (2, B, SIZE.heads, N, SIZE.width // SIZE.heads)
    caches = [keys.new_full(shape, torch.nan) for keys in context.keys]
    inputs = torch.cat([torch.full((B, 1), CODES), ids[:, :-1]], dim=1)
    shared = raster.positions_and_biases()
    chunks = [
        raster.run(inputs[:, start : start + chunk], context, shared, caches, start)
        for start in range(0, N, chunk)
    ]
    assert full.std() > 0.1
    torch.testing.assert_close(torch.cat(chunks, dim=1), full, rtol=1e-6, atol=1e-6)


def test_no_token_sees_a_later_one_and_each_sees_all_before(raster):
    ids = torch.randint(CODES, (1, N))
    context, _ = contexts(raster, 1, torch.float64)
    before = raster(ids, context)
    for place in range(N):
        changed = ids.clone()
        changed[:, place] = (ids[:, place] + 1) % CODES
        differs = (raster(changed, context) != before).any(dim=-1)[0]
        assert differs.tolist() == [later > place for later in range(N)]


@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_sampling_takes_each_token_from_those_before_it(raster, script, guidance):
    """At temperature 0, against the slow way.

    It takes the most likely code by a full pass per token, with the two contexts apart and no
    cache.
    """
    B = 4
    context, uncond = contexts(raster, B, torch.float64)
    sample = script("autoregression").sample
    drawn = sample(raster, context, uncond, guidance, 0.0, torch.Generator())
    ids = torch.zeros(B, N, dtype=torch.long)
    for place in range(N):
        logits = guide(raster(ids, context), raster(ids, uncond), guidance)
        ids[:, place] = logits[:, place].argmax(dim=-1)
    assert torch.equal(drawn, ids)
    assert len(ids.unique()) > 2


def test_autoregression_without_guidance_is_the_conditional_model(raster, script):
    context, uncond = contexts(raster, 4, torch.float64)
    sample = script("autoregression").sample
    alone = sample(raster, context, None, 0.0, 1.0, seeded())
    unguided = sample(raster, context, uncond, 0.0, 1.0, seeded())
    guided = sample(raster, context, uncond, 3.0, 1.0, seeded())
    assert torch.equal(alone, unguided)
    assert not torch.equal(alone, guided)


# --- Latent diffusion ---


@pytest.fixture
def flow(script):
    torch.manual_seed(0)
    return with_large_weights(script("diffusion").Flow(SIZE, 3, GRID, E, window=2))


def test_diffusion_without_guidance_is_the_conditional_model(flow, script):
    context, uncond = contexts(flow, 4)
    noise = torch.randn(4, N, 3)
    sample = script("diffusion").sample
    alone = sample(flow, context, None, 0.0, noise, 3)
    unguided = sample(flow, context, uncond, 0.0, noise, 3)
    guided = sample(flow, context, uncond, 3.0, noise, 3)
    torch.testing.assert_close(alone, unguided)
    assert (alone - guided).abs().max() > 0.1


@pytest.mark.parametrize("steps", [1, 2, 7, 64])
def test_euler_ends_where_an_exact_field_leads(script, steps):
    euler = script("diffusion").euler
    z = torch.randn(2, 5, 3, dtype=torch.float64)
    end = torch.randn(2, 5, 3, dtype=torch.float64)
    # One velocity everywhere.
    torch.testing.assert_close(euler(lambda z, t: end, z, steps), z + end)
    # The flow of a single image.
    torch.testing.assert_close(euler(lambda z, t: (end - z) / (1 - t), z, steps), end)
    # Decay.
    torch.testing.assert_close(euler(lambda z, t: -z, z, steps), z * (1 - 1 / steps) ** steps)
    # The times go from 0 to 1 - 1/S.
    moved = euler(lambda z, t: torch.full_like(z, 2 * t), z, steps)
    torch.testing.assert_close(moved, z + 1 - 1 / steps)


@pytest.mark.parametrize("guidance", [0.0, 1.5])
def test_diffusion_steers_away_from_the_velocity_without_caption(script, guidance):
    noise = torch.randn(2, 5, 3)
    velocities = torch.randn(2, 2, 5, 3)  # with caption, without; then the batch
    flow = script("diffusion").Flow(SIZE, 3, GRID, E, window=2)
    context, uncond = contexts(flow, 2)

    def with_caption_first(z, t, both):
        return velocities.flatten(0, 1) + 0 * z

    end = script("diffusion").sample(with_caption_first, context, uncond, guidance, noise, 4)
    expected = noise + (1 + guidance) * velocities[0] - guidance * velocities[1]
    torch.testing.assert_close(end, expected)


def test_time_latents_and_caption_matter_to_the_flow_and_a_dropped_caption_does_not(flow):
    z = torch.randn(2, N, 3)
    t = torch.tensor([0.2, 0.2])
    text = torch.randn(2, T, E)
    visible = torch.ones(2, T, dtype=torch.bool)
    context = flow.context(text, visible)
    dropped = flow.context(text, ~visible)
    velocity = flow(z, t, context)
    assert velocity.shape == z.shape
    others = [
        flow(z, t + 0.05, context),
        flow(z + 0.1, t, context),
        flow(z, t, flow.context(text.flip(0), visible)),
        flow(z, t, dropped),
    ]
    for other in others:
        assert (other - velocity).abs().amax(dim=(1, 2)).min() > 1e-2
    other_dropped = flow.context(text.flip(0), ~visible)
    assert torch.equal(flow(z, t, dropped), flow(z, t, other_dropped))


def test_a_flow_learns_where_its_caption_leads(script):
    """Two captions, an image each: after a few steps of training, all noise flows to the caption's
    own image."""
    torch.manual_seed(0)
    diffusion = script("diffusion")
    flow = diffusion.Flow(SIZE, 3, GRID, E, window=2)
    text = torch.randn(2, 1, E)
    ends = torch.randn(2, N, 3)
    visible = torch.ones(2, 1, dtype=torch.bool)
    optimizer = torch.optim.Adam(flow.parameters(), 1e-2)
    for _ in range(120):
        x = ends.repeat(8, 1, 1)
        noise = torch.randn(16, N, 3)
        t = torch.rand(16)
        z = torch.lerp(noise, x, t[:, None, None])
        context = flow.context(text.repeat(8, 1, 1), visible.repeat(8, 1))
        loss = (flow(z, t, context) - (x - noise)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    context = flow.context(text, visible)
    drawn = diffusion.sample(flow, context, None, 0.0, torch.randn(2, N, 3), 16)
    distance = (drawn[:, None] - ends).square().mean(dim=(2, 3))  # 2 2
    assert distance[0, 0] < 0.25 * distance[0, 1], distance
    assert distance[1, 1] < 0.25 * distance[1, 0], distance


# --- Fairness ---


def test_all_ways_have_the_same_number_of_parameters(script):
    direct = script("direct")
    rivals = (script("autoregression").RIVAL, script("diffusion").RIVAL)
    muse = Muse.load("toy-shapes")
    words = torch.randn(300, muse.text.width)
    sizes = {}
    for way in (direct.MASKED, direct.CASCADE, *rivals):
        models = [part.make(muse, words) for part in way.parts]
        sizes[way.name] = sum(p.numel() for model in models for p in model.parameters())
        assert sum(part.fraction for part in way.parts) == 1
    assert max(sizes.values()) <= 1.05 * min(sizes.values()), sizes
