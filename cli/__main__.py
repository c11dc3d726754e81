"""``python -m aird_mlx_cli`` is ``aird-mlx``."""

import sys

from .main import main

sys.exit(main())
