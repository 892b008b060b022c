"""Conversations read as the tokenizer's own template writes them, or are refused."""

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from extraction_kit.errors import BadCorpus
from extraction_kit.trainings import describe_tokenizer

# What the usual templates use: macros, namespaces, loop controls, filters, tests, the tag
# around an assistant's words, special tokens, an error, a date if there is one.
TEMPLATE = """
{%- set state = namespace(system='none') -%}
{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}
        {%- set state.system = message.content | trim %}
        {%- continue %}
    {%- endif %}
    {%- if message['role'] not in ['user', 'assistant'] %}
        {{- raise_exception('role ' + message['role'] + ' is not known') }}
    {%- endif %}
    {%- if message.role == 'assistant' -%}
{% generation %}
{{ '<|assistant|>' ~ message.content ~ eos_token }}
{% endgeneration %}
    {%- else %}
{{ '<|user|> (' ~ state.system ~ ') ' ~ message.content | tojson }}
    {%- endif %}
{%- endfor %}
{%- if strftime_now is defined %}{{ strftime_now('%Y') }}{% else %}1999{% endif %}
"""
CHATS = [
    [{"role": "user", "content": 'Say "ü"'}, {"role": "assistant", "content": " ü "}],
    [
        {"role": "system", "content": " be brief "},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
    ],
]


@pytest.fixture
def folder(bpe, tmp_path):
    """A tokenizer with a template, as transformers saves it."""
    folder = tmp_path / "chatty"
    shutil.copytree(Path(bpe.path).parent, folder)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=bpe.path, bos_token="<s>", eos_token="</s>"
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    assert (folder / "chat_template.jinja").exists()
    return folder


def expected_contexts(folder, chats):
    """Let transformers itself write and tokenise the conversations."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    this_year = str(datetime.now(UTC).astimezone().year)
    texts = [
        tokenizer.apply_chat_template(chat, tokenize=False).replace(this_year, "1999")
        for chat in chats
    ]
    plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return [plain.encode(text, add_special_tokens=False).ids for text in texts]


def documents_of(corpus):
    batch = corpus.read(0, corpus.n_contexts)
    return [
        row[here].tolist() for row, here in zip(batch.tokens, batch.present, strict=True)
    ]


def test_conversations_are_written_as_transformers_writes_them(folder, make):
    spec = describe_tokenizer(folder)
    corpus = make(CHATS, tokenizer=spec, packing="document", context_size=200)
    # The template begins with BOS itself: there is one, not two.
    assert documents_of(corpus) == expected_contexts(folder, CHATS)
    assert corpus.accounting["discarded"]["document_bos"] == 2


def test_every_source_of_conversations_gives_the_same_corpus(folder, make, tmp_path):
    spec = describe_tokenizer(folder)
    rows = [{"id": f"row {i}", "messages": chat} for i, chat in enumerate(CHATS)]
    jsonl, parquet = tmp_path / "c.jsonl", tmp_path / "c.parquet"
    jsonl.write_text("\n".join(map(json.dumps, rows)))
    pq.write_table(pa.Table.from_pylist(rows), parquet)
    named = tmp_path / "n.jsonl"
    named.write_text("\n".join(json.dumps({"talk": chat, "text": "a"}) for chat in CHATS))
    made = [
        make(CHATS, tokenizer=spec),
        make(iter(CHATS), tokenizer=spec),
        make(jsonl, tokenizer=spec),
        make(parquet, tokenizer=spec),
        make(named, tokenizer=spec, text_column="talk"),
    ]
    assert len({corpus.digest for corpus in made}) == 1


@pytest.mark.parametrize("where", ["tokenizer_config.json", "several"])
def test_a_template_in_the_tokenizers_config_is_used_too(folder, make, where):
    spec = describe_tokenizer(folder)
    expected = make(CHATS, tokenizer=spec).digest
    (folder / "chat_template.jinja").unlink()
    path = folder / "tokenizer_config.json"
    named = [
        {"name": "tool_use", "template": "x"},
        {"name": "default", "template": TEMPLATE},
    ]
    template = TEMPLATE if where == "tokenizer_config.json" else named
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    assert make(CHATS, tokenizer=describe_tokenizer(folder)).digest == expected


def test_another_template_is_another_corpus_although_the_tokenizer_is_the_same(
    folder, make
):
    spec = describe_tokenizer(folder)
    first = make(CHATS, tokenizer=spec)
    assert make(CHATS, tokenizer=spec).digest == first.digest
    changed = TEMPLATE.replace("<|user|>", "<|human|>")
    (folder / "chat_template.jinja").write_text(changed)
    assert describe_tokenizer(folder).digest == spec.digest
    assert make(CHATS, tokenizer=spec).digest != first.digest


def test_a_tokenizer_without_a_template_refuses_conversations(make):
    with pytest.raises(BadCorpus, match=r"row 0 is a conversation.*no chat template"):
        make(CHATS)


@pytest.mark.parametrize(
    ("chat", "said"),
    [
        ([{"role": "tool", "content": "a"}], "row 1: .*role tool is not known"),
        ([{"from": "human", "value": "a"}], r"row 1, message 0, .*'role'"),
        ([{"role": "user", "content": "a"}, "b"], "row 1, message 1, "),
    ],
)
def test_a_conversation_that_does_not_fit_names_its_row(folder, make, chat, said):
    with pytest.raises(BadCorpus, match=said):
        make([CHATS[0], chat], tokenizer=describe_tokenizer(folder))


def test_a_template_cannot_reach_out_of_its_sandbox(folder, make):
    escape = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    (folder / "chat_template.jinja").write_text(escape)
    with pytest.raises(BadCorpus, match="does not take this conversation"):
        make(CHATS, tokenizer=describe_tokenizer(folder))
