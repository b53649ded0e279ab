"""What does ``python -m perfline`` do? What ``perfline`` does."""

from __future__ import annotations

import sys

from perfline.cli.main import main

sys.exit(main())
