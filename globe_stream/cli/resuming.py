"""What an interrupted command leaves behind, and what giving it again does."""

INTERRUPTED = 130
"""The exit code of an interrupted command."""

_KEPT = "the same command continues"
_DELETED = "nothing is kept; the same command starts over"
_ENDINGS = {
    "seed": _KEPT,
    "train": _KEPT,
    "export": _KEPT,
    "merge": _KEPT,
    "run": _KEPT,
    "demo": _KEPT,
    "inspect": "it changes nothing; give it again",
    "plan": "it changes nothing; give it again",
    "doctor": "it changes nothing; give it again",
    "status": "it changes nothing; give it again",
    "verify": "it changes nothing; give it again",
    "report": "no report was written; the same command starts over",
    "synth": "the folder is unfinished; the same command clears it and starts over",
}


def after_interruption(arguments: list[str]) -> str:
    """What the command line `arguments`, now interrupted, leaves and does when given again."""
    command = next((word for word in arguments if not word.startswith("-")), "")
    if command == "eval":
        kept = any(word == "--work" or word.startswith("--work=") for word in arguments)
        return "the same command continues with the exports in --work" if kept else _DELETED
    if command == "sweep":
        kept = any(word == "--out" or word.startswith("--out=") for word in arguments)
        return _KEPT if kept else _DELETED
    return _ENDINGS.get(command, "nothing was begun")
