"""What importing the package loads, checked in new processes."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEAVY = (  # top-level names of dependencies that take long to import
    *("torch", "torchvision", "lightning", "pytorch_lightning", "torchmetrics", "diffusers", "transformers"),
    *("accelerate", "kornia", "open_clip", "timm", "matplotlib", "PIL", "fsspec", "pyarrow", "jsonargparse"),
)


def loaded_by(code: str) -> set[str]:
    """Names of the heavy dependencies that a new Python process has loaded after running `code`."""
    report = "import json, sys; print(json.dumps([name.partition('.')[0] for name in sys.modules]))"
    command = [sys.executable, "-c", f"{code}\n{report}"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    return set(json.loads(process.stdout.splitlines()[-1])) & set(HEAVY)


def test_the_package_itself_loads_nothing():
    assert loaded_by("import diffgan") == set()


def test_the_perceptual_distances_load_only_torch():
    assert loaded_by("from diffgan import ELatentLPIPS, LatentLPIPS") == {"torch"}


def test_the_perceptual_distances_run_with_only_torch_loaded():
    code = """
import torch
from diffgan import ELatentLPIPS
latent = torch.randn(2, 3, 16, 16)
assert ELatentLPIPS("glyphs")(latent, latent).tolist() == [0.0, 0.0]
"""
    assert loaded_by(code) == {"torch"}


def test_storage_loads_only_fsspec():
    files = (ROOT / "diffgan" / "storage").glob("*.py")
    modules = [f"diffgan.storage.{file.stem}" for file in files if file.stem not in ("__init__", "tensor_files")]
    assert "diffgan.storage.open" in modules
    assert loaded_by("\n".join(f"import {module}" for module in modules)) == {"fsspec"}


def test_prompt_files_load_only_fsspec_and_pyarrow():
    assert loaded_by("from diffgan.prompts import PromptFile") == {"fsspec", "pyarrow"}


def test_pairs_status_starts_without_torch(pairs):
    code = f"from diffgan.__main__ import main; main(['pairs', 'status', {str(pairs)!r}])"
    assert not loaded_by(code) & {"torch", "lightning", "diffusers", "transformers"}


def test_unknown_names_of_the_package_are_attribute_errors():
    code = (
        "import diffgan\ntry:\n    diffgan.nothing\nexcept AttributeError as error:\n    assert 'nothing' in str(error)"
    )
    assert loaded_by(code) == set()
