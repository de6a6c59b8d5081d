"""Tests. A package, so that ``from tests.support.checkpoints import ...`` means this folder and no other."""
