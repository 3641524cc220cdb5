import logging
from typing import Optional

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.hooks.hook import DATA_BATCH
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS

from ..visualization import Observer, choose_layers, curve_activations, scalars


@HOOKS.register_module()
class ActivationVisHook(Hook):
    r"""Shows what the activations learn while they train.

    Writes to the runner's Visualizer, and so to every backend that the
    config names: files, TensorBoard, WandB. Scalars, over all layers as
    ``activation/<scalar>`` and for each chosen layer as
    ``activation/<layer>/<scalar>``:

    - ``beta_mean``, ``beta_std``: :math:`\beta` of ACON over channels, of
      meta-ACON over the batch, too;
    - ``slope_mean``, ``slope_std``: PWLU's slopes over units and pieces;
    - ``alignment_iou``: mean over units of the IOU of PWLU's bounds and of
      mean -+ 3 std of the batch (arXiv 2104.03693, Eq. 7);
    - ``degenerate``: share of PWLU units whose bounds are closer than
      ``mm_acon.ops.pwlu.MIN_WIDTH``.

    The picture ``activations`` has the shapes of the chosen layers over the
    distribution of their input. All is taken from rank 0's forward pass in
    the iteration itself; training stays the same to the last bit, under
    torch.compile to rounding.

    .. code-block:: python

        custom_hooks = [dict(type='ActivationVisHook', interval=50)]

    Args:
        interval (int): Iterations between scalars, -1 for none.
        image_interval (int): Iterations between pictures, -1 for none.
        layers (str, optional): Regular expression that is searched in the
            names of the layers to choose. None chooses among all.
        num_layers (int): How many are chosen at most, spread evenly.
        num_channels (int): Curves per layer.
    """

    def __init__(self,
                 interval: int = 50,
                 image_interval: int = 1000,
                 layers: Optional[str] = None,
                 num_layers: int = 4,
                 num_channels: int = 4) -> None:
        for name, value in (('interval', interval), ('image_interval',
                                                     image_interval)):
            if not isinstance(value, int) or value < 1 and value != -1:
                raise ValueError(
                    f'ActivationVisHook expects {name} to be a positive '
                    f'integer, or -1 for never, got {value!r}.')
        for name, value in (('num_layers', num_layers), ('num_channels',
                                                         num_channels)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f'ActivationVisHook expects {name} to be a '
                                 f'positive integer, got {value!r}.')
        self.interval = interval
        self.image_interval = image_interval
        self.layers = layers
        self.num_layers = num_layers
        self.num_channels = num_channels
        self._observer: Optional[Observer] = None

    def before_train(self, runner) -> None:
        model = runner.model
        model = model.module if is_model_wrapper(model) else model
        self._modules = curve_activations(model)
        self._chosen = choose_layers(self._modules, self.layers,
                                     self.num_layers)

    def before_train_iter(self,
                          runner,
                          batch_idx: int,
                          data_batch: DATA_BATCH = None) -> None:
        if is_main_process() and (
                self.every_n_train_iters(runner, self.interval)
                or self.every_n_train_iters(runner, self.image_interval)):
            self._observer = Observer(self._modules, self.num_channels)

    def after_train_iter(self,
                         runner,
                         batch_idx: int,
                         data_batch: DATA_BATCH = None,
                         outputs: Optional[dict] = None) -> None:
        if self._observer is None:
            return
        self._observer.close()
        seen = self._observer.snapshots
        self._observer = None
        chosen = {name: seen[name] for name in self._chosen if name in seen}
        if not chosen:
            print_log(
                'ActivationVisHook: none of the chosen layers was called in '
                f'iteration {runner.iter + 1}: ' + ', '.join(self._chosen),
                logger='current',
                level=logging.WARNING)
            return
        step = runner.iter + 1
        if self.every_n_train_iters(runner, self.interval):
            found = {
                f'activation/{name}': value
                for name, value in scalars(seen).items()
            }
            for layer, snapshot in chosen.items():
                for name, value in scalars({layer: snapshot}).items():
                    found[f'activation/{layer}/{name}'] = value
            runner.visualizer.add_scalars(found, step)
        if self.every_n_train_iters(runner, self.image_interval):
            # Here, since matplotlib is needed for pictures alone.
            from ..visualization.figures import shapes_figure, to_image
            picture = to_image(shapes_figure(list(chosen.values())))
            runner.visualizer.add_image('activations', picture, step)
