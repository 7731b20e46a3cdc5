"""The version of this release, for `factorial.__version__`, the wheel, and `status`."""

__all__ = ["__version__"]

__version__ = "0.3.0"
