"""The trainers, one file each: every module of this folder is imported, and registers the trainer that it holds.

Their training loops are imported when something is trained: an experiment file with an error need not wait for them.
"""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
