"""Render a checkpoint's chat template, which is an untrusted program, in Jinja's sandbox.

Source: Hugging Face, "Writing a chat template": the names that a template may use, and the whitespace rules.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edgec.errors import BundleError


class ChatTemplate:
    """A compiled chat template.

    Raises:
        BundleError: it is no Jinja template.
    """

    def __init__(self, source: str) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise BundleError(f"the chat template is no Jinja template: {error}") from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        special_tokens: Mapping[str, str],
        add_generation_prompt: bool = True,
        now: datetime | None = None,
    ) -> str:
        """Return the prompt for a conversation of messages with `role` and `content`.

        Args:
            messages: the conversation.
            special_tokens: their texts, by names such as `bos_token`.
            add_generation_prompt: end with the beginning of an answer.
            now: what a template that asks is told; local time by default.

        Raises:
            BundleError: the template refuses the conversation, or fails.
        """
        try:
            return self._template.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                strftime_now=(now or datetime.now()).strftime,  # noqa: DTZ005  local time is meant
                **special_tokens,
            )
        except Exception as error:  # a template can fail in as many ways as a program
            raise BundleError(f"the chat template cannot be rendered: {error}") from error


class _Generation(Extension):
    """Accept `{% generation %}`, which marks text for training and changes nothing in a prompt."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return JSON; Jinja's own filter escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
