"""`python -m diffgan`, and the command `diffgan`."""

import os
import sys
from pathlib import Path

from diffgan.cli.main import main


def prefer_own_packages() -> None:
    """Move the current folder, which `python -m` puts first in `sys.path`, behind the folder of this package.

    A folder `callbacks` or `datamodules` there would be imported in place of this project's. The command `diffgan`
    does not search the current folder.
    """
    own, current = str(Path(__file__).parents[1]), os.getcwd()
    if sys.path[:1] != [current] or current == own:
        return
    sys.path[:1] = [] if own in sys.path else [own]  # an editable installation is not in the list
    sys.path.append(current)


if __name__ == "__main__":
    prefer_own_packages()
    main()
