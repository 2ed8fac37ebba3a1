"""The diagrams of the lessons, drawn by code, so that their numbers are those of the models.

Matplotlib comes with the extra `lessons`.
"""
