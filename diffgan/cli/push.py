"""The verb `push`: an export, perceptual weights or a pair set on the Hugging Face hub, with a card."""

from pathlib import Path

from diffgan.cli.pairs.units import format_size
from diffgan.sharing.cards import card
from diffgan.sharing.content import read_content
from diffgan.sharing.upload import CARD, check_repository, upload


def push(folder: Path, repository: str, private: bool = False, dry_run: bool = False, license: str = "other") -> None:
    """Upload an export, perceptual weights or a complete pair set to a new repository, with a card from its records.

    The token is that of HF_TOKEN or of `hf auth login`; HF_ENDPOINT names another hub.

    Args:
        folder: of an export or a pair set, or a file of perceptual weights.
        repository: `owner/name`; must not exist, or be empty.
        private: only its owner sees it.
        dry_run: print the card and the list of files, and do nothing else.
        license: the hub's name of the licence, e.g. apache-2.0.

    Raises:
        UserError: the folder holds none of the three, or the upload is refused or fails.
    """
    check_repository(repository)
    content = read_content(folder)
    text = card(content, repository, license)
    if dry_run:
        print(text)
        for name, size in (content.sizes() | {CARD: len(text.encode())}).items():
            print(f"{format_size(size):>10}  {name}")
        return
    print(upload(content, text, repository, private))
