"""Both models in transformers' Auto classes, as soon as somebody imports these and not before.

transformers has no entry point for models of other packages: they are registered by calls, which import it. So that
`import pixelrefer_fast` stays cheap, the calls wait until the module of an Auto class has been imported.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

REGISTER: dict[str, str | None] = {
    "transformers.models.auto.configuration_auto": "configs",
    "transformers.models.auto.modeling_auto": "models",
    "transformers.models.auto.processing_auto": "processors",
    # these import some of the above, and are not whole while they do
    "transformers.models.auto.auto_factory": None,
    "transformers.modeling_utils": None,
    "transformers.processing_utils": None,
}
"""What to call of `engines.transformers.registration` once a module is there."""


def install() -> None:
    """Register with what is imported already, and with the rest once it is."""
    for name, register in REGISTER.items():
        if name in sys.modules and register is not None:
            _register(register)
    if not any(isinstance(finder, _AutoModules) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AutoModules())


class _AutoModules(MetaPathFinder):
    """Finds the modules of Auto classes as all others do, and registers behind their import.

    They import each other, and registering imports the models' configurations, which need all of them whole: so what
    is to be called waits until the outermost import ends.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._waiting: list[str] = []

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in REGISTER:
            return None
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec(name, path, target)) is not None:
                if spec.loader is not None:
                    spec.loader = _Observed(spec.loader, self)
                return spec
        return None

    def execute(self, loader: Loader, module: ModuleType) -> None:
        """Execute a module, and what waited if it is the outermost."""
        self._depth += 1
        try:
            loader.exec_module(module)
        finally:
            self._depth -= 1
        if (register := REGISTER[module.__name__]) is not None:
            self._waiting.append(register)
        while self._waiting and not self._depth:
            self._depth += 1  # what registering imports waits for its end
            try:
                _register(self._waiting.pop(0))
            finally:
                self._depth -= 1


class _Observed(Loader):
    """A module's loader, whose end is told."""

    def __init__(self, loader: Loader, modules: _AutoModules) -> None:
        self._loader, self._modules = loader, modules

    def __getattr__(self, name: str) -> object:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._modules.execute(self._loader, module)


def _register(name: str) -> None:
    getattr(import_module("pixelrefer_fast.engines.transformers.registration"), name)()
