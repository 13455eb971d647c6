"""Finding the registry that `module:attribute` names."""

from __future__ import annotations

import importlib
import sys
import traceback
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Final

from zart_sqla.cli.exits import USAGE, CommandError
from zart_sqla.runtime.handlers import TaskRegistry

if TYPE_CHECKING:
    from types import ModuleType

_EXAMPLE: Final = "name a module and a TaskRegistry in it, such as myapp.jobs:registry"


def load_registry(target: str) -> TaskRegistry:
    """Import the module, from the current directory too, and return its registry.

    Raises:
        CommandError: there is no such module or attribute, it cannot be imported, or it is something else.
    """
    module_name, _, attribute = target.partition(":")
    if not module_name or not attribute:
        raise CommandError(f"expected module:attribute, got {target!r}", _EXAMPLE, code=USAGE)
    module = _import(module_name)
    try:
        found: object = reduce(getattr, attribute.split("."), module)
    except AttributeError:
        problem = f"module {module_name!r} has no attribute {attribute!r}"
        raise CommandError(problem, _suggestion(module), code=USAGE) from None
    if not isinstance(found, TaskRegistry):
        problem = f"{target!r} is of type {type(found).__name__}, not a TaskRegistry"
        raise CommandError(problem, _suggestion(module), code=USAGE)
    if not len(found):
        problem = f"the registry {target!r} is empty"
        raise CommandError(problem, "add workflows to it, by registry.register(workflow)", code=USAGE)
    return found


def _import(name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise _broken(name, error) from error
        problem = f"there is no module {error.name!r}, neither installed nor in {here}"
        raise CommandError(problem, _EXAMPLE, code=USAGE) from None
    except Exception as error:
        raise _broken(name, error) from error


def _broken(name: str, error: Exception) -> CommandError:
    """Show where an app's module breaks off: its author needs the traceback, from where it leaves our code."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename != __file__ and "importlib" not in frame.filename]
    for line in traceback.format_list(own):
        sys.stderr.write(line)
    problem = f"cannot import {name!r}: {type(error).__name__}: {error}"
    return CommandError(problem, "repair the module; 'python -c \"import ...\"' shows the same", code=USAGE)


def _suggestion(module: ModuleType) -> str:
    registries = [name for name, value in vars(module).items() if isinstance(value, TaskRegistry)]
    if not registries:
        return _EXAMPLE
    return f"did you mean {module.__name__}:{registries[0]}?"
