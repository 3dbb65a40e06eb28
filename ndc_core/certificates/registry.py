"""The certificates by name."""

from collections.abc import Callable

from ndc_core.certificates.certificate import Procedure, Terms
from ndc_core.certificates.cohen import Cohen
from ndc_core.certificates.lipschitz import Lipschitz
from ndc_core.certificates.sequential import Sequential

CERTIFICATES: dict[str, Callable[[Terms], Procedure]] = {
    "cohen": Cohen,
    "sequential": Sequential,
    "lipschitz": Lipschitz,
}
