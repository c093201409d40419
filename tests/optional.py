"""What some machines have no wheel of.   in: a test that needs it   out: skipped; on CI, failed"""

import importlib.util
import os

import pytest

__all__ = ["needs_ray"]


def needs_ray() -> None:
    """For tests of several machines."""
    if importlib.util.find_spec("ray") is not None:
        return
    if os.environ.get("CI"):
        pytest.fail("Ray is not here, and CI skips none of its tests: scripts/setup dev says why")
    pytest.skip("needs Ray: pip install 'nanochat[cluster]'", allow_module_level=True)
