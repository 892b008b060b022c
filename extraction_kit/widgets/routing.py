"""Keeps a click from waiting behind a busy cell.

JupyterLab sends a widget's messages to a subshell, which answers while a cell runs. From
version 7.4 on, ipykernel overrules that and delivers them to the shell from which the widget
last sent something: the main one for everything that a cell or a thread sent. A message
without a parent leaves no such trace. https://github.com/ipython/ipykernel
(``comm/comm.py``, ``_reply_subshell_for``); to be removed when a thread's messages no longer
redirect the page's answers.
"""

import contextvars
import sys
from collections.abc import Callable
from typing import TypeVar

from IPython.core.getipython import get_ipython

T = TypeVar("T")


def without_parent(call: Callable[[], T]) -> T:
    """Return ``call()``; what it sends to the page has no parent message.

    Where the kernel does not redirect answers, or does so in another way than known here,
    this is a plain call: the click is then heard when the cell ends, and the card says so.
    """
    kernel = getattr(get_ipython(), "kernel", None)
    parent = getattr(kernel, "_shell_parent", None)
    comm = getattr(sys.modules.get("ipykernel.comm.comm"), "BaseComm", None)
    if not hasattr(comm, "_reply_subshell_for") or not isinstance(
        parent, contextvars.ContextVar
    ):
        return call()
    context = contextvars.copy_context()
    context.run(parent.set, {})
    return context.run(call)
