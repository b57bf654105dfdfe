"""The names that tables, engine and policies share, in their fixed order; nothing is imported, so anybody may."""

from __future__ import annotations

FEATURES = ["spread", "concentration", "logit_dispersion"]
INTERVENTIONS = ["sparse_steer", "sparse_steer_random", "local_temp", "dense_steer"]
OPERATORS = ["retry", *INTERVENTIONS]
CONTROLS = ["sparse_steer_matched", "sparse_steer_wrong"]
ANCHORS = ["online", "position", "replay"]
CONTINUATIONS = ["temperature", "greedy"]
PROFILE = ["cell", "model", "task", "problem_id", "n_failed_rollouts", *FEATURES, *OPERATORS]  # a row's columns
FACTS = ["failed_share", "n_tokens", "entropy", "kl", "junction", "agreement"]
SIGNALS = ["delta_path", "g_cov", "logit_var", "entropy", "kl", "j"]
THINKING = [  # what opens and closes a section of thought, by the models that write one; the last that closes counts
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel|>analysis", "<|channel|>final<|message|>"),
]
PARTS = ["both", "thinking", "answer"]  # of a completion, which signals may be taken over
