"""Properties of classifier-free guidance (`decode.guide`; Muse, section 2.7)."""

import numpy as np
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

# multiples of 1/16 below 64: sums and products with small t are exact or nearly so
grids = hnp.arrays(
    np.float32,
    hnp.array_shapes(max_dims=3, max_side=4),
    elements=st.integers(-1000, 1000).map(lambda n: n / 16),
)
strengths = st.floats(0, 8)


def neutral_at_zero(guide):
    """t = 0 gives the conditional logits, bit for bit, whatever the others are. guide(cond, uncond, t) -> logits."""

    @given(grids, st.floats(-100, 100, width=32))
    @example(np.float32([0.1]), 0.3)
    def check(cond, shift):
        cond = torch.from_numpy(cond) / 3
        got = guide(cond, cond.flip(0) * 7 + shift, 0.0)
        assert torch.equal(got, cond), f"{cond.tolist()} became {got.tolist()}"
        assert torch.equal(guide(cond, torch.full_like(cond, -torch.inf), 0.0), cond), (
            "not neutral where an unconditional logit is -inf"
        )

    check()


def extrapolates_by_t(guide):
    """(1 + t) cond - t uncond: affine in t, away from uncond, and t = 1 goes as far past cond as cond is from uncond.

    The other convention, uncond + s (cond - uncond), has s = 1 + t: its s = 0 is not neutral.
    """

    @given(grids, strengths)
    @example(np.float32([1.0, 0.0]), 1.0)
    def check(cond, t):
        cond, uncond = (
            torch.from_numpy(cond).double(),
            torch.from_numpy(cond[::-1].copy()).double() + 0.5,
        )
        got = guide(cond, uncond, t)
        close = lambda a, b: torch.allclose(a, b, rtol=1e-12, atol=1e-9)
        assert close(got, cond + t * (cond - uncond)), (
            f"cond {cond.tolist()}, uncond {uncond.tolist()}, t {t}: {got.tolist()}"
        )
        line = guide(cond, uncond, 1.0) - guide(cond, uncond, 0.0)
        assert close(got - guide(cond, uncond, 0.0), t * line), "not affine in t"

    check()
