"""Thin helpers for the cervical screening notebooks: one module for each step of the way that data takes."""

__version__ = "0.1.0"
