"""What every face needs, once: what there is to open, making and following runs, conversations."""
