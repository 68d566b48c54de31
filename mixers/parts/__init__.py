"""Parts that several mixers share: norms, convolutions, decays and the two families of recurrences."""
