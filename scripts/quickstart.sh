#!/usr/bin/env bash
# From a bare machine with Python 3.11 to a model that writes: environment, corpus, a few minutes of training, a sample.
# Needs no GPU, and no network but the package index. Run it again and it goes on from where it is.
set -euo pipefail
if [ $# -gt 0 ]; then
    sed -n '2,3s/^# //p' "$0"
    case $1 in -h | --help) exit 0 ;; *) exit 2 ;; esac
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."

config=configs/quickstart.yaml
run=runs/quickstart
prompt='Once upon a time'
scratchlm=.venv/bin/scratchlm
export WANDB_SILENT="${WANDB_SILENT:-true}" # its own summary would bury ours

step() {
    echo
    echo "[$1/5] $2"
    began=$SECONDS
}

done_in() {
    echo "      took $((SECONDS - began)) s"
}

newest_checkpoint() {
    # The steps in their names are padded with zeros, so the last by name is the newest.
    find "$run/checkpoints" -name 'step-*.ckpt' 2>/dev/null | sort | tail -n 1
}

step 1 'Environment'
bash setup_env.sh --venv
done_in

step 2 'Corpus: three sources that every machine has, for WikiText, FineWeb and TinyStories, mixed 4:4:2 by tokens'
$scratchlm prepare -c $config
done_in

step 3 "Training a small GPT, run folder $run"
if [ -n "$(newest_checkpoint)" ]; then
    $scratchlm fit -c $config --ckpt_path last
else
    $scratchlm fit -c $config
fi
done_in

step 4 'What it learnt, on text it never saw'
.venv/bin/python - $run/metrics.jsonl <<'PYTHON'
import sys

from scratchlm.files.journal import read_journal

by_step = {line["step"]: line for line in read_journal(sys.argv[1]) if "val/loss" in line}  # a later attempt wins
if not by_step:
    sys.exit(f"{sys.argv[1]}: no validation was logged.")
first, last = by_step[min(by_step)], by_step[max(by_step)]
print(f"{'step':>10}{'tokens':>14}{'val/loss':>12}{'val/perplexity':>18}")
for line in (first, last):
    print(f"{line['step']:>10,}{line['tokens']:>14,}{line['val/loss']:>12.3f}{line['val/perplexity']:>18,.1f}")
if last["val/loss"] >= first["val/loss"]:
    sys.exit("The validation loss did not fall: something is wrong with this machine or this version.")
PYTHON

step 5 "A sample, going on from: $prompt"
checkpoint=$(newest_checkpoint)
$scratchlm generate --checkpoint "$checkpoint" --prompt "$prompt" --max_new_tokens 120
echo
done_in

cat <<NEXT

Next:
  more text from it       $scratchlm generate --checkpoint $checkpoint --prompt "The king"
  every setting of a run  $scratchlm fit --help
  on your own text        $scratchlm fit -c $config --data.sources '{text: my.txt}' --data.split tail --data.folder data/mine --trainer.default_root_dir runs/mine
  the 220M model          $scratchlm fit -c configs/pretrain_220m.yaml
                          (on one GPU; its text, WikiText, FineWeb and TinyStories, comes from the Hugging Face hub)
NEXT
