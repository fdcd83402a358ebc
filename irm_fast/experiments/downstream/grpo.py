"""A policy that is optimised against a reward by GRPO, and what its answers are worth in truth on the way."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from irm_fast.experiments.downstream.policy import QUIET, TOKENS, Policy, prompt_of, question_of
from irm_fast.experiments.downstream.rewards import Reward
from irm_fast.experiments.downstream.settings import Optimisation, World
from irm_fast.experiments.downstream.users import outcome
from irm_fast.experiments.made_answers import conversation


def optimise(start: Path, reward: Reward, world: World, how: Optimisation, seed: int) -> list[dict[str, Any]]:
    """Optimise a policy against a reward, and measure it every so many steps.

    Args:
        start: The folder of the starting policy.
        reward: The reward.
        world: Questions to train on, others to measure on, and users who know the truth.
        how: The settings.
        seed: The seed of answers and batches.

    Returns:
        For each measurement: "step", the optimiser steps so far; "divergence", the Kullback-Leibler divergence from
        the starting policy, nats an answer, by the policy's own answers; "score", their mean reward; and the fields of
        `Outcome`.
    """
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    policy, reference = Policy.load(start), Policy.load(start)
    points: list[dict[str, Any]] = []
    questions = [world.held_out[row % len(world.held_out)] for row in range(how.measured)]

    def measure(step: int) -> None:
        policy.model.eval()
        drawn = policy.draw(questions, seed + step)
        moved = policy.log_probability(drawn) - reference.log_probability(drawn)
        policy.model.train()
        worth = asdict(outcome(world.users, drawn.conversations))
        score = float(reward(drawn.conversations).mean())
        points.append({"step": step, "divergence": float(moved.mean()), "score": score, **worth})

    class Measure(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % how.every == 0:
                measure(state.global_step)

    def paid(prompts: list[str], completions: list[str], **_: Any) -> list[float | None]:
        pairs = zip(map(question_of, prompts), completions, strict=True)
        return reward([conversation(*pair) for pair in pairs]).tolist()

    measure(0)
    with tempfile.TemporaryDirectory() as scratch:
        settings = GRPOConfig(
            output_dir=scratch,
            max_steps=how.steps,
            per_device_train_batch_size=how.questions * how.answers,
            num_generations=how.answers,
            max_completion_length=TOKENS,
            learning_rate=how.learning_rate,
            beta=how.penalty,
            lr_scheduler_type="constant",
            seed=seed,
            **QUIET,
        )
        trainer = GRPOTrainer(
            model=policy.model,
            processing_class=policy.tokenizer,
            reward_funcs=paid,
            args=settings,
            train_dataset=Dataset.from_dict({"prompt": [prompt_of(question) for question in world.asked]}),
            callbacks=[Measure()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return points
