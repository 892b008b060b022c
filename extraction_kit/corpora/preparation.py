"""Preparing a corpus: documents, tokens, contexts, and the folder that keeps them."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from extraction_kit import atomic
from extraction_kit.config import ExtractionConfig
from extraction_kit.corpora.accounting import Tally
from extraction_kit.corpora.chat import ChatTemplate
from extraction_kit.corpora.corpus import (
    CORPUS_FORMAT,
    Corpus,
    Masks,
    corpus_digest,
    token_dtype,
)
from extraction_kit.corpora.documents import Documents, open_documents
from extraction_kit.corpora.packing import Block, Packer, cut_to
from extraction_kit.corpora.tokenising import TokenisedBatch, Tokenising
from extraction_kit.corpora.vocabulary import write_vocabulary
from extraction_kit.corpora.writer import ContextWriter
from extraction_kit.errors import BadConfig, BadCorpus, PreparedOtherwise
from extraction_kit.lifecycle import digest_of
from extraction_kit.paths import Paths
from extraction_kit.trainings import TokenizerSpec
from extraction_kit.trainings.tokenizer_folder import load_tokenizer

Progress = Callable[[int, int | None, str], None]
"""Called with valid tokens done, their total if known, and what is being done."""


def prepare(
    source: object,
    *,
    tokenizer: TokenizerSpec,
    config: ExtractionConfig,
    paths: Paths,
    progress: Progress | None = None,
    text_column: str | None = None,
    max_context: int | None = None,
) -> Corpus:
    """Make `source` into contexts of tokens, or return them if that was done before.

    Parameters
    ----------
    source : path, texts, token ids, dataset or Corpus
        A text file is one document, and is tokenised whole; each row of a ``.jsonl`` or
        ``.parquet`` file, of a Hugging Face dataset or of an iterable of texts is one. A
        conversation (a list of messages with role and content) goes through the
        tokenizer's own chat template. Ids come as a list of lists, a 2-d integer array or
        a ``.npy`` file; padding at their ends, or where ``attention_mask`` says so, is
        taken away. A generator or a stream is consumed once, so it is tokenised each time;
        everything else is recognised by its content.
    tokenizer : TokenizerSpec
        The tokenizer of the training.
    config : ExtractionConfig
        Token budget, context size, packing and masks.
    paths : Paths
        The workspace.
    progress : callable, optional
        See :data:`Progress`; :func:`progress_bar` gives one.
    text_column : str, optional
        Column of the texts; None takes ``text``, or the only column of texts.
    max_context : int, optional
        Most tokens that the model takes at once.

    Raises
    ------
    BadConfig
        An option does not fit the model or tokenizer.
    BadCorpus
        The source is empty, unreadable, or has fewer valid tokens than ``n_tokens``:
        tokens are never repeated.
    WorkspaceUnusable
        The workspace is not writable or full. Nothing half-made is left.
    """
    masks = _masks(tokenizer, config, max_context)
    if isinstance(source, Corpus):
        source.mark_asked_for()
        return _check_prepared(source, tokenizer, config, masks=masks)
    documents = open_documents(source, text_column=text_column, cache=paths.cache)
    job = _Preparation(documents, tokenizer, config, masks, paths)
    note = job.note()
    known = None if note is None else _known(note, paths)
    if known is None:
        known = job.run(progress)
        if note is not None:
            content = {"corpus": known.digest, "accounting": known.accounting}
            atomic.write_json(note, content, durable=False)
    known.mark_asked_for()
    return replace(known, source=documents.label)


def _masks(
    tokenizer: TokenizerSpec, config: ExtractionConfig, max_context: int | None
) -> dict[str, Any]:
    """Return the mask policy with every default resolved; refuse options without effect."""
    if max_context is not None and config.context_size > max_context:
        raise BadConfig(
            f"context_size={config.context_size}: this model takes at most {max_context} "
            f"tokens at once, so 2 to {max_context} is allowed"
        )
    if config.prepend_bos and tokenizer.bos_id is None:
        raise BadCorpus(
            f"prepend_bos=True, but the tokenizer {tokenizer.path} has no BOS token: use "
            "prepend_bos=None or False"
        )
    for name, limit in (
        ("ignore_tokens", tokenizer.vocab_size),
        ("ignore_positions", config.context_size),
    ):
        beyond = [item for item in getattr(config, name) if item >= limit]
        if beyond:
            raise BadConfig(f"{name} has {beyond[0]}: 0 to {limit - 1} is allowed")
    special = tokenizer.special_ids if config.exclude_special_tokens else ()
    has_bos = tokenizer.bos_id is not None
    return {
        "packing": config.packing,
        "prepend_bos": has_bos if config.prepend_bos is None else config.prepend_bos,
        "exclude_special_tokens": config.exclude_special_tokens,
        "excluded": sorted({*special, *config.ignore_tokens}),
        "ignore_positions": list(config.ignore_positions),
    }


def _check_prepared(
    corpus: Corpus,
    tokenizer: TokenizerSpec,
    config: ExtractionConfig,
    *,
    masks: dict[str, Any],
) -> Corpus:
    n_tokens = corpus.n_tokens if config.n_tokens is None else config.n_tokens
    made = {
        "tokenizer": corpus.tokenizer_digest,
        "context_size": corpus.context_size,
        "n_tokens": corpus.n_tokens,
        **corpus.masks,
    }
    asked = {
        "tokenizer": tokenizer.digest,
        "context_size": config.context_size,
        "n_tokens": n_tokens,
        **masks,
    }
    differing = [name for name in asked if asked[name] != made.get(name)]
    if differing:
        name = differing[0]
        raise PreparedOtherwise(name=name, made=made.get(name), asked=asked[name])
    return corpus


def _known(note: Path, paths: Paths) -> Corpus | None:
    """Return the corpus that a note tells of, if both are there and whole."""
    try:
        found = json.loads(note.read_bytes())
        digest, accounting = found["corpus"], found.get("accounting")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    folder = paths.corpora / str(digest)
    if not folder.is_dir():
        return None
    corpus = Corpus.load(folder)
    if not corpus.vocab.exists():
        return None
    return replace(corpus, accounting=accounting or corpus.accounting)


@dataclass
class _Preparation:
    """One pass from documents to a corpus folder."""

    documents: Documents
    spec: TokenizerSpec
    config: ExtractionConfig
    masks: dict[str, Any]
    paths: Paths
    packer: Packer = field(init=False)
    counted: Masks = field(init=False)
    tally: Tally = field(init=False)
    chat: ChatTemplate = field(init=False)
    accounting: Mapping[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        spec, config = self.spec, self.config
        pads = (spec.pad_id, spec.eos_id, spec.bos_id, 0)
        self.packer = Packer(
            context_size=config.context_size,
            packing=config.packing,
            bos_id=spec.bos_id if self.masks["prepend_bos"] else None,
            eos_id=spec.eos_id,
            pad_id=next(pad for pad in pads if pad is not None),
        )
        self.counted = Masks(
            context_size=config.context_size,
            excluded=tuple(self.masks["excluded"]),
            ignore_positions=tuple(self.masks["ignore_positions"]),
            vocab_size=spec.vocab_size,
        )
        special = spec.special_ids if config.exclude_special_tokens else ()
        self.tally = Tally(
            special=self._marked(special), ignored=self._marked(config.ignore_tokens)
        )
        self.chat = ChatTemplate(Path(spec.path).parent)

    def _marked(self, ids: tuple[int, ...]) -> np.ndarray:
        marked = np.zeros(self.spec.vocab_size, dtype=bool)
        marked[[token for token in ids if token < len(marked)]] = True
        return marked

    def note(self) -> Path | None:
        """Return where it is noted which corpus these documents gave, if they have a key."""
        if self.documents.key is None:
            return None
        decides = {
            "format": CORPUS_FORMAT,
            "documents": self.documents.key,
            "tokenizer": self.spec.digest,
            "vocab_size": self.spec.vocab_size,
            "n_tokens": self.config.n_tokens,
            "context_size": self.config.context_size,
            "masks": self.masks,
        }
        if self.chat.digest is not None:
            decides["chat_template"] = self.chat.digest
        return self.paths.cache / "corpora" / f"{digest_of(decides)[:32]}.json"

    def run(self, progress: Progress | None) -> Corpus:
        tokenizer = load_tokenizer(self.spec.path)
        vocab = self.paths.vocab / f"{self.spec.digest}.parquet"
        write_vocabulary(vocab, tokenizer)
        batches = Tokenising(self.spec, tokenizer, self.chat).batches(self.documents.read())
        staged = atomic.temporary_beside(self.paths.corpora / "corpus")
        try:
            writer = ContextWriter(staged, token_dtype(self.spec.vocab_size))
            with writer, closing(batches):
                for block, n_valid in self._blocks(self._ids(batches)):
                    writer.add(block, n_valid)
                    if progress is not None:
                        progress(writer.n_valid, self.config.n_tokens, "tokenising")
            self._check_size(writer)
            return self._publish(writer, vocab)
        finally:
            atomic.remove_folder(staged)

    def _ids(self, batches: Iterator[TokenisedBatch]) -> Iterator[list[np.ndarray]]:
        for batch in batches:
            for number, n_padding in enumerate(batch.n_padding, batch.first):
                self.tally.dropped_padding(number, n_padding)
            yield batch.ids

    def _blocks(self, batches: Iterator[list[np.ndarray]]) -> Iterator[tuple[Block, int]]:
        """Yield contexts and their valid tokens, until there are `n_tokens` of these."""
        wanted = self.config.n_tokens
        done, cut_in = 0, None
        for made in self.packer.blocks(batches, self.tally.document):
            block = made
            valid = self.counted.valid(block.tokens, block.present)
            if wanted is not None and done + int(valid.sum()) >= wanted:
                block = cut_to(block, valid, wanted - done)
                valid = self.counted.valid(block.tokens, block.present)
                cut_in = int(block.owner[block.present][-1])
            n_valid = int(valid.sum())
            done += n_valid
            self.tally.block(block, valid)
            yield block, n_valid
            if cut_in is not None:
                break
        self.accounting = self.tally.finish(cut_in=cut_in)

    def _check_size(self, writer: ContextWriter) -> None:
        label, wanted = self.documents.label, self.config.n_tokens
        if writer.n_valid == 0:
            raise BadCorpus(
                f"corpus {label} is empty: it has {writer.n_total} tokens, none of which "
                "the statistics count. Pass a text, or exclude fewer tokens"
            )
        if wanted is not None and writer.n_valid < wanted:
            raise BadCorpus(
                f"corpus {label} has {writer.n_valid:,} valid tokens, n_tokens={wanted:,} "
                f"asks for more, and tokens are never repeated: use n_tokens="
                f"{writer.n_valid} or None (all of them), or pass a larger corpus"
            )

    def _publish(self, writer: ContextWriter, vocab: Path) -> Corpus:
        facts: dict[str, Any] = {
            "context_size": self.config.context_size,
            "tokenizer_digest": self.spec.digest,
            "masks": self.masks,
        }
        digest = corpus_digest(writer.digest(), **facts)
        corpus = Corpus(
            digest=digest,
            path=self.paths.corpora / digest,
            n_contexts=writer.n_contexts,
            n_tokens=writer.n_valid,
            n_tokens_total=writer.n_total,
            source=self.documents.label,
            vocab=vocab,
            vocab_size=self.spec.vocab_size,
            pad_id=self.packer.pad_id,
            accounting=self.accounting,
            **facts,
        )
        corpus.save_spec(writer.folder)
        if atomic.move_folder(writer.folder, corpus.path):
            return corpus
        # The same tokens came from elsewhere before, where others may have been discarded.
        return replace(Corpus.load(corpus.path), accounting=self.accounting)
