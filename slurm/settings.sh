# What differs from cluster to cluster: edit it once. The jobs read it, and so does a shell before its first sbatch:
#   source slurm/settings.sh
# Partition and account; sbatch reads these names. Leave out what the cluster has a default for.
# export SBATCH_PARTITION=gpu
# export SBATCH_ACCOUNT=my_account

# What a job asks for: training and evaluation on GPUs (their type: --gres=gpu:l4:2), the others without.
GPU_JOB="--gres=gpu:2 --cpus-per-task=8 --mem=48G --time=24:00:00"
CPU_JOB="--cpus-per-task=2 --mem=16G --time=04:00:00"

# How a job on GPUs is launched: zero2_2xl4.yaml (bf16), zero2_2x2080ti.yaml (fp16), single_gpu.yaml
LAUNCH=accelerate_configs/zero2_2xl4.yaml

# The environment of a job: modules, variables, and Python with requirements.txt.
# module load cuda
# export HF_HOME=/scratch/$USER/huggingface HF_HUB_OFFLINE=1
export TOKENIZERS_PARALLELISM=false
if [ -n "${SLURM_JOB_ID:-}" ]; then
    source .venv/bin/activate
fi
