"""``python -m extraction_kit``: the same as the command ``extraction-kit``."""

import sys

from extraction_kit.cli import main

if __name__ == "__main__":
    sys.exit(main())
