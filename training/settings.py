"""The settings that SFT and GRPO share, each with its help and its bounds."""

from dataclasses import dataclass
from typing import ClassVar

from runtime.settings import AUTO, AutoInt, Settings, arg, check, seed_arg

BUDGETS = ("cache_tokens", "micro_batch_tokens")  # may be `auto`; they change speed and the order of additions alone
CLASS_WEIGHTS = "two numbers above 0, for No and Yes"  # what the two stages' own class_weights must be


@dataclass
class TrainingSettings(Settings):
    """What every training run is told. The defaults are those of SFT; where GRPO's differ, its own Config has them.

    A step is an optimizer step in SFT; in GRPO it is a rollout and the `num_iterations` optimizer steps on it.
    """

    sections: ClassVar[tuple[str, ...]] = (
        "model and data",
        "policy",
        "generation",
        "rollout",
        "reward",
        "objective",
        "optimisation",
        "watching",
        "interruptions",
    )

    model: str = arg(
        "tiny",
        "hub name, directory of a model or of a LoRA adapter, or (SFT) tiny: embedded, with random weights",
        section="model and data",
    )
    revision: str | None = arg(None, "hub revision of the model")
    dataset: str = arg("data/tiny", "directory that preprocess.py wrote")
    train_split: str = arg("train", "its split to train on: train, or grpo if it has one")
    claims_per_prefix: int = arg(16, "rows of one premise that share its tokens", at_least=1)
    relabel_each_epoch: bool = arg(False, "exchange the letters of every premise at random, anew in every epoch")
    wordings: list[str] = arg(
        [],
        "relabel_each_epoch: wordings to draw from too, by name: of hypotheses, stories, names of variables; none: "
        "their own",
    )
    letterings: list[str] = arg(
        [],
        "relabel_each_epoch: letters to draw from too: released (A, B, …), refactorization (Z, Y, …); with -spread "
        "after its name, any of its first seven",
    )
    output_dir: str = arg("models/tiny_sft_model", "where the model, its checkpoints and its configuration go")
    logging_dir: str = arg("logs/sft", "TensorBoard directory")
    overwrite: bool = arg(False, "use an output_dir that is not empty")

    quantization: str = arg(
        "none", "nf4 | none: precision of the frozen base", choices=("nf4", "none"), section="policy"
    )
    lora_r: int = arg(16, "LoRA rank of a new adapter; a model that is an adapter keeps its own", at_least=1)
    lora_alpha: int = arg(32, "LoRA scale is lora_alpha / lora_r", at_least=1)
    lora_target_modules: str = arg("", "comma-separated names of linear layers; empty: all but the head")
    gradient_checkpointing: bool = arg(False, "recompute activations in the backward pass")

    max_new_tokens: int = arg(16, "tokens of a completion, at most", at_least=1, section="generation")
    cache_tokens: AutoInt = arg(
        AUTO,
        "tokens in the key-value cache of one process, prompts and longest completions; auto: what its memory holds",
        at_least=1,
    )

    class_weights: list[float] = arg(
        [1.0, 1.0],
        "factor of the rows whose label is No and Yes, in the loss (SFT) or in the reward of an answer (GRPO), where "
        "group scaling cancels it",
        above=0,
        words=CLASS_WEIGHTS,
        section="objective",
    )

    learning_rate: float = arg(2e-4, "peak learning rate, reached after the warm-up", above=0, section="optimisation")
    weight_decay: float = arg(0.0, "AdamW weight decay", at_least=0)
    max_grad_norm: float = arg(1.0, "gradient norm beyond which gradients are clipped", above=0)
    micro_batch_tokens: AutoInt = arg(
        AUTO,
        "packed tokens of an update's forward pass on one process; auto: tried before the first step",
        at_least=1,
    )
    prefix_sharing: bool = arg(True, "compute shared prefixes once; false computes every row by itself")
    seed: int = seed_arg("seed of new weights, of the data order and of sampling")

    logging_steps: int = arg(10, "steps between logged values", at_least=1, section="watching")
    eval_steps: int = arg(100, "steps between evaluations; 0: at the end only", at_least=0)
    eval_rows: int = arg(256, "validation rows of an evaluation, a random choice that seed fixes", at_least=1)
    keep_best: bool = arg(
        True, "output_dir gets the model of the best evaluation, by loss (SFT) or F1 (GRPO); false: the last one"
    )
    save_steps: int = arg(100, "steps between checkpoints; 0: none", at_least=0)
    save_total_limit: int = arg(2, "checkpoints kept; 0 keeps all", at_least=0)
    stop_after: int = arg(20, "steps in which no weight can have moved before the run is stopped", at_least=1)

    resume_from: str | None = arg(
        None,
        "latest, or a checkpoint of output_dir: continue its run; a requeued job goes on where it was",
        section="interruptions",
    )
    resume_weights_only: bool = arg(False, "resume with a new optimizer, on any number of processes or other settings")
    time_limit: float = arg(0.0, "minutes after which the run saves and stops, to be resumed; 0: none", at_least=0)

    def __post_init__(self):
        super().__post_init__()
        if not self.relabel_each_epoch:
            self.check_unread(("wordings", "letterings"), "set relabel_each_epoch true too")
        check(len(self.class_weights) == 2, f"class_weights: {CLASS_WEIGHTS}, got {self.class_weights}")
