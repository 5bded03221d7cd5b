"""What tests of compiled programs have in common."""

import pytest

from unrolled.scan import TRANSPOSABLE

needs_the_fast_scan = pytest.mark.skipif(
    not TRANSPOSABLE, reason="before JAX 0.10 every cell runs by the general scan"
)
