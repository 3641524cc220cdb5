#!/usr/bin/env bash
# From a bare machine to a trained detector with a learnable activation in its
# backbone: environment, training, evaluation and two pictures.
# Usage: bash tools/quickstart.sh [--data FOLDER] [--stack NAME] [--cpu]
#   --data FOLDER  cell nuclei, FOLDER/images and FOLDER/instances, in place of
#                  drawn shapes; docs/real_images.md says where they come from
#   the others as in tools/setup_env.sh
set -euo pipefail
folder=
arguments=()
while [ $# -gt 0 ]; do
  case "$1" in
    --data) folder=${2-}; shift
      if [ ! -d "$folder/images" ] || [ ! -d "$folder/instances" ]; then
        echo "quickstart: expected --data FOLDER with images and instances, got '$folder'" >&2
        exit 2
      fi
      folder=$(realpath "$folder") ;;
    *) arguments+=("$1") ;;
  esac
  shift
done
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# Sets python. It stops the whole script where it fails.
source tools/setup_env.sh "${arguments[@]+"${arguments[@]}"}"

if [ -z "$folder" ]; then
  config=configs/retinanet_r50_metaacon.py
  work=work_dirs/retinanet_r50_metaacon-demo
  what=shapes
  data=(--demo)
else
  config=configs/real_images/retinanet_r18_pwlu.py
  work=work_dirs/retinanet_r18_pwlu-nuclei
  what=nuclei
  # Beside the run, so that the folder stays as it is.
  "$python" tools/dataset_converters/instance_maps.py "$folder" --out "$work/data" | tail -n 5
  data=(--cfg-options)
  for split in train val test; do
    annotations=$PWD/$work/data/coco/$([ $split = train ] && echo train || echo val).json
    data+=("${split}_dataloader.dataset.data_root=$folder"
      "${split}_dataloader.dataset.ann_file=$annotations")
    [ $split = train ] || data+=("${split}_evaluator.ann_file=$annotations")
  done
fi
started=$SECONDS

"$python" tools/train.py "$config" --work-dir "$work" "${data[@]}"
checkpoint=$(cat "$work/last_checkpoint")
# The last line that test.py prints is the metrics.
untrained=$("$python" tools/test.py "$config" none --work-dir "$work/untrained" "${data[@]}" | tail -n 1)
trained=$("$python" tools/test.py "$config" "$checkpoint" --work-dir "$work/test" "${data[@]}" | tail -n 1)
seconds=$((SECONDS - started))
for plot in detections activations; do
  "$python" "tools/analysis/plot_$plot.py" "$config" "$checkpoint" --out "$work/$plot.png" "${data[@]}" >"$work/plot_$plot.log" 2>&1 \
    || { cat "$work/plot_$plot.log" >&2; exit 1; }
done

"$python" - "$untrained" "$trained" "$seconds" "$what" <<'PY'
import json, sys
untrained, trained = (json.loads(text) for text in sys.argv[1:3])
print(f'\nquickstart: training and evaluation took {sys.argv[3]} s')
print(f'quickstart: COCO bbox metrics on held-out {sys.argv[4]}')
print(f'{"":24s}{"untrained":>10s}{"trained":>10s}')
for name in ('mAP', 'mAP_50', 'mAP_75'):
    key = f'coco/bbox_{name}'
    # A detector that finds nothing at all has no metrics.
    print(f'{name:24s}{untrained.get(key, 0):10.3f}{trained[key]:10.3f}')
PY
echo "quickstart: pictures are $work/detections.png and $work/activations.png"
