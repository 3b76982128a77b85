"""Headers of safetensors files: which tensors a file holds, before any of them is read. Nothing here imports torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, deserialize, safe_open

from diffgan.storage.json_files import MAX_BYTES, parse_object

METADATA = "__metadata__"
LENGTH_BYTES = 8  # a file begins with the length of its header, little-endian
FLOATS = ("float16", "bfloat16", "float32", "float64")
KINDS = {"F": "float", "BF": "bfloat", "I": "int", "U": "uint", "BOOL": "bool"}  # safetensors' names of dtypes, torch's


class TensorInfo(NamedTuple):
    """dtype: torch's name of it, such as "float16".  shape: of the tensor."""

    dtype: str
    shape: tuple[int, ...]


class Expected(NamedTuple):
    """What a tensor has to be.  shape: None stands for any length.  dtypes: the allowed ones."""

    shape: tuple[int | None, ...]
    dtypes: tuple[str, ...] = FLOATS

    def fault(self, found: TensorInfo) -> str | None:
        """What is wrong with a tensor; None if nothing is."""
        same = len(found.shape) == len(self.shape)
        if not same or any(want not in (None, side) for want, side in zip(self.shape, found.shape, strict=True)):
            return f"has shape {_shown(found.shape)} and not {_shown(self.shape)}"
        return None if found.dtype in self.dtypes else f"is {found.dtype} and not {' or '.join(self.dtypes)}"


class TensorsHeader(NamedTuple):
    """metadata: texts by name.  tensors: by name."""

    metadata: dict[str, str]
    tensors: dict[str, TensorInfo]


def read_tensors_header(file: Path) -> TensorsHeader:
    """The header of a safetensors file; the tensors are not read, but they are as long as the header says.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be read.
        ValueError: it is no safetensors file, is truncated, or its header is longer than `MAX_BYTES`.
    """
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(LENGTH_BYTES), "little")
    if length > MAX_BYTES:
        raise ValueError(f"its header would be {length} bytes long, more than {MAX_BYTES >> 20} MB")
    try:
        with safe_open(file, framework="np") as archive:
            slices = {name: archive.get_slice(name) for name in archive.keys()}  # noqa: SIM118 (safe_open is no dict)
            tensors = {name: _info(part.get_dtype(), part.get_shape()) for name, part in slices.items()}
            return TensorsHeader(archive.metadata() or {}, tensors)
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def parse_metadata(content: bytes) -> dict[str, str]:
    """The metadata of a safetensors file, given all its bytes.

    Raises:
        ValueError: they are no safetensors file.
    """
    try:
        deserialize(content)
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    length = int.from_bytes(content[:LENGTH_BYTES], "little")
    return parse_object(content[LENGTH_BYTES : LENGTH_BYTES + length]).get(METADATA, {})


def tensors_fault(
    found: Mapping[str, TensorInfo], expected: Mapping[str, Expected], more_allowed: bool = False
) -> str | None:
    """What is wrong with the tensors of a file: the first that is missing, of another shape or dtype, or too many.

    Args:
        found: of the file.
        expected: what it should hold.
        more_allowed: whether tensors that are not expected are ignored.
    """
    for name, want in expected.items():
        if name not in found:
            return f"tensor {name} is missing"
        if fault := want.fault(found[name]):
            return f"tensor {name} {fault}"
    more = sorted(found.keys() - expected.keys())
    return f"tensor {more[0]} does not belong there" if more and not more_allowed else None


def _info(dtype: str, shape: list[int]) -> TensorInfo:
    kind = dtype.rstrip("0123456789")
    return TensorInfo(KINDS.get(kind, kind) + dtype[len(kind) :], tuple(shape))


def _shown(shape: tuple[int | None, ...]) -> str:
    return f"({', '.join('any' if side is None else str(side) for side in shape)})"
