"""Token-level PPO: the whole episode is one trajectory of tokens, paid at its end."""
