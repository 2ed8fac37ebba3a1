"""The diagrams and charts of the lessons, drawn by code: their numbers are those of the models.

Each function returns a matplotlib figure. Matplotlib comes with the extra `lessons`.
"""
