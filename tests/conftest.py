"""For all tests: one torch thread, since sums differ between thread counts, and property tests without a deadline,
since the first call of a torch function takes longer than the rest.
"""

from __future__ import annotations

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")
