"""The networks of a run: those that are trained, modules added to them, and their teachers."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch._dynamo import OptimizedModule

from nnunet_ssl.building_blocks.features import Pass, decode, encode, forward_pass, has_features
from nnunet_ssl.building_blocks.teacher import make_teacher, update_teacher
from nnunet_ssl.building_blocks.weight_norms import restore_weight_norms
from nnunet_ssl.training import distributed
from nnunet_ssl.training.stages import Schedule


class HoldsNetwork(Protocol):
    """Whatever validates and predicts with its attribute `network`."""

    network: nn.Module


@dataclass(frozen=True)
class Trained:
    """Modules with the optimiser that moves them; their gradient is clipped and stepped for itself."""

    modules: tuple[nn.Module, ...]
    optimizer: torch.optim.Optimizer
    lr_scheduler: Schedule

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters of all modules."""
        return [parameter for module in self.modules for parameter in module.parameters()]


class Networks:
    """Trained networks, parts and teachers, each by its name.

    Attributes:
        networks: the trained networks, nnU-Net's own first, as nnU-Net holds them: compiled or not.
        parts: modules that a method adds.
        teachers: moving averages of networks, in evaluation mode and without deep supervision.
        trained: what each optimiser moves, by the name of its network or part.
    """

    def __init__(self, build: Callable[[str], nn.Module], compiles: bool) -> None:
        """Start with none.

        Args:
            build: returns a new network of the architecture "same" or "other".
            compiles: whether passes go through torch.compile, as nnU-Net's do.
        """
        self.new_network = build
        self.networks: dict[str, nn.Module] = {}
        self.parts: dict[str, nn.Module] = {}
        self.teachers: dict[str, nn.Module] = {}
        self.trained: dict[str, Trained] = {}
        self._compiles = compiles
        self._averages: dict[str, str] = {}
        self._forward_pass = torch.compile(forward_pass) if compiles else forward_pass
        self._encode = torch.compile(encode) if compiles else encode
        self._decode = torch.compile(decode) if compiles else decode

    # ---- what there is ----

    def add_network(self, name: str, network: nn.Module, optimizer: torch.optim.Optimizer, schedule: Schedule) -> None:
        """Add a trained network; the first one is nnU-Net's own, and what predicts unless a method says otherwise.

        Raises:
            ValueError: it has no decoder with a switch for deep supervision, as nnU-Net's U-Nets have.
        """
        module = bare(network)
        if not hasattr(getattr(module, "decoder", None), "deep_supervision"):
            raise ValueError(f"network {name} is a {type(module).__name__}, which is no U-Net as nnU-Net builds them")
        self.networks[name] = network
        self.trained[name] = Trained((bare(network),), optimizer, schedule)

    def train_parts(
        self,
        optimizers: Mapping[str, torch.optim.Optimizer],
        schedule_of: Callable[[torch.optim.Optimizer], Schedule],
        networks: Mapping[str, str],
    ) -> None:
        """Train the parts: each with its optimiser, if it has one of its own, otherwise with that of a network.

        Args:
            optimizers: of parts that have one of their own, and of networks beside the first one that have another than
                nnU-Net's.
            schedule_of: returns the schedule of such an optimiser.
            networks: the network that a part is trained with, where it is not the first one.

        Raises:
            ValueError: a name is used twice, or unknown; a parameter has two optimisers or another one's.
        """
        if repeated := sorted(self.parts.keys() & self.networks.keys()):
            raise ValueError(
                f"{', '.join(repeated)} is the name of a network and of a part: give each a name of its own"
            )
        self._refuse_unknown_parts(optimizers, networks)
        for name, optimizer in optimizers.items():
            is_part = name in self.parts
            module = self.parts[name] if is_part else self[name]
            moved = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
            if moved != {id(parameter) for parameter in module.parameters()}:
                kind = "part" if is_part else "network"
                raise ValueError(f"the optimiser of {kind} {name} has other parameters than the {kind}")
            if not is_part:
                self.trained[name] = Trained((module,), optimizer, schedule_of(optimizer))
        for name, part in self.parts.items():
            if name in optimizers:
                self.trained[name] = Trained((part,), optimizers[name], schedule_of(optimizers[name]))
            elif any(True for _ in part.parameters()):
                network = self._name(networks.get(name))
                trained = self.trained[network]
                trained.optimizer.add_param_group({"params": list(part.parameters())})
                self.trained[network] = replace(trained, modules=(*trained.modules, part))

    def _refuse_unknown_parts(self, optimizers: Mapping[str, object], networks: Mapping[str, str]) -> None:
        """Raise a ValueError if an author's method names a part or a network that there is not, or a part twice."""
        first, *others = self.networks
        if first in optimizers:
            raise ValueError(f"build_part_optimizers names {first}, which nnU-Net trains")
        for method, named in (("build_part_optimizers", {*optimizers} - {*others}), ("networks_of_parts", {*networks})):
            if unknown := sorted(named - self.parts.keys()):
                raise ValueError(f"{method} names {', '.join(unknown)}, which build_parts does not")
        for name, network in networks.items():
            if network not in self.networks:
                there = ", ".join(self.networks)
                raise ValueError(f"networks_of_parts: {name} is trained with {network}, and the networks are {there}")
            if name in optimizers:
                raise ValueError(f"networks_of_parts names {name}, which has an optimiser of its own")

    def make_teachers(self, averages: Mapping[str, str]) -> None:
        """Make each teacher a copy of its network, as it is now.

        Args:
            averages: the network that each teacher is the moving average of.
        """
        self._averages = dict(averages)
        for name, of in averages.items():
            if name in self.networks:
                raise ValueError(f"build_teachers: {name} is the name of a network")
            if of not in self.networks:
                raise ValueError(
                    f"build_teachers: {name} averages {of}, and the networks are {', '.join(self.networks)}"
                )
            teacher = make_teacher(bare(self.networks[of]))
            teacher.decoder.deep_supervision = False
            if self._compiles:
                teacher.compile()
            self.teachers[name] = teacher

    def predictors(self) -> dict[str, nn.Module]:
        """Return networks and teachers: all that can predict."""
        return {**self.networks, **self.teachers}

    def _name(self, name: str | None) -> str:
        return next(iter(self.networks)) if name is None else name

    def __getitem__(self, name: str | None) -> nn.Module:
        """Return the bare module of a network or teacher; None is the first network."""
        everything = self.predictors()
        if self._name(name) not in everything:
            raise KeyError(f"there is no network {name!r}; there are {', '.join(everything)}")
        return bare(everything[self._name(name)])

    # ---- passes ----

    def forward_pass(self, image: Tensor, name: str | None = None) -> Pass:
        """Return a pass of a network or teacher; None is the first network."""
        return self._forward_pass(self[name], image)

    def encode(self, image: Tensor, name: str | None = None) -> list[Tensor]:
        """Return the features of a network's encoder.

        Raises:
            ValueError: the network is an architecture of its own, whose pass has more than encoder and decoder.
        """
        if not has_features(network := self[name]):
            raise ValueError(
                f"{type(network).__name__} has a forward of its own, and this method needs encoder and decoder as they "
                "are in nnU-Net's U-Nets: take a method without, nnUNetTrainerSSL for example"
            )
        return self._encode(network, image)

    def decode(self, skips: list[Tensor], name: str | None = None, decoder: nn.Module | None = None) -> Pass:
        """Return what a network's decoder, or another one, makes of features."""
        return self._decode(self[name].decoder if decoder is None else decoder, skips)

    # ---- the run ----

    def synchronize_batch_norm(self) -> None:
        """Let networks whose plans have batch normalisation take its statistics over all processes."""
        for network in map(bare, self.networks.values()):
            nn.SyncBatchNorm.convert_sync_batchnorm(network)  # in place: a U-Net is no batch normalisation itself
        self.parts = {name: nn.SyncBatchNorm.convert_sync_batchnorm(part) for name, part in self.parts.items()}

    def broadcast(self) -> None:
        """Give all processes the weights of the first one."""
        distributed.broadcast([*map(bare, self.networks.values()), *self.parts.values()])

    def start_epoch(self, epoch: int, optimizer: torch.optim.Optimizer, schedule: Schedule) -> None:
        """Put all that is trained into training mode, at the epoch's learning rate.

        Args:
            epoch: that begins.
            optimizer: nnU-Net's.
            schedule: nnU-Net's, which variants of its trainer exchange during a run.

        Raises:
            ValueError: the optimiser is not that which the first network began with.
        """
        first = self._name(None)
        if self.trained[first].optimizer is not optimizer:
            raise ValueError("the trainer has exchanged its optimizer after initialize: give it another lr_scheduler")
        self.trained[first] = replace(self.trained[first], lr_scheduler=schedule)
        for one in self.trained.values():
            for module in one.modules:
                module.train()
            one.lr_scheduler.step(epoch)

    def begin_anew(self) -> None:
        """Let networks and teachers, which say the same as before, learn as fast as fresh ones, without momentum."""
        for one in self.trained.values():
            one.optimizer.state.clear()
        for network in self.predictors().values():
            restore_weight_norms(bare(network))

    def update_teachers(self, ema_decay: float, step: int) -> None:
        """Move each teacher towards its network; see `update_teacher`."""
        for name, of in self._averages.items():
            update_teacher(self.teachers[name], bare(self.networks[of]), ema_decay, step)

    # ---- checkpoints ----

    def state_dict(self) -> dict[str, Any]:
        """Return all weights, and the optimisers but the first one's, which nnU-Net's checkpoint has."""
        optimizers = {name: one.optimizer.state_dict() for name, one in list(self.trained.items())[1:]}
        return {
            "networks": {name: bare(network).state_dict() for name, network in self.networks.items()},
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
            "teachers": {name: teacher.state_dict() for name, teacher in self.teachers.items()},
            "optimizers": optimizers,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for name, network in self.networks.items():
            bare(network).load_state_dict(state["networks"][name])
        for name, part in self.parts.items():
            part.load_state_dict(state["parts"][name])
        for name, teacher in self.teachers.items():
            teacher.load_state_dict(state["teachers"][name])
        for name, one in list(self.trained.items())[1:]:
            one.optimizer.load_state_dict(state["optimizers"][name])

    # ---- validation ----

    @contextmanager
    def in_place(self, holder: HoldsNetwork, name: str) -> Iterator[None]:
        """Put a network or teacher in the place of `holder.network`, and all back as it was, whatever happens."""
        before, holder.network = holder.network, self.predictors()[name]
        module = bare(holder.network)
        deep_supervision, training = module.decoder.deep_supervision, holder.network.training
        try:
            yield
        finally:
            module.decoder.deep_supervision = deep_supervision
            holder.network.train(training)
            holder.network = before


def bare(network: nn.Module) -> nn.Module:
    """Return the module behind torch.compile."""
    return network._orig_mod if isinstance(network, OptimizedModule) else network


def on_device(things: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Return things by name, the modules among them on a device."""
    return {name: thing.to(device) if isinstance(thing, nn.Module) else thing for name, thing in things.items()}
