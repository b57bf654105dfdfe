"""What is wrong with MLflow's store, in one sentence: MLflow's own first one, and what to do about it."""

from __future__ import annotations

import re

ELSEWHERE = "correct MLFLOW_TRACKING_URI (unset: mlflow.db here)"
LONGEST = 300  # characters of what MLflow says
# What MLflow, its server or a database says, and what to do; the first that fits. {uri} is the store.
ADVICE = (
    (
        r"out-of-date database schema",
        "back it up and run: mlflow db upgrade {uri}; or install the MLflow that wrote it",
    ),
    (
        r"deleted experiment|in the 'deleted' state",
        "restore it (mlflow experiments search --view deleted_only, then mlflow experiments restore), "
        "or name another: MLFLOW_EXPERIMENT_NAME",
    ),
    (r"filesystem tracking backend", "take its runs along: mlflow migrate-filestore; or " + ELSEWHERE),
    (r"Run with id=|Run '?\w+'? not found|The run \w+ must be", "correct or unset MLFLOW_RUN_ID"),
    (r"Experiment.* does not exist|No Experiment with id", "correct or unset MLFLOW_EXPERIMENT_ID"),
    (r"MLFLOW_EXPERIMENT_ID", "set MLFLOW_EXPERIMENT_NAME or MLFLOW_EXPERIMENT_ID, not both"),
    (
        r"\b40[13]\b|not authenticated|[Uu]nauthorized|[Ff]orbidden|PERMISSION_DENIED|UNAUTHENTICATED",
        "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, to one that may write",
    ),
    (r"password authentication failed|Access denied for user", "correct user and password in MLFLOW_TRACKING_URI"),
    (r"not a database|malformed", "that file is no store of MLflow's; move it away, or " + ELSEWHERE),
    (r"database is locked", "another program is writing it; let it end, then start again"),
    (r"readonly|read-only|disk is full", "check the file's permissions and the space on its disk"),
    (r"No module named", "install the driver of that database, or " + ELSEWHERE),
    (r"Changing param values", "unset MLFLOW_RUN_ID, so that a run of its own is opened"),
)
UNREACHABLE = re.compile(
    r"Max retries|Connection ?(refused|reset|aborted|timed out)|timed out|could not connect|Can't connect"
    r"|unable to open database file|No such file or directory|File exists|Not a directory|Name or service not known"
    r"|too many 5\d\d"
)


def sentence(error: Exception, uri: str) -> str:
    """Return what became of a store, for people.

    Parameters
    ----------
    error : Exception
        MLflow's, SQLAlchemy's or the operating system's, by the kind of store.
    uri : str
        Of the store; a password in it is not told.
    """
    return known(error, uri) or f"MLflow at {hidden(uri)}: {first(error)}; {ELSEWHERE}"


def known(error: Exception, uri: str) -> str:
    """Return the sentence for a fault of a store that is known as one; empty for another error."""
    named, said = hidden(uri), hidden(" ".join([type(error).__name__, str(error)]))
    for pattern, advice in ADVICE:
        if re.search(pattern, said):
            return f"MLflow at {named}: {first(error)}; {advice.format(uri=named)}"
    if why := [found[0] for found in UNREACHABLE.finditer(said)]:
        return f"the tracking server at {named} cannot be reached ({why[-1]}); start it, or {ELSEWHERE}"
    return ""


def hidden(text: str) -> str:
    """Return a text without the users and passwords of its addresses."""
    return re.sub(r"(?<=://)[^/\s@]+@", "", text)


def first(error: Exception) -> str:
    """Return the first sentence of an error, without its end mark."""
    said = hidden(str(error)).strip() or type(error).__name__
    whole = re.split(r"\n|(?<=[\w)'\"`])\.\s", said)[0].removesuffix(".")
    return whole if len(whole) <= LONGEST else whole[:LONGEST].rstrip() + " ..."
