"""``python -m unlearn_mlx.synthetic_data TOPIC [options]``: questions, answers and training rows.

An entry point, thus a face: the same as ``unlearn questions`` followed by ``unlearn answers``.
"""

import sys

from unlearn_mlx.cli.main import make_data

sys.exit(make_data(sys.argv[1:]))
