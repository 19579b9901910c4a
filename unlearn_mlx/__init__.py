"""unlearn-mlx: a local language model forgets a topic, from nothing but the topic's name."""

from unlearn_mlx.compute.cpu_blas import flush_subnormals, keep_freed_memory, load_fast_blas

__version__ = "0.1.0"

# Before anything imports mlx.core: its CPU backend binds to the first BLAS in the process.
flush_subnormals()  # its threads inherit it
load_fast_blas()
keep_freed_memory()
