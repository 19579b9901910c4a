"""``python -m unlearn_mlx.cli``."""

import sys

from unlearn_mlx.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
