"""Methods: what a student learns from a teacher. One file each."""

from distill.distillers.contract import Distiller

__all__ = ["Distiller"]
