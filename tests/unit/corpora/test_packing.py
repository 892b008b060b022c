"""Contexts hold exactly the tokens that a naive reading of the rules gives."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from extraction_kit.corpora.packing import Packer, cut_to

BOS, EOS, PAD = 0, 1, 2


def naive(documents, *, packing, size, bos, eos):
    """List the contexts, token by token, as (first document, tokens)."""
    content = size - (bos is not None)
    stripped = [(i, d[1:] if bos is not None and d[:1] == [bos] else d)
                for i, d in enumerate(documents)]  # fmt: skip
    if packing == "document":
        chunks = [
            [(i, token) for token in d[at : at + content]]
            for i, d in stripped
            for at in range(0, len(d), content)
        ]
    else:
        stream = []
        for i, document in stripped:
            if document and stream and eos is not None and stream[-1][1] != eos:
                stream.append((i - 1, eos))
            stream += [(i, token) for token in document]
        chunks = [stream[at : at + content] for at in range(0, len(stream), content)]
    head = [] if bos is None else [bos]
    return [(chunk[0][0], head + [token for _, token in chunk]) for chunk in chunks]


def packed(documents, *, packing, size, bos, eos, batch):
    packer = Packer(context_size=size, packing=packing, bos_id=bos, eos_id=eos, pad_id=PAD)
    arrays = [np.array(document, dtype=np.int64) for document in documents]
    batches = [arrays[at : at + batch] for at in range(0, len(arrays), batch)]
    found = []
    for block in packer.blocks(batches):
        assert (block.tokens[~block.present] == PAD).all()
        assert block.tokens.dtype == np.int32
        found += [
            (int(doc), row[:n].tolist())
            for row, n, doc in zip(block.tokens, block.n_tok, block.doc, strict=True)
        ]
    return found


@given(
    documents=st.lists(st.lists(st.integers(0, 6), max_size=12), max_size=12),
    packing=st.sampled_from(["pack", "document"]),
    size=st.integers(2, 9),
    bos=st.sampled_from([None, BOS]),
    eos=st.sampled_from([None, EOS, BOS]),
    batch=st.integers(1, 5),
)
@example(documents=[[0, 0], [0]], packing="pack", size=2, bos=None, eos=0, batch=1)
def test_contexts_equal_a_naive_reference(documents, packing, size, bos, eos, batch):
    rules = {"packing": packing, "size": size, "bos": bos, "eos": eos}
    assert packed(documents, **rules, batch=batch) == naive(documents, **rules)


@pytest.mark.parametrize("wanted", range(1, 8))
def test_a_cut_leaves_exactly_the_valid_tokens_wanted(wanted):
    packer = Packer(context_size=4, packing="pack", bos_id=BOS, eos_id=None, pad_id=PAD)
    (block,) = packer.blocks([[np.arange(3, 12)]])
    valid = block.present & (block.tokens != BOS)
    cut = cut_to(block, valid, wanted)
    kept = cut.tokens[cut.present & (cut.tokens != BOS)]
    assert kept.tolist() == list(range(3, 3 + wanted))
    assert cut.n_tok[-1] >= 2, "a context never ends before its first token"
