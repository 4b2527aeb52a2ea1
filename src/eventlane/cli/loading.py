"""Finding an app by `module:name`."""

import importlib
import os
import sys
import sysconfig
import traceback
from pathlib import Path

import eventlane
from eventlane import App, ConfigError
from eventlane.wording import did_you_mean

__all__ = ["load_app"]


def load_app(place: str) -> App:
    """Import an app, looking in the working directory first.

    Raises:
        ConfigError: There is no such module or app, or the module raised while it was imported:
            then with where that was, in the user's own lines.
    """
    module_name, colon, name = place.partition(":")
    if not colon or not name or not all(map(str.isidentifier, module_name.split("."))):
        raise ConfigError(f"expected MODULE:APP, as in shop.main:app, got {place!r}.")
    sys.path.insert(0, os.getcwd())  # noqa: PTH109  # a search path is text
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise ConfigError(
                f"{place}: its module imports {error.name!r}, which is not installed here.\n"
                f"{_in_lines_of_the_user(error)}"
            ) from error
        raise ConfigError(
            f"{place}: expected a module {module_name!r} in {os.getcwd()} or installed, got none."  # noqa: PTH109  # the same text
        ) from None
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}\n{_in_lines_of_the_user(error, told=True)}") from error
    except Exception as error:
        raise ConfigError(
            f"{place}: its module raised while it was imported.\n{_in_lines_of_the_user(error)}"
        ) from error
    try:
        app = getattr(module, name)
    except AttributeError:
        apps = [each for each, value in vars(module).items() if isinstance(value, App)]
        raise ConfigError(
            f"{place}: module {module_name} has no {name!r}. {did_you_mean(name, apps)}"
        ) from None
    if not isinstance(app, App):
        raise ConfigError(f"{place}: expected an eventlane.App, got {type(app).__name__}.")
    return app


def _in_lines_of_the_user(error: Exception, *, told: bool = False) -> str:
    """A traceback without the frames of this package, of Python's own and of other libraries.

    Without the error itself where that was told.
    """
    traced = traceback.TracebackException.from_exception(error)
    libraries = tuple(
        f"{path}/"
        for path in (
            str(Path(eventlane.__file__).parent),
            *map(sysconfig.get_path, ("stdlib", "platstdlib", "purelib", "platlib")),
        )
    )
    frames = [
        frame
        for frame in traced.stack
        if not frame.filename.startswith(("<frozen", *libraries))
        and "/site-packages/" not in frame.filename
    ]
    lines = traceback.format_list(frames)
    if not told:
        lines += traced.format_exception_only()  # of a syntax error with its line
    return "".join(lines).rstrip()
