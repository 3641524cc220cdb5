#!/usr/bin/env bash
# From a bare machine to a trained detector with meta-ACON in its backbone:
# environment, training on drawn shapes, evaluation and two pictures.
# Usage: bash tools/quickstart.sh [--stack NAME] [--cpu], as tools/setup_env.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# Sets python. It stops the whole script where it fails.
source tools/setup_env.sh "$@"

config=configs/retinanet_r50_metaacon.py
work=work_dirs/retinanet_r50_metaacon-demo
started=$SECONDS

"$python" tools/train.py "$config" --demo --work-dir "$work"
checkpoint=$(cat "$work/last_checkpoint")
# The last line that test.py prints is the metrics.
untrained=$("$python" tools/test.py "$config" none --demo --work-dir "$work/untrained" | tail -n 1)
trained=$("$python" tools/test.py "$config" "$checkpoint" --demo --work-dir "$work/test" | tail -n 1)
seconds=$((SECONDS - started))
for plot in detections activations; do
  "$python" "tools/analysis/plot_$plot.py" "$config" "$checkpoint" --demo --out "$work/$plot.png" >"$work/plot_$plot.log" 2>&1 \
    || { cat "$work/plot_$plot.log" >&2; exit 1; }
done

"$python" - "$untrained" "$trained" "$seconds" <<'PY'
import json, sys
untrained, trained = (json.loads(text) for text in sys.argv[1:3])
print(f'\nquickstart: training and evaluation took {sys.argv[3]} s')
print('quickstart: COCO bbox metrics on held-out shapes')
print(f'{"":24s}{"untrained":>10s}{"trained":>10s}')
for name in ('mAP', 'mAP_50', 'mAP_75'):
    key = f'coco/bbox_{name}'
    print(f'{name:24s}{untrained[key]:10.3f}{trained[key]:10.3f}')
PY
echo "quickstart: pictures are $work/detections.png and $work/activations.png"
