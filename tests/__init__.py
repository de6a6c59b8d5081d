"""Tests. A package, so that ``from tests.checkpoints import ...`` means this folder and no other."""
