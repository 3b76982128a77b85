"""Prompts of a file: text, JSON lines, CSV or Parquet, here or behind a URL, read by number and never held."""

from diffgan.prompts.file import PromptFile

__all__ = ["PromptFile"]
