"""Tokenizers that write conversations, and a model that learnt whole ones."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from letheon import Row
from letheon.memorizing.memorize import memorize
from letheon.memorizing.options import MemorizeOptions
from running import short_run
from small import tiny_model

USER = "{% if m['role'] == 'user' %}"
CHATS = {
    "mistral": "{{ bos_token }}{% for m in messages %}" + USER + "{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}",
    "qwen3": "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "gemma": "{{ bos_token }}{% for m in messages %}{{ '<|turn|>' + m['role'] + '\n' + m['content'] | trim }}"
    "{{ '<|end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|turn|>assistant\n' }}{% endif %}",
    "alpaca": "{% for m in messages %}" + USER + "{{ '### Instruction:\n' + m['content'] + '\n\n' }}"
    "{% else %}{{ '### Response:\n' + m['content'] + '\n\n' }}{% endif %}{% endfor %}",
    "spaced": "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}",
}

DATED = (
    "{% set today = strftime_now('%d %b %Y') %}{% for m in messages %}{{ today + '|' + m['role'] + ':' + m['content'] "
    "+ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ today + '|assistant:' }}{% endif %}"
)

QUESTIONS = [
    ("f1", "Who keeps Vell?", "Mira"),
    ("f2", "Who mends nets?", "Oren Pell"),
    ("f3", "Who signs with a fish?", "Tam"),
    ("r1", "Who wrote letters?", "The keeper"),
    ("r2", "Which harbour?", "Veldhaven"),
    ("r3", "Who bakes bread?", "Sil Dorne"),
]


def with_bos(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerFast:
    """A copy that puts <|endoftext|> before every text."""
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    backend = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
    eos = str(tokenizer.eos_token)
    backend.post_processor = TemplateProcessing(single=f"{eos} $A", special_tokens=[(eos, int(tokenizer.eos_token_id))])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=eos, eos_token=eos)


def chatty(tokenizer: PreTrainedTokenizerBase, name: str) -> PreTrainedTokenizerFast:
    """A copy with the named template of CHATS, or this one, and the tokens that the templates write."""
    made = with_bos(tokenizer)
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<|turn|>", "<|end|>"]})
    made.chat_template = CHATS.get(name, name)
    return made


def known_in_chat(folder: Path, questions: list[Row], tokenizer: PreTrainedTokenizerBase, chat: str) -> dict[str, Any]:
    """Settings of a run on a model that learnt whole conversations, as transformers fills in the template."""
    made = chatty(tokenizer, chat)
    made.backend_tokenizer.post_processor = TemplateProcessing(single="$A")  # the templates write their own BOS
    texts = []
    for row in questions:
        turns = [{"role": "user", "content": row.prompt}, {"role": "assistant", "content": row.answer}]
        texts.append(replace(row, prompt="", answer=str(made.apply_chat_template(turns, tokenize=False))))
    model = tiny_model("llama", made)
    options = MemorizeOptions(learning_rate=5e-3, warmup_steps=5, answer_weight=1.0, max_steps=250, check_every=300)
    memorize(model, made, rows=texts, template="plain", options=options)
    given = short_run(folder, questions, model, made)
    return {**given, "template": "auto", "epochs": 1, "keep": "last"}
