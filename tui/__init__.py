"""The terminal app: the whole pipeline under control, and live chat."""
