"""Generalised Procrustes proxies against scipy's, and their use: rotations do not matter."""

import numpy as np
import torch
from scipy.linalg import orthogonal_procrustes

from globe_stream.seeding.procrustes import ProcrustesMean, rotated, top_left

N, P, D, R = 9, 8, 15, 5
CPU = torch.device("cpu")


def experts(seed=0):
    """Rotated and perturbed copies of one matrix."""
    random = np.random.default_rng(seed)
    common = random.standard_normal((P, D))
    turned = [np.linalg.qr(random.standard_normal((P, P)))[0] @ common for _ in range(N)]
    return np.stack(turned) + 0.3 * random.standard_normal((N, P, D))


def turned(weights, seed=1):
    random = np.random.default_rng(seed)
    return np.stack([np.linalg.qr(random.standard_normal((P, P)))[0] @ w for w in weights])


def consensus_of(weights):
    found = ProcrustesMean(R, D, CPU)
    for matrix in torch.from_numpy(weights).float():
        found.add(matrix)
    return found


def cosines(weights):
    proxies = rotated(torch.from_numpy(weights).float(), consensus_of(weights).mean).flatten(1)
    return torch.nn.functional.normalize(proxies, dim=1) @ proxies.T / proxies.norm(dim=1)


def nearest_by_scipy(matrix, target):
    """Q W with orthonormal rows Q (r, p): W is padded so that scipy's square rotation serves."""
    padded = np.vstack([target, np.zeros((P - R, D))])
    rotation, _ = orthogonal_procrustes(matrix.T, padded.T)
    return rotation.T[:R] @ matrix


def test_rotated_experts_point_where_the_nearest_ones_do():
    """Singular values between 0.6 and 1.2 in place of one change lengths, hardly directions."""
    weights = experts()
    target = np.random.default_rng(5).standard_normal((R, D))
    found = rotated(torch.from_numpy(weights), torch.from_numpy(target)).numpy()
    for near, matrix in zip(found, weights, strict=True):
        best = nearest_by_scipy(matrix, target)
        cosine = np.vdot(near, best) / np.linalg.norm(near) / np.linalg.norm(best)
        assert cosine > 0.97
        assert 0.6 < np.linalg.norm(near) / np.linalg.norm(best) < 1.2


def test_the_procrustes_mean_is_the_running_mean_of_rotated_experts():
    weights = experts()
    first = weights[0] / np.linalg.norm(weights[0])
    mean = top_left(torch.from_numpy(first), R).numpy().T @ first
    for k, matrix in enumerate(weights[1:], 2):
        single = torch.from_numpy(matrix / np.linalg.norm(matrix))
        near = rotated(single[None], torch.from_numpy(mean)).numpy()[0]
        mean = mean + (near - mean) / k
    np.testing.assert_allclose(consensus_of(weights).mean, mean, atol=1e-5)


def test_copies_in_any_rotation_become_one():
    weights = turned(np.repeat(experts()[:1], N, axis=0))
    assert float(cosines(weights).min()) > 0.9999


def test_turning_the_experts_does_not_change_how_alike_they_are():
    weights = experts()
    np.testing.assert_allclose(cosines(weights), cosines(turned(weights)), atol=1e-4)


def test_an_expert_of_zeros_is_passed_over():
    weights = experts()
    with_zeros = np.concatenate([weights[:0], np.zeros((1, P, D)), weights])
    one, other = consensus_of(weights), consensus_of(with_zeros)
    assert one.count == other.count == N
    assert torch.equal(one.mean, other.mean)
