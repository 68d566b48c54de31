"""Commands on runs and jobs, registered by the modules of this folder."""

# Imported for the commands that they register.
from slurm.commands import folders, following, preparation, sweeps  # noqa: F401
