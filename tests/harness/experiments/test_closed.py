"""The base of all configuration."""

import pytest
from pydantic import ValidationError

from harness.experiments.closed import Closed


class Example(Closed):
    size: int
    """Number of things."""


def test_unknown_keys_are_errors_values_are_fixed_and_docstrings_describe_fields() -> None:
    with pytest.raises(ValidationError, match="sise"):
        Example.model_validate({"sise": 3})
    with pytest.raises(ValidationError, match="frozen"):
        Example(size=3).size = 4  # type: ignore[misc]
    assert Example.model_fields["size"].description == "Number of things."
