"""FARMER, a flow autoregressive transformer over pixels: `from farmer import Farmer, FarmerConfig, load_dataset`.

Importing the package imports nothing else. Its public names, and its modules as attributes, are loaded when first used.
"""
import functools
import importlib
from pathlib import Path

__version__ = "0.3.0"
__all__ = ["Farmer", "FarmerConfig", "Jacobi", "Student", "certify", "load_dataset", "show_images", "to_pil", "to_uint8"]

_MODULE_OF = {
    "Farmer": "model",
    "FarmerConfig": "model",
    "Jacobi": "inversion",
    "Student": "inversion",
    "certify": "inversion",
    "load_dataset": "data",
    "show_images": "plots",
    "to_pil": "plots",
    "to_uint8": "plots",
}
_MODULES = frozenset(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))


def __getattr__(name: str) -> object:
    "A public name or a module, imported now."
    if name in _MODULE_OF:
        value = getattr(importlib.import_module(f"farmer.{_MODULE_OF[name]}"), name)
        _describe(value)
        return value
    if name in _MODULES:
        return importlib.import_module(f"farmer.{name}")
    raise AttributeError(f"module 'farmer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})


def _parameters(source: str) -> dict[str, dict[str, str]]:
    """The comments beside parameters and results in a module's source: {"Farmer.log_prob": {"images": "(B, C, H, W)", "returns": "(B,) nats"}}.

    A parameter without one has that of the same name in a method which the docstring points to: "Arguments are those of `decode`."
    """
    import ast
    import io
    import re
    import tokenize

    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    beside = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    tree = ast.parse(source)
    owners = {"": tree, **{f"{node.name}.": node for node in tree.body if isinstance(node, ast.ClassDef)}}
    functions = {prefix + node.name: node for prefix, owner in owners.items() for node in owner.body if isinstance(node, ast.FunctionDef)}
    lines, own = {}, {}
    for name, node in functions.items():
        lines[name] = {each.arg: each.end_lineno for each in ast.iter_child_nodes(node.args) if isinstance(each, ast.arg)}
        lines[name] |= {"returns": node.returns.end_lineno} if node.returns else {}
        of_line = {line: parameter for parameter, line in lines[name].items()}  # a comment is of the last on its line
        own[name] = {parameter: beside[line] for line, parameter in of_line.items() if line in beside}
    for name, node in functions.items():
        _, points, others = (ast.get_docstring(node) or "").partition("Arguments are those of")
        lent = [own.get(name.rpartition(".")[0] + "." + other, {}) for other in re.findall(r"`(\w+)`", others)] if points else []
        every = {key: text for known in (*lent, own[name]) for key, text in known.items() if key != "returns" or known is own[name]}
        own[name] = {key: every[key] for key in lines[name] if key in every}
    return own


@functools.cache
def _describe(value: type | object) -> None:
    "Let `help` show what the source says beside each parameter of a public class or function."
    import inspect

    try:
        comments = _parameters(inspect.getsource(importlib.import_module(value.__module__)))
    except OSError:  # installed without its source
        return
    members = vars(value).values() if isinstance(value, type) else [value]
    for function in filter(inspect.isfunction, (getattr(member, "__func__", member) for member in members)):
        known = [f"    {key}: {text}" for key, text in comments.get(function.__qualname__, {}).items()]
        if known:
            function.__doc__ = "\n".join([inspect.getdoc(function) or "", "", "Parameters:", *known]).lstrip()
