"""A classifier from outside: EPNDC, but each level's estimate is compared with the noisy image."""

from ndc_core.classifiers.formulas import Formula, beyond_tau, ones

RAW = Formula("image", "image", beyond_tau, ones)
