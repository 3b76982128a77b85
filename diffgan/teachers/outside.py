"""Teacher families outside the package, by `--adapter module:Class`. Only what the user names is imported."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from diffusers import DiffusionPipeline

from diffgan.errors import UserError, first_line
from diffgan.teachers.base import Teacher
from diffgan.teachers.registry import FAMILIES


def use_adapter(name: str) -> None:
    """Import a family and let it load the pipelines of its `pipeline_class`.

    Args:
        name: "package.module:Class", or "path/to/file.py:Class".

    Raises:
        UserError: it cannot be imported, or is no `Teacher` with a pipeline class.
    """
    place, _, attribute = name.rpartition(":")
    if not place or not attribute:
        raise UserError(f"--adapter {name}: must be module:Class, such as my_package.my_family:MyTeacher")
    family = getattr(_imported(place, name), attribute, None)
    if not isinstance(family, type) or not issubclass(family, Teacher):
        raise UserError(f"--adapter {name}: {place} has no class {attribute} that is a diffgan.teachers.base.Teacher")
    pipeline_class = getattr(family, "pipeline_class", None)
    if not isinstance(pipeline_class, type) or not issubclass(pipeline_class, DiffusionPipeline):
        raise UserError(f"--adapter {name}: {attribute}.pipeline_class is no pipeline class of diffusers")
    FAMILIES[pipeline_class.__name__] = family


def _imported(place: str, name: str) -> ModuleType:
    try:
        return _module_of_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except UserError:
        raise
    except Exception as error:  # whatever the user's module raises
        raise UserError(
            f"--adapter {name}: cannot be imported ({type(error).__name__}: {first_line(error)})"
        ) from error


def _module_of_file(file: Path) -> ModuleType:
    """The module in a file, executed once."""
    name = f"diffgan_adapter_{file.stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
