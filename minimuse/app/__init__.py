"""The page of `minimuse app`.

`page.py` lays it out, `events.py` acts, `frames.py` makes images, `turns.py` shares the model.
"""
