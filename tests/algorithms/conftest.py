"""Property tests run without a deadline: the first call of a torch function takes longer than the rest."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")
