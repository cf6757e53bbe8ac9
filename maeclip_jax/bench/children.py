"""Processes that a benchmark starts and measures."""


def last_words(said: str, nothing: str) -> str:
    """The last line of what a process that failed has said, as the text of an error; `nothing` where it was silent."""
    return (said.strip().splitlines() or [nothing])[-1].removeprefix("error: ")
