#!/bin/bash
# Preprocess, SFT, GRPO, evaluation of both and their comparison, as jobs that wait for each other:
#   slurm/pipeline.sh phi3            # or qwen, phi3_traces, tiny: any name that configs/ has a sft_ and grpo_ of
# A stage that fails cancels those after it. Run again, it leaves out what is finished and continues the rest.
set -euo pipefail
cd "$(dirname "$0")/.."
source slurm/settings.sh
of_stage() { ls configs | sed -n "s/^$1_\(.*\)\.yaml/\1/p" | sort; }
name=${1:?a model: $(comm -12 <(of_stage sft) <(of_stage grpo) | tr '\n' ' ')}
for recipe in "sft_$name" "grpo_$name"; do
    [ -f "configs/$recipe.yaml" ] || { echo "error: model $name: no configs/$recipe.yaml" >&2; exit 2; }
done
data=$(sed -n 's|^dataset: data/\([^ #]*\).*|\1|p' "configs/sft_$name.yaml")   # models of one tokenizer share it
[ -f "configs/data_$data.yaml" ] || { echo "error: model $name: no configs/data_$data.yaml" >&2; exit 2; }
sft=models/${name}_sft_model grpo=models/${name}_grpo_model results=evaluation_results
mkdir -p logs

jobs=() logs=()
submit() {   # submit WHAT DONE AFTER OPTION ...: a job after the jobs AFTER (id:id); its id in $id. None if DONE is there
    local what=$1 file=$2 after=$3
    shift 3
    id=
    if [ -f "$file" ] && [ -z "$after" ]; then
        echo "$what: finished, $file is there"
        return
    fi
    [ -z "$after" ] || set -- --dependency="afterok:$after" --kill-on-invalid-dep=yes "$@"
    id=$(sbatch --parsable --job-name="$name-$what" "$@" | cut -d';' -f1)
    jobs+=("$id") logs+=("logs/$name-$what-$id.out")
    echo "$what: job $id${after:+ after $after}"
}

submit preprocess "data/$data/report.json" "" $CPU_JOB slurm/preprocess.slurm "configs/data_$data.yaml"
submit sft "$sft/finished.json" "$id" \
    $GPU_JOB slurm/train.slurm train_sft.py "configs/sft_$name.yaml" --resume_from latest
trained=$id
submit grpo "$grpo/finished.json" "$trained" \
    $GPU_JOB slurm/train.slurm train_grpo.py "configs/grpo_$name.yaml" --resume_from latest
tuned=$id
submit evaluate-sft "$results/${name}_sft/metrics.json" "$trained" \
    $GPU_JOB slurm/evaluate.slurm "$sft" sft --output_dir "$results/${name}_sft" --overwrite true
evaluated=$id
submit evaluate-grpo "$results/${name}_grpo/metrics.json" "$tuned" \
    $GPU_JOB slurm/evaluate.slurm "$grpo" grpo --output_dir "$results/${name}_grpo" --overwrite true
evaluated=$evaluated${evaluated:+${id:+:}}$id
submit compare "$results/${name}_comparison/comparison.json" "$evaluated" \
    $CPU_JOB slurm/compare.slurm "$results/${name}_sft" "$results/${name}_grpo" \
    --output_dir "$results/${name}_comparison" --overwrite true

[ ${#jobs[@]} -eq 0 ] || printf '%s\n' "jobs: squeue --jobs $(IFS=,; echo "${jobs[*]}")" "logs: tail -F ${logs[*]}"
echo "curves: tensorboard --logdir logs"
