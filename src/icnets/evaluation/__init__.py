"""A former name, which guides and notebooks gave: ``icnets.evaluation.firing`` is :mod:`icnets.profile.firing`."""

import sys

from icnets.profile import firing

sys.modules[f"{__name__}.firing"] = firing
