"""Modules of the user: built by a function that the scenario names, or passed in Python."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

from fedsgd.config.component import FieldError, add_article
from fedsgd.config.python_objects import (
    PYTHON_OBJECT_NAME,
    describe_digest_mismatch,
    describe_missing_objects,
    describe_object,
    fingerprint,
    get_object_digest,
)
from fedsgd.models.base import Model, import_callable

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class CustomModule(Model):
    """Your own torch.nn.Module: `module = "my_package.my_module:make_model"`, called with `arguments`.

    Attributes:
        module: "my_package.my_module:name" of a function or class that returns the module.
        arguments: keyword arguments of the call.

    >>> CustomModule(module="torch.nn:Linear", arguments={"in_features": 4, "out_features": 2}).build((4,), 2)
    Linear(in_features=4, out_features=2, bias=True)
    """

    name: ClassVar[str] = "module"
    needs_labels: ClassVar[bool] = False

    module: str = field(kw_only=True, metadata={"example": '"my_package.my_module:make_model"'})
    arguments: dict[str, Any] = field(default_factory=dict, metadata={"example": "{ width = 32 }"})

    def list_import_paths(self) -> dict[str, str]:
        """Return the import paths of module, loss and metrics, by key."""
        return {"module": self.module, **super().list_import_paths()}

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        from torch import nn

        factory = import_callable(self.module, "module")
        if isinstance(factory, nn.Module):
            kind = add_article(type(factory).__name__)
            problem = f'"{self.module}" is an instance, {kind}, expected a function or class that makes a module'
            raise FieldError("model", "module", problem)
        try:
            inspect.signature(factory).bind(**self.arguments)
        except TypeError as error:
            raise FieldError("model", "arguments", f"{self.module} does not take {self.arguments}: {error}") from error
        module: nn.Module = factory(**self.arguments)
        return module


@dataclass(frozen=True)
class PythonObjectModule(Model):
    """Marker of a torch.nn.Module that the user passed in Python; the marker cannot be built.

    Attributes:
        description: class of the module and number of its parameters.
        sha256: fingerprint of the module without values: classes, attributes, names and shapes of parameters.
        initial_sha256: fingerprint of the module with the values of its initial parameters and buffers; None: not compared.
    """

    name: ClassVar[str] = PYTHON_OBJECT_NAME
    needs_labels: ClassVar[bool] = False

    description: str = field(default="", kw_only=True)
    sha256: str = field(default="", kw_only=True)
    initial_sha256: str | None = field(default=None, kw_only=True)

    @classmethod
    def from_module(cls, module: nn.Module, model: Model) -> PythonObjectModule:
        """Return the marker of a module.

        Args:
            module: module that the user passed.
            model: settings in [model]; the marker takes over the settings that apply to any module.
        """
        count = sum(parameter.numel() for parameter in module.parameters())
        return cls(
            **{f.name: getattr(model, f.name) for f in fields(Model)},
            description=f"{describe_object(module)}, {count:,} parameters",
            sha256=fingerprint(module, include_values=False),
            initial_sha256=fingerprint(module),
        )

    def check_fingerprint(self, module: nn.Module) -> None:
        """Raise FieldError for a module whose structure or initial values differ from the marker's fingerprints, if any.

        Args:
            module: module that the user passed.
        """
        expected = get_object_digest(self.sha256)
        structure = fingerprint(module, include_values=False) if expected else ""
        if structure != expected:
            remedy = "to train another module, remove model.sha256 and model.initial_sha256 from the scenario"
            raise FieldError("model", "sha256", describe_digest_mismatch("module", structure, expected, remedy))
        values = fingerprint(module) if self.initial_sha256 else self.initial_sha256
        if values != self.initial_sha256:
            remedy = "to start from these parameters, remove model.initial_sha256 from the scenario"
            subject = "module (same structure, other initial parameters)" if self.sha256 else "module"
            raise FieldError(
                "model", "initial_sha256", describe_digest_mismatch(subject, str(values), str(self.initial_sha256), remedy)
            )

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """Raise FieldError, whose message names the argument to pass."""
        raise FieldError("model", "name", describe_missing_objects({"model.name": self.description}))
