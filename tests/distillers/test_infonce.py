"""InfoNCE in blocks against the formula written down at once, with its gradients."""

import pytest
import torch

from distill.distillers.infonce import infonce

ROWS, KEYS, FEATURES = 4, 11, 3


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def dense(anchors, positive, keys, masked, lengths):
    """-log of the positive's share, all similarities at once; they are small enough for exp() as it is."""
    near = anchors @ keys.T
    if lengths is not None:
        near = near / lengths(keys)
    exponentials = near.exp()
    if masked is not None:
        exponentials = exponentials * ~masked(slice(0, len(keys)))
    return -(positive.exp() / (positive.exp() + exponentials.sum(dim=1))).log()


MASKS = torch.rand(ROWS, KEYS, generator=torch.Generator().manual_seed(1)) < 0.4
MASKED = {
    "none": None,
    "of keys": lambda part: MASKS[0, part],
    "of rows and keys": lambda part: MASKS[:, part],
    "all": lambda part: torch.ones(ROWS, part.stop - part.start, dtype=torch.bool),
    "the first blocks": lambda part: torch.arange(part.start, part.stop) < 7,
}
WEIGHTS = torch.rand(ROWS, FEATURES, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) + 0.5
LENGTHS = {"none": None, "of the row": lambda keys: (WEIGHTS.to(keys.dtype) @ keys.square().T).sqrt()}


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("masked", MASKED)
@pytest.mark.parametrize("block", [1, 4, 11, 50, None])
def test_value_and_gradients_equal_the_formula(block, masked, lengths):
    anchors, positive, keys = 3 * random(ROWS, FEATURES), random(ROWS), random(KEYS, FEATURES)
    inputs = [anchors.requires_grad_(), positive.requires_grad_()]
    options = {"masked": MASKED[masked], "lengths": LENGTHS[lengths]}
    losses, expected = infonce(*inputs, keys, **options, block=block), dense(*inputs, keys, **options)
    torch.testing.assert_close(losses, expected)
    weights = random(ROWS)
    gradients = torch.autograd.grad(losses @ weights, inputs)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected @ weights, inputs))
    if masked == "all":
        assert not losses.any()
        assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("masked", ["none", "of rows and keys"])
def test_gradients_are_those_of_finite_differences(masked, lengths):
    inputs, keys = (random(ROWS, FEATURES).requires_grad_(), random(ROWS).requires_grad_()), random(KEYS, FEATURES)
    options = {"masked": MASKED[masked], "lengths": LENGTHS[lengths], "block": 4}
    assert torch.autograd.gradcheck(lambda *x: infonce(*x, keys, **options), inputs)


def test_without_keys_nothing_is_to_be_told_apart():
    anchors, positive = random(ROWS, FEATURES).requires_grad_(), random(ROWS).requires_grad_()
    losses = infonce(anchors, positive, random(0, FEATURES))
    losses.sum().backward()
    assert not losses.any()
    assert not anchors.grad.any()
    assert not positive.grad.any()


@pytest.mark.parametrize("rising", [True, False])
def test_similarities_far_beyond_what_exp_can_hold(rising):
    """Rising ones move the maximum with every block, falling ones never after the first."""
    keys = torch.tensor([[1000.0 - i, -5.0] for i in range(10)])
    keys = keys.flip(0) if rising else keys
    close = torch.tensor(-5.0).sigmoid()  # share of the one key that comes close to the positive: 999,995 to 1,000,000
    for near, loss, share in ((1e6, torch.nn.functional.softplus(torch.tensor(-5.0)), close), (0.0, 999_995.0, 1.0)):
        anchors, positive = torch.tensor([[1000.0, 1.0]], requires_grad=True), torch.tensor([near], requires_grad=True)
        losses = infonce(anchors, positive, keys, block=3)
        losses.backward()
        torch.testing.assert_close(losses, torch.tensor([loss]))
        torch.testing.assert_close(anchors.grad, share * torch.tensor([[1000.0, -5.0]]))
        torch.testing.assert_close(positive.grad, torch.tensor([-share]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_keys_of_another_dtype_are_cast_also_under_autocast(dtype):
    anchors, positive, keys = torch.randn(ROWS, FEATURES), torch.randn(ROWS), torch.randn(KEYS, FEATURES).to(dtype)
    expected = infonce(anchors, positive, keys.float())
    with torch.autocast("cpu", torch.bfloat16):
        losses = infonce(anchors, positive, keys, lengths=lambda rows: torch.ones_like(anchors @ rows.T))
    assert losses.dtype == torch.float32
    assert torch.equal(losses, expected)


def test_a_second_derivative_is_refused():
    anchors = random(ROWS, FEATURES).requires_grad_()
    losses = infonce(anchors, random(ROWS), random(KEYS, FEATURES))
    (gradient,) = torch.autograd.grad(losses.square().sum(), anchors, create_graph=True)
    with pytest.raises(RuntimeError, match="twice"):
        gradient.sum().backward()
