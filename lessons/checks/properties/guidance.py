"""Properties of classifier-free guidance (`guidance.guide`; Muse, section 2.7)."""

import numpy as np
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from minimuse.checks.compare import assert_same

# Multiples of 1/16 below 64: sums, and products with a small t, are exact or nearly exact.
grids = hnp.arrays(
    np.float32,
    hnp.array_shapes(max_dims=3, max_side=4),
    elements=st.integers(-1000, 1000).map(lambda n: n / 16),
)
strengths = st.floats(0, 8)


def neutral_at_zero(guide):
    """t = 0 gives the conditional logits, bit for bit, whatever the unconditional ones are.

    guide(cond, uncond, t) -> logits.
    """

    @given(grids, st.floats(-100, 100, width=32))
    @example(np.float32([0.1]), 0.3)
    def check(cond, shift):
        cond = torch.from_numpy(cond) / 3
        guided = guide(cond, cond.flip(0) * 7 + shift, 0.0)
        assert_same(guided, cond, f"cond {cond.tolist()}, t 0")

    check()


def neutral_where_uncond_is_impossible(guide):
    """t = 0 gives the conditional logits also where an unconditional one is -inf.

    No exercise asks for this: 0 * inf is NaN in the formula as it is written in the paper.
    """
    cond = torch.tensor([[0.5, -2.0]])
    guided = guide(cond, torch.full_like(cond, -torch.inf), 0.0)
    assert torch.equal(guided, cond), f"{cond.tolist()} became {guided.tolist()}"


def extrapolates_by_t(guide):
    """Guidance is (1 + t) cond - t uncond: affine in t, and away from uncond.

    t = 1 goes as far past cond as cond is from uncond. In the other convention,
    uncond + s (cond - uncond), s is 1 + t, and s = 0 is not neutral.
    """

    def close(a, b):
        return torch.allclose(a, b, rtol=1e-12, atol=1e-9)

    @given(grids, strengths)
    @example(np.float32([1.0, 0.0]), 1.0)
    def check(cond, t):
        uncond = torch.from_numpy(cond[::-1].copy()).double() + 0.5
        cond = torch.from_numpy(cond).double()
        guided = guide(cond, uncond, t)
        case = f"cond {cond.tolist()}, uncond {uncond.tolist()}, t {t}"
        assert_same(guided, cond + t * (cond - uncond), case, rtol=1e-12, atol=1e-9)
        line = guide(cond, uncond, 1.0) - guide(cond, uncond, 0.0)
        assert close(guided - guide(cond, uncond, 0.0), t * line), "not affine in t"

    check()
