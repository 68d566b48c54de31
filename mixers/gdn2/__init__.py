"""Gated DeltaNet-2: the operator `gated_delta_rule_2`. The layer is in mixers.gdn2.layer."""

from mixers.gdn2.operator import gated_delta_rule_2

__all__ = ["gated_delta_rule_2"]
