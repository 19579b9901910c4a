"""What gives a topic away: the one definition that filter, validation, labels and highlighting share."""
