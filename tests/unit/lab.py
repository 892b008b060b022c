"""A workspace without processes, in which runs are completed by the real steps."""

import json
import sqlite3
from contextlib import closing
from dataclasses import replace

from extraction_kit import ExtractionConfig, Settings, Workspace, service
from extraction_kit.catalog.publish import MANIFEST, publish, read_manifest, stage
from extraction_kit.config import STATISTICS_FORMAT
from extraction_kit.corpora import Corpus
from extraction_kit.ledger import events, records
from extraction_kit.ledger.transitions import Mover, Target, claim, insert_run, move
from extraction_kit.lifecycle import Actor, Move, digest_of, job_id_of, run_id_of
from extraction_kit.liveness import ProcessIdentity
from extraction_kit.reconcile import completion
from extraction_kit.repair import plan, repair
from extraction_kit.trainings import Hookpoint, ModelSpec, SaeSpec, TokenizerSpec, Training
from extraction_kit.version import __version__
from extraction_kit.workbench import corpus_record
from tests.unit.synthetic import synthetic

NOWHERE = "unix:///nowhere/queue.sock"  # a server of somebody's own that is away
RESULT = synthetic().result
RESULT = replace(RESULT, summary={**RESULT.summary, "statistics_format": STATISTICS_FORMAT})


def training_named(training_id, sae_digest="5ae" * 20):
    parts = {"sae": sae_digest, "model": "30de1" * 8, "tokenizer": "704e" * 10}
    return Training(
        training_id=training_id,
        sae=SaeSpec(
            path="/sae", format="saelens", architecture="topk", d_in=8, d_sae=16, k=2,
            apply_b_dec_to_input=False, normalize_activations="none",
            rescale_acts_by_decoder_norm=False, hook_name=None, metadata={},
            digest=parts["sae"],
        ),
        model=ModelSpec(
            source="/model", path="/model", revision=None, model_type="gpt2", hidden_size=8,
            n_layers=2, max_context=64, vocab_size=50, digest=parts["model"],
        ),
        tokenizer=TokenizerSpec(
            path="/model/tokenizer.json", digest=parts["tokenizer"], bos_id=None, eos_id=0,
            pad_id=None, special_ids=(0,), vocab_size=50,
        ),
        hookpoint=Hookpoint(
            hook_name="blocks.1.hook_resid_post", module_path="model.layers.1",
            side="output", layer=1, width=8,
        ),
        digest=digest_of(parts | {"hookpoint": ["model.layers.1", "output"]}),
    )  # fmt: skip


class Lab:
    """A workspace without processes, in which runs are completed by the real steps."""

    def __init__(self, home, ledger_url=None, **settings):
        self.settings = Settings(
            ledger_url=ledger_url, **({"min_free_bytes": 0} | settings)
        )
        self.ws = Workspace(home, settings=self.settings)
        self.bench, self.home = self.ws._bench, home

    def content(self, training_id="tiny", seed=0):
        training = training_named(training_id)
        service.register(self.bench, training)
        digest = digest_of(["corpus", seed])
        corpus = Corpus(
            digest=digest, path=self.bench.paths.corpora / digest, n_contexts=40,
            n_tokens=960, n_tokens_total=960, context_size=24, source="texts",
            tokenizer_digest=training.tokenizer.digest, pad_id=0, vocab_size=50,
            vocab=self.bench.paths.vocab / "v.parquet", masks={"packing": "pack"},
        )  # fmt: skip
        return service.content_of(
            self.bench, training, corpus=corpus, config=ExtractionConfig(context_size=24)
        )

    def begun(self, content, *, generation=1):
        """Insert and claim a run as launcher and worker do; return its id."""
        training_id = content.training.training_id
        run_id = run_id_of(training_id, content.key, generation)
        by = self.bench.mover()
        row = {
            "run_id": run_id, "training_id": training_id, "content_key": content.key,
            "generation": generation, "state": "requested", "attempt": 1,
            "job_id": job_id_of(training_id, content.key, generation=generation, attempt=1),
            "cancel_requested": False, "corpus_digest": content.corpus.digest,
            "corpus": corpus_record(content.corpus), "n_tokens": content.corpus.n_tokens,
            "config": content.config.to_dict(), "settings": self.settings.to_dict(),
            "kit_version": __version__, "created_at": by.at, "created_by": by.name,
        }  # fmt: skip
        with self.bench.store.write() as connection:
            insert_run(connection, row, by=by)
            claim(
                connection, Target(run_id=run_id, attempt=1), by=self.worker, nonce="n",
                process=ProcessIdentity.of_this_process().to_dict(), kit_version=__version__,
            )  # fmt: skip
        return run_id

    @property
    def worker(self):
        return Mover(actor=Actor.WORKER, name="here:1", at=self.bench.now())

    def publish(self, run_id, result=RESULT):
        run = self.record(run_id)
        staged, final = self.bench.paths.staging_of(run_id, 1), self.folder(run_id)
        stage(staged, result, self.bench.manifest_of(run))
        assert publish(staged, final)

    def completed(self, training_id="tiny", *, seed=0, **options):
        run_id = self.begun(self.content(training_id, seed), **options)
        self.publish(run_id)
        return self.recorded(run_id)

    def recorded(self, run_id):
        """Record a published run as completed, as its worker does."""
        final = self.folder(run_id)
        target = Target(run_id=run_id, attempt=1, nonce="n")
        values = completion(read_manifest(final), final, at=self.bench.now())
        with self.bench.store.write() as connection:
            move(connection, target, Move.PUBLISH, by=self.worker, text="")
            assert move(
                connection, target, Move.COMPLETE, by=self.worker, text="", values=values
            )
        return run_id

    def folder(self, run_id):
        return self.bench.paths.results_of(run_id)

    def record(self, run_id):
        with self.bench.store.read() as connection:
            return records.run(connection, run_id)

    def story(self, run_id):
        with self.bench.store.read() as connection:
            return events.of_run(connection, run_id)

    def sql(self, statement, *values):
        """Do what a person does with the sqlite3 program: foreign keys are not enforced."""
        with closing(sqlite3.connect(self.bench.paths.ledger)) as connection, connection:
            connection.execute("PRAGMA ignore_check_constraints = ON")
            connection.execute(statement, values)

    def put(self, run_id, state):
        """Set the state of a run, whatever led there."""
        self.sql("UPDATE runs SET state = ? WHERE run_id = ?", str(state), run_id)

    def write_corpus(self, seed=0):
        """Write a file of 5,000 bytes where the corpus of a content is; return its folder."""
        folder = self.content(seed=seed).corpus.path
        folder.mkdir(parents=True)
        (folder / "contexts.parquet").write_bytes(b"x" * 5_000)
        return folder

    def edit(self, run_id, changes):
        path = self.folder(run_id) / MANIFEST
        manifest = json.loads(path.read_text()) | changes
        kept = {name: value for name, value in manifest.items() if value is not None}
        path.write_text(json.dumps(kept))

    def plan(self):
        return plan(self.home, self.settings)

    def repair(self):
        return repair(self.home, self.settings)

    def assert_sound(self):
        assert self.plan().is_sound, self.plan()
        assert not self.plan().steps


def lab_without_server(folder, ledger_url=None):
    """A lab whose queue nobody can reach: nothing computes what it launches."""
    return Lab(folder / "ws", ledger_url, redis_url=NOWHERE)
