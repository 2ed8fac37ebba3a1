"""The page of `minimuse app`: `frames.py` computes what it shows, `page.py` lays it out."""
