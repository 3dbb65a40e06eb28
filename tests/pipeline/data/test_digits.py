"""The embedded digits are scikit-learn's, which needs seconds to be imported."""

import subprocess
import sys

import numpy as np
from sklearn.datasets import load_digits

from pipeline.data.digits import digit_arrays


def test_they_are_those_of_scikit_learn() -> None:
    images, labels = digit_arrays()
    known = load_digits()
    np.testing.assert_array_equal(images[:, 0], np.rint(known.images * (255 / 16)))
    np.testing.assert_array_equal(labels, known.target)
    assert images.dtype == np.uint8
    assert labels.dtype == known.target.dtype


def test_a_run_on_them_does_not_import_scikit_learn() -> None:
    program = (
        "import sys; from pipeline.data.datasets import DatasetSpec, source_of; "
        "next(source_of(DatasetSpec('digits')).entries()); sys.exit('sklearn' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
