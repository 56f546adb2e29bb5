"""The version of the distribution, in one place for all three packages."""

from rtg_env import __version__

__all__ = ["__version__"]
