"""Relabeled gradient descent: a LoRA adapter learns the guarded answers and keeps everything else."""
