"""`extraction_kit`: everything that is on by default, checkpoints included."""

import numpy as np
from inputs import CONFIG, CONTEXT_SIZE
from measuring import TOP_K, Watch, answer, arguments, n_threads

from extraction_kit import Settings
from extraction_kit.corpora import prepare
from extraction_kit.extraction import extract
from extraction_kit.paths import Paths
from extraction_kit.results import GROUPS
from extraction_kit.trainings import describe_training
from extraction_kit.version import __version__

args = arguments()
settings = Settings(device="cpu", threads=n_threads())
paths = Paths.of(args.inputs / "workspace", settings)
config = CONFIG.replace(n_tokens=args.n_contexts * CONTEXT_SIZE)
training = describe_training(
    "bench", sae=args.inputs / f"sae-{args.architecture}", model=args.inputs / "model"
)
corpus = prepare(
    args.inputs / "text.jsonl", tokenizer=training.tokenizer, config=config, paths=paths
)
watches = []


def on_progress(progress):
    if progress.phase == "extracting" and not watches:
        watches.append(Watch())  # model and SAE are loaded


result = extract(
    training,
    corpus,
    config=config,
    settings=settings,
    checkpoints=args.scratch,
    on_progress=on_progress,
)
times = watches[0].stop()
if args.numbers is not None:
    examples, columns = result.examples, result.features
    top = examples.group == GROUPS.index("top")
    top_k = np.zeros((result.d_sae, TOP_K), dtype=np.float32)
    top_k[examples.feature[top], examples.rank[top]] = examples.act[top]
    np.savez(
        args.numbers,
        n_active=columns["n_active"],
        n_contexts=columns["n_contexts"],
        max_act=np.maximum(columns["max_act"], 0),
        top_k=top_k,
    )
answer(version=__version__, n_tokens=corpus.n_tokens, **times)
