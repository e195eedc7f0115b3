"""Knowledge distillation for image classifiers."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill.deploy import load as load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    # torch stays unimported until something asks for it: shell completion must answer at once
    if name == "load":
        from distill.deploy import load

        return load
    raise AttributeError(f"module 'distill' has no attribute '{name}'")
