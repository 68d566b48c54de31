"""Sweeps: plan an experiment, run it on this machine or on Slurm, follow it, and collect its results."""
