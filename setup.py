"""Everything is declared in pyproject.toml; this file is where the CUDA extension of csrc/ is built from."""

from setuptools import setup

setup()
