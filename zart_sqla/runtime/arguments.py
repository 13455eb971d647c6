"""The call of a step as JSON text, from which another process can make it again."""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import sys
from typing import TYPE_CHECKING, Any, cast

from zart_sqla.codec import annotations_of, codec_for, tagged_json
from zart_sqla.errors import ConfigError
from zart_sqla.runtime.steps import Step, StepCall

if TYPE_CHECKING:
    from zart_sqla.codec import Codec


def pack(call: StepCall[Any], home: str) -> str:
    """Return the call as JSON text: where the step is found, and its arguments by their names.

    Args:
        call: the call.
        home: the name of the module of the workflow, which is not written down: a script that is run is `__main__`
            to itself, and something else to other processes.

    Raises:
        ConfigError: the step cannot be found by the name of its module and its own.
        InvalidDataError: an argument does not fit its annotation, or cannot be stored.
    """
    step = call.step
    path = _path_to(step, home)
    bound = step.signature.bind(*call.args, **call.kwargs)
    arguments = ", ".join(
        f"{json.dumps(name)}: {_codec_of(step, name).pack(value, subject=f'{name!r} of {call.name!r}')[0]}"
        for name, value in bound.arguments.items()
    )
    return f'{{"step": {path}, "arguments": {{{arguments}}}}}'


def unpack(text: str, name: str, home: str) -> StepCall[Any]:
    """Return the call that the JSON text stands for.

    Args:
        text: the text.
        name: the name of the call in its run.
        home: the name of the module of the workflow.

    Raises:
        ConfigError: there is no such step in this code, or it takes other arguments.
        InvalidDataError: an argument does not fit its annotation any more.
    """
    data = json.loads(text)
    step = _find(data["step"], home)
    if step is None:
        raise ConfigError("step", expected="one that this code has", actual=data["step"])
    bound = step.signature.bind_partial()
    try:
        for parameter, value in data["arguments"].items():
            codec = _codec_of(step, parameter)
            bound.arguments[parameter] = codec.unpack(json.dumps(value), subject=f"{parameter!r} of {name!r}")
        bound.signature.bind(*bound.args, **bound.kwargs)
    except (KeyError, TypeError) as error:
        expected = f"one that takes {', '.join(data['arguments']) or 'no arguments'}"
        raise ConfigError("step", expected=expected, actual=step) from error
    return StepCall(step, bound.args, bound.kwargs, name)


@functools.lru_cache(maxsize=4096)
def _path_to(step: Step[..., Any], home: str) -> str:
    """Return, as JSON text, where a step is found."""
    module = "" if step.__module__ == home else step.__module__
    path = f"{module}:{step.__qualname__}"
    if _find(path, home) is not step:
        raise ConfigError(
            "schedule",
            expected="the call of a step that its module has under its name: any worker runs it",
            actual=step,
        )
    return json.dumps(path)


def _find(path: str, home: str) -> Step[..., Any] | None:
    """Return the step that is found there, None if there is none."""
    module, _, qualname = path.partition(":")
    try:
        found: Any = sys.modules.get(module or home) or importlib.import_module(module or home)
        for name in qualname.split("."):
            found = getattr(found, name)
    except Exception:  # noqa: BLE001 - whatever the import of a module comes to
        return None
    return cast("Step[..., Any]", found) if isinstance(found, Step) else None


@functools.lru_cache(maxsize=4096)
def _codec_of(step: Step[..., Any], parameter: str) -> Codec[Any]:
    """Return the codec of what a parameter takes: of `*args`, a tuple, and of `**kwargs`, a dictionary."""
    annotations = annotations_of(step.function)
    declared: Any = annotations.get(parameter, Any)
    kind = step.signature.parameters[parameter].kind
    if kind is inspect.Parameter.VAR_POSITIONAL:
        return codec_for(tuple[declared, ...])
    if kind is inspect.Parameter.VAR_KEYWORD:
        return codec_for(dict[str, declared])
    return codec_for(declared) if parameter in annotations else tagged_json
