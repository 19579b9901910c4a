"""What the metrics in README and docs come from."""

from unlearn_mlx.compute.cpu_setup import prepare_cpu

prepare_cpu()  # every benchmark is a program of its own, and mlx binds to the first BLAS in the process
