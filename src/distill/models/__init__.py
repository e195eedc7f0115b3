"""Networks: one module per family, and adapters for foreign ones."""

from distill.models.network import Network

__all__ = ["Network"]
