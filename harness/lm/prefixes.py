"""Find the prefixes that texts share, as a tree, so that `harness.lm.generate` reads each of them once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

# Shared prefixes end at multiples of STEP tokens, or of 1 / LINKS of the longest limit if that is more. Nested prefixes
# are read one after the other, so a chain of them must not have many links.
STEP, LINKS = 16, 32


@dataclass
class Prefix:
    """A shared prefix: the first `stop` tokens of text number `text`.

    members: the texts that share no longer prefix. longer: the prefixes that extend this one.
    """

    stop: int
    text: int
    members: list[int] = field(default_factory=list)
    longer: list[Prefix] = field(default_factory=list)

    @property
    def texts(self) -> int:
        """Number of texts that start with this prefix."""
        return len(self.members) + sum(b.texts for b in self.longer)


def tree(texts: Sequence[Sequence[int]], limits: Sequence[int]) -> Prefix:
    """Build the tree of shared prefixes. Returns its root, the empty prefix of all texts.

    limits: for each text, the largest number of leading tokens that may be shared.
    """
    step = max(STEP, max(limits, default=0) // LINKS)
    order = sorted(range(len(texts)), key=lambda i: texts[i])
    common = [0]
    for i, j in zip(order, order[1:], strict=False):
        same = next((k for k, (a, b) in enumerate(zip(texts[i], texts[j], strict=False)) if a != b), len(texts[i]))
        common.append(min(same, limits[i], limits[j]) // step * step)
    path = [Prefix(0, 0)]  # from the root to the prefix of the last text
    for i, before, after in zip(order, common, [*common[1:], 0], strict=False):
        while path[-1].stop > before:
            inner = path.pop()
        if path[-1].stop < before:  # the last text shares less with this one than with earlier ones
            path[-1].longer[-1] = Prefix(before, i, longer=[inner])
            path.append(path[-1].longer[-1])
        if after > before:
            path[-1].longer.append(Prefix(after, i))
            path.append(path[-1].longer[-1])
        path[-1].members.append(i)
    return path[0]
