"""Conversations made into texts by the tokenizer's own chat template.

The templates are Jinja programs written for `transformers`; they are run in Jinja's sandbox
with the same names and settings, except that ``strftime_now`` is not there: a template that
writes today's date into a text would make another corpus each day, and the usual ones fall
back to a fixed date.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from extraction_kit.corpora.rows import Conversation
from extraction_kit.errors import BadCorpus
from extraction_kit.trainings.files import read_json

if TYPE_CHECKING:
    from jinja2 import Environment

_CONFIG = "tokenizer_config.json"
_FILE = "chat_template.jinja"
_ADVICE = "copy the tokenizer again"


class ChatTemplate:
    """The chat template of a tokenizer.

    Parameters
    ----------
    folder : Path
        Where ``tokenizer.json`` is. The template is ``chat_template.jinja`` there, else
        ``chat_template`` in ``tokenizer_config.json``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / _CONFIG
        self._config = read_json(path, BadCorpus, _ADVICE) if path.exists() else {}
        self.source = self._source()
        self._render: Callable[..., str] | None = None

    @property
    def digest(self) -> str | None:
        """Of the template and the special tokens that it can write; None without one."""
        if self.source is None:
            return None
        content = json.dumps([self.source, self._special_tokens()], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def _source(self) -> str | None:
        file = self.folder / _FILE
        if file.is_file():
            return file.read_text(encoding="utf-8")
        found = self._config.get("chat_template")
        if isinstance(found, list):  # several, by name
            found = {each.get("name"): each.get("template") for each in found}.get(
                "default"
            )
        return found if isinstance(found, str) else None

    def _special_tokens(self) -> dict[str, str]:
        tokens = {}
        for name, token in self._config.items():
            content = token.get("content") if isinstance(token, Mapping) else token
            if name.endswith("_token") and isinstance(content, str):
                tokens[name] = content
        return tokens

    def render(self, conversation: Conversation, row: int) -> str:
        """Return the text of a conversation.

        Raises
        ------
        BadCorpus
            The tokenizer has no template, or it does not take this conversation; `row` is
            named.
        """
        from jinja2 import TemplateError  # noqa: PLC0415 - only who has conversations pays

        if self.source is None:
            raise BadCorpus(
                f"row {row} is a conversation, and the tokenizer in {self.folder} has no "
                f"chat template ({_FILE}, or chat_template in {_CONFIG}): pass the texts, "
                "or tokenizer= of the model that was trained on conversations"
            )
        try:
            if self._render is None:
                self._render = _environment().from_string(self.source).render
            return self._render(
                messages=[dict(message) for message in conversation.messages],
                tools=None,
                documents=None,
                add_generation_prompt=False,
                **self._special_tokens(),
            )
        except (TemplateError, TypeError) as cause:
            raise BadCorpus(
                f"row {row}: the chat template of {self.folder} does not take this "
                f"conversation ({cause})"
            ) from cause


def _environment() -> "Environment":
    from jinja2 import TemplateError, nodes  # noqa: PLC0415 - see render
    from jinja2.ext import Extension, loopcontrols  # noqa: PLC0415 - see render
    from jinja2.parser import Parser  # noqa: PLC0415 - see render
    from jinja2.sandbox import ImmutableSandboxedEnvironment  # noqa: PLC0415 - see render

    class Generation(Extension):
        """Takes ``{% generation %}``, which marks an assistant's words, as its content."""

        tags = {"generation"}  # noqa: RUF012 - as the base class has it

        def parse(self, parser: Parser) -> list[nodes.Node]:
            """Return what stands between the tags."""
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> NoReturn:
        raise TemplateError(message)

    def to_json(value: object, **options: Any) -> str:  # noqa: ANN401 - json's own
        return json.dumps(value, **({"ensure_ascii": False} | options))

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    return environment
