"""What came after Muse, on the same models."""
