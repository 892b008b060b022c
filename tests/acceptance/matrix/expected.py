"""What each cell must come to: the promise, one line per fault, one column per phase.

A cell reads ``state claims/batches attempt``: the state in which the system leaves the run
before a person acts (C completed, I interrupted, X cancelled, F failed; all but C are then
resumed and complete), how many claims are won and how many batches are computed in total (a
run has 12, checkpoints follow batches 4, 8 and 12), and which attempt publishes.

``kill -9 job`` and ``RQ stop command`` in the first two columns find no process, ``RQ
requeues`` no job that it could abandon: nothing changes there. ``disk full`` is the disk
with checkpoints and results (a small tmpfs filled to ENOSPC).
"""

MEANING = (
    "state before a person acts (C completed, I interrupted, X cancelled, F failed), "
    "claims won / batches computed (a run has 12), publishing attempt; then all complete"
)
TABLE = """
                    | requested | queued    | claimed   | mid-run   | checkpoint | staged    | renamed   | completed
none                | C 1/12 a1 | C 1/12 a1 | C 1/12 a1 | C 1/12 a1 | C 1/12 a1  | C 1/12 a1 | C 1/12 a1 | C 1/12 a1
kill -9 job         | C 1/12 a1 | C 1/12 a1 | I 2/12 a2 | I 2/14 a2 | I 2/16 a2  | C 1/12 a1 | C 1/12 a1 | C 1/12 a1
kill -9 worker      | C 1/12 a1 | C 1/12 a1 | C 1/12 a1 | C 1/12 a1 | C 1/12 a1  | C 1/12 a1 | C 1/12 a1 | C 1/12 a1
kill -9 both        | C 1/12 a1 | C 1/12 a1 | I 2/12 a2 | I 2/14 a2 | I 2/16 a2  | C 1/12 a1 | C 1/12 a1 | C 1/12 a1
SIGTERM both        | C 1/12 a1 | C 1/12 a1 | I 2/12 a2 | I 2/12 a2 | I 2/12 a2  | C 1/12 a1 | C 1/12 a1 | C 1/12 a1
freeze, thaw        | C 1/12 a1 | C 1/12 a1 | I 2/12 a2 | I 2/14 a2 | I 2/12 a2  | C 1/12 a1 | C 1/12 a1 | C 1/12 a1
freeze, thaw late   | C 1/12 a1 | C 1/12 a1 | I 2/12 a2 | I 2/14 a2 | I 2/16 a2  | C 1/12 a1 | C 1/12 a1 | C 1/12 a1
server restarts     | C 1/12 a1 | C 1/12 a1 | C 1/12 a1 | C 1/12 a1 | C 1/12 a1  | C 1/12 a1 | C 1/12 a1 | C 1/12 a1
server forgets      | C 1/12 a1 | C 1/12 a2 | C 1/12 a1 | C 1/12 a1 | C 1/12 a1  | C 1/12 a1 | C 1/12 a1 | C 1/12 a1
FLUSHALL            | C 1/12 a1 | C 1/12 a2 | C 1/12 a1 | C 1/12 a1 | C 1/12 a1  | C 1/12 a1 | C 1/12 a1 | C 1/12 a1
server away         | C 1/12 a1 | C 1/12 a1 | C 1/12 a1 | C 1/12 a1 | C 1/12 a1  | C 1/12 a1 | C 1/12 a1 | C 1/12 a1
delivered 4x again  | C 1/12 a1 | C 1/12 a1 | C 1/12 a1 | C 1/12 a1 | C 1/12 a1  | C 1/12 a1 | C 1/12 a1 | C 1/12 a1
RQ requeues         | C 1/12 a1 | C 1/12 a1 | C 1/12 a1 | C 1/12 a1 | C 1/12 a1  | C 1/12 a1 | C 1/12 a1 | C 1/12 a1
id pushed again     | C 1/12 a1 | C 1/12 a1 | C 1/12 a1 | C 1/12 a1 | C 1/12 a1  | C 1/12 a1 | C 1/12 a1 | C 1/12 a1
RQ stop command     | C 1/12 a1 | C 1/12 a1 | I 2/12 a2 | I 2/14 a2 | I 2/16 a2  | C 1/12 a1 | C 1/12 a1 | C 1/12 a1
cancel              | X 1/12 a2 | X 1/12 a2 | X 2/12 a2 | X 2/12 a2 | X 2/12 a2  | C 1/12 a1 | C 1/12 a1 | C 1/12 a1
3 launch, 3 resume  | C 1/12 a1 | C 1/12 a1 | C 1/12 a1 | C 1/12 a1 | C 1/12 a1  | C 1/12 a1 | C 1/12 a1 | C 1/12 a1
kill, then these 6  | C 1/12 a1 | C 1/12 a1 | I 2/12 a2 | I 2/14 a2 | I 2/16 a2  | C 1/12 a1 | C 1/12 a1 | C 1/12 a1
catalog held        | C 1/12 a1 | C 1/12 a1 | C 1/12 a1 | C 1/12 a1 | C 1/12 a1  | C 1/12 a1 | C 1/12 a1 | C 1/12 a1
disk full           | F 2/16 a2 | F 2/16 a2 | F 2/16 a2 | F 2/16 a2 | F 2/16 a2  | C 1/12 a1 | C 1/12 a1 | C 1/12 a1
clock +5 h          | C 1/12 a1 | C 1/12 a1 | C 1/12 a1 | C 1/12 a1 | C 1/12 a1  | C 1/12 a1 | C 1/12 a1 | C 1/12 a1
clock -5 h          | C 1/12 a1 | C 1/12 a1 | C 1/12 a1 | C 1/12 a1 | C 1/12 a1  | C 1/12 a1 | C 1/12 a1 | C 1/12 a1
asleep for 5 h      | C 1/12 a1 | C 1/12 a1 | C 1/12 a1 | C 1/12 a1 | C 1/12 a1  | C 1/12 a1 | C 1/12 a1 | C 1/12 a1
"""  # noqa: E501 - a table is read across


def cells():
    """Return the table as ``{(fault, phase): "C 1/12 a1"}``."""
    head, *rows = [
        [cell.strip() for cell in line.split("|")]
        for line in TABLE.strip("\n").splitlines()
    ]
    return {
        (fault, phase): cell
        for fault, *cells_of_fault in rows
        for phase, cell in zip(head[1:], cells_of_fault, strict=True)
    }
