"""Sweeps: many trials of one job, over settings named by the same dotted names as everywhere else."""
