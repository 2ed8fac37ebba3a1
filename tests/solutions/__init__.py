"""Right solutions of the exercises, written in other ways than the package's.

Each `lessonNN.py` has RIGHT: at least three for every exercise. The checks must accept all of them:
a student may write loops, use other algebra, or compute in another precision where that is exact
enough. `tests/test_exercises.py` runs the properties on them, as it does on the planted bugs.
"""
