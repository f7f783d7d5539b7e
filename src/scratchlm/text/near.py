import numpy as np


def n_keys(t):
    return 14


def band_keys(texts, t):
    return np.zeros((len(texts), 14), np.uint64)
