"""Before and after, on questions that training never saw."""
