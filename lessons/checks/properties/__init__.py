"""What must hold, as plain functions that take the implementation: ours, a broken one, or yours.

    from minimuse.checks.properties import schedule
    schedule.reveals_follow_maskgit(my_masked_after)   # AssertionError with a small counterexample

Each docstring says what must hold and where the paper says so. The test files run every property on
minimuse, which must pass, and on planted bugs, which must fail: a property that rejects nothing
proves nothing. Hypothesis's profile (`tests/conftest.py`) sets how many examples are drawn.
Statistical properties use a fixed seed and a bound of five standard deviations.
"""
