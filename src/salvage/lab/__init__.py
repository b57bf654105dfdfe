"""The lab: micro models trained in minutes on a CPU, whose rollouts, failures and rescues are real."""

import warnings

warnings.filterwarnings("ignore", "TRL currently supports vLLM")  # TRL trains and generates here without it
