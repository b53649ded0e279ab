"""Is a measured number or answer worse than it may be? Verdicts, and every comparison with a limit.

Only the comparison of two live processes has limits of its own (``compare.gates``).
"""

from __future__ import annotations

__all__ = ["accuracy", "fidelity", "fingerprint", "performance", "statistics", "verdict"]
