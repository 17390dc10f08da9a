from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anomaly.core.errors import ConfigError
from anomaly.models.conv_lstm_ae import (
    BidirectionalConvLSTM,
    BidirectionalLSTM,
    ConvLSTMCell,
    RecurrentAutoencoder,
    RecurrentSettings,
)
from anomaly.models.generation import Embedder
from tests.models.factories import GRID, healthy_scan, images_of

CELLS = ["convlstm", "lstm"]


def new(cell: str, neighbours: int = 2, **changes: Any) -> RecurrentAutoencoder:
    values = {"channels": (8,), "latent_size": 5, "hidden_size": 4, "cell": cell, **changes}
    view = {"kind": "slice", "neighbours": neighbours}
    return RecurrentAutoencoder(RecurrentSettings.parse({"view": view, **values}, "model"), GRID)


def slices(detector: RecurrentAutoencoder) -> tuple[Tensor, Tensor]:
    images, mask = images_of(*healthy_scan(0), detector.view)
    return images[5:7], mask[5:7]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@torch.no_grad()
def test_a_step_of_the_convolutional_cell_agrees_with_a_computation_by_hand() -> None:
    cell = ConvLSTMCell(channels=1, hidden_size=1)
    cell.gates.weight.zero_()
    cell.gates.weight[:, 0, 1, 1] = torch.tensor([0.5, -0.3, 0.8, 0.2])  # of the features: i, f, g, o
    cell.gates.weight[:, 1, 1, 1] = torch.tensor([0.1, 0.4, -0.6, 0.7])  # of the hidden state
    cell.gates.weight[2, 0, 1, 2] = 0.9  # g also depends on the voxel to its right
    cell.gates.bias.copy_(torch.tensor([0.05, 1.0, -0.1, 0.3]))
    features = torch.tensor([[[[2.0, -1.0]]]])
    h, c = torch.tensor([[[[0.4, 0.1]]]]), torch.tensor([[[[-0.5, 0.2]]]])
    found_h, found_c = cell(features, (h, c))
    i = sigmoid(0.5 * 2 + 0.1 * 0.4 + 0.05)
    f = sigmoid(-0.3 * 2 + 0.4 * 0.4 + 1.0)
    g = math.tanh(0.8 * 2 - 0.6 * 0.4 + 0.9 * -1.0 - 0.1)
    o = sigmoid(0.2 * 2 + 0.7 * 0.4 + 0.3)
    expected_c = f * -0.5 + i * g
    assert math.isclose(float(found_c[0, 0, 0, 0]), expected_c, rel_tol=1e-5)
    assert math.isclose(float(found_h[0, 0, 0, 0]), o * math.tanh(expected_c), rel_tol=1e-5)


@torch.no_grad()
def test_on_a_single_voxel_the_convolutional_cell_is_torchs_lstm() -> None:
    cell, reference = ConvLSTMCell(channels=3, hidden_size=4), nn.LSTMCell(3, 4)
    cell.gates.weight[:, :, 1, 1] = torch.cat([reference.weight_ih, reference.weight_hh], dim=1)
    cell.gates.bias.copy_(reference.bias_ih + reference.bias_hh)
    features = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0))
    state = cell.start(features[0, :, :, None, None])
    expected = reference(features[0])
    for n in range(5):
        state = cell(features[n, :, :, None, None], state)
        expected = reference(features[n], expected if n else None)
    torch.testing.assert_close(state[0][..., 0, 0], expected[0])
    torch.testing.assert_close(state[1][..., 0, 0], expected[1])


@torch.no_grad()
def test_the_bidirectional_lstm_returns_the_states_of_both_directions_at_the_middle() -> None:
    network = BidirectionalLSTM((2, 3, 1), hidden_size=4)
    features = torch.randn(2, 5, 2, 3, 1, generator=torch.Generator().manual_seed(0))
    codes = network.to_code(features.flatten(2))
    forward, backward = nn.LSTM(4, 4, batch_first=True), nn.LSTM(4, 4, batch_first=True)
    for name, value in network.cells.state_dict().items():
        direction = backward if name.endswith("_reverse") else forward
        direction.get_parameter(name.removesuffix("_reverse")).copy_(value)
    expected = [forward(codes[:, :3])[0][:, -1], backward(codes[:, 2:].flip(1))[0][:, -1]]
    torch.testing.assert_close(network(features), torch.cat(expected, dim=1))


@pytest.mark.parametrize(
    "network", [BidirectionalConvLSTM((2, 3, 3), 4), BidirectionalLSTM((2, 3, 3), 4)], ids=CELLS
)
def test_each_direction_depends_on_the_middle_slice_and_those_on_its_side(network: nn.Module) -> None:
    features = torch.randn(1, 5, 2, 3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    up, down = network(features).chunk(2, dim=1)
    for states, seen in ((up, [True, True, True, False, False]), (down, [False, False, True, True, True])):
        (slope,) = torch.autograd.grad(states.sum(), features, retain_graph=True)
        assert (slope.abs().sum(dim=(0, 2, 3, 4)) > 0).tolist() == seen


@pytest.mark.parametrize("cell", CELLS)
def test_the_order_of_the_slices_matters(cell: str) -> None:
    detector = new(cell)
    images, mask = slices(detector)
    codes = [
        detector.embed(images[:, order], mask) for order in ([0, 1, 2, 3, 4], [1, 0, 2, 3, 4], [4, 3, 2, 1, 0])
    ]
    for other in codes[1:]:
        assert (other - codes[0]).abs().max() > 1e-5


@pytest.mark.parametrize("cell", CELLS)
def test_the_reconstruction_depends_on_every_slice(cell: str) -> None:
    detector = new(cell)
    images, mask = slices(detector)
    variable = images.clone().requires_grad_()
    (slope,) = torch.autograd.grad((detector.reconstruct(variable, mask) ** 2).sum(), variable)
    assert slope.abs().sum(dim=(0, 2, 3)).min() > 0


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS)
def test_the_reconstruction_depends_on_the_latent_only(cell: str) -> None:
    detector = new(cell, neighbours=1, latent_size=3)
    images, mask = slices(detector)
    assert isinstance(detector, Embedder)
    assert detector.embed(images, mask).shape == (2, 3)
    jacobian = torch.autograd.functional.jacobian(  # type: ignore[no-untyped-call]
        lambda image: detector.reconstruct(image, mask[:1]).flatten(), images[:1]
    )
    strengths = torch.linalg.svdvals(jacobian.flatten(1).double())
    assert strengths[2] > 1e-4 * strengths[0] > 0
    assert strengths[3] < 1e-5 * strengths[0]


@pytest.mark.parametrize(
    "view", [{"kind": "slice", "neighbours": 0}, {"kind": "volume"}, {"kind": "patch", "neighbours": 2}], ids=str
)
def test_images_without_neighbouring_slices_are_refused(view: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"view.*set view\.kind to 'slice' and view\.neighbours to 1 or more"):
        RecurrentSettings.parse({"view": view}, "model")
