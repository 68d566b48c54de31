"""What texts begin with in common, as a tree, so that `harness.lm.generate` can read it once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

# Shared beginnings end at multiples of so many tokens, or of this part of the longest text if that is more: a chain of
# beginnings is read one after the other, so it may not have many links.
STEP, LINKS = 16, 32


@dataclass
class Beginning:
    """The first `stop` tokens of text number `text`.

    members: the texts that share nothing longer. longer: beginnings that start with this one.
    """

    stop: int
    text: int
    members: list[int] = field(default_factory=list)
    longer: list[Beginning] = field(default_factory=list)

    @property
    def texts(self) -> int:
        """How many texts start with it."""
        return len(self.members) + sum(b.texts for b in self.longer)


def tree(texts: Sequence[Sequence[int]], limits: Sequence[int]) -> Beginning:
    """The empty beginning of all texts. limits: of each text, how many tokens at its start may be shared."""
    step = max(STEP, max(limits, default=0) // LINKS)
    order = sorted(range(len(texts)), key=lambda i: texts[i])
    common = [0]
    for i, j in zip(order, order[1:], strict=False):
        same = next((k for k, (a, b) in enumerate(zip(texts[i], texts[j], strict=False)) if a != b), len(texts[i]))
        common.append(min(same, limits[i], limits[j]) // step * step)
    path = [Beginning(0, 0)]  # from the empty one to that of the last text
    for i, before, behind in zip(order, common, [*common[1:], 0], strict=False):
        while path[-1].stop > before:
            inner = path.pop()
        if path[-1].stop < before:  # the last text shares less with this one than with those before it
            path[-1].longer[-1] = Beginning(before, i, longer=[inner])
            path.append(path[-1].longer[-1])
        if behind > before:
            path[-1].longer.append(Beginning(behind, i))
            path.append(path[-1].longer[-1])
        path[-1].members.append(i)
    return path[0]
