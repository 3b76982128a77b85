"""Classes by their bare names in configurations."""

import importlib
import pkgutil
from collections import Counter

import lightning.pytorch as pl
import torch
import yaml

import callbacks
import datamodules
from diffgan.__main__ import main
from diffgan.cli.class_names import CLASSES, MODULES, import_named
from tests.runs import checkpoint, named, write


def bare(config):
    """A configuration with bare names in place of the paths of classes."""
    if isinstance(config, dict):
        return {key: bare(value) for key, value in config.items()}
    if isinstance(config, list):
        return [bare(value) for value in config]
    return config.rpartition(".")[2] if config in CLASSES else config


def test_every_listed_class_exists_under_one_name():
    for path in CLASSES:
        module, _, name = path.rpartition(".")
        assert isinstance(getattr(importlib.import_module(module), name), type)
    assert set(Counter(path.rpartition(".")[2] for path in CLASSES).values()) == {1}


def test_every_callback_and_datamodule_is_listed():
    for package in (callbacks, datamodules):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            classes = vars(importlib.import_module(module.name)).values()
            for found in classes:
                if isinstance(found, type) and found.__module__ == module.name and _is_public_component(found):
                    assert f"{module.name}.{found.__name__}" in CLASSES


def _is_public_component(found: type) -> bool:
    is_component = issubclass(found, (pl.Callback, pl.LightningDataModule)) and not found.__name__.startswith("_")
    return is_component and not any(getattr(method, "__isabstractmethod__", False) for method in vars(found).values())


def test_a_run_of_bare_names_is_that_of_full_ones(config, tmp_path):
    config["trainer"]["callbacks"] = {
        "ema": config["trainer"]["callbacks"][0],
        "checkpoint": config["trainer"]["callbacks"][1],
    }
    config["model"]["init_args"]["images"] = 16
    with_bare_names = bare(named(config, "bare"))
    assert with_bare_names["model"]["class_path"] == "Diffusion2GAN"
    main(["fit", "-c", write(tmp_path / "full.yaml", named(config, "full"))])
    main(["fit", "-c", write(tmp_path / "bare.yaml", with_bare_names)])
    full, short = (checkpoint(tmp_path / name)["state_dict"] for name in ("full", "bare"))
    assert full.keys() == short.keys() and all(torch.equal(full[name], short[name]) for name in full)
    saved = yaml.safe_load((tmp_path / "bare" / "fit.yaml").read_text())
    assert saved["model"]["class_path"] == "diffgan.methods.diffusion2gan.Diffusion2GAN"


def test_a_file_s_names_are_imported(tmp_path):
    import sys

    file = tmp_path / "config.yaml"
    file.write_text("data: {class_path: BAPPS}\n")
    sys.modules.pop(MODULES["BAPPS"], None)
    import_named(["fit", "-c", str(tmp_path / "missing.yaml"), f"--config={file}"])
    assert MODULES["BAPPS"] in sys.modules
