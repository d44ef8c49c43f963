"""Measures of heterogeneity, of the training samples `counts[classes, clients]` of the clients.

n_ck is the number of samples of class c that client k has, n_k its total, n the sum over all
clients, C the number of classes and K that of clients. Every client has at least one sample.
Held-out samples are not counted. Labels are the true ones; the skew of `clients.skew` is not
measured here.
"""

import numpy as np
from numpy import ndarray


def total_variation(counts: ndarray) -> ndarray:
    """Returns the distance of each client's label distribution from that of all, [clients].

    TV_k = 1/2 sum_c |n_ck / n_k - n_c / n| is the share of the client's samples that would have to
    change their label. 0 is the same distribution. The maximum is 1 - n_k / n, for a client that
    shares no class with the others. Small clients have a positive distance by chance, even if their
    samples are drawn from the same distribution.
    """
    shares = counts / counts.sum(axis=0)
    whole = counts.sum(axis=1, keepdims=True) / counts.sum()
    return np.abs(shares - whole).sum(axis=0) / 2


def gini(sizes: ndarray) -> float:
    """Returns the Gini coefficient of the clients' sizes.

    G = sum_i sum_j |n_i - n_j| / (2 K n): 0 if all sizes are equal, (K - 1) / K if one client has
    all samples. It is computed from the sizes in ascending order, as sum_i (2 i - K - 1) n_(i) / (K
    n), with i from 1.
    """
    clients = len(sizes)
    ranks = 2 * np.arange(1, clients + 1) - clients - 1
    return float((ranks * np.sort(sizes)).sum() / (clients * np.sum(sizes)))


def effective_classes(counts: ndarray) -> ndarray:
    """Returns the effective number of classes of each client, [clients].

    E_k = exp(-sum_c p_c log p_c) with p_c = n_ck / n_k: the number of equally frequent classes with
    the same entropy. It is 1 for a single class, and C for all classes in equal parts.
    """
    shares = counts / counts.sum(axis=0)
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    return np.exp(-(shares * logs).sum(axis=0))


def measures(counts: ndarray) -> dict[str, float]:
    """Returns the heterogeneity of a partition, by the names of the attributes in a result.

    `partition_tv_mean` and `partition_tv_max` are the unweighted mean and the maximum of
    `total_variation` over the clients. `partition_gini` is the Gini coefficient of their sizes.
    `partition_classes` is the mean of `effective_classes`.
    """
    distances = total_variation(counts)
    return {
        "partition_tv_mean": float(distances.mean()),
        "partition_tv_max": float(distances.max()),
        "partition_gini": gini(counts.sum(axis=0)),
        "partition_classes": float(effective_classes(counts).mean()),
    }
