"""Ways from pixels to tokens and back, one file each."""

import importlib
import pkgutil


def load() -> None:
    """Import every file here, so that each stem is known by its `kind`."""
    for info in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{info.name}")
