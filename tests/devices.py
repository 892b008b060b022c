"""Where the tests of the computation compute: on the CPU, or on the device of ``TEST_DEVICE``."""

import os

import pytest

from extraction_kit.sources import onednn

DEVICE = os.environ.get("TEST_DEVICE", "cpu")
needs_onednn = pytest.mark.skipif(
    not onednn.is_there(), reason="no torch for x86: there is no product of oneDNN to test"
)
