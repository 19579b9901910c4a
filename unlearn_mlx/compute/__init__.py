"""Every decision that differs between Metal, CUDA and CPU."""
