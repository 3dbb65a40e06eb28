"""An actor's error as Ray passes it on, in words."""

from pipeline.workers.ray_pool import last_words

DIED = """The actor died because of an error raised in its creation task, ray::MapWorker(VoteActor).__init__()
ModuleNotFoundError: No module named 'mine'

The above exception was the direct cause of the following exception:

  File "pipeline/named_functions.py", line 63, in named_function
    raise FunctionError(f"{where}: {_why(module_name, error)}") from error
pipeline.named_functions.FunctionError: mine:build: there is no module mine on node-7; install it
"""


def test_an_actor_that_cannot_start_is_quoted_in_one_line() -> None:
    assert last_words(RuntimeError(DIED)) == "mine:build: there is no module mine on node-7; install it"
