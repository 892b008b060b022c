"""Where the tests of the computation compute: on the CPU, or on the device of ``TEST_DEVICE``."""

import os

DEVICE = os.environ.get("TEST_DEVICE", "cpu")
