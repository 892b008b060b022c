"""A training together with its runs: what ``ws["training-id"]`` gives."""

from dataclasses import dataclass

from extraction_kit.errors import BadQuery
from extraction_kit.lifecycle import RunState
from extraction_kit.run import Run
from extraction_kit.trainings import Training


@dataclass(frozen=True, kw_only=True)
class TrainingRuns:
    """A registered training and the handles of its runs, the newest first."""

    training: Training
    runs: tuple[Run, ...]

    @property
    def latest(self) -> Run:
        """The newest completed run.

        Raises
        ------
        BadQuery
            None is completed.
        """
        for run in self.runs:
            view = run.view
            if view.state is RunState.COMPLETED and view.deleted_at is None:
                return run
        raise BadQuery(
            f"training {self.training.training_id} has no completed run: type ws.runs() to see "
            "what there is"
        )

    def __repr__(self) -> str:
        """Return the training and one line per run, which begins with its id."""
        sae, hook = self.training.sae, self.training.hookpoint
        head = (
            f"<training {self.training.training_id}: {sae.architecture}, {sae.d_sae:,} "
            f"features at {hook.hook_name}, {len(self.runs)} runs>"
        )
        return "\n  ".join([head, *(f"{run.run_id}  {run!r}" for run in self.runs)])
