"""What ships with minimuse: presets, emoji, trained models, a text encoder; see LICENSES.md."""
