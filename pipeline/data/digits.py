"""The embedded data set: 1,797 handwritten digits, 8 x 8 pixels in 17 levels of grey.

`digits.npz` has the test images of "Optical Recognition of Handwritten Digits" by E. Alpaydin and C. Kaynak (1998, UCI
Machine Learning Repository, doi 10.24432/C50P49, licence CC BY 4.0), as scikit-learn has them too.
"""

from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

FILE = Path(__file__).parent / "digits.npz"
WHITE = 16


@cache
def digit_arrays() -> tuple[UInt8[np.ndarray, "1797 1 8 8"], Int64[np.ndarray, " 1797"]]:
    """All images, with levels from 0 to 255, and the digits that they are."""
    with np.load(FILE, allow_pickle=False) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    return np.rint(images * (255 / WHITE)).astype(np.uint8)[:, None], labels.astype(np.int64)
