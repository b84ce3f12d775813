"""2-D networks that see 3-D patches slice by slice: a library's, pretrained on natural images, and nnU-Net's own."""

import copy
import importlib
import importlib.util
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, nn

from nnunet_ssl.building_blocks.low_rank_adapters import add_adapters
from nnunet_ssl.building_blocks.slicewise_network import COLORS, ColorsFirst, SlicewiseNetwork, without_batch_norm
from nnunet_ssl.data.architectures import refuse_other_than_modules
from nnunet_ssl.training.checkpoints import load_model
from nnunet_ssl.training.safe_loading import is_of_the_machine, refuse_altered

LIBRARY = "segmentation_models_pytorch"
NO_WEIGHTS = "none"
OTHER_WAYS = "give a file of them with weights_2d=PATH, or a 2d network of nnU-Net's with init_2d=PATH"


@dataclass(frozen=True)
class LibraryNetwork:
    """A network of segmentation-models-pytorch, and where its weights come from.

    Attributes:
        architecture: the library's name of it.
        encoder: the library's name of it.
        encoder_weights: the library's name of those on the hub, or "none".
        file: of weights, which are taken instead of the hub's; None: there is none.
        adapters: rank and dropout of the encoder's (`LowRankAdapter`), whose other weights are kept; None: all of its
            weights are trained.
        is_filled_later: whether weights come from a checkpoint, so that neither hub nor file is asked for any.
    """

    architecture: str
    encoder: str
    encoder_weights: str
    file: str | None = None
    adapters: tuple[int, float] | None = None
    is_filled_later: bool = False

    def build(self, channels: int, classes: int, axis: int, slices_per_pass: int) -> SlicewiseNetwork:
        """Return the network for 3-D patches; its decoder is new, but for what a file has of it.

        Args:
            channels: of the patches.
            classes: channels of its output.
            axis: the spatial axis that is cut: 0, 1 or 2.
            slices_per_pass: most slices of a chunk.

        Raises:
            ValueError: the library has no such network or weights, or the file does not fit.
            ConnectionError: the hub is not to be reached.
        """
        is_pretrained = self.file is not None or self.encoder_weights != NO_WEIGHTS
        is_from_hub = is_pretrained and self.file is None and not self.is_filled_later
        network = self._create(self.encoder_weights if is_from_hub else None, classes)
        if not is_pretrained:
            without_batch_norm(network.encoder)
        without_batch_norm(network.decoder)
        if self.file is not None and not self.is_filled_later:
            load_pretrained(network, read_weights(self.file), f"{self.file} (weights_2d)")
        if self.adapters is not None and not add_adapters(network.encoder, *self.adapters):
            raise ValueError(
                f"the encoder {self.encoder} has no linear layers or 1 x 1 convolutions, which alone get adapters, and "
                "would learn nothing: give low_rank_adapters=false"
            )
        sides = (max(32, network.encoder.output_stride),) * 2  # coarser features of some encoders come in halves again
        return SlicewiseNetwork(ColorsFirst(network, channels), axis, slices_per_pass, sides)

    def _create(self, weights: str | None, classes: int) -> nn.Module:
        library = importlib.import_module(LIBRARY)  # takes seconds
        try:
            return library.create_model(
                self.architecture, self.encoder, encoder_weights=weights, in_channels=COLORS, classes=classes
            )
        except KeyError as error:
            raise ValueError(f"architecture_2d, encoder, encoder_weights: {error.args[0]}") from error
        except OSError as error:
            raise ConnectionError(
                f"the weights {weights} of {self.encoder} cannot be downloaded from the hub ({error}): {OTHER_WAYS}"
            ) from error


def network_2d(
    init_2d: str | None, library: LibraryNetwork, channels: int, classes: int, axis: int, slices_per_pass: int
) -> SlicewiseNetwork:
    """Return the 2-D network of a run, for 3-D patches.

    Args:
        init_2d: a checkpoint of nnU-Net's 2d configuration, whose network it is; None: it is that of the library.
        library: which of its networks.
        channels: of the patches.
        classes: channels of its output.
        axis: the spatial axis that is cut: 0, 1 or 2.
        slices_per_pass: most slices of a chunk.

    Raises:
        ValueError: two networks are asked for, or see `network_of_nnunet` and `LibraryNetwork.build`.
        ModuleNotFoundError: the library is not installed.
        ConnectionError: the hub is not to be reached.
    """
    if init_2d is not None and library.file is not None:
        raise ValueError("init_2d and weights_2d each say which 2-D network is trained: give one of them")
    if init_2d is not None:
        return network_of_nnunet(init_2d, channels, classes, axis, slices_per_pass)
    if importlib.util.find_spec(LIBRARY) is None:
        raise ModuleNotFoundError(
            "networks that were pretrained on natural images are those of segmentation-models-pytorch, which is not "
            "installed: pip install nnunet_ssl[mn], or give a 2d network of nnU-Net's with init_2d=PATH"
        )
    return library.build(channels, classes, axis, slices_per_pass)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Return named weights of a file of torch or safetensors, or of the folder that the library's models are saved in.

    Nothing but tensors is read.

    Raises:
        ValueError: there is no such file, or it holds no named weights.
    """
    file = Path(path, "model.safetensors") if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise ValueError(f"weights_2d: {file} is not a file")
    try:
        if file.suffix == ".safetensors":
            return importlib.import_module("safetensors.torch").load_file(file)
        if zipfile.is_zipfile(file):  # older files are none, and have no checksums
            refuse_altered(file)
        weights = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        if is_of_the_machine(error):
            raise
        raise ValueError(f"weights_2d: {file} cannot be read as weights") from error
    if not (isinstance(weights, Mapping) and all(isinstance(value, Tensor) for value in weights.values())):
        raise ValueError(f"weights_2d: {file} holds no weights by name")
    return dict(weights)


def load_pretrained(network: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Put weights into a network of the library: all of its encoder's, and what there is of its decoder's.

    Args:
        network: has an encoder and a decoder.
        weights: by name, of an encoder alone, or of a whole network with `encoder.` before the names of its encoder.
        source: for the message.

    Raises:
        ValueError: some of the encoder's weights are missing, or have another shape.
    """
    if not any(name.startswith("encoder.") for name in weights):
        weights = {f"encoder.{name}": value for name, value in weights.items()}
    own = network.state_dict()
    fitting = {name: value for name, value in weights.items() if name in own and value.shape == own[name].shape}
    needed = [name for name in own if name.startswith("encoder.") and not name.endswith("num_batches_tracked")]
    if missing := [name for name in needed if name not in fitting]:
        raise ValueError(
            f"{source} has not the weights of the encoder: of {len(needed)} are missing, or of another shape, "
            f"{len(missing)}, {missing[0].removeprefix('encoder.')} for example; they have the names that "
            "segmentation-models-pytorch gives them"
        )
    network.load_state_dict(fitting, strict=False)


def network_of_nnunet(file: str, channels: int, classes: int, axis: int, slices_per_pass: int) -> SlicewiseNetwork:
    """Return the network of a checkpoint of nnU-Net's 2d configuration for 3-D patches, with its weights.

    Args:
        file: the checkpoint.
        channels: of the patches.
        classes: channels of its output.
        axis: the spatial axis that is cut: 0, 1 or 2.
        slices_per_pass: most slices of a chunk.

    Raises:
        ValueError: there is no such file; it is damaged, of a 3-D network, or of other images or labels.
    """
    checkpoint = load_model(file)
    arguments = checkpoint["init_args"]
    refuse_other_than_modules(arguments["plans"], arguments["configuration"], f"init_2d: {file}")
    plans = PlansManager(copy.deepcopy(arguments["plans"]))
    configuration = plans.get_configuration(arguments["configuration"])
    if len(configuration.patch_size) != 2:
        raise ValueError(f"init_2d: {file} is of configuration {arguments['configuration']}, and a 2d one is needed")
    network = get_network_from_plans(
        configuration.network_arch_class_name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
        channels,
        classes,
        deep_supervision=False,
    )
    try:
        network.load_state_dict(checkpoint["network_weights"])
    except RuntimeError as error:
        raise ValueError(
            f"init_2d: the network of {file} is not that of its plans for {channels} channels and {classes} outputs: "
            "train nnU-Net's 2d configuration on the same data set"
        ) from error
    strides = np.prod(configuration.network_arch_init_kwargs["strides"], axis=0)
    return SlicewiseNetwork(network, axis, slices_per_pass, tuple(int(stride) for stride in strides))


def axis_of_slices(spacing: list[float], wanted: int | None) -> int:
    """Return which spatial axis of a patch is cut: 0, 1 or 2; the coarsest one, of equal ones the first.

    Args:
        spacing: of the patch's voxels.
        wanted: 1, 2 or 3 takes that one, counted from 1; None: the coarsest.

    Raises:
        ValueError: there is no such axis.
    """
    if wanted is None:
        return int(np.argmax(spacing))
    if not 1 <= wanted <= len(spacing):
        raise ValueError(f"slice_axis is 1, 2 or 3, counted from the first axis of a patch, got {wanted}")
    return wanted - 1
