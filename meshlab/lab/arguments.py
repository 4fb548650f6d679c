"""Arguments of the public verbs, held to their annotations, so that a wrong one is named instead of met by chance.

``@checks_arguments`` on a class looks at every public method of it, also at those that come later:

    @checks_arguments
    class PodHandle:
        def exec(self, *argv: str, timeout_s: float = 30.0) -> Completed: ...

    pod.exec("sleep", 1)  ->  UsageError: exec(): 'argv' must be text, not 1

A parameter whose name ends in ``_s`` is a duration in seconds: more than 0, and at most a day.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import cache, wraps
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from meshlab.errors import UsageError

_Class = TypeVar("_Class", bound=type)
_LONGEST_S = 86_400
_SHOWN = 60
_WORDS: Mapping[object, str] = {
    str: "text",
    bytes: "bytes",
    float: "a number",
    int: "a whole number",
    bool: "True or False",
    type(None): "None",
}


def checks_arguments(cls: _Class) -> _Class:
    """Check the arguments of every public method of ``cls`` before it runs; a wrong one is a ``UsageError``."""
    for name, member in list(vars(cls).items()):
        if inspect.isfunction(member) and not name.startswith("_"):
            setattr(cls, name, _checked(member))
    return cls


def check_value(name: str, value: object, hint: Any) -> None:
    """Hold one value to its annotation.

    Raises:
        UsageError: it is of another type, or a duration that is none.
    """
    if not _fits(value, hint):
        raise UsageError(f"'{name}' must be {_in_words(hint)}, not {_shown(value)}")
    if name.endswith("_s") and value is not None and not (isinstance(value, int | float) and 0 < value <= _LONGEST_S):
        raise UsageError(f"'{name}' must be more than 0 and at most {_LONGEST_S} seconds, not {_shown(value)}")


def _checked(method: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(method)
    hints = cache(lambda: _hints(inspect.unwrap(method)))  # later: its module may still be in the making

    @wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True  # pytest points at the line of the test
        bound = signature.bind(*args, **kwargs)
        try:
            for name, value in bound.arguments.items():
                for single in _singles(signature.parameters[name], value):
                    check_value(name, single, hints().get(name, Any))
        except UsageError as error:
            raise UsageError(f"{method.__name__}(): {error}") from None
        return method(*args, **kwargs)

    return call


def _hints(function: types.FunctionType) -> dict[str, Any]:
    """The annotations of the arguments. What is returned is not checked, and may be known to type checkers only."""
    arguments = {name: hint for name, hint in function.__annotations__.items() if name != "return"}
    return get_type_hints(types.SimpleNamespace(__annotations__=arguments), function.__globals__)


def _singles(parameter: inspect.Parameter, value: Any) -> Sequence[Any]:
    """The values that the annotation of ``parameter`` is about: of ``*argv: str`` each one."""
    if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
        return tuple(value)
    if parameter.kind is inspect.Parameter.VAR_KEYWORD:
        return tuple(value.values())
    return (value,)


def _fits(value: object, hint: Any) -> bool:
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any or isinstance(hint, TypeVar):
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, choice) for choice in args)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in args)
    if hint in (int, float):
        return isinstance(value, (int, float) if hint is float else int) and not isinstance(value, bool)
    kind = origin or hint
    if not isinstance(kind, type):
        return True
    return isinstance(value, kind) and _entries_fit(value, kind, args)


def _entries_fit(value: object, kind: type, args: tuple[Any, ...]) -> bool:
    """Whether what is in a container fits, as far as looking takes nothing away."""
    if not args:
        return True
    if isinstance(value, Mapping):
        return all(_fits(key, args[0]) and _fits(entry, args[1]) for key, entry in value.items())
    if isinstance(value, str) and issubclass(str, kind):
        return False  # a text is a sequence of texts, which nobody means
    if isinstance(value, Sequence | AbstractSet):
        return all(_fits(entry, args[0]) for entry in value)
    return True


def _in_words(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        *most, last = (_in_words(choice) for choice in args)
        return f"{', '.join(most)} or {last}"
    if origin is Literal:
        return " or ".join(map(repr, args))
    if origin is Callable:
        return "a function"
    if origin is not None and issubclass(origin, Mapping):
        return f"a mapping of {_in_words(args[0])} to {_in_words(args[1])}"
    if origin is not None and args:
        return f"a {origin.__name__.lower()} of {_in_words(args[0])}"
    return _WORDS.get(hint) or f"a {getattr(hint, '__name__', hint)}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
