"""The demo from the first download to the last example."""

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from extraction_kit.config import ExtractionConfig, Settings
from extraction_kit.corpora import Corpus, prepare
from extraction_kit.demo import highlights
from extraction_kit.demo.terminal import Bar, shows_colors
from extraction_kit.demo.texts import stdlib_files, write_texts
from extraction_kit.demo.watching import watch
from extraction_kit.errors import ExtractionKitError, RestsUntilResumed
from extraction_kit.lifecycle import RunState
from extraction_kit.paths import Paths, find_workspace
from extraction_kit.run import Run
from extraction_kit.trainings import describe_model, describe_tokenizer
from extraction_kit.views import RunView
from extraction_kit.workspace import Workspace

OK, FAILED = 0, 1
TRAINING_ID = "smollm2-demo"
MODEL_NAME = "SmolLM2-135M-Instruct"
HOOK_NAME = "blocks.9.hook_resid_post"
CONTEXT_SIZE = 128
N_TOKENS = 150_000
N_TOKENS_OF_SAE = 65_000
N_FEATURES, N_EXAMPLES = 6, 3
_WIDTHS = (60, 140)  # of a line of text
# A run of two minutes should show its progress each second, and lose little when killed.
_ENVIRONMENT: Mapping[str, str] = MappingProxyType(
    {"EXTRACTION_KIT_BEAT_S": "1", "EXTRACTION_KIT_CHECKPOINT_EVERY_S": "10"}
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; return the exit code: 0 if the run is completed, else 1."""
    arguments = _parser().parse_args(argv)
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        demo = Demo(arguments.workspace, n_tokens=arguments.n_tokens)
        demo.make_parts()
        return OK if arguments.parts_only else demo.run(resume=arguments.resume)
    except ExtractionKitError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("\nstopped; make demo goes on where it was")
    return FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m extraction_kit.demo",
        description="Train a small SAE on SmolLM2-135M, extract its features, show them.",
    )
    parser.add_argument(
        "--workspace",
        type=Path,
        metavar="DIR",
        default=find_workspace(),
        help="default: EXTRACTION_KIT_HOME, else the nearest .extraction_kit",
    )
    parser.add_argument(
        "--n-tokens", type=int, default=N_TOKENS, help=f"default: {N_TOKENS:,}"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue the run if it failed, was cancelled or interrupted",
    )
    parser.add_argument(
        "--parts-only",
        action="store_true",
        help="make model, texts and SAE for the notebooks, and launch nothing",
    )
    return parser


class Demo:
    """The steps, each of which keeps what it made and is passed over the next time.

    Parameters
    ----------
    home : Path
        The workspace.
    n_tokens : int
        Tokens that the extraction measures.
    """

    def __init__(self, home: Path, *, n_tokens: int) -> None:
        settings = Settings.from_environment({**_ENVIRONMENT, **os.environ})
        self.config = ExtractionConfig(
            n_tokens=n_tokens, context_size=CONTEXT_SIZE, top_k=20
        )
        self.workspace = Workspace(home, settings=settings)
        self.paths = Paths.of(self.workspace.home, settings)
        folder = self.workspace.home / "demo"
        self.model, self.sae = folder / "model", folder / "sae"
        self.texts = folder / "texts.jsonl"
        self.command = _command(self.workspace.home)

    def make_parts(self) -> None:
        """Make the model, the texts and the SAE, unless they are there."""
        if not (self.model.exists() and self.sae.exists()):
            print("demo      the first one takes 5 to 15 minutes; what is made is kept")
        self.make_model()
        self.make_texts()
        self.make_sae()

    def run(self, *, resume: bool = False) -> int:
        """Launch or find the run, watch it, show what it found."""
        run = self.launch()
        if resume and isinstance(run.refusal, RestsUntilResumed):
            print(f"resume    {run.view.advice}")
            run.resume()
        if run.refusal is not None:
            print(f"launch    refused: {run.refusal}")
        elif not self.watch(run):
            return FAILED
        if run.state is RunState.COMPLETED:
            self.show(run)
            return OK
        _say_how_to_go_on(run.view)
        return FAILED

    # --- what is made once --------------------------------------------------------------------

    def make_model(self) -> None:
        """Save the language model in the workspace."""
        if self.model.exists():
            print(f"model     {MODEL_NAME} in {self.model}")
            return
        with Bar("model     loading torch", 1):
            from extraction_kit.demo.language_model import N_PARTS, save_model  # noqa: PLC0415 - torch
        with Bar(f"model     {MODEL_NAME} from its wheel", N_PARTS) as bar:
            loss = save_model(self.model, bar.show)
        print(
            f"model     {MODEL_NAME} in {self.model}: {loss:.2f} nats per token on a "
            f"paragraph of English ({bar.elapsed_s:.0f} s)"
        )

    def make_texts(self) -> None:
        """Write the texts that the model reads."""
        if not self.texts.exists():
            with Bar("texts     Python's docstrings", len(stdlib_files()), " files") as bar:
                write_texts(self.texts, lambda done, _total: bar.show(done))
        print(
            f"texts     {self.texts}: Python's reference and docstrings; the SAE is trained "
            "on some of what the extraction reads"
        )

    def make_sae(self) -> None:
        """Train the SAE."""
        if not self.sae.exists():
            self._train_sae()
        config = json.loads((self.sae / "cfg.json").read_bytes())
        made = config["metadata"]
        print(
            f"SAE       {self.sae}: topk, k={config['k']}, d_sae={config['d_sae']:,} on "
            f"{HOOK_NAME}, FVU {made['fvu']:.3f} (held out), {made['dead_share']:.1%} dead "
            f"in {made['training_tokens']:,} tokens"
        )

    def _train_sae(self) -> None:
        corpus = self._training_corpus()
        with Bar("SAE       loading the model", 1):
            from extraction_kit.demo import sae_training  # noqa: PLC0415 - torch

            spec = describe_model(self.model, cache=self.paths.cache)
            model = sae_training.load_hooked(spec, HOOK_NAME)
        with Bar("SAE       activations", corpus.n_tokens, " tok") as bar:
            collected = sae_training.collect_activations(model, corpus, bar.show)
        collect_s, recipe = bar.elapsed_s, sae_training.Recipe()
        with Bar("SAE       training", recipe.n_steps, " steps") as bar:
            sae = sae_training.train_topk_sae(
                collected, recipe, lambda step, fvu: bar.show(step, f"FVU {fvu:.3f}")
            )
        sae_training.save_sae(self.sae, sae, metadata=self._metadata(corpus, sae))
        print(f"SAE       activations {collect_s:.0f} s, training {bar.elapsed_s:.0f} s")

    def _training_corpus(self) -> Corpus:
        with Bar("SAE       tokens", N_TOKENS_OF_SAE, " tok") as bar:
            return prepare(
                self.texts,
                tokenizer=describe_tokenizer(self.model, cache=self.paths.cache),
                config=self.config.replace(n_tokens=N_TOKENS_OF_SAE),
                paths=self.paths,
                progress=lambda n_done, _total, what: bar.show(n_done, what),
            )

    def _metadata(self, corpus: Corpus, sae: Any) -> dict[str, Any]:  # noqa: ANN401 - a torch module's class
        return {
            "model_name": MODEL_NAME,
            "hook_name": HOOK_NAME,
            "hook_head_index": None,
            "context_size": corpus.context_size,
            "prepend_bos": corpus.masks["prepend_bos"],
            "dataset_path": self.texts.name,
            "training_tokens": corpus.n_tokens,
            "fvu": sae.fvu,
            "dead_share": sae.dead_share,
        }

    # --- the run ------------------------------------------------------------------------------

    def launch(self) -> Run:
        """Register the training and launch its extraction, or find it."""
        training = self.workspace.register_training(
            TRAINING_ID, sae=self.sae, model=self.model
        )
        print(f"training  {TRAINING_ID!r}, digest {training.digest[:12]}")
        return self.workspace.launch(
            TRAINING_ID, corpus=self.texts, config=self.config, strict=False
        )

    def watch(self, run: Run) -> bool:
        """Follow an active run; False if a person stopped watching."""
        began, before = time.monotonic(), run.view
        print(f"launch    run {run.run_id}: {before.state}, {before.n_tokens:,} tokens")
        print(
            f"          {self.command} status shows it too; Ctrl-C stops the watching only"
        )
        try:
            view = watch(run)
        except KeyboardInterrupt:
            worker = before.worker or run.view.worker or "its worker"
            print(
                f"\nstopped watching: run {run.run_id} goes on ({worker}). Type make demo to "
                f"watch it again, {self.command} cancel {run.run_id} to stop it"
            )
            return False
        print(f"end       {view.state} after {time.monotonic() - began:.0f} s")
        return True

    # --- what was found -----------------------------------------------------------------------

    def show(self, run: Run) -> None:
        """Print the result of a completed run."""
        view = run.view
        speed = "" if view.tokens_per_s is None else f", {view.tokens_per_s:,.0f} tokens/s"
        print(
            f"\n{view.n_tokens:,} tokens: L0 {view.l0:.1f}, FVU {view.fvu:.3f}, "
            f"{view.n_dead:,} of {view.d_sae:,} features dead{speed}"
        )
        columns = ("feature", "density", "n_active", "n_contexts", "max_act", "mean_act")
        found = run.features().filter("NOT dead").project(", ".join(columns)).fetchall()
        rows = [dict(zip(columns, row, strict=True)) for row in found]
        low, high = _WIDTHS
        width = min(high, max(low, shutil.get_terminal_size().columns - 2))
        for row in highlights.choose_features(rows, N_FEATURES):
            self._show_feature(run, row, width)
        self._show_next(view)

    def _show_feature(self, run: Run, row: Mapping[str, Any], width: int) -> None:
        print(
            f"\nfeature {row['feature']}: on {row['density']:.2%} of the tokens "
            f"({row['n_active']:,}), activation max {row['max_act']:.1f}, "
            f"mean {row['mean_act']:.1f}"
        )
        lines = highlights.render_examples(
            run.windows(row["feature"], k=self.config.top_k),
            n=N_EXAMPLES,
            width=width,
            colors=shows_colors(),
        )
        for line in lines:
            print(f"  {line}")

    def _show_next(self, view: RunView) -> None:
        home = self.workspace.home
        print(f"\nresults   {view.results_dir}")
        print(f"digest    {view.result_digest}")
        print("next      make lab: open 1-launch.ipynb there, or type in an empty notebook")
        print(f"          import extraction_kit as xk; ws = xk.Workspace({str(home)!r})")
        print(f"          ws[{TRAINING_ID!r}].latest.browse()")


def _command(home: Path) -> str:
    """Return how the command line is typed here, for this workspace."""
    program = Path(sys.executable).with_name("extraction-kit")
    if program.is_relative_to(Path.cwd()):
        program = program.relative_to(Path.cwd())
    return str(program) if home == find_workspace() else f"{program} --workspace {home}"


def _say_how_to_go_on(view: RunView) -> None:
    """Tell what happened to a run that rests, and how a person continues it."""
    if view.error_traceback:
        print(view.error_traceback.rstrip())
    options = "" if view.n_tokens == N_TOKENS else f' ARGS="--n-tokens {view.n_tokens}"'
    print(
        f"\nrun {view.run_id} is {view.state} at {view.progress:.0%}: "
        f"{view.error or 'it was stopped'}.\nIt does not start again by itself; to continue "
        f"it, type make demo-resume{options} (python -m extraction_kit.demo --resume)"
    )
