"""Draws a detector's boxes on images of its test set.

    python tools/analysis/plot_detections.py CONFIG CHECKPOINT --out FILE
"""
import torch
from drawing import parser, save, trained_runner
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
        axes.imshow(
            image, extent=(0, width, height, 0), interpolation='nearest')
        # Ground truth lies in the resized image, predictions do not.
        scale = torch.tensor(sample.scale_factor).repeat(2)
        for box in sample.gt_instances.bboxes.cpu():
            draw_box(axes,
                     getattr(box, 'tensor', box).flatten() / scale, 'white',
                     ':')
        found = sample.pred_instances.cpu()
        found = found[found.scores >= lowest_score]
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
    figure.legend(
        handles=[
            Line2D([], [],
                   color=COLOURS[0],
                   label='detection, one colour per class'),
            Line2D([], [], color='grey', ls=':', label='ground truth')
        ],
        loc='outside lower center',
        ncol=2,
        frameon=False)
    figure.suptitle(f'Detections with a score of at least {lowest_score}')
    return figure


def main() -> None:
    arguments = parser('Draw detections on test images')
    arguments.add_argument(
        '--num-images', type=int, default=12, help='how many images')
    arguments.add_argument(
        '--score', type=float, default=0.3, help='lowest score drawn, 0 to 1')
    args = arguments.parse_args()
    runner = trained_runner(args)
    save(draw(runner, args.num_images, args.score), args.out)


if __name__ == '__main__':
    main()
