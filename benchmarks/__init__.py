"""What the metrics in README and docs come from."""

import unlearn_mlx  # noqa: F401 (before mlx, which binds to the first BLAS in the process)
