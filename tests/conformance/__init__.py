"""Checks against golden data of the published implementation: ``python -m tests.conformance FOLDER``."""
