"""ArCHer: a critic that ranks utterances and a generator that learns to speak them (Zhou et al., 2024; recurve)."""
