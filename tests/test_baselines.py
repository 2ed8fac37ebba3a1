"""The rivals of lessons/claims, autoregression and latent diffusion, do what they are said to: or a comparison with them is worth nothing."""

import importlib
from pathlib import Path

import pytest
import torch

from minimuse import Muse
from minimuse.decode import guide
from minimuse.maskgit import BaseConfig

SIZE, CODES, GRID, E, T = BaseConfig(width=16, layers=2, heads=4), 7, 4, 6, 5


@pytest.fixture
def script(monkeypatch):
    pytest.importorskip("matplotlib", reason="pip install 'minimuse[lessons]' brings it")
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "lessons" / "claims")
    return importlib.import_module


@torch.no_grad()
def loud(model):
    """Weights so large that all they do is seen."""
    for p in model.parameters():
        p.normal_(std=0.5)
    return model.eval().requires_grad_(False)


def caption(model, B, dtype=torch.float32):
    """A context with captions of different lengths, and one without caption."""
    text, visible = (
        torch.randn(B, T, E, dtype=dtype),
        torch.arange(T) < torch.randint(1, T + 1, (B, 1)),
    )
    return model.context(text, visible), model.context(text, torch.zeros_like(visible))


@pytest.fixture
def raster(script):
    torch.manual_seed(0)
    return loud(script("autoregression").Autoregressive(SIZE, CODES, GRID, E).double())


@pytest.mark.parametrize("chunk", [1, 3, 16])
def test_with_kept_keys_and_values_come_the_logits_of_a_full_pass(raster, chunk):
    B, N = 3, GRID**2
    ids, (context, _) = torch.randint(CODES, (B, N)), caption(raster, B, torch.float64)
    full = raster(ids, context)
    caches = [
        keys.new_full((2, B, SIZE.heads, N, SIZE.width // SIZE.heads), torch.nan)
        for keys in context.keys
    ]  # what is not written is not read
    inputs = torch.cat([torch.full((B, 1), CODES), ids[:, :-1]], dim=1)
    kept = [
        raster.run(inputs[:, at : at + chunk], context, raster.sight(), caches, at)
        for at in range(0, N, chunk)
    ]
    assert full.std() > 0.1
    torch.testing.assert_close(torch.cat(kept, dim=1), full, rtol=1e-6, atol=1e-6)


def test_no_token_sees_a_later_one_and_each_sees_all_before(raster):
    ids, (context, _) = torch.randint(CODES, (1, GRID**2)), caption(raster, 1, torch.float64)
    before = raster(ids, context)
    for place in range(GRID**2):
        changed = ids.clone()
        changed[:, place] = (ids[:, place] + 1) % CODES
        differs = (raster(changed, context) != before).any(dim=-1)[0]
        assert differs.tolist() == [later > place for later in range(GRID**2)]


@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_sampling_takes_each_token_from_those_before_it(raster, script, guidance):
    """At temperature 0, the likeliest by a full pass per token, with the two contexts apart and nothing kept."""
    B, (context, uncond) = 4, caption(raster, 4, torch.float64)
    found = script("autoregression").sample(
        raster, context, uncond, guidance, 0.0, torch.Generator()
    )
    ids = torch.zeros(B, GRID**2, dtype=torch.long)
    for place in range(GRID**2):
        ids[:, place] = guide(raster(ids, context), raster(ids, uncond), guidance)[:, place].argmax(
            dim=-1
        )
    assert torch.equal(found, ids) and len(ids.unique()) > 2


def test_a_rival_without_guidance_is_the_conditional_model(raster, script):
    context, uncond = caption(raster, 4, torch.float64)
    cases, seeded = (
        [(None, 0.0), (uncond, 0.0), (uncond, 3.0)],
        lambda: torch.Generator().manual_seed(1),
    )
    draws = [
        script("autoregression").sample(raster, context, u, g, 1.0, seeded()) for u, g in cases
    ]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    diffusion = script("diffusion")
    flow = loud(diffusion.Flow(SIZE, 3, GRID, E, window=2))
    (context, uncond), noise = caption(flow, 4), torch.randn(4, GRID**2, 3)
    ends = [
        diffusion.sample(flow, context, u, g, noise, 3)
        for u, g in [(None, 0.0), (uncond, 0.0), (uncond, 3.0)]
    ]
    torch.testing.assert_close(ends[0], ends[1])
    assert (ends[0] - ends[2]).abs().max() > 0.1


@pytest.mark.parametrize("steps", [1, 2, 7, 64])
def test_euler_lands_where_an_exact_field_leads(script, steps):
    euler = script("diffusion").euler
    z, end = torch.randn(2, 5, 3, dtype=torch.float64), torch.randn(2, 5, 3, dtype=torch.float64)
    torch.testing.assert_close(
        euler(lambda z, t: end, z, steps), z + end
    )  # one velocity everywhere
    torch.testing.assert_close(
        euler(lambda z, t: (end - z) / (1 - t), z, steps), end
    )  # the flow of a single picture
    torch.testing.assert_close(euler(lambda z, t: -z, z, steps), z * (1 - 1 / steps) ** steps)
    torch.testing.assert_close(
        euler(lambda z, t: torch.full_like(z, 2 * t), z, steps), z + 1 - 1 / steps
    )  # times from 0 to 1 - 1/S


@pytest.mark.parametrize("guidance", [0.0, 1.5])
def test_diffusion_steers_away_from_the_velocity_without_caption(script, guidance):
    noise, ends = torch.randn(2, 5, 3), torch.randn(2, 2, 5, 3)
    flow = script("diffusion").Flow(SIZE, 3, GRID, E, window=2)
    context, uncond = caption(flow, 2)
    with_caption_first = lambda z, t, both: ends.flatten(0, 1) + 0 * z
    found = script("diffusion").sample(with_caption_first, context, uncond, guidance, noise, 4)
    torch.testing.assert_close(found, noise + (1 + guidance) * ends[0] - guidance * ends[1])


def test_time_latents_and_caption_matter_to_the_flow_and_a_dropped_caption_does_not(script):
    torch.manual_seed(0)
    flow = loud(script("diffusion").Flow(SIZE, 3, GRID, E, window=2))
    z, t, text, seen = (
        torch.randn(2, GRID**2, 3),
        torch.tensor([0.2, 0.2]),
        torch.randn(2, T, E),
        torch.ones(2, T, dtype=torch.bool),
    )
    run = lambda z=z, t=t, text=text, seen=seen: flow(z, t, flow.context(text, seen))
    assert run().shape == z.shape
    for other in (run(t=t + 0.05), run(z=z + 0.1), run(text=text.flip(0)), run(seen=~seen)):
        assert (other - run()).abs().amax(dim=(1, 2)).min() > 1e-2
    assert torch.equal(run(seen=~seen), run(seen=~seen, text=text.flip(0)))


def test_a_flow_learns_where_its_caption_leads(script):
    """Two captions, a picture each: after a few steps of its training, all noise flows to the caption's own."""
    torch.manual_seed(0)
    diffusion, N = script("diffusion"), GRID**2
    flow, text, ends = (
        diffusion.Flow(SIZE, 3, GRID, E, window=2),
        torch.randn(2, 1, E),
        torch.randn(2, N, 3),
    )
    seen, optimizer = torch.ones(2, 1, dtype=torch.bool), torch.optim.Adam(flow.parameters(), 1e-2)
    for _ in range(120):
        x, noise, t = ends.repeat(8, 1, 1), torch.randn(16, N, 3), torch.rand(16)
        loss = (
            (
                flow(
                    torch.lerp(noise, x, t[:, None, None]),
                    t,
                    flow.context(text.repeat(8, 1, 1), seen.repeat(8, 1)),
                )
                - (x - noise)
            )
            .square()
            .mean()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = diffusion.sample(flow, flow.context(text, seen), None, 0.0, torch.randn(2, N, 3), 16)
    far = (found[:, None] - ends).square().mean(dim=(2, 3))  # 2 2
    assert far[0, 0] < 0.25 * far[0, 1] and far[1, 1] < 0.25 * far[1, 0], far


def test_all_ways_have_the_same_number_of_parameters(script):
    direct, muse = script("direct"), Muse.load("toy-shapes")
    words, size = torch.randn(300, muse.text.width), {}
    for way in (
        direct.MASKED,
        direct.CASCADE,
        script("autoregression").RIVAL,
        script("diffusion").RIVAL,
    ):
        size[way.name] = sum(
            p.numel() for part in way.parts for p in part.make(muse, words).parameters()
        )
        assert sum(part.share for part in way.parts) == 1
    assert max(size.values()) <= 1.05 * min(size.values()), size
