"""Finding an app by `module:name`."""

import importlib
import os
import sys

from eventlane import App, ConfigError

__all__ = ["load_app"]


def load_app(place: str) -> App:
    """Import an app, looking in the working directory first.

    Raises:
        ConfigError: There is no such module or app.
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
                f"{place}: its module imports {error.name!r}, which is not installed here."
            ) from error
        raise ConfigError(
            f"{place}: expected a module {module_name!r} in {os.getcwd()} or installed, got none."  # noqa: PTH109  # the same text
        ) from None
    except (ImportError, SyntaxError) as error:
        raise ConfigError(f"{place}: its module cannot be imported: {error}.") from error
    app = getattr(module, name, None)
    if not isinstance(app, App):
        raise ConfigError(f"{place}: expected an eventlane.App, got {type(app).__name__}.")
    return app
