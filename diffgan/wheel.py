"""What setuptools does when it builds the package: `configs/` goes into a wheel as `diffgan/_configs`.

Used by pyproject.toml alone.
"""

import runpy
import shutil
from pathlib import Path

from setuptools.command.build_py import build_py

SOURCE = Path("configs")
TARGET = Path("diffgan", "_configs")


class BuildWithConfigs(build_py):
    """`build_py` that copies the configurations too, but not for an editable installation, which reads the checkout."""

    def run(self) -> None:
        """Copy modules, package data and configurations into the build folder."""
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib, TARGET)
        shutil.rmtree(target, ignore_errors=True)  # of an earlier build
        for file in _configs():
            self.mkpath(str((target / file).parent))
            self.copy_file(str(SOURCE / file), str(target / file))

    def get_source_files(self) -> list[str]:
        """What belongs into a source distribution."""
        return [*super().get_source_files(), *(str(SOURCE / file) for file in _configs())]

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """What `run` writes."""
        own = [] if self.editable_mode else [str(Path(self.build_lib, TARGET, file)) for file in _configs()]
        return [*super().get_outputs(include_bytecode), *own]


def _configs() -> list[Path]:
    """The files to be copied, relative to `configs/`. The package cannot be imported while it is built."""
    return list(runpy.run_path("diffgan/packaged.py")["config_files"](SOURCE))
