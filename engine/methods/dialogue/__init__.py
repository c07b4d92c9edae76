"""Playing a dataset with a language model: episodes, utterances, evaluation. Shared by the methods that train on them."""
