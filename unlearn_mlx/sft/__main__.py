"""``python -m unlearn_mlx.sft RUN``: trains the adapter of a run whose training rows are there.

An entry point, thus a face: the same as ``unlearn train RUN``.
"""

import sys

from unlearn_mlx.cli.main import main

sys.exit(main(["train", *sys.argv[1:]]))
