"""Dense least squares on explicit patches, in float64, as a reference."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.polynomial import legendre

from tricorr.ops import as_padding


def design_matrix(x, window, padding=0, mode="constant", order=None):
    """One row for each output pixel of x (N, C, H, W): its window, then the background's terms."""
    (top, bottom), (left, right) = as_padding(padding, window)
    padded = F.pad(x.double(), (left, right, top, bottom), mode=mode)
    patches = F.unfold(padded, window)
    rows = patches.transpose(1, 2).reshape(-1, patches.shape[1])
    P, Q = padded.shape[-2] - window[0] + 1, padded.shape[-1] - window[1] + 1
    surfaces = polynomials(P, Q, order).expand(len(x), -1, -1, -1)
    return torch.cat([rows, surfaces.permute(0, 2, 3, 1).reshape(len(rows), -1)], 1)


def polynomials(P, Q, order):
    """(T, P, Q) by NumPy: products of Legendre polynomials, in the order of total degree."""
    if order is None:
        return torch.zeros(0, P, Q, dtype=torch.float64)
    u, v = ((2 * np.arange(n) + 1) / n - 1 for n in (P, Q))
    images = [
        np.outer(legendre.Legendre.basis(total - j)(u), legendre.Legendre.basis(j)(v))
        for total in range(order + 1)
        for j in range(total + 1)
    ]
    return torch.from_numpy(np.stack(images))


def columns(image):
    """(N, K, P, Q) as the rows of a design matrix, (N * P * Q, K)."""
    return image.permute(0, 2, 3, 1).flatten(0, 2)


def best(rows, targets, weights=None, ridge=0.0, elements=None):
    """theta (D, K) by LAPACK, without normal equations; weights (pixels, 1 or K).

    `ridge` penalizes the first `elements` unknowns.
    """
    found = []
    for k in range(targets.shape[1]):
        root = torch.ones(len(rows), dtype=torch.float64)
        if weights is not None:
            root = weights[:, min(k, weights.shape[1] - 1)].sqrt()
        matrix, target = rows * root[:, None], targets[:, k] * root
        if ridge:
            penalty = torch.eye(elements, rows.shape[1], dtype=torch.float64) * ridge**0.5
            matrix = torch.cat([matrix, penalty])
            target = torch.cat([target, target.new_zeros(elements)])
        found.append(torch.linalg.lstsq(matrix, target[:, None], driver="gelsd").solution[:, 0])
    return torch.stack(found, 1)
