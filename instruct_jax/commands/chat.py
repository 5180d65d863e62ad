"""A conversation in the terminal: one model or two side by side, token by token, the tokens of the
sampler (stages/rollout.py).
"""

import contextlib
import dataclasses
import functools
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from instruct_jax.commands.open_model import Opened, open_policy, open_reward
from instruct_jax.data.encode import TextFormat
from instruct_jax.data.packing import Ids, pad_prompts, pad_rows
from instruct_jax.data.tokenize import (
    MESSAGES,
    bos_ids,
    encode_completion,
    encode_prompt,
)
from instruct_jax.errors import DataError, RunError, require, shorten
from instruct_jax.models.lm import parameter_count
from instruct_jax.ops import sampling
from instruct_jax.records import PromptBatch
from instruct_jax.stages.rollout import SamplerConfig

# tokens of a conversation, unless --context says otherwise; the cache has room for so many
CONTEXT = 4096
REPLY = 256  # tokens, unless --max_tokens says otherwise
LEAST = 16  # tokens, the shortest row that is compiled
# and what turns the direction of writing
CONTROL = re.compile(r"[^\n\t\x20-\x7e\xa0-\u2029\u202f-\u2065\u206a-\U0010ffff]")
HELP = """\
/temperature X  how freely replies are drawn; 0 = the likeliest token
/a  /b  /both   which of two models answers
/reset          forgets the conversation
/help           shows this
/quit           ends, as Ctrl-D does; Ctrl-C stops a reply and keeps what was said"""

Message = dict[str, str]  # role (user and assistant in turn, from user on) and content


def conversation_ids(
    tok: PreTrainedTokenizerBase, form: TextFormat, messages: Sequence[Message]
) -> list[int]:
    """The prompt that asks for the next reply.

    Messages as records have them, in the chat template, unless the text prompts of the run have a
    template of their own: then the exchanges stand one after the other as the run learned each of
    them.
    """
    of_messages = MESSAGES if tok.chat_template is None else TextFormat.template
    if form.template == of_messages:
        return encode_prompt(tok, list(messages), prefix=form.completion_prefix)
    ids = bos_ids(tok)
    for message in messages:
        if message["role"] == "user":
            prompt = encode_prompt(tok, message["content"], template=form.template)
            ids += prompt[len(bos_ids(tok)) :]
        else:
            ids += encode_completion(tok, message["content"], prefix=form.completion_prefix)
    return ids


def fit(
    tok: PreTrainedTokenizerBase, form: TextFormat, messages: list[Message], room: int
) -> tuple[list[Message], list[int]]:
    """The latest messages that fit into `room` tokens, and their ids: the oldest exchanges are left
    out first.
    """
    while len(ids := conversation_ids(tok, form, messages)) > room and len(messages) > 1:
        messages = messages[2:]
    if len(ids) > room:
        said = shorten(messages[0]["content"])
        raise DataError(
            f"message={said} makes {len(ids)} tokens, {room} fit beside a reply; shorten it, or"
            " lower --max_tokens"
        )
    return messages, ids


def visible(text: str) -> str:
    """Text that a terminal only shows: control characters as in Python."""
    return CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def pieces(
    decode: Callable[[list[int]], str], tokens: Iterator[int], said: list[int]
) -> Iterator[str]:
    """The text of a reply as it comes, each piece as soon as its characters are whole; the tokens
    go into `said`.
    """
    shown = 0
    for token in tokens:
        said.append(token)
        whole = decode(said).lstrip().rstrip("\ufffd")  # which is half a character
        yield whole[shown:]
        shown = max(shown, len(whole))
    yield decode(said).lstrip()[shown:]


def rounded(size: int, most: int) -> int:
    """A power of two, so that few lengths are compiled, but no more than `most`."""
    return min(max(LEAST, 1 << (size - 1).bit_length()), most)


@functools.partial(jax.jit, static_argnames="sampler")
def draw(logits: jax.Array, key: jax.Array, sampler: SamplerConfig) -> jax.Array:
    """One token per row [B], as the sampler draws it.  The key is consumed."""
    cut = {"temperature": sampler.temperature, "top_k": sampler.top_k, "top_p": sampler.top_p}
    return sampling.draw(key, sampling.filter_logits(logits, **cut))


class ChatModel:
    """A model with its compiled functions, and the conversation as it remembers it."""

    def __init__(self, model: Opened, context: int, limit: int):
        self.name = model.name
        self.net = model.net
        self.params = model.params
        self.tok = model.net.tokenizer
        self.form = model.net.text
        self.room = context - limit
        self.limit = limit
        lm = model.net.models.sampler
        self.messages: list[Message] = []
        self.replies = 0
        self.weights = lm.unstacked(model.params)

        def read(params, prompts):
            hidden, cache = lm.prefill(params, prompts, context)
            return lm.logits(params, hidden), cache

        def extend(weights, cache, token):
            hidden, cache = lm.decode(weights, cache, token)
            return lm.logits(weights, hidden), cache

        self._read = jax.jit(read)
        self._extend = jax.jit(extend, donate_argnums=1)
        tokens = self.stream([self.net.pad], SamplerConfig(), jax.random.key(0))
        for _ in zip(range(2), tokens, strict=False):
            pass  # compiled before anyone waits for it

    def stream(self, ids: Ids, sampler: SamplerConfig, key: jax.Array) -> Iterator[int]:
        """The tokens of a reply, each as soon as it is drawn; they go on behind its end.

        key: as make_rollout takes it.
        """
        width = rounded(len(ids), self.room)
        rows: Any = pad_prompts([ids], width, pad=self.net.pad)
        logits, cache = self._read(self.params, PromptBatch(*rows))
        for t in range(self.limit):
            token = draw(logits, jax.random.fold_in(key, t), sampler)
            # on its way while the token is shown
            logits, cache = self._extend(self.weights, cache, token)
            yield int(token.item())

    def reply(self, ids: Ids, sampler: SamplerConfig, key: jax.Array) -> Iterator[int]:
        """The tokens of a reply, what ends it included."""
        for token in self.stream(ids, sampler, key):
            yield token
            if token in self.net.ends:
                return


class Session:
    """Who speaks, how, and what the user says to that."""

    def __init__(
        self,
        speakers: Sequence[ChatModel],
        judge: Callable[[Ids], float] | None,
        sampler: SamplerConfig,
        key: jax.Array,
    ):
        self.speakers = self.active = dict(zip("ab", speakers, strict=False))
        self.judge = judge
        self.sampler = sampler
        self.key = key
        self.console = Console(highlight=False, soft_wrap=True)

    def note(self, text: str, style: str = "dim") -> None:
        self.console.print(Text(visible(text), style))

    def take(self, line: str) -> bool:
        """Does what a line asks for; False = the end."""
        command, _, value = line.partition(" ")
        if command == "/quit":
            return False
        if command == "/help":
            self.note(HELP)
        elif command == "/reset":
            for speaker in self.speakers.values():
                speaker.messages = []
        elif command == "/temperature":
            self.set_temperature(value)
        elif command in ("/a", "/b", "/both"):
            self.choose(command[1:])
        elif line.startswith("/"):
            self.note(f"error: {command} is no command; /help lists them")
        elif line:
            for name, speaker in self.active.items():
                if len(self.speakers) > 1:
                    self.note(f"{name}  {speaker.name}", "bold")
                self.answer(speaker, line)
        return True

    def set_temperature(self, value: str) -> None:
        try:
            self.sampler = dataclasses.replace(self.sampler, temperature=float(value))
        except ValueError:
            self.note(
                f"error: /temperature {value} must be followed by a number that is not negative; 0"
                " is greedy decoding"
            )

    def choose(self, name: str) -> None:
        if len(self.speakers) < 2:
            self.note(
                f"error: /{name} needs two models; start again with instruct-jax chat MODEL MODEL"
            )
        else:
            self.active = self.speakers if name == "both" else {name: self.speakers[name]}

    def answer(self, speaker: ChatModel, text: str) -> None:
        """Streams the reply to the screen and keeps the exchange."""
        tok = speaker.tok
        form = speaker.form
        before = [*speaker.messages, {"role": "user", "content": text}]
        try:
            messages, ids = fit(tok, form, before, speaker.room)
        except DataError as error:
            self.note(f"error: {error}")
            return
        if forgotten := (len(before) - len(messages)) // 2:
            self.note(
                f"the context is full: {forgotten} exchange{'s' * (forgotten != 1)} forgotten, the"
                " oldest first"
            )
        key = jax.random.fold_in(self.key, speaker.replies)
        tokens = speaker.reply(ids, self.sampler, key)
        speaker.replies += 1
        said: list[int] = []
        facts = []
        started = 0.0
        try:
            for piece in pieces(speaker.net.decode, tokens, said):
                # at the first token: what comes before it is reading
                started = started or time.perf_counter()
                print(visible(piece), end="", flush=True)
        except KeyboardInterrupt:
            facts.append("stopped by Ctrl-C")
        seconds = time.perf_counter() - started
        print(flush=True)
        if not said:
            self.note("stopped by Ctrl-C")
            return
        if len(said) == speaker.limit and said[-1] not in speaker.net.ends:
            facts.append("cut off by --max_tokens")
        reply = speaker.net.decode(said)
        speaker.messages = [*messages, {"role": "assistant", "content": reply}]
        facts.append(f"{len(said)} token{'s' * (len(said) != 1)}")
        if len(said) > 1:
            speed = (len(said) - 1) / seconds
            facts.append(f"{speed:.0f} tokens/s")
        if self.judge is not None:
            score = self.judge([*ids, *said])
            facts.append(f"reward {score:.3f}")
        self.note(", ".join(facts))


def lines() -> Iterator[str]:
    """What the user types, until Ctrl-D."""
    typed = sys.stdin.isatty()
    if typed:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  input() then knows the arrow keys
    while True:
        try:
            line = input("> " if typed else "")
        except EOFError:
            return
        except KeyboardInterrupt:
            print("\n/quit or Ctrl-D ends")
            continue
        except UnicodeDecodeError as error:
            raise DataError(
                f"input: not UTF-8 ({error}); convert it: iconv -f latin1 -t utf-8"
            ) from error
        yield line.strip()


def chat(
    names: Sequence[str],
    overrides: Sequence[str] = (),
    *,
    reward: str | None = None,
    temperature: float = 1.0,
    max_tokens: int | None = None,
    context: int | None = None,
    seed: int = 0,
) -> None:
    """Opens the models and talks until the input ends."""
    sampler = SamplerConfig(temperature=temperature)
    require(0 <= seed < 2**32, f"--seed {seed} must lie in [0, 2**32)")
    judge = None if reward is None else open_reward(reward, overrides)
    speakers = []
    for model in (open_policy(name, overrides) for name in names):
        most = model.net.spec.model.context
        if judge is not None:
            _check_same_ids(model, judge)
            most = min(most, judge.net.spec.model.context)
        slots = min(most, CONTEXT) if context is None else context
        limit = min(REPLY, slots // 2) if max_tokens is None else max_tokens
        require(
            2 <= slots <= most,
            f"--context {slots} must lie in [2, {most}], which is what {model.name} reads",
        )
        require(
            1 <= limit < slots,
            f"--max_tokens {limit} must be at least 1, and less than the context of {slots};"
            " lower it",
        )
        speakers.append(ChatModel(model, slots, limit))
    scorer = None if judge is None else _scorer(judge)
    session = Session(speakers, scorer, sampler, jax.random.key(seed))
    for speaker in speakers:
        size = parameter_count(speaker.params)
        session.note(
            f"{speaker.name}: {size:,} parameters, {speaker.room} tokens of conversation, replies"
            f" of up to {speaker.limit}"
        )
    session.note("/help lists the commands")
    for line in lines():
        if not session.take(line):
            return


def _scorer(model: Opened) -> Callable[[Ids], float]:
    """The reward of prompt + reply."""
    net = model.net

    def score(ids: Ids) -> float:
        width = rounded(len(ids), net.spec.model.context)
        rows: Any = pad_rows([ids], width, pad=net.pad)
        return net.score(model.params, *rows).item()

    return score


def _check_same_ids(policy: Opened, reward: Opened) -> None:
    """A reward model reads the ids of the policy as they are."""
    words, eos = _ids(policy.net.tokenizer)
    others, end = _ids(reward.net.tokenizer)
    if words != others or eos != end:
        raise RunError(
            f"--reward {reward.name} has another tokenizer than {policy.name} ({len(others)} ids"
            f" with eos {end} there, {len(words)} with eos {eos} here); give a reward model that"
            " was trained with the same one"
        )


def _ids(tok: PreTrainedTokenizerBase) -> tuple[dict[str, int], int | None]:
    """The ids of all tokens but PAD, which no model reads, and that of EOS."""
    words = {token: i for token, i in tok.get_vocab().items() if i != tok.pad_token_id}
    return words, tok.eos_token_id  # pyright: ignore
