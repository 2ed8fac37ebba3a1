"""What must hold, as plain functions that take the implementation: ours, a broken one, or yours.

    from minimuse.checks.properties import schedule
    schedule.reveals_follow_maskgit(my_masked_after)      # AssertionError with the smallest counterexample

Each docstring says what must hold and where the paper says so. The test files run every property on
minimuse, which must pass, and on planted bugs, which must not: a property that nothing fails proves
nothing. How many examples are drawn is Hypothesis's profile (`conftest.py`); what is statistical uses a
fixed seed and a bound of five standard deviations.
"""
