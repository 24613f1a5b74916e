"""The forms that a flow may have, over toy modules, for any test that runs flows.

Import it as ``from flow.flow_forms import FORMS``. The entries stand by kind in :mod:`flow.language_forms`,
:mod:`flow.wiring_forms` and :mod:`flow.trainer_forms`.
"""

from __future__ import annotations

from flow import language_forms, trainer_forms, wiring_forms
from flow.form_modules import Form, Modules, PlainToy, Toy, toy_modules

__all__ = ["FORMS", "TRAINER_FORMS", "Form", "Modules", "PlainToy", "Toy", "toy_modules"]

FORMS: list[Form] = [*wiring_forms.FORMS, *language_forms.FORMS]
"""Flows of inference steps that return something: for environments and evaluators."""

TRAINER_FORMS: list[Form] = trainer_forms.FORMS
"""Flows that train: they return nothing that anybody reads."""
