"""Mutants of valid files through the commands that read them: `python -m tests.fuzz` prints a summary."""
