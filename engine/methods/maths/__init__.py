"""Returns, advantages, policy losses, divergences, critics' targets: tensors in, tensors out; shared by all methods."""
