"""All that the author of a method may write and call, on one page; `SemiSupervisedTrainer` puts it into nnU-Net.

UPPERCASE class attributes are facts of a method. Lowercase ones are options: plain numbers, words, true or false, which
a run may change with `nnUNet_ssl_options`. A number whose name ends in `_weight`, `_fraction`, `_decay` and so on need
not be whole, and is checked; see `training/options.py`. A method has no `__init__` and knows no device, optimiser,
precision or file.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_ssl.building_blocks.features import Pass
from nnunet_ssl.building_blocks.label_space import LabelSpace
from nnunet_ssl.building_blocks.masked_loss import deep_supervision_loss
from nnunet_ssl.building_blocks.ramps import gaussian_rampup
from nnunet_ssl.data.loaders import LabeledBatch, UnlabeledBatch
from nnunet_ssl.training import distributed
from nnunet_ssl.training.host_work import Pending
from nnunet_ssl.training.run_state import Stateful
from nnunet_ssl.training.step import Losses


class Method:
    """What a method writes, and what it writes it with."""

    STEP_COST: float = 1.0  # of a step in the main stage, nnU-Net's own being 1: forward and backward passes
    PASSES: tuple[tuple[str, float], ...] = ()  # of each network in such a step, and the encoder, if not alike
    VIEWS: tuple[str, ...] = ("weak", "strong")  # of each unlabeled patch; see data/views.py
    DIMENSIONS: tuple[int, ...] = (2, 3)  # of the patches that the method can be trained with
    CHANGES_SUPERVISED_TERM: bool = False  # whether its supervised loss is by its nature another than nnU-Net's
    FIRST_NETWORK: str = "network"  # the name of nnU-Net's own network

    state: dict[str, Stateful]  # what `build_state` returned

    # ---- what a method writes: losses ----

    def training_losses(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch) -> Iterator[Losses]:
        """Yield the losses of one step, already weighted, by name; their sum is the loss.

        What is yielded is back-propagated before the next line runs, so that one graph is alive at a time and a step
        needs no more memory than nnU-Net planned for. Terms that share a graph are yielded together. A `Pass` that is
        still held when the next one begins keeps its features in memory.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what its losses are: write training_losses")

    def warmup_losses(self, labeled: LabeledBatch) -> Iterator[Losses]:
        """Yield the losses of a step in the first `warmup_fraction` of the run, which has no unlabeled images."""
        yield {"supervised": self.supervised_loss(labeled)}

    def pretraining_losses(self, labeled: LabeledBatch, unlabeled: UnlabeledBatch) -> Iterator[Losses]:
        """Yield the losses of a step in the first `pretrain_fraction` of the run, before the warm-up."""
        raise NotImplementedError(f"{type(self).__name__} has a pretrain_fraction: write pretraining_losses")

    def after_step(self) -> None:
        """Do what follows a step that was taken; teachers have been averaged by then.

        It runs without mixed precision and without the graph of a loss; what it records is plain numbers.
        """

    # ---- what a method writes: what it is made of ----

    def check_settings(self) -> None:
        """Raise a ValueError with one sentence for options or plans that the method cannot be trained with."""

    def build_other_networks(self) -> dict[str, nn.Module]:
        """Return networks that are trained beside nnU-Net's own, by name; see `new_network`."""
        return {}

    def build_teachers(self) -> dict[str, str]:
        """Return for each teacher the name of the network that it is the moving average of, by `ema_decay`."""
        return {}

    def build_parts(self) -> dict[str, nn.Module]:
        """Return modules that are trained with the first network (heads, decoders); then `self.parts[name]`.

        For another network see `networks_of_parts`. The bare module of a network is `self.networks[name]`; None is
        nnU-Net's own.
        """
        return {}

    def networks_of_parts(self) -> dict[str, str]:
        """Return for each part that is trained with another network than the first one the name of that network."""
        return {}

    def build_part_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Return optimisers of parts that have one of their own, and of other networks with another than nnU-Net's.

        Their learning rate falls as nnU-Net's does.
        """
        return {}

    def build_state(self) -> dict[str, Stateful]:
        """Return what a checkpoint keeps beside all networks (memories, scores); then `self.state[name]`.

        Each is a module with buffers, or brings its own tensors to the device of what it is given. It starts equal in
        all processes and has to stay so: see `sum_over_processes` and `gather_over_processes`.
        """
        return {}

    def inference_network(self) -> str:
        """Return the name of the network or teacher that validates, predicts and is saved as the model."""
        return self.FIRST_NETWORK

    def preview_contents(self, probs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the probabilities whose pseudo-labels a preview shows, and masks (B, 1, *spatial) to outline, or None.

        A method that learns from what it makes of the inference network's (B, C, *spatial) returns that.
        """
        return probs, None

    # ---- what a method calls: networks ----

    def forward_pass(self, image: Tensor, network: str | None = None) -> Pass:
        """Return a pass of a trained network, with gradient to its weights: outputs, skips and features.

        Args:
            image: (B, C, *spatial).
            network: its name; None is nnU-Net's own.
        """
        return self.networks.forward_pass(image, network)

    def encode(self, image: Tensor, network: str | None = None) -> list[Tensor]:
        """Return the features of a network's encoder (B, F, *spatial), full resolution first, with gradient."""
        return self.networks.encode(image, network)

    def decode(self, skips: list[Tensor], network: str | None = None, decoder: nn.Module | None = None) -> Pass:
        """Return what a network's decoder, or another one, makes of the features of an encoder, with gradient."""
        return self.networks.decode(skips, network, decoder)

    @torch.no_grad()
    def teacher_pass(self, image: Tensor, teacher: str = "teacher") -> Pass:
        """Return a pass of a teacher at full resolution, without gradient."""
        return self.networks.forward_pass(image, teacher)

    def teacher_probabilities(self, image: Tensor, teacher: str = "teacher") -> Tensor:
        """Return a teacher's probabilities (B, C, *spatial) in float32, without gradient."""
        return self.probabilities(self.teacher_pass(image, teacher).logits)

    @torch.no_grad()
    def network_probabilities(self, image: Tensor, network: str | None = None) -> Tensor:
        """Return a trained network's probabilities (B, C, *spatial) in float32, without gradient."""
        return self.probabilities(self.networks.forward_pass(image, network).logits)

    def new_network(self, architecture: str = "same") -> nn.Module:
        """Return a network as the plans have it, or of the other architecture, with random numbers of its own.

        Args:
            architecture: "same", or "other": residual-encoder U-Net for a plain one, and the reverse.
        """
        return self.networks.new_network(architecture)

    @contextmanager
    def frozen(self, module: nn.Module) -> Iterator[None]:
        """Let the gradient flow through a module in the passes made inside, and none to its weights."""
        changed = [parameter for parameter in module.parameters() if parameter.requires_grad]
        try:
            for parameter in changed:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in changed:
                parameter.requires_grad_(True)

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The modules of `build_parts`."""
        return self.networks.parts

    # ---- what a method calls: losses ----

    def supervised_loss(
        self, labeled: LabeledBatch, network: str | None = None, outputs: list[Tensor] | None = None
    ) -> Tensor:
        """Return nnU-Net's own loss of a labeled batch, as a scalar.

        With several processes its Dice may be over all of their batches: each process has to call it equally often.

        Args:
            labeled: the batch.
            network: the name of the network that sees it; None is nnU-Net's own.
            outputs: those of a pass that was made already.

        Raises:
            ValueError: in all processes, if the Dice is over all of them and not each of them calls it.
        """
        self.supervised_losses.agree(on_another=True)
        if outputs is None:
            outputs = self.forward_pass(labeled.image, network).outputs
        if self.enable_deep_supervision and len(outputs) > 1:
            return self.loss(outputs, labeled.target)
        return (self.loss.loss if self.enable_deep_supervision else self.loss)(outputs[0], labeled.full_target)

    def masked_loss(self, outputs: Sequence[Tensor], labels: Tensor, weight: Tensor) -> Tensor:
        """Return cross-entropy and Dice of all heads, weighted among each other as in nnU-Net's own loss, as a scalar.

        Args:
            outputs: as in `Pass`.
            labels: at full resolution, as `label_space.pseudo_label` returns them.
            weight: of each voxel, bool or ≥ 0, (B, 1, *spatial) or for regions (B, C, *spatial); 0 leaves it out.
        """
        return self.masked_losses(outputs, labels, [weight])[0]

    def masked_losses(self, outputs: Sequence[Tensor], labels: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
        """Return `masked_loss` for each of several maps of voxel weights, for little more than one of them costs."""
        heads = outputs if self.enable_deep_supervision else outputs[:1]
        return deep_supervision_loss(self.label_space, heads, labels, weights, self.head_weights(heads))

    def head_weights(self, outputs: Sequence[Tensor]) -> Sequence[float]:
        """Return what nnU-Net's loss gives to the heads of a pass; a single one counts whole."""
        return self.loss.weight_factors if len(outputs) > 1 else (1.0,)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probabilities of logits (B, C, *spatial), in float32: softmax, or sigmoid for regions."""
        return self.label_space.probabilities(logits)

    def accepted_pseudo_labels(self, probs: Tensor) -> tuple[Tensor, Tensor]:
        """Return hard labels, and where they are sure enough for their class, by `confidence_threshold`; observed.

        Args:
            probs: (B, C, *spatial) from which a network learns.
        """
        accepted = self.label_space.is_accepted(probs, self.confidence_threshold)
        self.record({"utilization": accepted.float().mean()})
        self.observe_pseudo_labels(probs)
        return self.label_space.pseudo_label(probs), accepted

    @property
    def label_space(self) -> LabelSpace:
        """What the network's channels mean, softmax labels or regions, and what can be done with them."""
        return self.observer.label_space

    @property
    def image_channels(self) -> int:
        """How many of the C channels of a batch are the image's; in a cascade those of the previous stage follow."""
        previous = len(self.label_manager.foreground_labels) if self.is_cascaded else 0
        return self.num_input_channels - previous

    @property
    def mirror_axes(self) -> tuple[int, ...]:
        """The spatial axes along which this run mirrors: nnU-Net's, or fewer by `mirroring`."""
        return tuple(self.inference_allowed_mirroring_axes or ())

    # ---- what a method calls: time, curves, host, processes ----

    @property
    def progress(self) -> float:
        """How much of the run is over: a fraction in [0, 1)."""
        return (self.current_epoch + self.step_of_epoch / self.num_iterations_per_epoch) / self.num_epochs

    @property
    def progress_of_main(self) -> float:
        """How much of the main stage is over: a fraction in [0, 1), 0 before it."""
        return self.stages.progress_of_main(self.progress)

    def ramp(self, name: str) -> float:
        """Return and record a weight's share of its maximum, which grows over `rampup_duration` of the main stage."""
        ramp = gaussian_rampup(self.progress_of_main, self.rampup_duration)
        self.record({f"ramp/{name}": ramp})
        return ramp

    def record(self, values: dict[str, float | Tensor]) -> None:
        """Keep scalars of this step for the curves; tensors are fetched from the device together with the losses."""
        self.observer.record(values)

    def observe_pseudo_labels(self, target: Tensor, probs: Tensor | None = None, network: str = "") -> None:
        """Record now and then what pseudo-labels are like, and warn when a class vanishes from them or floods them.

        Args:
            target: the probabilities (B, C, *spatial) that a network learns from.
            probs: its own; None where it sees other voxels than the target's.
            network: its name, where several learn from different targets.
        """
        self.observer.observe_pseudo_labels(target, probs, network)

    def on_host(self, function: Callable[..., Any], *tensors: Tensor) -> Pending:
        """Run a function of numpy arrays in a thread of the host, and wait for it in `pending.result()`, later.

        The step goes on meanwhile: yield what does not need the result, nnU-Net's loss for example. Arrays that the
        function returns come back as tensors on the device. It draws no random numbers of its own, so that a resumed
        run stays equal: draw them here and pass them.

        Args:
            function: takes one array for each tensor.
            tensors: are copied as they are now, without gradient.
        """
        return self.host_work.start(function, *tensors)

    def sum_over_processes(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes, without gradient; each process has to call it."""
        return distributed.sum_tensor(tensor)

    def gather_over_processes(self, tensor: Tensor, of_batch: bool = False) -> Tensor:
        """Return equal tensors (N, ...) of all processes as one, without gradient; `of_batch`: N may differ by one."""
        sizes = distributed.batch_sizes(self.configuration_manager.batch_size) if of_batch else None
        return distributed.gather_tensor(tensor, sizes)
