"""FARMER, a flow autoregressive transformer over pixels: `from farmer import Farmer, FarmerConfig, load_dataset`.

Importing the package imports nothing else. Its public names, and its modules as attributes, are loaded when first used.
"""
import importlib
from pathlib import Path

__version__ = "0.2.0"
__all__ = ["Farmer", "FarmerConfig", "Jacobi", "Student", "certify", "load_dataset"]

_MODULE_OF = {
    "Farmer": "model",
    "FarmerConfig": "model",
    "Jacobi": "inversion",
    "Student": "inversion",
    "certify": "inversion",
    "load_dataset": "data",
}
_MODULES = frozenset(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))


def __getattr__(name: str) -> object:
    "A public name or a module, imported now."
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"farmer.{_MODULE_OF[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"farmer.{name}")
    raise AttributeError(f"module 'farmer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
