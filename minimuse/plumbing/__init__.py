"""What the pipeline stands on and the paper does not say: settings, files, checkpoints, locks."""
