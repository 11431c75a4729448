"""Rows of values that quantizers are measured on."""

import numpy as np

ROWS, LENGTH = 64, 4096


def distributions():
    generator = np.random.default_rng(20261120)
    normal = generator.normal(size=(ROWS, LENGTH))
    heavy = generator.standard_t(3, size=(ROWS, LENGTH))
    outlier = generator.normal(size=(ROWS, LENGTH))
    outlier[:, ::1024] = 300.0 * generator.choice([-1.0, 1.0], size=(ROWS, LENGTH // 1024))
    channels = generator.normal(size=(ROWS, LENGTH)) * np.exp(generator.normal(size=LENGTH))
    levels = generator.normal(size=(ROWS, 1))
    return {
        "Gaussian, standard deviation 0.02": normal * 0.02,
        "Gaussian, standard deviation 1": normal,
        "Student t, 3 degrees of freedom, times 0.02": heavy * 0.02,
        "uniform from -1 to 1": generator.uniform(-1.0, 1.0, size=(ROWS, LENGTH)),
        "Laplace": generator.laplace(size=(ROWS, LENGTH)),
        "Gaussian, columns of log-normal width": channels,
        "Gaussian with one value in 1024 at ±300": outlier,
        "Gaussian around 1, standard deviation 0.05": 1.0 + 0.05 * normal,
        "rows of one value each": np.repeat(levels, LENGTH, axis=1),
        "zeros": np.zeros((ROWS, LENGTH)),
        "tiny: Gaussian, standard deviation 1e-5": normal * 1e-5,
        "tiny: Gaussian, standard deviation 1e-6": normal * 1e-6,
        "large: Gaussian, standard deviation 1e5": normal * 1e5,
    }


DISTRIBUTIONS = {label: rows.astype(np.float32) for label, rows in distributions().items()}
# Of columns, as mean squares of activations are spread: most near each other, a few a hundred times as large.
IMPORTANCE = np.exp(np.random.default_rng(20261128).normal(size=LENGTH) * 1.5).astype(np.float32)
