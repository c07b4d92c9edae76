"""Playing a dataset with a language model: episodes, utterances, evaluation. Shared by methods that train on it."""
