"""Every file of settings in the repository parses, names files that exist, and agrees with the others."""

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser

import evaluate
import preprocess
import train_grpo
import train_sft
from runtime.settings import parse_config, read_yaml

ROOT = Path(__file__).parents[2]
CONFIG_OF = {
    "data": preprocess.DataConfig,
    "sft": train_sft.Config,
    "grpo": train_grpo.Config,
    "eval": evaluate.Config,
}
RECIPES = sorted((ROOT / "configs").glob("*.yaml"))
LAUNCHES = sorted((ROOT / "accelerate_configs").glob("*.yaml"))
DEEPSPEED = sorted((ROOT / "ds_configs").glob("*.json"))
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
# docs/from_the_guide.md names two of another project, CONTRIBUTING.md those of a model to be added
NOT_HERE = {"configs/sft_config_phi3.yaml", "configs/grpo_config_phi3.yaml"}
NOT_HERE |= {f"configs/{stage}_small.yaml" for stage in ("data", "sft", "grpo")}


def name_of(path: Path) -> str:
    return path.name


def parse(path: Path):
    return parse_config(CONFIG_OF[path.name.split("_")[0]], ["--config", str(path)])


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_recipe_parses(path):
    config = parse(path)
    if path.name.startswith("data_"):
        preprocess.check_config(config)
    given = {name: value for name, value in read_yaml(str(path)).items() if value is not None}
    for name, value in given.items():
        found = getattr(config, name)
        if isinstance(found, list) and not isinstance(value, list):
            value = [value]
        assert found == (float(value) if isinstance(found, float) else value)


def test_there_is_a_recipe_of_every_stage_for_every_model():
    names = {path.stem for path in RECIPES}
    for model in ("phi3", "qwen", "tiny"):
        assert {f"{stage}_{model}" for stage in ("data", "sft", "grpo")} <= names


def test_recipes_write_to_places_of_their_own():
    for field in ("output_dir", "logging_dir"):
        places = [getattr(config, field) for config in map(parse, RECIPES) if hasattr(config, field)]
        assert len(places) == len(set(places)), field


def test_every_training_recipe_reads_a_dataset_and_model_that_another_recipe_writes():
    configs = {path.stem: parse(path) for path in RECIPES}
    datasets = {c.output_dir for name, c in configs.items() if name.startswith("data_")}
    models = {c.output_dir for name, c in configs.items() if name.startswith("sft_")}
    for name, config in configs.items():
        if name.startswith(("sft_", "grpo_")):
            assert config.dataset in datasets, name
        if name.startswith("grpo_"):
            assert config.model in models, name


@pytest.mark.parametrize("path", LAUNCHES, ids=name_of)
def test_launch_config_is_accelerates_and_thin(path):
    config = load_config_from_file(str(path))  # refuses unknown keys
    deepspeed = config.deepspeed_config
    assert config.distributed_type == "DEEPSPEED"
    assert (ROOT / deepspeed["deepspeed_config_file"]).is_file()
    beside = {"gradient_accumulation_steps", "gradient_clipping", "zero_stage", "offload_optimizer_device"}
    assert not beside & deepspeed.keys(), "next to deepspeed_config_file accelerate refuses these"
    assert "mixed_precision" not in yaml.safe_load(path.read_text())
    assert config.use_cpu is False, "true would switch DeepSpeed off"


@pytest.mark.parametrize("path", LAUNCHES, ids=name_of)
def test_launch_config_is_what_its_name_says(path):
    config = load_config_from_file(str(path))
    precision = {"l4": "bf16", "2080ti": "fp16", "cpu": "fp32", "single_gpu": "bf16", "multi_node": "bf16"}
    named = re.search(r"_(bf16|fp16)$", path.stem)
    expected = named[1] if named else next(value for key, value in precision.items() if key in path.stem)
    assert config.deepspeed_config["deepspeed_config_file"].endswith(f"_{expected}.json")
    count = re.search(r"_(\d+)x", path.stem)
    assert config.num_processes == (int(count[1]) if count else {"single_gpu": 1, "multi_node": 4}[path.stem])


@pytest.mark.parametrize("path", DEEPSPEED, ids=name_of)
def test_deepspeed_config(path):
    config = json.loads(path.read_text())
    assert config["zero_optimization"]["stage"] == 2
    assert config["gradient_accumulation_steps"] == 1, "the loops accumulate themselves"
    assert isinstance(config["train_micro_batch_size_per_gpu"], int), "no dataloader could fill in auto"
    assert config["zero_optimization"]["reduce_bucket_size"] <= 5e7, "the default of 5e8 is up to 2 GB"
    enabled = [name for name in ("bf16", "fp16") if config.get(name, {}).get("enabled")]
    assert enabled == ([] if "fp32" in path.stem else [path.stem.split("_")[-1]])
    if enabled:
        assert config["data_types"]["grad_accum_dtype"] == config["communication_data_type"] == "fp32"


def test_every_config_that_the_documentation_names_exists():
    for path in [*PAGES, *ROOT.glob("*.py"), *(ROOT / "configs").glob("*.yaml")]:
        for name in re.findall(r"\b(?:configs|accelerate_configs|ds_configs)/\w+\.(?:yaml|json)", path.read_text()):
            assert (ROOT / name).is_file() or name in NOT_HERE, f"{path.name} names {name}"


# ---------------------------------------------------------------- README and docs/


def shell_commands(*pages: Path) -> list[list[str]]:
    """Every command in the shell blocks of the pages, continued lines joined, split into words."""
    blocks = [block for page in pages for block in re.findall(r"```bash\n(.+?)```", page.read_text(), re.S)]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.strip() and not line.startswith("#")]


def script_commands(*pages: Path) -> list[tuple[str, list[str]]]:
    """(script, options) of those that run a script with a configuration."""
    scripts = {"preprocess.py", "train_sft.py", "train_grpo.py", "evaluate.py"}
    found = []
    for words in shell_commands(*pages):
        at = next((k for k, word in enumerate(words) if word in scripts), None)
        if at is not None:
            positional = not words[at + 1].startswith("--")  # slurm/train.slurm SCRIPT CONFIG
            found.append((words[at], ["--config"] * positional + words[at + 1 :]))
    return found


@pytest.mark.parametrize(
    "script, options", script_commands(*PAGES), ids=lambda part: part if isinstance(part, str) else ""
)
def test_commands_of_the_pages_have_settings_that_the_scripts_take(script, options, monkeypatch):
    monkeypatch.chdir(ROOT)
    of = {"preprocess.py": "data", "train_sft.py": "sft", "train_grpo.py": "grpo", "evaluate.py": "eval"}
    config = parse_config(CONFIG_OF[of[script]], options)
    if script == "preprocess.py":
        preprocess.check_config(config)


def test_a_recipe_of_the_public_rows_can_do_without_them():
    options = re.search(r"a recipe without them: add `(.+?)`", (ROOT / "docs/data.md").read_text())[1].split()
    of_hub = [path for path in RECIPES if path.name.startswith("data_") and parse(path).source == "hub"]
    assert of_hub
    for path in of_hub:
        preprocess.check_config(parse_config(preprocess.DataConfig, ["--config", str(path), *options]))


STUBS = {
    "sbatch": 'while [ "$1" != --wrap ]; do shift; done; sh -c "$2"',
    "scontrol": "printf 'first\\nsecond\\n'",
    "srun": 'for SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@"; done',
    "accelerate": 'echo "$@"',
}


def test_the_job_of_several_nodes_launches_on_each(tmp_path):
    """The page's sbatch command with Slurm's and accelerate's replaced: what each node would launch.

    Only the environment that slurm/settings.sh activates has accelerate.
    """
    (tmp_path / "venv").mkdir()
    for name, body in STUBS.items():
        program = tmp_path / ("venv" if name == "accelerate" else "") / name
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm/settings.sh").write_text(f"PATH={tmp_path}/venv:$PATH\n")
    command = re.search(r"^sbatch --nodes=2.*?'$", (ROOT / "docs/scaling.md").read_text(), re.S | re.M)[0]
    environment = {"PATH": f"{tmp_path}:{os.defpath}"}
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, text=True, capture_output=True)
    launches = [line.split() for line in done.stdout.splitlines()]
    assert [words[words.index("--machine_rank") + 1] for words in launches] == ["0", "1"], done.stderr
    for words in launches:
        assert words[words.index("--main_process_ip") + 1] == "first"
        script = words.index("train_sft.py")
        launch_command_parser().parse_args(words[1 : script + 1])
        parse_config(train_sft.Config, words[script + 1 :])


@pytest.fixture
def pipeline(tmp_path):
    """pipeline(name ...): slurm/pipeline.sh in a copy of the project, where sbatch notes its words in `jobs`."""
    (tmp_path / "sbatch").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/jobs\necho 7\n')
    (tmp_path / "sbatch").chmod(0o755)
    (tmp_path / "project").mkdir()
    shutil.copytree(ROOT / "slurm", tmp_path / "project" / "slurm")
    (tmp_path / "project" / "configs").symlink_to(ROOT / "configs")
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    script = tmp_path / "project" / "slurm" / "pipeline.sh"
    return lambda *names: subprocess.run([script, *names], env=environment, text=True, capture_output=True)


def test_every_model_that_the_pipeline_offers_can_be_run(pipeline):
    refused = pipeline()
    offered = refused.stderr.split("a model: ")[1].split()
    stems = {path.stem for path in RECIPES}
    both = {name[4:] for name in stems if name.startswith("sft_") and f"grpo_{name[4:]}" in stems}
    assert refused.returncode != 0 and set(offered) == both
    for name in offered:
        assert pipeline(name).returncode == 0, name


@pytest.mark.parametrize("name, data", [("qwen3_4b", "qwen3"), ("phi3_traces", "phi3_traces")])
def test_the_jobs_of_the_pipeline(name, data, tmp_path, pipeline):
    """Slurm's command replaced by one that writes down what it is given: the data is what SFT reads, and each job is a
    script of slurm/, since --wrap takes /bin/sh, which may have no `source`."""
    printed = pipeline(name).stdout
    jobs = (tmp_path / "jobs").read_text().splitlines()
    for job, recipe in zip(jobs, (f"data_{data}", f"sft_{name}", f"grpo_{name}"), strict=False):
        assert f"configs/{recipe}.yaml" in job.split()
    scripts = [word for job in jobs for word in job.split() if word.startswith("slurm/")]
    assert scripts == [f"slurm/{kind}.slurm" for kind in ("preprocess", *["train"] * 2, *["evaluate"] * 2, "compare")]
    stages = ("preprocess", "sft", "grpo", "evaluate-sft", "evaluate-grpo", "compare")
    assert f"\nlogs: tail -F {' '.join(f'logs/{name}-{stage}-7.out' for stage in stages)}\n" in printed


def test_the_readme_shows_every_stage():
    assert {script for script, _ in script_commands(ROOT / "README.md")} == {
        "preprocess.py",
        "train_sft.py",
        "train_grpo.py",
        "evaluate.py",
    }
    assert len(script_commands(*PAGES)) > 12
