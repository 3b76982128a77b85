"""Prompt files: text, JSON lines, CSV or Parquet, local or behind a URL; read by number, never as a whole."""

from diffgan.prompts.file import PromptFile

__all__ = ["PromptFile"]
