"""The outbox: an attempt that the ledger has committed is handed to the queue, then noted.

In this order, whoever does it: a crash in between leaves a run ``requested`` that the
reconciler sends again, and an id that the queue has already counts as sent.
"""

from extraction_kit.errors import QueueUnreachable
from extraction_kit.jobqueue import JobQueue
from extraction_kit.ledger.store import Store
from extraction_kit.ledger.transitions import Mover, Target, queued


def send(store: Store, queue: JobQueue, target: Target, *, job_id: str, by: Mover) -> bool:
    """Hand an attempt to the queue; False if the server does not answer.

    A failure loses nothing: the run stays ``requested``, the reconciler sends it later.
    """
    try:
        queue.enqueue(job_id, target.run_id, target.attempt)
    except QueueUnreachable:
        return False
    with store.write() as connection:
        queued(connection, target, by=by)
    return True
