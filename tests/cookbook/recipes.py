"""The cookbook's recipes as the tests run them: command lines, and what each must leave in its log folder.

Steps and batches are small and learning rates large, so that a few seconds show whether the numbers are right.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MODEL = "Qwen/Qwen3-8B-Base"


@dataclass(frozen=True)
class Recipe:
    name: str
    # Below `tinker_cookbook.recipes`.
    module: str
    arguments: str
    # Rows of metrics.jsonl that trained.
    steps: int
    check: Callable[["Log"], None]
    # What the table of results shows of the last row.
    shown: tuple[str, ...]
    # Killed after this step and started again; 0 if not.
    killed_after: int = 0
    # Steps that were done twice gave the same numbers. Not so where a recipe has already sent the next batches when it
    # saves, which are then trained on twice.
    resumes_exactly: bool = False
    # Names in checkpoints.jsonl.
    checkpoints: tuple[str, ...] = ("final",)

    def command(self, log_folder: str) -> list[str]:
        """The arguments of `python`."""
        words = ["-m", f"tinker_cookbook.recipes.{self.module}", f"model_name={MODEL}", *self.arguments.split()]
        return [*words, f"log_path={log_folder}"]


@dataclass
class Log:
    """What a recipe wrote."""

    # In the order of their steps. Of a step that was done twice, the second.
    rows: list[dict]
    checkpoints: list[dict]
    text: str

    @classmethod
    def read(cls, folder: Path, text: str) -> "Log":
        rows = {row["step"]: row for row in read_rows(folder / "metrics.jsonl")}
        return cls([rows[step] for step in sorted(rows)], read_rows(folder / "checkpoints.jsonl"), text)

    def trained(self, key: str) -> list[float]:
        """The values of `key`, one for each step; runs of RL end with a row of token counts alone."""
        return [row[key] for row in self.rows if key in row]

    def falls(self, key: str, by: float):
        """The last values are below the first ones; of many, two each."""
        values = self.trained(key)
        few = 2 if len(values) >= 4 else 1
        first, last = sum(values[:few]) / few, sum(values[-few:]) / few
        expect(last < first - by, f"`{key}` did not fall by {by}: {values}")

    def rises(self, key: str, by: float):
        values = self.trained(key)
        expect(values[-1] > values[0] + by, f"`{key}` did not rise by {by}: {values}")

    def within(self, key: str, low: float, high: float):
        values = self.trained(key)
        expect(values and all(low <= value <= high for value in values), f"`{key}` left {low}..{high}: {values}")


def read_rows(path: Path) -> list[dict]:
    if not path.exists():
        return []
    # A killed recipe may have been writing its last line.
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


class Unexpected(Exception):
    """A recipe ran, but left something else than it should."""


def expect(condition, text: str):
    if not condition:
        raise Unexpected(text)


def check_all(recipe: Recipe, log: Log):
    """What holds for every recipe, then its own check."""
    key = "optim/lr" if "optim/lr" in log.rows[0] else "learning_rate"
    steps = [row["step"] for row in log.rows if key in row]
    expect(steps == list(range(recipe.steps)), f"metrics.jsonl has steps {steps}, not {recipe.steps}")
    for row in log.rows:
        for name, value in row.items():
            if isinstance(value, float):
                expect(math.isfinite(value), f"`{name}` is {value} at step {row['step']}")
    # A recipe that resumes saves the checkpoint it resumed from again, as its new run's.
    names = tuple(dict.fromkeys(record["name"] for record in log.checkpoints))
    expect(names == recipe.checkpoints, f"checkpoints.jsonl has {names}, not {recipe.checkpoints}")
    for record in log.checkpoints:
        expect(record["state_path"].startswith("tinker://"), f"no state path: {record}")
    expect("sampler_path" in log.checkpoints[-1], f"no weights to sample from: {log.checkpoints[-1]}")
    recipe.check(log)


def supervised(log: Log):
    log.falls("train_mean_nll", 0.1)


def rewarded(log: Log):
    log.within("reward/total", 0.0, 1.0)
    skipped = log.text.count("all advantages zero, skipping training step")
    expect(skipped < len(log.rows), "no answer was right, so nothing was trained")


def on_policy(log: Log):
    """The sampler's logprobs of its own tokens are the trainer's, so their divergence is rounding."""
    log.within("optim/kl_sample_train_v1", -1e-5, 1e-5)
    log.within("optim/kl_sample_train_v2", 0.0, 1e-8)
    log.within("optim/entropy", 0.1, math.log(1000))
    log.within("env/all/format", 0.0, 1.0)


def moves(log: Log):
    """A step changed the policy, and the sampler saw it."""
    on_policy_but_for_substeps(log)
    expect(any(value > 1e-7 for value in log.trained("kl_pre_post_v2")), "no step changed the policy")


def on_policy_but_for_substeps(log: Log):
    log.within("optim/kl_sample_train_v2", 0.0, 0.1)
    log.within("env/all/format", 0.0, 1.0)


def off_policy(log: Log):
    on_policy_but_for_substeps(log)
    log.within("async/staleness_max", 0, 2)


def rolling(log: Log):
    """Each rolling checkpoint is deleted when the next one is there."""
    supervised(log)
    log.falls("test/nll", 0.1)
    deleted = log.text.count("Deleted rolling checkpoint")
    expect(deleted == 2, f"{deleted} rolling checkpoints were deleted, not 2")


def taught(log: Log):
    """The student starts as its teacher, so there is little to learn."""
    log.within("teacher_kl", -0.01, 0.01)
    log.within("optim/kl_sample_train_v2", 0.0, 1e-8)


def distilled(log: Log):
    """The likeliest tokens of the teacher at each position, of which there are at most eight."""
    log.within("sdft/mean_teacher_entropy", 0.0, math.log(8) + 1e-6)
    log.within("sdft/teacher_truncated_count", 0, 0)


def preferring(log: Log):
    log.within("dpo_loss", 0.0, 0.694)
    log.falls("dpo_loss", 0.05)
    log.rises("margin", 0.1)


CHAT = "renderer_name=role_colon lora_rank=4 behavior_if_log_dir_exists=delete"
MATH = (
    f"env=arithmetic {CHAT} group_size=4 max_tokens=10 learning_rate=3e-4 max_steps=3 eval_every=0 "
)
SDFT = (
    f"dataset=sciknoweval {CHAT} groups_per_batch=4 group_size=2 max_tokens=16 topk=8 learning_rate=1e-3 max_steps=3 eval_every=0 "
)
RL_SHOWN = ("env/all/reward/total", "optim/kl_sample_train_v2", "optim/entropy")

RECIPES = [
    Recipe(
        "sl_loop", "sl_loop", "batch_size=16 max_steps=12 learning_rate=3e-3 lora_rank=4 save_every=6", 12,
        supervised, ("train_mean_nll", "train_mean_bpb"),
        killed_after=8, resumes_exactly=True, checkpoints=("000006", "final"),
    ),
    Recipe(
        "chat_sl_resume", "chat_sl.train",
        "dataset=conv.jsonl renderer_name=role_colon lora_rank=4 batch_size=8 learning_rate=3e-3 max_steps=16 save_every=6 "
        "behavior_if_log_dir_exists=resume", 16,
        supervised, ("train_mean_nll", "train_mean_bpb"), killed_after=8, checkpoints=("000006", "000012", "final"),
    ),
    Recipe(
        "rl_loop", "rl_loop",
        "loss_fn=importance_sampling batch_size=8 group_size=8 max_tokens=8 max_steps=3 learning_rate=3e-3 lora_rank=4", 3,
        rewarded, ("reward/total",),
    ),
    Recipe(
        "rl_loop_gspo", "rl_loop",
        "loss_fn=gspo batch_size=8 group_size=8 max_tokens=8 max_steps=3 learning_rate=3e-3 lora_rank=4", 3,
        rewarded, ("reward/total",),
    ),
    Recipe(
        "math_rl_importance_sampling", "math_rl.train", MATH + "loss_fn=importance_sampling groups_per_batch=8", 3,
        on_policy, RL_SHOWN,
    ),
    Recipe(
        "math_rl_cispo_substeps_post_kl", "math_rl.train",
        MATH + "loss_fn=cispo num_substeps=2 compute_post_kl=True groups_per_batch=8", 3,
        moves, (*RL_SHOWN, "kl_pre_post_v2"),
    ),
    Recipe(
        "math_rl_ppo_async", "math_rl.train", MATH + "loss_fn=ppo max_steps_off_policy=2 groups_per_batch=8", 3,
        off_policy, (*RL_SHOWN, "async/staleness_max"), checkpoints=("000000", "final"),
    ),
    Recipe(
        "math_rl_streaming_minibatches", "math_rl.train",
        MATH + "loss_fn=importance_sampling groups_per_batch=8 stream_minibatch_config.groups_per_batch=8 "
        "stream_minibatch_config.num_minibatches=2", 3,
        on_policy_but_for_substeps, RL_SHOWN,
    ),
    Recipe(
        "prompt_distillation", "prompt_distillation.train",
        f"file_path=conv.jsonl {CHAT} batch_size=8 learning_rate=3e-3 max_steps=16", 16,
        supervised, ("train_mean_nll", "train_mean_bpb"),
    ),
    Recipe(
        "preference_dpo", "preference.dpo.train",
        "dataset=hhh renderer_name=role_colon behavior_if_log_dir_exists=delete batch_size=8 learning_rate=1e-3 max_steps=6", 6,
        preferring, ("dpo_loss", "margin", "accuracy", "test/nll"),
    ),
    Recipe(
        "preference_shorter", "preference.shorter.train",
        "renderer_name=role_colon behavior_if_log_dir_exists=delete batch_size=4 group_size=4 max_tokens=8 "
        "learning_rate=1e-3 max_steps=3", 3,
        moves, ("env/all/win_minus_loss", "env/all/ac_tokens_per_turn", "kl_pre_post_v2"),
    ),
    Recipe(
        "chat_sl_rolling", "chat_sl.train",
        f"dataset=no_robots {CHAT} batch_size=16 learning_rate=3e-3 max_steps=8 save_every=0 rolling_save_every=3 "
        "eval_every=4", 8,
        rolling, ("train_mean_nll", "test/nll"), checkpoints=("000003", "000006", "final"),
    ),
    Recipe(
        "on_policy_distillation", "distillation.on_policy_distillation",
        f"teacher_model={MODEL} dataset=tulu3 {CHAT} groups_per_batch=4 group_size=2 max_tokens=16 learning_rate=1e-5 "
        "max_steps=2 eval_every=0", 2,
        taught, ("teacher_kl", "optim/kl_sample_train_v2"),
    ),
    Recipe("sdft", "sdft.train", SDFT, 3, distilled, ("sdft/mean_teacher_entropy",)),
    Recipe(
        "sdft_reverse", "sdft.train", SDFT + "reverse=True", 3, distilled,
        ("sdft/reverse_kl_mean", "sdft/mean_teacher_entropy"),
    ),
    Recipe(
        "guess_number", "multiplayer_rl.guess_number.train",
        "renderer_name=role_colon behavior_if_log_dir_exists=delete batch_size=4 group_size=2 max_tokens=8 "
        "learning_rate=1e-3 max_steps=2 eval_every=0", 2,
        lambda log: log.within("env/all/turns_per_episode", 1, 10),
        ("env/all/reward/total", "env/all/turns_per_episode", "optim/kl_sample_train_v2"),
    ),
]
