"""What every face needs, once: what there is to open, making a run, its processes and progress, conversations."""
