"""Measures of tokenizers, token models and generated images, and the report that combines them."""
