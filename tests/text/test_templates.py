"""Chat templates of many kinds: the system text is always there, once."""

import datetime

import pytest

from clara_jax.errors import ClaraError
from clara_jax.text import ClaraTokenizer
from tests.text.toy import toy_tokenizer

ALTERNATE = (  # of Mistral-7B-Instruct-v0.2, first form
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/...') }}"
    "{% endif %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ message['content'] + eos_token + ' ' }}{% endif %}{% endfor %}"
)
LAST_TURN = (  # of Mistral-7B-Instruct-v0.3: without an answer only
    "{% set turns = messages %}{% if messages[0].role == 'system' %}"
    "{% set system = messages[0].content %}{% set turns = messages[1:] %}{% endif %}"
    "{{ bos_token }}{% for m in turns %}{% if m.role == 'user' %}"
    "{% if loop.last and system is defined %}"
    "{{ '[INST] ' + system + '\n\n' + m.content + '[/INST]' }}{% else %}"
    "{{ '[INST] ' + m.content + '[/INST]' }}{% endif %}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
_TURNS = (
    "{% for m in turns %}{% set role = 'model' if m.role == 'assistant' else m.role %}"
    "{{ '<start_of_turn>' + role + '\n' + (first if loop.first else '')"
    " + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
REFUSES = (  # of Gemma 2
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% set first, turns = '', messages %}" + _TURNS
)
MERGES = (  # of Gemma 3
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{% set first, turns = messages[0].content + '\n\n', messages[1:] %}"
    "{% else %}{% set first, turns = '', messages %}{% endif %}" + _TURNS
)
LLAMA_2 = (
    "{% if messages[0].role == 'system' %}{% set turns = messages[1:] %}"
    "{% set first = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
    "{% else %}{% set first, turns = '', messages %}{% endif %}"
    "{% for m in turns %}{% if m.role == 'user' %}"
    "{{ bos_token + '[INST] ' + (first if loop.first else '') + m.content | trim"
    " + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content"
    " + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
IGNORES = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}"
    "{{ 'User: ' + m.content + '\nBot:' }}{% elif m.role == 'assistant' %}"
    "{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
BREAKS = "{% if messages[0].role == 'system' %}{{ 1 // 0 }}{% endif %}" + IGNORES
PARTS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% for part in m.content %}{{ part.text }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% endif %}"
)
FIRST_PART = (
    "{{ bos_token }}{% for m in messages %}{% if m.role != 'system' %}"
    "{{ m.role + ': ' + m.content[0]['text'] + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
DATED = (  # as Llama 3.2
    "\n  {% if not date is defined %}{% if strftime_now is defined %}"
    "{% set date = strftime_now('%d %b %Y') %}{% else %}{% set date = '' %}"
    "{% endif %}{% endif %}\n  {% macro said(m) %}{{ date + strftime_now('/%Y-%m-%d')"
    " + ' ' + m.content }}{% endmacro %}{% for m in messages %}{{ said(m) }}"
    "{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "opened", "answer"),
    [
        (ALTERNATE, "<s>[INST] be brief\nWho? [/INST]", "Ada</s> "),
        (LAST_TURN, "<s>[INST] be brief\nWho?[/INST]", " Ada</s>"),
        (IGNORES, "<s>User: be brief\nWho?\nBot:", " Ada</s>"),
        (BREAKS, "<s>User: be brief\nWho?\nBot:", " Ada</s>"),
        (
            REFUSES,
            "<s><start_of_turn>user\nbe brief\nWho?<end_of_turn>\n"
            "<start_of_turn>model\n",
            "Ada<end_of_turn>\n",
        ),
        (
            MERGES,
            "<s><start_of_turn>user\nbe brief\n\nWho?<end_of_turn>\n"
            "<start_of_turn>model\n",
            "Ada<end_of_turn>\n",
        ),
        (
            LLAMA_2,
            "<s>[INST] <<SYS>>\nbe brief\n<</SYS>>\n\nWho? [/INST]",
            " Ada </s>",
        ),
        (
            CHATML,
            "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nWho?<|im_end|>\n"
            "<|im_start|>assistant\n",
            "Ada<|im_end|>\n",
        ),
        (
            PARTS,
            "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nWho?<|im_end|>\n"
            "<|im_start|>assistant\n",
            "Ada<|im_end|>\n",
        ),
        (FIRST_PART, "<s>user: be brief\nWho?\nassistant: ", "Ada\n"),
    ],
)
def test_the_system_text_is_in_the_prompt(template: str, opened: str, answer: str):
    tokenizer = ClaraTokenizer(toy_tokenizer(template), 2)
    assert tokenizer.chat("be brief", "Who?") == opened
    assert tokenizer.chat("be brief", "Who?", "Ada") == opened + answer


def test_what_users_write_does_not_decide():
    said = ("Sonnets", "be brief", "Conversation roles must alternate")
    for template in (IGNORES, LLAMA_2):
        chats = [
            ClaraTokenizer(toy_tokenizer(template), 2).chat(text, text) for text in said
        ]
        forms = {
            chat.replace(text, "TEXT") for chat, text in zip(chats, said, strict=True)
        }
        assert len(forms) == 1


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('only tools may speak') }}", "only tools may speak"),
        ("{{ messages[0].content.nothing() }}", "has no attribute 'nothing'"),
        ("{% for m in messages %}", "Unexpected end of template"),
        (
            "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}"
            "{% else %}{{ raise_exception('no user') }}{% endif %}",
            "no user",
        ),
    ],
)
def test_a_template_that_takes_nothing_is_named(template: str, message: str):
    tokenizer = ClaraTokenizer(toy_tokenizer(template), 2, "base")
    with pytest.raises(ClaraError, match=f"of tokenizer base failed: .*{message}"):
        tokenizer.chat("be brief", "Who?")


@pytest.mark.parametrize("left_out", ["user", "assistant"])
def test_a_template_that_leaves_a_text_out_is_refused(left_out: str):
    template = f"{{% for m in messages if m.role != '{left_out}' %}}{{{{ m.content }}}}"
    tokenizer = ClaraTokenizer(toy_tokenizer(template + "{% endfor %}"), 2, "base")
    with pytest.raises(ClaraError, match="of tokenizer base leaves out what the user"):
        tokenizer.chat("be brief", "Who?")


def test_prompts_do_not_change_with_the_day():
    written = DATED.replace("strftime_now is defined", "true")
    for form, day in (("%d %b %Y", "26 Jul 2024"), ("/%Y-%m-%d", "/2024-07-26")):
        written = written.replace(f"strftime_now('{form}')", f"'{day}'")
    assert "strftime_now" not in written
    chats = [
        ClaraTokenizer(toy_tokenizer(template), 2).chat("", "Who?")
        for template in (DATED, written)
    ]
    assert chats[0] == chats[1] == "\n26 Jul 2024/2024-07-26 Who?"
    spelled = "%A %a %B %d %m %y %H:%M:%S"
    template = f"{{{{ strftime_now('{spelled}') }}}}"
    template += "{% for m in messages %}{{ m.content }}{% endfor %}"
    day = datetime.date(2024, 7, 26).strftime(spelled)
    chat = ClaraTokenizer(toy_tokenizer(template), 2).chat("", "Who?")
    assert chat == f"{day}Who?"
