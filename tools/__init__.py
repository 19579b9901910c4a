"""Makes what is shipped: adapters, labels, pictures, the verdict's examples."""

from unlearn_mlx.compute.cpu_setup import prepare_cpu

prepare_cpu()  # every tool is a program of its own, and mlx binds to the first BLAS in the process
