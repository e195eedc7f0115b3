"""The frozen teacher in its fastest form: fewer passes over the same maps, weights stored as they are used."""

import copy
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from distill.build import channels_last, freeze
from distill.models.network import Network, Standin
from distill.numerics import autocast, stream
from distill.types import Output, Shapes

log = logging.getLogger("distill")

FOLDED_WITHIN = 1e-4  # of the largest value of each tensor of an answer: float32 on a CPU, folded against not folded
CAST_WITHIN = 5e-2  # likewise: weights cast beforehand against cast at each call, which differ in kernels at most

# what tells a tensor's shape and kind; every other call reads its values
ASIDE = {
    *(Tensor.dim, Tensor.size, Tensor.stride, Tensor.numel, Tensor.is_contiguous, Tensor.is_floating_point),
    *(Tensor.__len__, torch.numel, torch.is_floating_point),
}


class FrozenNetwork(Standin):
    """A network that answers and never changes; built by `fastest`.

    It computes without a graph and in its own precision, whatever context it is called in. Its parts are not for use
    by themselves, but for `classifier` and `norms`, which have the numbers of the original.

    Args:
        inner: Changed for speed alone; taken over, not copied.
        norms: The normalisations that `Network.norms` names, which may be folded away in `inner`.
        precision: As `choose_precision` returns it.
        compiled: Whether to compile, by inductor, at the first call.
    """

    def __init__(self, inner: Network, *, norms: tuple[nn.Module, ...], precision: str, compiled: bool) -> None:
        super().__init__(inner)
        self._norms = nn.ModuleList(norms)
        self.precision = precision
        self.compiled = compiled
        self.mean, self.std, self.input_size = inner.mean, inner.std, inner.input_size
        # Freezing fuses on CPUs what follows a convolution into it, and lays out weights once. No CUDA graphs: the
        # next call would overwrite an answer still in use
        options: dict[str, Any] = {"freezing": inner.mean.device.type == "cpu"}
        self._run = torch.compile(_call, options=options) if compiled else _call
        self.requires_grad_(False)
        super().train(False)

    def train(self, mode: bool = True) -> Self:
        """Nothing: its statistics must not move, whoever asks."""
        return self

    def normalise(self, *, mean: Sequence[float], std: Sequence[float], input_size: int | None) -> None:
        self.inner.normalise(mean=mean, std=std, input_size=input_size)
        super().normalise(mean=mean, std=std, input_size=input_size)

    @property
    def norms(self) -> tuple[nn.Module, ...]:
        return tuple(self._norms)

    def forward(self, images: Tensor) -> Output:
        """As `Network.forward`, without a graph."""
        images = images.contiguous(memory_format=torch.channels_last)
        if self.compiled:
            torch._dynamo.maybe_mark_dynamic(images, 0)
        with torch.no_grad(), _context(self.precision, images.device):
            return self._run(self.inner, images)

    def shapes(self, size: int) -> Shapes:
        """As `Network.shapes`; compiles nothing."""
        with _context(self.precision, self.mean.device):
            return self.inner.shapes(size)


def _call(network: Network, images: Tensor) -> Output:
    output: Output = network(images)
    return output


def _context(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """The precision and no other, whatever the context around it."""
    if precision == "32-true":
        return torch.autocast(device.type, enabled=False)
    return autocast(precision, device)


def fastest(teacher: Network, *, precision: str, device: torch.device, size: int, compiled: bool) -> FrozenNetwork:
    """A frozen copy of a network in the fastest form that answers the same.

    Every normalisation in eval mode that alone reads a convolution is folded into it, in float64 (the algebra of
    Jacob et al., 2018, "Quantization and training of neural networks", section 3.2); a trace of a probe finds the
    pairs. Under mixed precision, weights that autocast would cast at every call are stored so. Layout is
    channels-last. If the folded copy answers the probe differently, the copy is not folded, and a warning says so.

    Args:
        teacher: Left as it is, to the last bit.
        precision: As `choose_precision` returns it.
        device: Where the copy lives and answers.
        size: Of the images it will be asked about, in px.
        compiled: Whether to compile, which takes tens of seconds on a CPU, at the first call.
    """
    inner = freeze(copy.deepcopy(teacher))
    norms = inner.norms
    with stream("frozen", "probe"):
        probe = torch.rand(2, 3, size, size)
    cpu = torch.device("cpu")  # whose float32 is float32, where a GPU's may be TF32
    inner = _changed(
        inner.to(cpu), fold, probe.to(cpu), context=_context("32-true", cpu), within=FOLDED_WITHIN, what="folded"
    )
    channels_last(inner.to(device))
    if precision != "32-true":
        inner = _changed(
            inner, store_cast, probe.to(device), context=_context(precision, device), within=CAST_WITHIN, what="cast"
        )
    # frozen anew: what `freeze` gave the copies before is bound to the networks they are copies of
    frozen = FrozenNetwork(freeze(inner), norms=norms, precision=precision, compiled=compiled)
    return frozen.to(device)


@torch.no_grad()
def _changed(
    network: Network,
    change: Callable[[Network, Tensor], int],
    probe: Tensor,
    *,
    context: AbstractContextManager[Any],
    within: float,
    what: str,
) -> Network:
    """A changed copy of a network if it answers as the network does, else the network."""
    with context:
        expected = network(probe)
        other = copy.deepcopy(network)
        try:
            change(other, probe)
            off = difference(other(probe), expected)
        except Exception as error:  # whatever a foreign network's code may trip over
            log.warning("the teacher is not %s: its copy fails with %s: %s", what, type(error).__name__, error)
            return network
    if not off <= within:  # nor where it is not a number
        log.warning("the teacher is not %s: its copy answers differently, by %.1e of the largest value", what, off)
        return network
    return other


def difference(one: Output, other: Output) -> float:
    """The largest difference of two answers, each tensor's in units of the largest value of the other's."""
    pairs = zip(_tensors(one), _tensors(other), strict=True)
    ratios = [(a.float() - b.float()).abs().max() / b.float().abs().max().clamp(min=1e-30) for a, b in pairs]
    return torch.stack(ratios).max().item()


def _tensors(output: Output) -> list[Tensor]:
    return [x for x in tree_leaves(list(vars(output).values())) if isinstance(x, Tensor)]


# ---------------------------------------------------------------------- what a forward does with its tensors


class Trace(TorchFunctionMode):
    """Who reads which tensor during one forward.

    Attributes:
        uses: By `id` of a tensor, for each call that read its values: the function, and the precision to which
            autocast would cast there, None outside of it.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.uses: dict[int, list[tuple[Any, torch.dtype | None]]] = defaultdict(list)
        self.kept: list[Tensor] = []  # an id names one tensor only while it lives

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not _tells_kind(func, result):
            self.read(func, (args, kwargs))
        self.kept += _leaves(result)
        return result

    def read(self, reader: Any, values: Any) -> None:
        """Note that the tensors in `values` have a reader."""
        kind = self.device.type
        cast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        for tensor in _leaves(values):
            self.uses[id(tensor)].append((reader, cast))
            self.kept.append(tensor)


def _leaves(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def _tells_kind(func: Any, result: Any) -> bool:
    # attributes such as `shape`; `data` and `T` give tensors, which read
    return func in ASIDE or (getattr(func, "__name__", "") == "__get__" and not isinstance(result, Tensor))


@contextmanager
def _hooked(modules: list[nn.Module], hook: Callable[..., None]) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# ---------------------------------------------------------------------- folding


def fold(network: Network, probe: Tensor) -> int:
    """Fold normalisations into convolutions, in place; returns how many."""
    pairs = foldable(network, probe)
    places = {id(child): (parent, name) for parent in network.modules() for name, child in parent.named_children()}
    for convolution, norm in pairs:
        fold_pair(convolution, norm)
        parent, name = places[id(norm)]
        parent._modules[name] = nn.Identity().eval()
    return len(pairs)


def foldable(network: Network, probe: Tensor) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Convolutions whose only reader is a normalisation, where neither does anything else for the network.

    Args:
        network: In eval mode.
        probe: Images in [0, 1], shape (batch, 3, height, width).
    """
    made: dict[int, nn.Conv2d] = {}  # by the id of what the convolution answered
    followed: list[tuple[nn.Conv2d, nn.BatchNorm2d, Tensor]] = []

    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(module, nn.Conv2d):
            trace.kept.append(output)
            made[id(output)] = module
        elif isinstance(module, nn.BatchNorm2d) and id(inputs[0]) in made:
            followed.append((made[id(inputs[0])], module, inputs[0]))

    trace = Trace(probe.device)
    candidates = [module for module in network.modules() if _plain(module)]
    with _hooked(candidates, hook), trace:
        trace.read("answer", vars(network(probe)))
    places: dict[int, int] = defaultdict(int)
    for module in network.modules():
        for child in module._modules.values():
            places[id(child)] += 1

    def read_once(*held: Tensor) -> bool:
        return all(len(trace.uses[id(tensor)]) <= 1 for tensor in held)

    # a module called twice reads its weights twice
    return [
        (convolution, norm)
        for convolution, norm, between in followed
        if places[id(norm)] == 1 and read_once(between, *convolution.parameters(), *norm.parameters(), *norm.buffers())
    ]


def _plain(module: nn.Module) -> bool:
    """Whether it is what its class says: subclasses may scale weights, or rectify; hooks may do anything."""
    if module._forward_hooks or module._forward_pre_hooks:
        return False
    if type(module) is nn.BatchNorm2d:
        return not module.training and module.running_mean is not None
    return type(module) is nn.Conv2d


def fold_pair(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """Give a convolution the weights with which it answers as the normalisation after it would.

    With scale = gamma / sqrt(variance + eps), weight' = scale weight and bias' = scale (bias - mean) + beta.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    kept = convolution.weight
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    bias = -norm.running_mean.double()
    if convolution.bias is not None:
        bias = bias + convolution.bias.double()
    bias = bias * scale
    if norm.bias is not None:
        bias = bias + norm.bias.double()
    weight = kept.double() * scale.view(-1, 1, 1, 1)
    convolution.weight = nn.Parameter(weight.to(kept.dtype), requires_grad=False)
    convolution.bias = nn.Parameter(bias.to(kept.dtype), requires_grad=False)


# ---------------------------------------------------------------------- precision


def store_cast(network: Network, probe: Tensor) -> int:
    """Store weights as autocast would cast them at every call; returns how many layers.

    Layers that run outside of autocast, as the classifier of `Network.classify` does, keep theirs.
    """
    with Trace(probe.device) as trace:
        network(probe)
    cast = torch.get_autocast_dtype(probe.device.type)
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    wanted = {(torch.conv2d, cast), (F.linear, cast)}
    stored = [
        layer
        for layer in layers
        if all(trace.uses[id(held)] and set(trace.uses[id(held)]) <= wanted for held in layer.parameters())
    ]
    for layer in stored:
        layer.to(cast)
    return len(stored)
