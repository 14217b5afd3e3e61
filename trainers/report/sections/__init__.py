"""The sections of the report, one file each: every module of this folder is imported, and registers the section it holds."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
