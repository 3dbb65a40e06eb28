"""The certificates by name."""

from collections.abc import Callable

from ndc_core.certificates import Cohen, Method, Terms
from ndc_core.lipschitz import Lipschitz
from ndc_core.sequential import Sequential

CERTIFICATES: dict[str, Callable[[Terms], Method]] = {
    "cohen": Cohen,
    "sequential": Sequential,
    "lipschitz": Lipschitz,
}
