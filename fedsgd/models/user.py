"""A module of the user's own."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from fedsgd.component import FieldError
from fedsgd.models.base import Model, imported

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class UserModule(Model):
    """Your own torch.nn.Module: `module = "my_package.my_module:make_model"`, called with `arguments`."""

    name: ClassVar[str] = "module"
    classifies: ClassVar[bool] = False

    module: str = field(kw_only=True)
    arguments: dict[str, Any] = field(default_factory=dict)

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        built = imported(self.module, "module")
        try:
            inspect.signature(built).bind(**self.arguments)
        except TypeError as error:
            raise FieldError("model", "arguments", f"{self.module} does not take {self.arguments}: {error}") from error
        module: nn.Module = built(**self.arguments)
        return module
