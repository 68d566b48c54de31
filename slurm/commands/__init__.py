"""Commands on runs and jobs, registered by the modules of this folder."""

from slurm.commands import debugging, folders, following, preparation, sweeps

__all__ = ["debugging", "folders", "following", "preparation", "sweeps"]
