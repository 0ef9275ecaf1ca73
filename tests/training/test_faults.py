"""Every known way to train without learning is planted in the real loop, and health.py must name that one."""

import sys

import pytest
import torch

import train_grpo
from causal import rewards
from policy import sampling
from policy.adapters import POLICY
from policy.prefix_sharing import sequence_logps
from training import health, setup
from training.grpo_metrics import LossCounts

SETTINGS = {
    "max_steps": 8,
    "prompts_per_step": 8,
    "num_generations": 8,
    "claims_per_prefix": 4,
    "micro_batch_tokens": 100,  # several micro-batches
    "max_new_tokens": 6,
    "temperature": 0.8,
    "learning_rate": 2e-4,
    "warmup_steps": 0,
    "beta": 0.05,
    "eval_rows": 6,
    "eval_steps": 0,
    "save_steps": 0,
    "stop_after": 4,
}
HEALTHY = {"max_steps": 25, "learning_rate": 1e-4, "warmup_steps": 5}


@pytest.fixture
def grpo(monkeypatch, tmp_path, dataset, start_adapter, capsys):
    """Runs train_grpo.py's main in this process: the signs that were advised of, the fault that stopped it, output."""
    monitors = []

    class Recorded(health.Monitor):
        def __init__(self, *args):
            super().__init__(*args)
            monitors.append(self)

    def run(**settings) -> tuple[set[str], str, str]:
        places = {"model": start_adapter, "dataset": dataset, "output_dir": tmp_path / "out", "logging_dir": tmp_path}
        given = places | SETTINGS | settings
        arguments = [str(part) for name, value in given.items() for part in (f"--{name}", value)]
        monkeypatch.setattr(sys, "argv", ["train_grpo.py", *arguments])
        monkeypatch.setattr(setup, "Monitor", Recorded)
        fault = ""
        try:
            train_grpo.main()
        except health.TrainingFault as error:
            fault = str(error)
        return set(monitors[0].spoken) if monitors else set(), fault, capsys.readouterr().out

    return run


@pytest.mark.parametrize("seed", range(3))
def test_a_healthy_run_raises_no_advice(grpo, seed):
    signs, fault, output = grpo(seed=seed, **HEALTHY)
    assert (signs, fault) == (set(), "")
    assert "adapter:" in output


# --- an adapter, an optimizer, a graph that cannot learn


def freeze(model) -> None:
    for name, parameter in model.named_parameters():
        if f".{POLICY}." in name:
            parameter.requires_grad_(False)


def test_an_adapter_frozen_at_the_start(grpo, monkeypatch):
    """As by peft's set_adapter, which makes the adapter that it activates the only trainable one."""
    add_reference = setup.add_reference

    def frozen(policy):
        add_reference(policy)
        freeze(policy)

    monkeypatch.setattr(setup, "add_reference", frozen)
    _, fault, _ = grpo()
    assert fault.startswith("frozen adapter")


def test_an_adapter_frozen_in_the_loop(grpo, monkeypatch):
    score_reference = train_grpo.score_reference

    def freezing(model, batch, config):
        freeze(model)
        return score_reference(model, batch, config)

    monkeypatch.setattr(train_grpo, "score_reference", freezing)
    _, fault, _ = grpo()
    assert fault.startswith("frozen adapter")


def test_an_optimizer_of_dead_tensors(grpo, monkeypatch):
    """Made before an adapter was loaded anew, it steps tensors that nothing reads."""
    prepare = setup.prepare

    def early(*args):
        engine, optimizer = prepare(*args)
        for group in optimizer.param_groups:
            group["params"] = [torch.nn.Parameter(p.detach().clone()) for p in group["params"]]
        return engine, optimizer

    monkeypatch.setattr(setup, "prepare", early)
    _, fault, _ = grpo()
    assert fault.startswith("dead optimizer")
    monkeypatch.setattr(setup, "check_optimizer", lambda *_: None)  # the loop notices by itself
    signs, fault, _ = grpo(overwrite=True)
    assert signs == {"weights_still"} and "weights_still: steps are taken" in fault and "4 steps" in fault


def test_a_detached_graph(grpo, monkeypatch):
    grpo_loss = train_grpo.grpo_loss

    def detached(*args):
        loss, terms = grpo_loss(*args)
        return loss.detach(), terms

    monkeypatch.setattr(train_grpo, "grpo_loss", detached)
    _, fault, _ = grpo()
    assert fault.startswith("detached graph")


def test_a_graph_that_leads_nowhere(grpo, monkeypatch):
    """The loss has a graph, but its gradient is zero."""
    grpo_loss = train_grpo.grpo_loss

    def cut(logps, *args):
        loss, terms = grpo_loss(logps.detach(), *args)
        return loss + 0.0 * logps.sum(), terms

    monkeypatch.setattr(train_grpo, "grpo_loss", cut)
    signs, fault, _ = grpo()
    assert signs == {"no_gradient"} and "no_gradient: the gradient is 0" in fault


# --- a policy, a reference, a sampler that is not the one it should be


def test_the_base_model_as_reference(grpo, monkeypatch):
    monkeypatch.setattr(train_grpo, "use_reference", lambda policy: policy.disable_adapter())
    signs, _, output = grpo()
    assert signs == {"wrong_reference"} and "the reference is not the starting policy" in output


def test_dropout_in_sampling(grpo, monkeypatch):
    def leave_on(model):
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.train = lambda mode=True, module=module: module  # eval() no longer switches it off

    monkeypatch.setattr(setup, "disable_dropout", leave_on)
    monkeypatch.setattr(setup, "check_model_numbers", lambda *_: None)  # it would stop the run at once
    signs, _, output = grpo()
    assert "sampling_gap" in signs and "dropout is active" in output


@pytest.mark.parametrize("place", ["scoring", "sampling"])
def test_a_temperature_that_is_left_out(grpo, monkeypatch, place):
    if place == "scoring":
        policy_logps = train_grpo.policy_logps

        def plain(model, batch, config, temperature=None):
            return policy_logps(model, batch, config, 1.0 if temperature is None else temperature)

        monkeypatch.setattr(train_grpo, "policy_logps", plain)
    else:
        generate = sampling.generate
        monkeypatch.setattr(
            sampling, "generate", lambda *args, **options: generate(*args, **options | {"temperature": 1.0})
        )
    signs, _, output = grpo()
    assert signs == {"sampling_gap"} and f"{place} leaves the temperature (0.8) out" in output


def test_wrong_stop_tokens(grpo, monkeypatch, tokenizer):
    """As config.json's single one for Phi-3.5: the end of a turn is not among them."""
    monkeypatch.setattr(setup, "stop_token_ids", lambda *_: {tokenizer.eos_token_id})
    _, fault, _ = grpo()
    assert fault.startswith("wrong stop token")
    monkeypatch.setattr(setup, "check_stop_tokens", lambda *_: None)  # the loop notices by itself
    signs, _, output = grpo(overwrite=True)
    assert "wrong_stop_token" in signs and "go on after the token that ends" in output


# --- a loss that is not the one it should be


def test_a_mask_by_the_padding_token_which_is_the_end_token(grpo, monkeypatch, tokenizer):
    end = tokenizer.convert_tokens_to_ids("<|end|>")

    def masked_by_pad(model, prompts, completions, *args, **options):
        logps, entropies, mask = sequence_logps(model, prompts, completions, *args, **options)
        tokens = [torch.tensor(completion) for group in completions for completion in group]
        padded = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True, padding_value=end)
        return logps, entropies, mask & (padded != end)

    monkeypatch.setattr(train_grpo, "sequence_logps", masked_by_pad)
    signs, _, output = grpo(loss_type="dapo")  # by sequence, one that is its end alone would divide by 0
    assert signs == {"wrong_mask"} and "mask by length" in output


def test_a_normaliser_of_each_micro_batch(grpo, monkeypatch):
    token_weights = train_grpo.token_weights

    def of_the_batch(mask, loss_type, counts, max_new_tokens):
        return token_weights(mask, loss_type, LossCounts(len(mask), float(mask.sum())), max_new_tokens)

    monkeypatch.setattr(train_grpo, "token_weights", of_the_batch)
    signs, _, output = grpo()
    assert signs == {"wrong_normaliser"} and "counts of the whole step" in output


def test_old_log_probabilities_of_another_policy(grpo, monkeypatch):
    micro_batch_loss = train_grpo.micro_batch_loss

    def stale(model, batch, old, *args):
        return micro_batch_loss(model, batch, torch.zeros(batch.mask.shape) if old is None else old, *args)

    monkeypatch.setattr(train_grpo, "micro_batch_loss", stale)
    signs, _, _ = grpo()
    assert "ratio_not_one" in signs


@pytest.mark.parametrize("beta", [0.0, 0.05])
def test_rewards_that_all_agree(grpo, monkeypatch, beta):
    """Nothing to learn is not a broken graph; without a KL term the run is stopped."""
    monkeypatch.setattr(rewards, "outcome_reward", lambda *_: 1.0)
    signs, fault, _ = grpo(beta=beta)
    assert signs == {"no_reward_signal"}
    assert "no_reward_signal: all rewards agree" in fault and "temperature (0.8)" in fault


def test_a_loss_that_is_not_a_number(grpo, monkeypatch):
    grpo_loss = train_grpo.grpo_loss

    def infinite(*args):
        loss, terms = grpo_loss(*args)
        return loss * float("nan"), terms | {"policy_loss": terms["policy_loss"] * float("nan")}

    monkeypatch.setattr(train_grpo, "grpo_loss", infinite)
    signs, fault, _ = grpo()
    assert "nan_loss" in signs and "nan_loss: the loss is not finite" in fault


def test_samples_that_overflow(grpo, monkeypatch):
    choose = sampling._choose

    def overflow(*arguments):
        tokens, logps = choose(*arguments)
        logps[:1] = float("nan")
        return tokens, logps

    monkeypatch.setattr(setup, "check_model_numbers", lambda *arguments: None)  # at the start all was well
    monkeypatch.setattr(sampling, "_choose", overflow)
    signs, fault, output = grpo(max_steps=2)
    assert signs == {"not_finite", "eval_not_finite"} and fault == ""
    assert "of the completions end where the log-probabilities are not finite: lower learning_rate (0.0002)" in output
