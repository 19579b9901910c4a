"""unlearn-mlx: a local language model forgets a topic, from nothing but the topic's name.

Importing it does nothing. A program that computes on a CPU calls ``compute.cpu_setup.prepare_cpu`` first.
"""

__version__ = "0.1.0"
