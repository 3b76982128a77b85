"""Whole files in a folder, on a disk or behind a URL. Nothing here imports torch but `tensor_files`."""
