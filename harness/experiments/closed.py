"""The base of all configuration, closed and frozen, and the numbers that several parts of it use."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Seed = Annotated[int, Field(ge=0, lt=2**63)]
"""A seed. Generators take 64 bits, and tables of runs hold signed integers of as many."""


class Closed(BaseModel):
    """Base of all configuration: unknown keys and numbers that are not finite are errors, values cannot change."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)
