"""``python -m unlearn_mlx.cli``."""

import sys

from unlearn_mlx.cli.entry import run

if __name__ == "__main__":
    sys.exit(run())
