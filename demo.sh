#!/usr/bin/env bash
# Makes data, trains, evaluates, exports and predicts, in minutes on two CPU cores:
#   ./demo.sh [output folder]
# Needs Python 3.10 to 3.13 and a package index; installs into .venv.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"
source tools/venv.sh

out=${1:-demo_output}
if [[ -e "$out" && ! -e "$out/shapes/dataset_info.json" ]]; then
  fail "$out exists and is not an earlier demo; give a different folder: ./demo.sh FOLDER"
fi
ensure_venv ""
rm -rf "$out"

# Prints a command, then runs it.
run() {
  printf '\n$ python %s\n' "$*"
  .venv/bin/python "$@"
}

run -m datasets.shapes --output_dir="$out/shapes" | tee "$out.log"
baseline=$(sed -n 's/.*nearest mean colour.* \([0-9.]*\)$/\1/p' "$out.log")
mv "$out.log" "$out/shapes/log.txt"
run -m datasets.voc2012 --voc_root="$out/shapes" --output_dir="$out/tfrecord"
run train.py --dataset_dir="$out/tfrecord" --train_logdir="$out/train" \
  --model_variant=mobilenet_v2 --decoder_output_stride=4 --output_stride=16 \
  --train_crop_size=129,129 --train_batch_size=8 --training_number_of_steps=1200 \
  --min_scale_factor=0.75 --max_scale_factor=1.25 \
  --base_learning_rate=0.5 --slow_start_step=50 --slow_start_learning_rate=0.1 \
  --batch_norm_momentum=0.95
run eval.py --checkpoint_dir="$out/train" --eval_logdir="$out/eval" \
  | tee "$out/eval_log.txt"
run export.py --checkpoint_path="$out/train" --export_path="$out/exported"
run -m deeplab_tf.predict --model="$out/exported" --output_dir="$out/pictures" \
  --images="$out/shapes/JPEGImages/test_*.jpg"

miou=$(awk '/^mean /{ print $2 }' "$out/eval_log.txt")
cat <<END

mIoU on unseen images: $miou (labelled by the nearest mean colour: $baseline)
All output is in $out (open pictures/overview.png; exported/ is the SavedModel). \
docs/own_data.md does the same with your own photos and masks.
END
