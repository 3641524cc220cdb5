"""Draws what a detector or segmentor finds on images of its test set.

    python tools/analysis/plot_detections.py CONFIG CHECKPOINT --out FILE

Boxes, and masks where there are any, beside the boxes of the ground truth; of
a segmentor the classes but the first, and the edges of the ground truth's.
"""
import numpy as np
import torch
from drawing import parser, save, trained_runner
from matplotlib.colors import to_rgba
from matplotlib.image import imread
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from mm_acon.visualization.figures import COLOURS, grid_of_axes, styled


def draw_box(axes, box, colour: str, style: str) -> None:
    x1, y1, x2, y2 = (float(value) for value in box)
    axes.add_patch(
        Rectangle((x1, y1),
                  x2 - x1,
                  y2 - y1,
                  fill=False,
                  edgecolor=colour,
                  linestyle=style,
                  linewidth=1.5))


def draw_mask(axes, mask, **style) -> None:
    """The edges of where a mask is true."""
    mask = np.asarray(mask)
    if not mask.any() or mask.all():
        return
    # The middles of pixels, whose edges are whole numbers.
    y, x = (np.arange(size) + 0.5 for size in mask.shape)
    axes.contour(x, y, mask, levels=[0.5], linewidths=1, **style)


def draw_instances(axes, sample, classes, lowest_score: float) -> None:
    # Ground truth lies in the resized image, predictions do not.
    scale = torch.tensor(sample.scale_factor).repeat(2)
    for box in sample.gt_instances.bboxes.cpu():
        draw_box(axes,
                 getattr(box, 'tensor', box).flatten() / scale, 'white', ':')
    found = sample.pred_instances.cpu()
    found = found[found.scores >= lowest_score]
    if 'masks' in found:
        for mask, label in zip(found.masks, found.labels):
            draw_mask(axes, mask, colors=COLOURS[int(label) % len(COLOURS)])
        return
    for box, label, score in zip(found.bboxes, found.labels, found.scores):
        colour = COLOURS[int(label) % len(COLOURS)]
        draw_box(axes, box, colour, '-')
        axes.text(
            float(box[0]),
            float(box[1]) - 1,
            f'{classes[int(label)]} {score:.2f}',
            color='white',
            fontsize=7,
            va='bottom',
            bbox=dict(facecolor=colour, pad=1, linewidth=0))


def draw_classes(axes, sample, extent) -> None:
    found = sample.pred_sem_seg.data[0].cpu().numpy()
    true = sample.gt_sem_seg.data[0].cpu().numpy()
    colours = np.zeros((*found.shape, 4))
    for label in range(1, int(found.max()) + 1):
        colour = COLOURS[(label - 1) % len(COLOURS)]
        colours[found == label] = to_rgba(colour, 0.55)
    axes.imshow(colours, extent=extent, interpolation='nearest')
    draw_mask(axes, true > 0, colors='white', linestyles=':')


@styled
@torch.no_grad()
def draw(runner, num_images: int, lowest_score: float):
    dataset = runner.test_dataloader.dataset
    classes = dataset.metainfo['classes']
    figure, panels = grid_of_axes(
        min(num_images, len(dataset)), (3, 3), columns=4)
    for index, axes in enumerate(panels):
        data = runner.test_dataloader.collate_fn([dataset[index]])
        sample = runner.model.test_step(data)[0]
        image = imread(sample.img_path)
        height, width = image.shape[:2]
        axes.axis('off')
        # Boxes count from the edge of the first pixel.
        extent = (0, width, height, 0)
        axes.imshow(image, extent=extent, interpolation='nearest')
        semantic = 'pred_sem_seg' in sample
        if semantic:
            draw_classes(axes, sample, extent)
        else:
            draw_instances(axes, sample, classes, lowest_score)
    names = classes[1:] if semantic else classes
    if len(names) > len(COLOURS):
        names = ['detection, one colour per class']
    handles = [
        Line2D([], [], color=colour, label=name)
        for colour, name in zip(COLOURS, names)
    ]
    handles.append(Line2D([], [], color='grey', ls=':', label='ground truth'))
    figure.legend(
        handles=handles,
        loc='outside lower center',
        ncol=len(handles),
        frameon=False)
    figure.suptitle('Classes' if semantic else
                    f'Detections with a score of at least {lowest_score}')
    return figure


def main() -> None:
    arguments = parser('Draw detections or classes on test images')
    arguments.add_argument(
        '--num-images', type=int, default=12, help='how many images')
    arguments.add_argument(
        '--score', type=float, default=0.3, help='lowest score drawn, 0 to 1')
    args = arguments.parse_args()
    runner = trained_runner(args)
    save(draw(runner, args.num_images, args.score), args.out)


if __name__ == '__main__':
    main()
