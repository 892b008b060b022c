"""``python -m extraction_kit.demo``: see the package."""

import sys

from extraction_kit.demo.story import main

if __name__ == "__main__":
    sys.exit(main())
