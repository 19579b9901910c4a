"""Faults that a run must survive: a short part in the suite, the whole by ``python -m tests.faults``."""

from unlearn_mlx.compute.cpu_setup import prepare_cpu

prepare_cpu()  # before anything here imports mlx
