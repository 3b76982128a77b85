"""A check of one GPU: whether everything runs on it, how fast, and how much memory it takes."""
