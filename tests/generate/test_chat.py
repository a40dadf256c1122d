import re
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from edgec.errors import BundleError
from edgec.generate.chat import ChatTemplate

MESSAGES = [
    {"role": "system", "content": "Be brief.\n"},
    {"role": "user", "content": "Is 1 < 2 & 'so'? <b>日本</b>"},
    {"role": "assistant", "content": "  Yes.  "},
    {"role": "user", "content": "Why?"},
]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}

CHATML = """{%- if messages[0]['role'] != 'system' %}
    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""

HEADERS = """{{ bos_token }}
{% set ns = namespace(turn=0) %}
{% if not date_string is defined %}
    {% set date_string = strftime_now("%d %b %Y") %}
{% endif %}
Today is {{ date_string }}
    {% for message in messages %}
    {% if message['role'] == 'system' %}{% continue %}{% endif %}
    {% set ns.turn = ns.turn + 1 %}
[{{ ns.turn }}] <|{{ message['role'] }}|>
{{ message['content'] | trim }}{{ eos_token }}
    {% endfor %}
{{ messages | tojson(indent=2) }} {{ dict(a=1) | tojson }} {{ tools is none }}
"""

STRICT = """{{ bos_token }}{% for message in messages[1:] %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant') }}
{% endif %}
{% if message['role'] == 'user' %}[INST] {{ message['content'] }} [/INST]{% else %}
{% generation %}{{ message['content'] ~ eos_token }}{% endgeneration %}{% endif %}
{% endfor %}"""


def expected(template: str, messages: list[dict[str, Any]], **values: Any) -> str:
    rendered, _ = render_jinja_template([messages], chat_template=template, **values, **SPECIAL)
    return rendered[0]


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("messages", [MESSAGES, MESSAGES[1:2]])
@pytest.mark.parametrize("template", [CHATML, HEADERS, STRICT])
def test_renders_as_transformers_does(template: str, messages: list[dict[str, Any]], prompt: bool):
    found = ChatTemplate(template).render(messages, special_tokens=SPECIAL, add_generation_prompt=prompt)
    assert found == expected(template, messages, add_generation_prompt=prompt)


def test_passes_on_what_a_template_refuses():
    with pytest.raises(BundleError, match="must alternate"):
        ChatTemplate(STRICT).render(MESSAGES[:1] + MESSAGES[2:], special_tokens=SPECIAL)


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ raise_exception.__globals__.keys() }}",
        "{{ messages.append(1) }}",
        "{{ '%s'.__init__ }}{{ ''|attr('__class__')|attr('mro') }}",
        "{{ '{0.__class__.__mro__}'.format('')[20:] or 1/0 }}{{ range(10**9) }}",
        "{{ messages[0].nothing.more }}",
    ],
)
def test_the_sandbox_holds(attack: str):
    with pytest.raises(BundleError, match="cannot be rendered"):
        ChatTemplate(attack).render(MESSAGES, special_tokens=SPECIAL)


def test_refuses_what_is_no_template():
    with pytest.raises(BundleError, match=re.escape("no Jinja template")):
        ChatTemplate("{% for %}")
