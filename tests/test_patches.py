"Pixels to tokens: against loops, numpy, scikit-learn and scipy rather than against ourselves."
import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.decomposition import PCA
from torch.testing import assert_close

from farmer.data import load_dataset, to_images, to_levels
from farmer.patches import (
    LUMA_CHROMA, ChannelBasis, add_gaussian_noise, bits_per_dimension, cosine_schedule, dequantize, _luma_chroma_components,
    patchify, principal_components, unpatchify,
)  # fmt: skip
from helpers import complaint, normal, seeded


def random_images(count: int, shape: tuple[int, int, int], levels: int = 32) -> torch.Tensor:
    return to_images(torch.randint(levels, (count, *shape), generator=seeded()), levels)


def smooth_images(count: int) -> torch.Tensor:  # (count, 3, 8, 8)
    "RGB images whose neighbouring pixels resemble each other, so that their principal components are well separated."
    blurred = torch.nn.functional.avg_pool2d(normal(count, 3, 10, 10), 3, stride=1)
    return torch.einsum("ab,nbhw->nahw", torch.tensor([[0.5, 0.2, 0.1], [0.4, -0.1, 0.2], [0.3, 0.1, -0.4]]), blurred)


# noise


@pytest.mark.parametrize("levels", [2, 16, 17, 32, 256])
def test_dequantised_values_stay_in_their_bin_and_fill_it_evenly(levels):
    images = random_images(50, (1, 20, 20), levels)
    noisy = dequantize(images, levels, seeded(1))
    width = 2 / (levels - 1)
    assert (noisy - images).abs().max() <= width / 2 * (1 + 1e-4) + 1e-7  # float32 rounds the sum
    assert noisy.dtype == images.dtype and noisy.shape == images.shape
    share = ((noisy - images).double() / width + 0.5).flatten().numpy()
    # 1.95 / sqrt(n) is exceeded by one sample in a thousand; the seed is fixed. Bins half as wide give 0.25.
    assert stats.kstest(share, "uniform").statistic < 1.95 / math.sqrt(len(share))
    assert stats.kstest(0.5 * share, "uniform").statistic > 10 * 1.95 / math.sqrt(len(share))
    same = to_levels(noisy, levels) == to_levels(images, levels)
    assert same.double().mean() > 1 - 1e-4  # a value on the very edge may be rounded to the other side


def test_noise_comes_from_the_generator_or_from_numbers_drawn_before():
    images = random_images(4, (3, 4, 4))
    for noise, draw in ((lambda **o: dequantize(images, 32, **o), torch.rand), (lambda **o: add_gaussian_noise(images, 0.1, **o), torch.randn)):
        first = noise(generator=seeded(3))
        torch.rand(100)
        assert torch.equal(noise(generator=seeded(3)), first) and not torch.equal(noise(generator=seeded(4)), first)
        assert not torch.equal(noise(), noise())
        state = torch.get_rng_state()
        assert torch.equal(noise(numbers=draw(images.shape, generator=seeded(3))), first)
        assert torch.equal(torch.get_rng_state(), state)  # nothing more was drawn


@pytest.mark.parametrize("std", [0.005, 0.1])
def test_gaussian_noise_is_gaussian(std):
    images = random_images(50, (1, 20, 20)).double()
    noise = (add_gaussian_noise(images, std, seeded(1)) - images).flatten().numpy()
    assert stats.kstest(noise / std, "norm").statistic < 1.95 / math.sqrt(len(noise))
    assert torch.equal(add_gaussian_noise(images, 0.0), images)


def test_cosine_schedule_ends_middle_and_monotone():
    values = [cosine_schedule(step / 1000, 0.1, 0.005) for step in range(1001)]
    assert math.isclose(values[0], 0.1) and math.isclose(values[-1], 0.005) and math.isclose(values[500], 0.0525)
    assert all(a > b for a, b in zip(values, values[1:]))
    rising = [cosine_schedule(step / 1000, 0.0, 2.0) for step in range(1001)]
    assert all(a < b for a, b in zip(rising, rising[1:]))
    assert math.isclose(values[250], 0.005 + 0.095 * (0.5 + 0.5 * math.sqrt(0.5)))  # cos of 45 degrees
    assert cosine_schedule(-1.0, 0.1, 0.005) == values[0] and cosine_schedule(7.0, 0.1, 0.005) == values[-1]


# patches


@pytest.mark.parametrize("shape, p", [((1, 8, 8), 2), ((3, 16, 16), 4), ((3, 6, 12), 3), ((2, 4, 8), 4), ((3, 5, 7), 1), ((1, 4, 4), 4)])
def test_patchify_against_a_loop(shape, p):
    images = normal(3, *shape)
    channels, height, width = shape
    tokens = patchify(images, p)
    assert tokens.shape == (3, height * width // p**2, channels * p**2)
    for b in range(3):
        for row in range(height // p):
            for column in range(width // p):
                patch = images[b, :, row * p : (row + 1) * p, column * p : (column + 1) * p]
                assert torch.equal(tokens[b, row * (width // p) + column], patch.reshape(-1))
    assert torch.equal(unpatchify(tokens, p, shape), images)


def test_unpatchify_is_the_inverse_from_the_other_side_and_both_pass_gradients():
    tokens = normal(2, 8, 27, requires_grad=True)
    images = unpatchify(tokens, 3, (3, 6, 12))
    assert torch.equal(patchify(images, 3), tokens)
    weight = normal(2, 3, 6, 12, seed=1)
    (images * weight).sum().backward()
    assert torch.equal(tokens.grad, patchify(weight, 3))  # a permutation: the gradient of each number is its own weight


def test_an_empty_batch_passes():
    assert patchify(torch.zeros(0, 3, 8, 8), 4).shape == (0, 4, 48)
    assert unpatchify(torch.zeros(0, 4, 48), 4, (3, 8, 8)).shape == (0, 3, 8, 8)


@pytest.mark.parametrize("p, shape", [(3, (1, 8, 8)), (16, (1, 8, 8)), (0, (1, 8, 8)), (-2, (1, 8, 8)), (4, (1, 6, 8)), (4, (1, 8, 6))])
def test_patches_must_tile_the_image(p, shape):
    text = f"patch size {p} does not divide the image size {shape[1]}x{shape[2]}"
    complaint(ValueError, lambda: patchify(torch.zeros(1, *shape), p), text)
    complaint(ValueError, lambda: unpatchify(torch.zeros(1, 16, 4), p, shape), text)


@pytest.mark.parametrize("shape", [(1, 8, 8), (8, 8), (2, 5, 1, 8, 8)])
def test_images_without_exactly_one_batch_dimension(shape):
    complaint(ValueError, lambda: patchify(torch.zeros(shape), 2), "cannot be cut into patches", "image[None]")


@pytest.mark.parametrize("shape", [(2, 16, 5), (2, 15, 4), (16, 4), (2, 4, 16)])
def test_tokens_that_do_not_fit(shape):
    complaint(ValueError, lambda: unpatchify(torch.zeros(shape), 2, (1, 8, 8)), "expected (batch, 16, 4)")


# channel basis


def test_principal_components_against_svd_and_scikit_learn():
    samples = patchify(smooth_images(400), 2).flatten(0, 1)
    ours = principal_components(samples).numpy()
    centred = samples.double().numpy() - samples.double().numpy().mean(0)
    by_svd = np.linalg.svd(centred, full_matrices=False)[2]
    by_sklearn = PCA(svd_solver="full").fit(samples.double().numpy())
    for other in (by_svd, by_sklearn.components_):
        np.testing.assert_allclose(np.abs((ours * other).sum(1)), 1, atol=1e-9)  # equal up to sign
    np.testing.assert_allclose((centred @ ours.T).var(0, ddof=1), by_sklearn.explained_variance_, rtol=1e-9)
    assert (ours[np.arange(12), np.abs(ours).argmax(1)] > 0).all()  # the sign is settled: the largest entry is positive


def test_principal_components_of_samples_that_leave_directions_empty():
    flat = normal(50, 2) @ normal(2, 6, seed=1)
    for samples in (flat, flat[:1], torch.zeros(10, 6)):  # two directions, one sample, no variance at all
        found = principal_components(samples)
        assert_close(found @ found.T, torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-12)
    variance = (principal_components(flat) @ flat.double().T).var(1)
    assert (variance[:2] > 0.1).all() and (variance[2:] < 1e-10).all()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 2e-6)])
@pytest.mark.parametrize("kind", ["pixels", "pca", "luma-chroma"])
def test_bases_are_orthonormal_and_inverted(kind, dtype, tolerance):
    images = smooth_images(300)
    basis = ChannelBasis(48).to(dtype).fit(images, 4, kind)
    assert basis.matrix.dtype == dtype
    assert_close(basis.matrix @ basis.matrix.T, torch.eye(48, dtype=dtype), rtol=0, atol=tolerance)
    assert abs(torch.linalg.slogdet(basis.matrix.double()).logabsdet) < 48 * tolerance
    tokens = patchify(images.to(dtype), 4)
    assert_close(basis.inverse(basis(tokens)), tokens, rtol=0, atol=5 * tolerance)
    assert_close(basis(basis.inverse(tokens)), tokens, rtol=0, atol=5 * tolerance)
    assert_close(basis(tokens).norm(dim=-1), tokens.norm(dim=-1))
    jacobian = torch.autograd.functional.jacobian(basis, tokens[0, :1])
    assert_close(jacobian.reshape(48, 48), basis.matrix, rtol=0, atol=tolerance)
    if kind == "pixels":
        assert torch.equal(basis(tokens), tokens)


def test_pca_channels_are_uncorrelated_and_sorted():
    images = smooth_images(500)
    channels = ChannelBasis(12).double().fit(images, 2, "pca")(patchify(images.double(), 2)).flatten(0, 1)
    covariance = torch.cov(channels.T)
    variance = covariance.diagonal()
    assert (variance.diff() <= 0).all() and variance[0] > 5 * variance[-1]
    assert (covariance - variance.diag()).abs().max() < 1e-12


def test_the_basis_computes_in_its_own_precision_under_autocast():
    basis, tokens = ChannelBasis(12).fit(smooth_images(100), 2, "pca"), normal(5, 16, 12)
    expected = basis(tokens), basis.inverse(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        assert (tokens @ basis.matrix).dtype == torch.bfloat16
        assert torch.equal(basis(tokens), expected[0]) and torch.equal(basis.inverse(tokens), expected[1])
    assert basis(tokens.bfloat16()).dtype == torch.float32


def test_luma_channels_do_not_hear_colour_nor_chroma_channels_brightness():
    images = smooth_images(300).double()
    basis = ChannelBasis(48).double().fit(images, 4, "luma-chroma")
    before = basis(patchify(images, 4))
    chroma = normal(300, 2, 8, 8, seed=5, dtype=torch.float64)
    coloured = images + torch.einsum("kc,bkhw->bchw", LUMA_CHROMA[1:], chroma)  # the mean of R, G and B stays as it was
    after = basis(patchify(coloured, 4))
    assert_close(after[..., :16], before[..., :16], rtol=0, atol=1e-12)
    assert (after[..., 16:] - before[..., 16:]).abs().max() > 1
    brighter = images + normal(300, 1, 8, 8, seed=6, dtype=torch.float64)
    after = basis(patchify(brighter, 4))
    assert_close(after[..., 16:], before[..., 16:], rtol=0, atol=1e-12)
    assert (after[..., :16] - before[..., :16]).abs().max() > 1


def test_luma_chroma_takes_principal_components_plane_by_plane():
    samples = patchify(smooth_images(400), 2).flatten(0, 1)
    found = _luma_chroma_components(samples).unflatten(1, (3, 4))  # (12 components, colour, place)
    for plane, axis in enumerate(LUMA_CHROMA):
        rows = found[4 * plane : 4 * plane + 4]
        values = (samples.double().unflatten(1, (3, 4)) * axis[:, None]).sum(1)
        assert_close(rows, axis[:, None] * principal_components(values)[:, None], rtol=0, atol=1e-12)


def test_the_basis_travels_with_the_state_and_is_not_trained():
    images = smooth_images(100)
    fitted = ChannelBasis(12).fit(images, 2, "pca")
    fresh = ChannelBasis(12)
    fresh.load_state_dict(fitted.state_dict())
    assert torch.equal(fresh.matrix, fitted.matrix) and not list(fitted.parameters())
    assert set(fitted.state_dict()) == {"matrix"}
    assert torch.equal(ChannelBasis(12).fit(images, 2, "pca").matrix, fitted.matrix)  # the same data, the same basis


@pytest.mark.parametrize("channels, shape, kind, text", [
    (4, (1, 8, 8), "fourier", "unknown channel basis 'fourier'; choose 'pixels', 'pca' or 'luma-chroma'"),
    (4, (1, 8, 8), "luma-chroma", "needs RGB images, these have 1 channels"),
    (16, (1, 8, 8), "pca", "have 4 channels, this basis 16"),
    (16, (1, 8, 8), "pixels", "have 4 channels, this basis 16"),
    (4, (1, 7, 8), "pca", "patch size 2 does not divide"),
])  # fmt: skip
def test_bad_bases(channels, shape, kind, text):
    basis = ChannelBasis(channels)
    complaint(ValueError, lambda: basis.fit(random_images(5, shape), 2, kind), text)
    assert torch.equal(basis.matrix, torch.eye(channels))  # a failed fit leaves the basis as it was


# bits per dimension


@pytest.mark.parametrize("levels", [2, 16, 17, 256])
@pytest.mark.parametrize("dimensions", [1, 64, 3072])
def test_a_uniform_density_costs_log2_of_the_levels(levels, dimensions):
    half = torch.tensor(1 + 1 / (levels - 1), dtype=torch.float64)  # the outer bins reach half a bin beyond -1 and 1
    log_density = torch.distributions.Uniform(-half, half).log_prob(torch.zeros(5, dimensions, dtype=torch.float64)).sum(1)
    assert_close(bits_per_dimension(log_density, dimensions, levels), torch.full((5,), math.log2(levels), dtype=torch.float64))


def test_bits_per_dimension_bounds_the_cost_of_the_levels():
    "The exact discrete cost of a Gaussian comes from its cumulative distribution; the staircase with the same bins reaches it."
    levels, width = 9, 0.25
    density = torch.distributions.Normal(torch.tensor(0.1, dtype=torch.float64), 0.3)
    places = to_images(torch.arange(levels), levels).double()
    probability = density.cdf(places + width / 2) - density.cdf(places - width / 2)
    noisy = dequantize(places.expand(200_000, levels), levels, seeded())
    cost = bits_per_dimension(density.log_prob(noisy), 1, levels)
    mean, error = cost.mean(0), cost.std(0) / len(noisy) ** 0.5
    gap = mean + probability.log2()
    assert (gap > -5 * error).all() and gap[0] > 0.1
    staircase = (probability / width).log()[to_levels(noisy[:1000], levels).long()]
    inside = to_levels(noisy[:1000], levels) == torch.arange(levels)
    assert_close(bits_per_dimension(staircase, 1, levels)[inside], (-probability.log2()).expand(1000, -1)[inside])


def test_held_out_digits_under_their_own_histogram_cost_its_cross_entropy():
    train, images = (data.batch(range(len(data)))[0].double() for data in (load_dataset("digits"), load_dataset("digits", "test")))
    share = (torch.bincount(to_levels(train, 17).flatten().long(), minlength=17).double() / train.numel()).numpy()
    noisy = dequantize(images, 17, seeded()).clamp(-1 - 0.0624, 1 + 0.0624)
    histogram = stats.rv_histogram((share, np.linspace(-1 - 1 / 16, 1 + 1 / 16, 18)))  # its density, by someone else
    log_density = torch.from_numpy(histogram.logpdf(noisy.numpy())).sum((1, 2, 3))
    expected = -np.log2(share)[to_levels(images, 17).numpy()].mean()
    assert abs(bits_per_dimension(log_density, 64, 17).mean().item() - expected) < 1e-6
