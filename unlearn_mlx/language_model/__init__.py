"""The only package that touches mlx-lm's loading and generation."""
