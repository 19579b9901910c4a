"""unlearn-mlx: a local language model forgets a topic, from nothing but the topic's name."""

from unlearn_mlx.language_model.blas import keep_freed_memory, load_fast_blas

__version__ = "0.1.0"

# Before anything imports mlx.core: its CPU backend binds to the first BLAS in the process.
load_fast_blas()
keep_freed_memory()
